"""A DeepSpeed checkpoint into a Hugging Face folder: ``orlhf-ext export CHECKPOINT --model DIR --out DIR``.

CHECKPOINT is what ``--ckpt.path`` named in training, its ``_actor`` folder (``train_ppo_ray``), or one ``global_stepN``
in it. The weights are DeepSpeed's float32 ones, rounded to ``--dtype``: in bfloat16 they are those that the run itself
would have saved at that step. Config and tokenizer are those of ``--model``, the model that training started from.

DeepSpeed's files are pickles, and reading a pickle can run whatever its writer put into it: export checkpoints of your
own runs only. What comes out is safetensors.

``--push_to_hub NAME`` also uploads the folder, to a private repository unless ``--public`` is given. The token is that
of ``hf auth login``, or HF_TOKEN in the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.errors import UserError, command
from ..cli.flags import DTYPES, make_parser
from ..files.outputs import check_folder
from ..files.records import atomic_folder
from ..models.folder import find_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_ACTOR = "_actor"  # where train_ppo_ray keeps the policy, beside the critic


def _is_tag(folder: Path) -> bool:
    return any(folder.glob("*_model_states.pt"))


def _step(tag: str) -> tuple[int, str]:
    number = re.search(r"\d+$", tag)
    return int(number[0]) if number else -1, tag


def find_checkpoint(name: str, tag: str | None = None) -> tuple[Path, str]:
    """The folder and the tag of a checkpoint.

    Args:
        name: ``--ckpt.path``, the ``_actor`` folder in it, or a tag's folder.
        tag: which one of several; the latest where it is None.

    Raises:
        UserError: there is none, or not this one; those that there are are named.
    """
    folder = Path(name).expanduser()
    if _is_tag(folder):
        if tag:
            raise UserError(f"--tag {tag} chooses among checkpoints, but {folder} is one; leave --tag out")
        return folder.resolve().parent, folder.resolve().name
    if (folder / _ACTOR).is_dir():
        folder = folder / _ACTOR
    tags = [path.name for path in folder.iterdir() if _is_tag(path)] if folder.is_dir() else []
    if not tags:
        raise UserError(
            f"{folder} has no DeepSpeed checkpoint (no folder such as global_step10 with *_model_states.pt); give "
            "what --ckpt.path named in a training with --ckpt.save_steps"
        )
    there = ", ".join(sorted(tags, key=_step))
    if tag is None:
        latest = folder / "latest"
        tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else None
        if tag not in tags:
            raise UserError(f"{folder} does not say which checkpoint is the latest; choose one with --tag: {there}")
    if tag not in tags:
        raise UserError(f"{folder} has no checkpoint --tag {tag}; there are: {there}")
    return folder, tag


def read_weights(folder: Path, tag: str) -> dict[str, Tensor]:
    """The float32 weights of a ZeRO checkpoint, put together from the files of all ranks; tied ones under each name.
    Raises UserError if a file is missing, cut short, or not of a ZeRO run."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{folder / tag} is not a whole ZeRO checkpoint ({reason}); was its saving cut short? "
            "Choose another with --tag"
        ) from error
    return weights


def fill(model: PreTrainedModel, weights: Mapping[str, Tensor], where: str, start: str) -> None:
    """Put weights into a model, all of them and nothing else.

    Args:
        model: of any type of number; what is put in is rounded to it.
        weights: by the model's names. One that is tied to another (output to input embeddings) may be missing.
        where: the checkpoint, for errors.
        start: the model's folder, for errors.

    Raises:
        UserError: a weight is missing, has another shape, or is none of the model's.
    """
    own = model.state_dict()
    present = {own[name].data_ptr() for name in weights if name in own}
    reasons = [f"{name} is none of the model's" for name in weights if name not in own]
    reasons += [
        f"{name} is {tuple(tensor.shape)}, and {tuple(own[name].shape)} in the model"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    reasons += [f"{name} is missing" for name in own if name not in weights and own[name].data_ptr() not in present]
    if any("lora_" in name for name in weights):
        raise UserError(
            f"{where} is of a LoRA training; its adapter is in the model folder that the run saved: merge that one"
        )
    if reasons:
        raise UserError(
            f"{where} does not fit --model {start} ({reasons[0]}); give the model that this policy's training "
            "started from"
        )
    model.load_state_dict(dict(weights), strict=False)


def export(folder: Path, tag: str, start: Path, out: Path, dtype: str = "bfloat16") -> None:
    """Write a checkpoint as a model folder, under a temporary name first.
    Raises UserError as `read_weights` and `fill` do, or if ``start`` is not a causal language model."""
    from .. import backends

    backends.install()
    import torch

    from ..models.weights import check_causal, check_finite, load_whole

    weights = read_weights(folder, tag)
    check_finite(weights.items(), f"{folder / tag}")
    model = load_whole(*check_causal(start, "--model", saved=True), start, "--model", dtype=getattr(torch, dtype))
    fill(model, weights, str(folder / tag), str(start))
    with atomic_folder(out) as temporary:
        model.save_pretrained(temporary)
        load_tokenizer(start).save_pretrained(temporary)


def check_hub(name: str) -> None:
    """What pushing needs, before an hour is spent on the rest.
    Raises UserError if the name is not a repository's, or there is no token."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {name} is not a repository's name; give OWNER/NAME") from error
    if not get_token():
        raise UserError("--push_to_hub needs a token; run `hf auth login`, or put it into the environment as HF_TOKEN")


def push(out: Path, name: str, public: bool) -> str:
    """Upload a folder; returns its address.

    Raises:
        UserError: the repository is there and public though nobody asked for that, or the hub does not take the folder.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    by_hand = f"the folder is in {out}; `hf upload {name} {out}` sends it by hand"
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise UserError(f"--push_to_hub {name} is public already; give --public if that is meant; {by_hand}")
        api.upload_folder(repo_id=name, folder_path=out)
    except UserError:
        raise
    except Exception as error:  # offline, not allowed, cut off: the hub's client has a dozen kinds
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"--push_to_hub {name} failed ({type(error).__name__}: {reason}); {by_hand}") from error
    return str(url)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext export", __doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a folder of DeepSpeed checkpoints; only from a run of your own")
    add("--model", required=True, metavar="DIR", help="the model that training started from: a folder or a hub name")
    add("--out", required=True, metavar="DIR", help="the folder to write, which must not exist yet")
    add("--tag", metavar="NAME", help="the checkpoint, such as global_step10 (default: the latest)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="type of the weights (%(default)s)")
    add("--push_to_hub", metavar="OWNER/NAME", help="also upload the folder")
    add("--public", action="store_true", help="make that repository public")
    args = parser.parse_args(argv)
    if args.public and not args.push_to_hub:
        raise UserError("--public has no effect without --push_to_hub; leave it out")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Look at everything, then load, write, and upload."""
    args = parse(argv)
    out = Path(args.out).expanduser()
    if os.path.lexists(out):
        raise UserError(f"--out {out} exists; remove it, or give another one")
    check_folder(out, new=True)
    folder, tag = find_checkpoint(args.checkpoint, args.tag)
    if args.push_to_hub:
        check_hub(args.push_to_hub)
    start = find_model(args.model)
    export(folder, tag, start, out, args.dtype)
    print(f"{out}: {folder / tag} in {args.dtype}", flush=True)
    if args.push_to_hub:
        print(f"pushed to {push(out, args.push_to_hub, args.public)}", flush=True)


if __name__ == "__main__":
    main()
