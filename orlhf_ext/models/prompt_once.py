"""A model runs over rows that begin alike, and computes each common beginning once.

Rows go in and rows come out: while `PromptOnce` is at work, a call of the model with ``(rows, L)`` ids runs its
backbone on one `Stream` of tokens, and whatever reads the hidden states (output layer, value head, a trainer) sees
``(rows, L, d)`` as always, with gradients where they are asked for. Of the first batch two rows are
computed both ways; a model that gives other hidden states than dtypes explain goes on with separate rows, and one line
says so.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..cli.errors import UserError
from .batches import cut_batches, pad_right
from .modules import scored_positions, unwrap, without_actor
from .parts import Part, cut_parts, find_parts
from .stream import PADDED, UNPADDED, NotShared, Stream, install

Value = TypeVar("Value")

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""What hidden states may differ by, ``|shared - separate| / |separate|`` of a row: rounding gives 1e-6 and 0.02, a
mistake in masks or positions 0.2 and more."""

_PAYS = 1.1  # times as many tokens, padding included, for separate rows; below, gathering takes what sharing saves


@contextlib.contextmanager
def computed_once(model: Any, stream: Stream) -> Iterator[None]:
    """Calls of the model with the stream's rows run on the stream; they take ``(rows, L)`` and give ``(rows, L, ...)``.

    Gradient checkpointing may run layers again after the end: the stream is in what they were given.

    Raises:
        NotShared: from the call; the model must then be called without.
    """
    install()
    inner = unwrap(model)
    backbone: Any = inner.get_decoder()
    config = backbone.config.get_text_config()
    _check_layers(config)
    dtype = next(backbone.parameters()).dtype
    stream.seen.clear()

    def before(_: Any, args: tuple, words: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        ids = args[0] if args else words["input_ids"]
        assert ids.shape == stream.place.shape, "the stream is of other rows"
        own = {"input_ids": ids.flatten()[stream.source][None], "position_ids": stream.positions}
        return (), {**words, **own, "attention_mask": stream.carrier(dtype), "use_cache": False}

    def after(_: Any, __: tuple, ___: dict[str, Any], output: Any) -> Any:
        if len(stream.seen) != config.num_hidden_layers:
            raise NotShared(f"{config.num_hidden_layers - len(stream.seen)} of its layers have attention of their own")
        output["last_hidden_state"] = output["last_hidden_state"][0][stream.place]
        if output.get("router_logits"):  # so that the load balancing loss counts what it always counts
            output["router_logits"] = tuple(x[stream.place.flatten()] for x in output["router_logits"])
        return output

    hooks = [
        backbone.register_forward_pre_hook(before, with_kwargs=True),
        backbone.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_layers(config: Any) -> None:
    if config._attn_implementation not in (*PADDED, *UNPADDED):
        raise NotShared(f"its attention is {config._attn_implementation}")
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        raise NotShared(f"it has layers of {', '.join(sorted(others))}")


def window_of(config: Any) -> int | None:
    """How many tokens a model's sliding attention sees; None where each sees all before it."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    types = getattr(config, "layer_types", None)
    return None if types and "sliding_attention" not in types else window


class PromptOnce:
    """Computes what rows begin with once, for one model, where that pays and holds.

    Args:
        model: what is called: a causal model of transformers, a reward model, or what wraps one.
        mode: ``auto``; ``on``: what does not hold is refused; ``off``.
        say: prints a line; None: only what does not hold is said.
        agree: makes the largest over all ranks of a number, where several train.
        trained: the model is trained, or compared with one that is: before the first step the two agree to the bit.
    """

    def __init__(
        self,
        model: Any,
        mode: str = "auto",
        say: Callable[[str], Any] | None = None,
        agree: Callable[[float], float] = float,
        trained: bool = False,
    ) -> None:
        self._trained = trained
        self.model, self.mode, self._say, self._agree = model, mode, say, agree
        self._told = False
        self._holds: bool | None = None if mode != "off" else False
        self._window = window_of(unwrap(model).config.get_text_config()) if mode != "off" else None

    @contextlib.contextmanager
    def over(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        """In the block, calls of the model with these rows compute beginnings once. Where several ranks train, each
        must come here.

        Args:
            ids, mask: ``(rows, L)``, padded on any side.

        Raises:
            UserError: the mode is ``on``, and the model gives other hidden states so.
        """
        if self._holds is False:
            yield
            return
        rows = [row[seen].tolist() for row, seen in zip(ids, mask.bool(), strict=True)]
        parts = find_parts(rows)
        self._decide(rows, parts)
        with self._at_work(parts, range(len(rows)), mask, rows) if self._holds else contextlib.nullcontext():
            yield

    def batches(self, rows: Sequence[Sequence[int]], budget: int) -> list[list[Part]]:
        """Batches of token rows with at most ``budget`` tokens to compute (a longer row is a batch of its own), longest
        rows first. Where several ranks train, each must come here, with the same rows."""
        lengths = [len(row) for row in rows]
        parts = [] if self._holds is False else find_parts(rows)
        if any(part.length for part in parts):
            self._decide(rows, parts)
            if self._holds:
                return cut_parts(parts, lengths, budget)
        return [[Part([row], 0) for row in batch] for batch in cut_batches(lengths, budget)]

    def each(
        self,
        rows: Sequence[Sequence[int]],
        budget: int,
        forward: Callable[[Tensor, Tensor, list[int]], Iterable[Value]],
        pad: Callable[..., tuple[Tensor, Tensor]] = pad_right,
        pad_id: int = 0,
    ) -> Iterator[tuple[int, Value]]:
        """What a function makes of each token row, in batches, without gradients.

        Args:
            rows: token ids.
            budget: as in `batches`.
            forward: calls the model on ids and mask ``(batch, L)``, and gives a value for each row; its third argument
                are the places of these in ``rows``.
            pad: `pad_right` or `pad_left`.
            pad_id: any id of the vocabulary.

        Yields:
            the place of a row, and its value.
        """
        device = next(unwrap(self.model).parameters()).device
        for parts in self.batches(rows, budget):
            members = [row for part in parts for row in part.rows]
            ids, mask = pad([rows[row] for row in members], pad_id, device)
            with torch.no_grad(), self._at_work(parts, members, mask, rows):
                values = forward(ids, mask, members)
            yield from zip(members, values, strict=True)

    def map(self, rows: Sequence[Sequence[int]], *args: Any, **words: Any) -> list[Any]:
        """The values of `each`, in the rows' order."""
        found = dict(self.each(rows, *args, **words))
        return [found[row] for row in range(len(rows))]

    def _at_work(
        self, parts: Sequence[Part], members: Sequence[int], mask: Tensor, rows: Sequence[Sequence[int]]
    ) -> contextlib.AbstractContextManager[None]:
        """The context in which the model sees parts of rows as a stream, if that pays; ``members`` are the rows of the
        mask."""
        if not self._pays(parts, rows, mask.shape[1]):
            return contextlib.nullcontext()
        here = {row: number for number, row in enumerate(members)}
        own = [Part([here[row] for row in part.rows], part.length) for part in parts]
        return computed_once(self.model, Stream(own, mask, self._trained))

    def _pays(self, parts: Sequence[Part], rows: Sequence[Sequence[int]], width: int) -> bool:
        """Whether a batch has fewer tokens as a stream, and none beyond a sliding window."""
        if not any(part.length for part in parts):
            return False
        if self._window is not None and width > self._window:
            self._tell_once(f"rows of more than the {self._window} tokens of its sliding window")
            return False
        lengths = {row: len(rows[row]) for part in parts for row in part.rows}
        return len(lengths) * width >= _PAYS * sum(part.tokens(lengths) for part in parts)

    def _tell_once(self, what: str) -> None:
        """Say what is computed anew for each completion, and why."""
        line = f"{type(unwrap(self.model)).__name__}: prompts are computed anew for each completion: {what}"
        if self.mode == "on":
            raise UserError(f"{line}; leave sharing to auto")
        if not self._told:
            self._told = True
            (self._say or print)(line)

    def _decide(self, rows: Sequence[Sequence[int]], parts: Sequence[Part]) -> None:
        """Compute two rows both ways, at the first call; every rank decides alike."""
        if self._holds is not None:
            return
        part = next((part for part in parts if part.length), Part([parts[0].rows[0]] * 2, self._window or sys.maxsize))
        both = [rows[row][: self._window] for row in part.rows[:2]]
        length = min(part.length, *(len(row) - 1 for row in both))
        backbone = unwrap(self.model).get_decoder()
        example = next(backbone.parameters())
        ids, mask = pad_right(both, both[0][0], example.device)
        why = ""
        try:
            found = self._difference(ids, mask, Stream([Part([0, 1], length)], mask))
        except NotShared as error:
            found, why = math.inf, str(error)
        worst = self._agree(found)
        self._holds = worst <= TOLERANCE[example.dtype]
        why = why or f"hidden states differ by {worst:.2g}"
        if not self._holds:
            self._tell_once(why)
        elif self._say:
            self._say(f"{type(unwrap(self.model)).__name__}: prompts are computed once for all completions ({why})")

    @torch.no_grad()
    def _difference(self, ids: Tensor, mask: Tensor, stream: Stream) -> float:
        """How far hidden states with and without sharing are apart: the larger of two rows'
        ``|shared - separate| / |separate|`` over the row's own tokens. Raises NotShared if it cannot share."""
        model = unwrap(self.model)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        first = torch.zeros_like(mask, dtype=torch.bool)
        first[:, 0] = True  # nobody asks for the logits
        called = without_actor(self.model)

        def hidden() -> Tensor:
            kept: list[Any] = []
            hook = model.get_decoder().register_forward_hook(lambda *words: kept.append(words[-1]))
            try:
                with scored_positions(head, first) if head is not None else contextlib.nullcontext():
                    called(ids, attention_mask=mask)
            finally:
                hook.remove()
            if not kept or "last_hidden_state" not in kept[0]:
                raise NotShared(f"its {type(model.get_decoder()).__name__} gives no hidden states")
            return kept[0]["last_hidden_state"].float()

        training = model.training
        model.eval()
        try:
            separate = hidden()
            try:
                with computed_once(self.model, stream):
                    shared = hidden()
            except NotShared:
                raise
            except Exception as error:  # whatever a model does with what is no mask
                raise NotShared(f"{type(error).__name__}: {error}") from error
        finally:
            model.train(training)
        own = (stream.place >= stream.begin)[..., None] * mask[..., None]
        apart, size = ((x * own).flatten(1).norm(dim=1) for x in (shared - separate, separate))
        return float((apart / size).max())


_of_models: WeakKeyDictionary[nn.Module, PromptOnce] = WeakKeyDictionary()


def for_model(model: Any) -> PromptOnce:
    """The `PromptOnce` of a model that is read, made at the first call."""
    if model not in _of_models:
        _of_models[model] = PromptOnce(model)
    return _of_models[model]
