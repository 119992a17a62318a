"""The models that a launcher is given, looked at by their folders' headers before OpenRLHF loads one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from ..cli.errors import UserError
from ..extensions import extension
from ..extensions.inject import first_process
from ..files.sources import looks_local
from ..models.folder import check_kind, load_tokenizer, read_config

Role = Literal["policy", "reference", "start", "reward"]

#: launcher -> flag -> what the model is: a policy is trained and saved, a "start" gets a new value head
ROLES: dict[str, dict[str, Role]] = {
    "train_sft": {"model": "policy"},
    "train_dpo": {"model": "policy", "ref": "reference"},
    "train_rm": {"model": "start"},
    "train_ppo_ray": {"actor": "policy", "critic": "start", "reward": "reward"},
    "serve_rm": {"reward": "reward"},
}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
#: key in config.json -> what such a model is, and the extensions that read it
_OURS = {
    "dead_end": ("a value function", {"dead-end": "train_sft"}),
    "group_reward": ("a reward model of groups", {"group-rm": "train_rm", "group-reward": "train_ppo_ray"}),
}


def check_models(launcher: str, args: SimpleNamespace) -> None:
    """Every local model can be loaded, and has whole weights; hub names are seen when they are loaded.
    Raises UserError if one does not; its flag is named."""
    if not first_process():
        return
    for group, role in ROLES.get(launcher, {}).items():
        value = getattr(getattr(args, group, None), "model_name_or_path", None)
        for path in str(value).split(",") if value else ():
            if looks_local(path):
                q_model = launcher == "train_sft" and hasattr(args, "deadend")
                check_model(f"--{group}.model_name_or_path", path, role, args, q_model)


def check_model(flag: str, path: str, role: Role, args: SimpleNamespace, q_model: bool = False) -> None:
    """A local model folder has a config, whole weights and, where it is read, a tokenizer.

    With ``q_model``, it becomes a value function, or is one.

    Raises:
        UserError: it does not; the folder and what is missing are named.
    """
    folder = Path(path).expanduser()
    check_kind(folder, f"{flag} {path}")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise UserError(f"{flag} {path} has no weights (*.safetensors); was its training or its copy cut short?")
    config = read_config(folder)
    for key, (what, readers) in _OURS.items():
        if key in config and not _switched_on(args) & set(readers):
            names = " or ".join(f"{name} ({launcher})" for name, launcher in readers.items())
            raise UserError(f"{flag} {path} is {what}; add --ext.use {names}, or give another model")
    if not any(folder.glob("*.safetensors")):
        return  # in a format whose headers are not looked at
    from ..models import weights

    if q_model:
        _check_q(folder, flag, "dead_end" in config)
    elif role in ("policy", "reference"):
        weights.check_causal(folder, flag, saved=role == "policy")
    else:
        head = getattr(getattr(args, "ds", None), "value_head_prefix", "score")
        fresh = role == "start" and "group_reward" not in config
        weights.check_reward(folder, flag, head, fresh)
    if role in ("policy", "start") and "vision_config" not in config:
        load_tokenizer(folder, flag)


def _switched_on(args: SimpleNamespace) -> set[str]:
    return {extension(spec).name for spec in getattr(getattr(args, "ext", None), "use", ())}


def _check_q(folder: Path, flag: str, saved: bool) -> None:
    from ..deadend.model import HEADS, q_model_class
    from ..models.folder import model_config
    from ..models.weights import check_weights

    config = model_config(folder, flag)
    check_weights(q_model_class(config), config, folder, flag, new=() if saved else HEADS)
