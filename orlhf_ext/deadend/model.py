"""The value function Q_D: a language model's trunk, and heads with one value for each token of the vocabulary.

``Q_D(s, a) = -P(the text ends badly | prefix s, next token a)``. The online head is trained together with the trunk;
the target head reads the same trunk, lags behind the online head, and gives the training targets (Cao et al., ICLR
2023; only the heads are two).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cli.errors import UserError
from ..models.folder import find_model, model_config
from ..models.prompt_once import for_model
from ..models.weights import load_whole
from .settings import KEY, QSettings, from_config, read_settings

STD = 0.02  # GPT-2's
HEADS = (r"^q_head\.", r"^target_head\.")


class _Affine(nn.Module):
    """``weight (out, width)`` and ``bias (out,)``, as parameters or, where they are not trained, as float32 buffers."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, width: int, out: int, trained: bool) -> None:
        super().__init__()
        for name, shape in (("weight", (out, width)), ("bias", (out,))):
            if trained:
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:  # ZeRO-3 makes bf16 of all that is made
                self.register_buffer(name, torch.empty(shape).float())


class Inner(_Affine):
    """``W h + b`` in at least float32."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(..., width)`` to ``(..., out)``."""
        return F.linear(exact(hidden), exact(self.weight), exact(self.bias))


class TokenValues(_Affine):
    """The output layer ``W h + b`` with a row for each of V tokens, of which only those asked for are computed."""

    def forward(self, hidden: torch.Tensor, actions: torch.Tensor | None = None) -> torch.Tensor:
        """``(..., width)`` to ``(..., V)``; or, with actions ``(...)``, to ``(...)``."""
        if actions is None:
            return F.linear(hidden, exact(self.weight), exact(self.bias))
        # each row is read once, so that the gradients of a frequent token's many places are not summed in bf16
        tokens, places = actions.unique(return_inverse=True)
        rows, biases = exact(F.embedding(tokens, self.weight)), exact(self.bias[tokens])
        return torch.linalg.vecdot(hidden, F.embedding(places, rows)) + biases[places]


class QHead(nn.Module):
    """``Q(s, .) = W2 relu(W1 h + b1) + b2`` with 2d hidden units, in at least float32.

    Args:
        d: width of the trunk's hidden states.
        vocab_size: V.
        trained: its numbers are parameters; otherwise float32 buffers.
    """

    def __init__(self, d: int, vocab_size: int, trained: bool = True) -> None:
        super().__init__()
        self.inner = Inner(d, 2 * d, trained)
        self.values = TokenValues(2 * d, vocab_size, trained)

    def forward(self, hidden: torch.Tensor, actions: torch.Tensor | None = None) -> torch.Tensor:
        """Values of all tokens, or of one token at each position.

        Args:
            hidden: ``(..., d)``.
            actions: token ids ``(...)``, or None for all V.

        Returns:
            ``(..., V)``, or ``(...)`` with actions; never are all V computed then.
        """
        return self.values(F.relu(self.inner(hidden)), actions)


class TargetHead(QHead):
    """A head whose numbers are buffers: no optimizer sees them, checkpoints have them, and they stay float32 in a bf16
    model, where a step of a tenth of the way would mostly be rounded away."""

    def __init__(self, d: int, vocab_size: int) -> None:
        super().__init__(d, vocab_size, trained=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and moved.dtype.itemsize < 4
            return tensor.to(moved.device, torch.float32) if narrow else moved

        return super()._apply(keep, recurse)


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: bf16 values just above -1 come in steps of 0.0039."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class QModel:
    """What `q_model_class` adds to a family of models; ``base_model`` is the trunk.

    Saved and loaded like any Hugging Face model: config.json (with ``dead_end``) and safetensors, no output layer of a
    language model.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^embed_out\."]  # noqa: RUF012
    _keep_in_fp32_modules_strict = {"target_head"}  # noqa: RUF012
    config: Any
    base_model: Any
    q_head: QHead
    target_head: TargetHead

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, _trunk_class(config)(config))  # type: ignore[attr-defined]
        self.q_head = QHead(config.hidden_size, config.vocab_size)
        self.target_head = TargetHead(config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[attr-defined]

    @property
    def settings(self) -> QSettings:
        """How it was trained."""
        return from_config(getattr(self.config, KEY), "the value function")

    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The trunk's last hidden states ``(B, T, d)`` of ids and mask ``(B, T)``; positions count attended tokens."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.long()
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        trunk = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        outputs = trunk(input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        return outputs.last_hidden_state

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of the actions that a text takes: at position t, those of token t + 1.

        Args:
            input_ids: ``(B, T)``, padded on the right.
            attention_mask: ``(B, T)``, 1 on tokens.

        Returns:
            ``(B, T-1)`` of the online head and ``(B, T-1)`` of the target head, which has no gradient; values on
            padding mean nothing.
        """
        hidden = self.hidden_states(input_ids, attention_mask)[:, :-1]
        actions = input_ids[:, 1:]
        with torch.no_grad():
            target = self.target_head(hidden, actions)
        return self.q_head(hidden, actions), target


def _trunk_class(config: Any) -> Any:
    from transformers import AutoModel

    return AutoModel._model_mapping[type(config)]


def q_model_class(config: Any) -> Any:
    """The `QModel` of the family that a config belongs to, such as Llama or GPT-2.
    Raises UserError if it is not a family of plain language models."""
    try:
        trunk = _trunk_class(config)
        family = trunk.__base__
        family.base_model_prefix, config.hidden_size, config.vocab_size  # noqa: B018
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"a model of type {config.model_type!r} cannot carry a value function; take a causal language model such "
            "as gpt2"
        ) from error
    return type(f"{trunk.__name__.removesuffix('Model')}QModel", (QModel, family), {})


