"""A model's weights: all there, of the right shapes and finite. Every model that is read goes through here.

transformers makes weights that a folder lacks at random and leaves out those that it does not know; both end in a
warning. `check_weights` asks its loader what it would do, with the files' headers alone: the names and shapes go
through the same renamings, ties and merges as the weights themselves, on the meta device.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.machine import torch_device
from ..cli.errors import UserError, brief
from .folder import check_generation_config, model_config, read_config, weight_files, weight_shapes

if TYPE_CHECKING:
    from torch import Tensor

#: numeric types as torch names them -> as OpenRLHF does
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}
#: output layers of language models, which a model with another head does not read
LANGUAGE_HEADS = (r"^lm_head\.", r"^embed_out\.")
#: masks and frequencies that older versions of transformers saved with GPT-2, GPT-J, GPT-NeoX, Llama and others
_OLD_BUFFERS = (r"\b(attn|attention)\.(attention\.)?(masked_)?bias$", r"\brotary_emb\.inv_freq$")
#: a pooler that classifiers such as RoBERTa's do not have, in weights that were saved with one
_POOLERS = (r"\bpooler\.dense\.(weight|bias)$",)
_REMEDY = "copy the model again"


def causal_class(config: Any) -> Any:
    """The class of a causal language model, which may read images; None where there is none for this config."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    order = (AutoModelForImageTextToText, AutoModelForCausalLM)
    return _find(config, order if hasattr(config, "vision_config") else order[::-1])


def trunk_class(config: Any) -> Any:
    """The class of a model without its head; None where there is none for this config."""
    from transformers import AutoModel

    return _find(config, (AutoModel,))


def classifier_class(config: Any) -> Any:
    """The class of a sequence classifier; None where there is none for this config."""
    from transformers import AutoModelForSequenceClassification

    return _find(config, (AutoModelForSequenceClassification,))


def _find(config: Any, factories: Sequence[Any]) -> Any:
    for factory in factories:
        if type(config) in factory._model_mapping:
            found = factory._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    return None


def check_weights(
    cls: Any, config: Any, folder: Path, flag: str, new: Iterable[str] = (), spare: Iterable[str] = ()
) -> None:
    """A folder has exactly the weights of a model, by the files' headers.

    Args:
        cls: the model's class.
        config: its config.
        folder: where it is; the weights of a quantised model are not looked at.
        flag: how the user gave the folder, for messages.
        new: regular expressions of names that may be missing: a head that is about to be made.
        spare: regular expressions of names that may be there, and are not read.

    Raises:
        UserError: a weight is missing, not the model's, or of another shape; the first is named.
    """
    if "quantization_config" in read_config(folder):
        return
    import torch

    headers = {name: torch.empty(shape, device="meta") for name, shape in weight_shapes(folder, flag).items()}
    try:
        with quiet():
            _, found = cls.from_pretrained(
                None, config=config, state_dict=headers, dtype=torch.float32, device_map={"": "meta"},
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # of the model's class, or of merging the weights of experts
        raise UserError(
            f"{flag} {folder} has weights that do not fit its config.json ({brief(error)}); {_REMEDY}"
        ) from error
    refuse_misfits(found, folder, flag, new, spare)


def refuse_misfits(
    found: dict[str, Any], folder: Path, flag: str, new: Iterable[str] = (), spare: Iterable[str] = ()
) -> None:
    """Judge what transformers' loader says; the arguments are those of `check_weights`.
    Raises UserError as `check_weights` does."""
    missing = [name for name in found["missing_keys"] if not any(re.search(one, name) for one in new)]
    known = (*spare, *_OLD_BUFFERS, *_POOLERS)
    unknown = [name for name in found["unexpected_keys"] if not any(re.search(one, name) for one in known)]
    if head := next((name for name in missing if any(re.search(one, name) for one in LANGUAGE_HEADS)), None):
        raise UserError(f"{flag} {folder} is not a causal language model: its weights have no {head}; give a policy")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{flag} {folder} lacks {min(missing)}{more} among its weights; {_REMEDY}")
    for name, have, want in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{flag} {folder} has {name} of shape {list(have)}, and its config.json asks for {list(want)}; {_REMEDY}"
        )
    if unknown:
        raise UserError(
            f"{flag} {folder} has {min(unknown)} among its weights, which a model with its config.json does not have; "
            f"{_REMEDY}"
        )


def check_causal(folder: Path, flag: str, saved: bool = False) -> tuple[Any, Any]:
    """A folder has a whole causal language model, by the files' headers.

    Args:
        folder: where it is.
        flag: how the user gave it, for messages.
        saved: it will be saved again.

    Returns:
        its class and its config.

    Raises:
        UserError: as `check_weights`; it is another kind of model; its generation_config.json cannot be used.
    """
    config = model_config(folder, flag)
    check_generation_config(folder, flag, saved)
    if (cls := causal_class(config)) is None:
        raise UserError(
            f"{flag} {folder} is not a causal language model (its model_type is {config.model_type!r}); give a policy"
        )
    check_weights(cls, config, folder, flag)
    return cls, config