@torch.no_grad()
def initialise(model: Any, generator: torch.Generator | None = None, equal_rows: bool = False) -> None:
    """Online head: weights from N(0, 0.02^2), biases 0; with ``equal_rows`` one row for all tokens. Target head: the
    same numbers."""
    targets = dict(model.target_head.named_buffers())
    with gathered(model.q_head, modifier_rank=0):
        for name, parameter in model.q_head.named_parameters():
            fresh = torch.zeros(targets[name].shape)
            if not name.endswith("bias"):
                fresh.normal_(0.0, STD, generator=generator)
            if name == "values.weight" and equal_rows:
                fresh[:] = fresh[0].clone()
            fresh = fresh.to(parameter.dtype)
            parameter.copy_(fresh)
            targets[name].copy_(fresh)


def gathered(module: nn.Module, modifier_rank: int | None = None) -> contextlib.AbstractContextManager:
    """A context in which a module's parameters are whole where ZeRO-3 has split them among the ranks."""
    if not any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=modifier_rank)


def open_model(
    name_or_path: str,
    dtype: torch.dtype,
    attention: str,
    settings: dict[str, Any] | None = None,
    flag: str = "--model.model_name_or_path",
    equal_rows: bool = False,
) -> Any:
    """Load a `QModel`, or make one of a plain language model.

    Args:
        name_or_path: a folder or a hub name.
        dtype: of trunk and online head; the target head is float32.
        attention: attention implementation.
        settings: those of `QSettings` that the coming training has; None keeps what the model has.
        flag: how the user gave the model, for messages.
        equal_rows: of a new head, see `initialise`.

    Raises:
        UserError: it is not of such a family, its weights are not whole and finite, or ``equal_rows`` is asked of a
            `QModel`.
    """
    folder = Path(name_or_path) if Path(name_or_path).is_dir() else find_model(name_or_path, flag)
    config = model_config(folder, flag)
    saved = getattr(config, KEY, None)
    if saved is not None and equal_rows:
        raise UserError(
            f"{flag} {folder} is a Q_D already, and --deadend.equal_rows is for the beginning of one; leave it out"
        )
    model = load_whole(
        q_model_class(config), config, folder, flag, dtype=dtype, attention=attention,
        new=() if saved is not None else HEADS,
    )  # fmt: skip
    if saved is None:
        initialise(model, torch.Generator().manual_seed(torch.initial_seed()), equal_rows)  # the same on every rank
    new = {**(saved or {}), **(settings or {}), "vocab_size": config.vocab_size}
    setattr(model.config, KEY, from_config(new, str(name_or_path)).as_config())
    return model


def load_q_model(folder: str | Path, dtype: str = "float32", device: str = "cpu", attention: str = "sdpa") -> Any:
    """Load a saved Q_D for evaluation and decoding.

    Args:
        folder: what ``train_sft --ext.use dead-end`` wrote.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of trunk and online head.
        device: where to put it.
        attention: attention implementation.

    Returns:
        a `QModel` in evaluation mode: ``base_model`` is the trunk (with a cache for keys and values), ``q_head`` the
        online head, ``settings`` its `QSettings`.

    Raises:
        UserError: the folder has no Q_D, or its weights are not whole.
    """
    flag = "--q_model"
    read_settings(Path(folder), flag)
    return open_model(str(folder), getattr(torch, dtype), attention, flag=flag).to(device).eval()


def action_values(model: Any, rows: Sequence[Sequence[int]], budget: int) -> Iterator[tuple[int, list[float]]]:
    """The online head's values of the actions that texts take; what texts begin with is computed once.

    Args:
        model: a `QModel` in evaluation mode.
        rows: token ids of texts, two or more each.
        budget: tokens to compute in a batch.

    Yields:
        a text's place in ``rows``, and the values of its second to its last token.
    """

    def forward(ids: torch.Tensor, mask: torch.Tensor, members: list[int]) -> list[list[float]]:
        q, _ = model(ids, mask)
        return [values[: len(rows[i]) - 1] for i, values in zip(members, q.tolist(), strict=True)]

    return for_model(model).each(rows, budget, forward)