def check_reward(folder: Path, flag: str, head: str = "score", fresh: bool = False) -> None:
    """A folder has a whole reward model, with one score or with one for each group, by the files' headers.

    Args:
        folder: where it is.
        flag: how the user gave it, for messages.
        head: the value head's name, where its config.json names none.
        fresh: the value head is about to be made; the folder may have a language model.

    Raises:
        UserError: as `check_weights`.
    """
    config = model_config(folder, flag)
    if (trunk := trunk_class(config)) is None:
        raise UserError(f"{flag} {folder} has the model_type {config.model_type!r}, which cannot carry a value head")
    head = getattr(config, "value_head_prefix", head)
    spare = (rf"^{re.escape(head)}\.", *(LANGUAGE_HEADS if fresh else ()))
    check_weights(trunk, config, folder, flag, spare=spare)
    if not fresh:
        have = {name: shape for name, shape in weight_shapes(folder, flag).items() if name.startswith(f"{head}.")}
        want = {f"{head}.{name}": shape for name, shape in _head_shapes(config, folder, flag).items()}
        scores, expected = (shapes.get(f"{head}.weight", [1])[0] for shapes in (have, want))
        if scores > expected == 1:
            raise UserError(
                f"{flag} {folder} gives {scores} scores for a text, and a reward model gives one; give another one"
            )
        misfits = [name for name in have.keys() & want.keys() if have[name] != want[name]]
        found: dict[str, Any] = {
            "missing_keys": want.keys() - have.keys(),
            "unexpected_keys": have.keys() - want.keys(),
        }
        found["mismatched_keys"] = {(name, tuple(have[name]), tuple(want[name])) for name in misfits}
        refuse_misfits(found, folder, flag)


def _head_shapes(config: Any, folder: Path, flag: str) -> dict[str, list[int]]:
    """Names and shapes of a value head's weights."""
    from .head_settings import KEY, from_config

    if not hasattr(config, KEY):
        return {"weight": [1, config.hidden_size]}
    import torch

    from .group_heads import make_head

    with torch.device("meta"):
        head = make_head(config.hidden_size, from_config(getattr(config, KEY), f"{flag} {folder}"))
    return {name: list(weight.shape) for name, weight in head.state_dict().items()}


def load_whole(
    cls: Any,
    config: Any,
    folder: Path,
    flag: str,
    *,
    dtype: Any,
    attention: str = "sdpa",
    new: Iterable[str] = (),
    spare: Iterable[str] = (),
) -> Any:
    """Load a model whose weights are whole and finite; on the CPU, in evaluation mode.

    Args:
        cls, config, folder, flag, new, spare: as in `check_weights`.
        dtype: of the weights in memory, or its name in torch.
        attention: attention implementation.

    Raises:
        UserError: as `check_weights`; the model cannot be loaded, or has NaN or infinite weights.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():  # which loads in another way; the launcher's files were looked at before
        check_weights(cls, config, folder, flag, new, spare)
    try:
        with quiet():
            model = cls.from_pretrained(folder, config=config, dtype=dtype, attn_implementation=attention)
    except Exception as error:  # an attention that is not installed, memory, a file that changes meanwhile
        raise UserError(f"{flag} {folder} cannot be loaded ({brief(error)})") from error
    loaded = ((name, one) for name, one in model.state_dict().items() if not any(re.search(p, name) for p in new))
    check_finite(loaded, f"{flag} {folder}")
    return model.eval()


def load_reward(
    make: Callable[..., Any], folder: Path, flag: str, dtype: str, attention: str, fresh: bool = False
) -> Any:
    """Load a reward model whose weights are whole and finite; on the GPU if there is one, in evaluation mode.

    Args:
        make: OpenRLHF's ``get_llm_for_sequence_regression``, or its replacement.
        folder, flag, fresh: as in `check_reward`.
        dtype: of the weights in memory, ``bfloat16`` or ``float16``.
        attention: attention implementation.

    Raises:
        UserError: as `check_reward` and `check_finite`.
    """
    check_reward(folder, flag, fresh=fresh)
    with quiet():
        model = make(str(folder), "reward", param_dtype=PRECISIONS[dtype], attn_implementation=attention)
    check_finite(model.state_dict().items(), f"{flag} {folder}")
    return model.to(torch_device()).eval()


def is_finite(weight: Tensor) -> bool:
    """Whether a weight has neither NaN nor infinite numbers. Its extremes show it, much faster than each number."""
    if not weight.is_floating_point() or not weight.numel():
        return True
    least, most = weight.detach().aminmax()
    return bool(least.isfinite() & most.isfinite())


def check_finite(weights: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse weights that are NaN or infinite, by the name of the first."""
    for name, weight in weights:
        if not is_finite(weight):
            what = "NaN" if bool(weight.isnan().any()) else "infinite numbers"
            raise UserError(
                f"{where} has {what} in {name}; take an earlier checkpoint, or a numeric type with more range"
            )


def check_files(folder: Path, flag: str) -> None:
    """`check_finite` of a folder's files, for a model that another library loads.
    Raises UserError as `check_finite` does."""
    from safetensors import safe_open

    for file in weight_files(folder, flag):
        with safe_open(file, framework="pt") as weights:
            check_finite(((name, weights.get_tensor(name)) for name in weights.keys()), f"{flag} {folder}")  # noqa: SIM118


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports of weights, and what OpenRLHF tells of a model: what matters in
    them is refused here."""
    import logging

    from transformers.utils import logging as of_transformers

    before, disabled = of_transformers.get_verbosity(), logging.root.manager.disable
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        of_transformers.set_verbosity(before)
        logging.disable(disabled)
