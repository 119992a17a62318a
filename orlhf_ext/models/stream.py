"""Rows that begin alike as one stream of tokens: each common beginning once, then what is each row's own, unpadded.

Only attention has to know: a beginning attends to itself, and a row's own tokens to its beginning and to themselves.
A `Stream` therefore travels in the place of the attention mask, and the functions of transformers' attention registry
look for one there. On a CPU, and with eager or SDPA attention, the two kinds of attention are two padded calls; with
flash-attention they are two calls with cumulative lengths.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .parts import Part

PADDED, UNPADDED = ("eager", "sdpa"), ("flash_attention_2", "flash_attention_3")
"""Attention functions of transformers that can read a stream, by how they take sequences of several lengths."""

_MOST_SCORES = 2**23  # attention scores of a layer that `_products` may keep for the backward pass


class NotShared(Exception):
    """A model cannot compute what rows have in common once; says why, as the end of a sentence."""


class Carrier(Tensor):
    """A mask with a stream, which slices and detached copies keep (reentrant checkpointing makes these).

    A model that computes with it does not leave attention to transformers' registry: NotShared.
    """

    stream: Stream

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), words: Any = None) -> Any:
        """As usual, and the stream goes on to the result. Raises NotShared if other tensors take part."""
        words = words or {}
        tensors = [x for x in (*args, *words.values()) if isinstance(x, Tensor)]
        if len(tensors) != 1 or tensors[0] is not args[0]:
            raise NotShared(f"it computes with its attention mask ({getattr(function, '__name__', function)})")
        out = super().__torch_function__(function, types, args, words)
        if isinstance(out, Carrier):
            out.stream = tensors[0].stream  # type: ignore[attr-defined]
        return out


class Stream:
    """Where each token of a padded batch is computed.

    Args:
        parts: of all rows of the batch.
        mask: ``(rows, L)``, 1 on tokens, padded on any side.
        trained: computed by the kernels of training, or compared with what is.
    """

    def __init__(self, parts: Sequence[Part], mask: Tensor, trained: bool = False) -> None:
        self.trained = trained
        columns = [row.nonzero()[:, 0] + number * mask.shape[1] for number, row in enumerate(mask.cpu())]
        self.device = mask.device
        self.longest = max(map(len, columns))
        #: tokens of each beginning
        self.shared = [part.length for part in parts if part.length]
        #: the number of each row's beginning, in the stream's order; behind the last one where it has none
        self.beginnings: list[int] = []
        #: tokens of each row's own, and before them
        self.own: list[int] = []
        self.begun: list[int] = []
        source: list[Tensor] = []
        positions: list[Tensor] = []
        place = torch.zeros(mask.numel(), dtype=torch.long)
        at = number = 0

        def put(tokens: Tensor, first: int) -> None:
            nonlocal at
            source.append(tokens)
            positions.append(torch.arange(first, first + len(tokens)))
            at += len(tokens)

        for part in parts:
            if part.length:
                for row in part.rows:
                    place[columns[row][: part.length]] = torch.arange(at, at + part.length)
                put(columns[part.rows[0]][: part.length], 0)
        #: how many tokens of the stream are beginnings
        self.begin = at
        for part in parts:
            for row in part.rows:
                own = columns[row][part.length :]
                place[own] = torch.arange(at, at + len(own))
                put(own, part.length)
                self.own.append(len(own))
                self.begun.append(part.length)
                self.beginnings.append(number if part.length else len(self.shared))
            number += bool(part.length)
        self.tokens = at
        #: ``(tokens,)``: where each token stands in the batch, flat
        self.source = torch.cat(source).to(self.device)
        #: ``(1, tokens)``: its position in its row
        self.positions = torch.cat(positions)[None].to(self.device)
        #: ``(rows, L)``: where each token of the batch stands in the stream; 0 on padding
        self.place = place.view(mask.shape).to(self.device)
        #: attention modules that met the stream
        self.seen: set[int] = set()

    def carrier(self, dtype: torch.dtype) -> Tensor:
        """What stands in the place of the mask: 4D, so that transformers passes it on as it is; without memory; full
        of NaN, so that a model which reads it as a mask cannot give plausible numbers."""
        mask = torch.full((), torch.nan, dtype=dtype, device=self.device).expand(1, 1, self.tokens, self.tokens)
        carrier = mask.as_subclass(Carrier)
        carrier.stream = self
        return carrier

    @cached_property
    def shared_table(self) -> _Table:
        """Of the beginnings."""
        return _Table(self.shared, self.device)

    @cached_property
    def own_table(self) -> _Table:
        """Of the rows' own tokens."""
        return _Table(self.own, self.device)

    def for_rows(self, x: Tensor) -> Tensor:
        """What belongs to each beginning, ``(beginnings, ...)``, for each row; zeros for a row without one."""
        if len(self.shared) in self.beginnings:
            x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
        counts = torch.tensor(self.beginnings).bincount()
        if len(counts) == len(x) and len(counts.unique()) == 1:  # a view, whose backward pass is a sum
            return x[:, None].expand(-1, int(counts[0]), *x.shape[1:]).flatten(0, 1)
        return x.index_select(0, torch.tensor(self.beginnings, device=x.device))

    @cached_property
    def _masks(self) -> dict[tuple[bool, torch.dtype], Tensor]:
        return {}

    def mask(self, own: bool, dtype: torch.dtype) -> Tensor:
        """Additive mask ``(rows or 1, 1, queries, keys)`` of the rows' own attention, or of the beginnings'."""
        if (own, dtype) not in self._masks:
            most, longest = (max(self.shared, default=0), max(self.own)) if own else (0, max(self.shared))
            begun = self.begun if own and len(set(self.begun)) > 1 else [self.begun[0] if own else 0]
            length = torch.tensor(begun, device=self.device)[:, None, None]
            query = torch.arange(longest, device=self.device)[None, :, None]
            column = torch.arange(most + longest, device=self.device)[None, None]
            allowed = torch.where(column < most, column < length, column - most <= query)
            mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
            self._masks[own, dtype] = mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
        return self._masks[own, dtype]

    @cached_property
    def lengths(self) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """For functions that take cumulative lengths: the place ``(keys,)`` of each key of the rows' own attention, and
        their words for the beginnings and for the rows' own."""

        def words(queries: Sequence[int], keys: Sequence[int]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, counts in (("q", queries), ("k", keys)):
                ends = torch.tensor([0, *counts], device=self.device).cumsum(0)
                found |= {f"cu_seq_lens_{name}": ends.int(), f"max_length_{name}": max(counts, default=0)}
            return found

        first = [0, *torch.tensor(self.shared).cumsum(0).tolist()]
        at, places = self.begin, []
        for own, begun, beginning in zip(self.own, self.begun, self.beginnings, strict=True):
            start = first[beginning] if begun else 0
            places += [torch.arange(start, start + begun), torch.arange(at, at + own)]
            at += own
        both = [own + begun for own, begun in zip(self.own, self.begun, strict=True)]
        return torch.cat(places).to(self.device), words(self.shared, self.shared), words(self.own, both)


class _Table:
    """Between ``(tokens, ...)`` and ``(sequences, longest, ...)``; a view where all are as long."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.count, self.longest = len(lengths), max(lengths, default=0)
        inside = torch.arange(self.longest) < torch.tensor(lengths)[:, None]
        self.slots = None if inside.all() else inside.flatten().nonzero()[:, 0].to(device)

    def pad(self, x: Tensor) -> Tensor:
        """``(tokens, ...)`` to ``(sequences, longest, ...)``, zeros in the padding."""
        flat = x if self.slots is None else _Spread.apply(x, self.slots, self.count * self.longest)
        return flat.view(self.count, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """And back."""
        flat = x.flatten(0, 1)
        return flat if self.slots is None else Collect.apply(flat, self.slots)


class _Spread(torch.autograd.Function):
    """Rows to some places of a larger table, whose gradients are read from there: torch's own indexing would add
    gradients one by one, which is slow on a CPU and in no fixed order on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class Collect(torch.autograd.Function):
    """Rows of a table, none twice: the inverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(x)
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (slots,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, slots, gradient), None


Attention = Callable[..., tuple[Tensor, Any]]


def install() -> None:
    """Let transformers' attention functions look for a stream; without one they are what they were."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name in (*PADDED, *UNPADDED):
        inner = ALL_ATTENTION_FUNCTIONS.get(name)
        if not getattr(inner, "looks_for_stream", False):
            ALL_ATTENTION_FUNCTIONS.register(name, _looking_for_stream(name, inner))


def _looking_for_stream(name: str, inner: Attention | None) -> Attention:
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **words: Any) -> Any:
        # eager attention is a function of each model's own module
        actual = inner or sys.modules[type(module).__module__].eager_attention_forward
        stream = getattr(attention_mask, "stream", None)
        if stream is None:
            return actual(module, query, key, value, attention_mask, **words)
        if words.get("position_bias") is not None:
            raise NotShared("its attention has learned biases of positions")
        stream.seen.add(id(module))
        words.pop("position_ids", None)
        form = _without_padding if name in UNPADDED else _padded
        return form(stream, actual, module, query, key, value, **words), None

    attention.looks_for_stream = True  # type: ignore[attr-defined]
    return attention


def _padded(
    stream: Stream, inner: Attention, module: Any, query: Tensor, key: Tensor, value: Tensor, **words: Any
) -> Tensor:
    """``(1, heads, T, d)`` in, ``(1, T, heads, d)`` out, by functions that take a mask."""
    shared, own = stream.shared_table, stream.own_table
    plain = inner.__name__ == "sdpa_attention_forward" and not _extras(words)
    if stream.trained and query.device.type == "cpu" and plain:
        most = max(shared.longest**2 * shared.count, (shared.longest + own.longest) * own.longest * own.count)
        inner = _products if most * query.shape[1] <= _MOST_SCORES else inner
    split = (stream.begin, stream.tokens - stream.begin)
    (qs, qo), (ks, ko), (vs, vo) = (x[0].transpose(0, 1).split(split) for x in (query, key, value))
    qo, ko, vo = own.pad(qo), own.pad(ko), own.pad(vo)
    out = []
    if stream.shared:
        ks, vs = shared.pad(ks), shared.pad(vs)
        heads = (x.transpose(1, 2) for x in (shared.pad(qs), ks, vs))
        out.append(shared.unpad(inner(module, *heads, stream.mask(False, query.dtype), **words)[0]))
        ko, vo = (torch.cat([stream.for_rows(a), b], 1) for a, b in ((ks, ko), (vs, vo)))
    heads = (x.transpose(1, 2) for x in (qo, ko, vo))
    out.append(own.unpad(inner(module, *heads, stream.mask(True, query.dtype), **words)[0]))
    return torch.cat(out)[None]


def _extras(words: dict[str, Any]) -> bool:
    """Whether attention is more than a softmax of products."""
    return bool(words.get("dropout")) or any(words.get(name) is not None for name in ("softcap", "s_aux"))


def _products(
    _: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """Attention as matrix products, the query heads of a key head in one, as exact as eager attention. On CPUs, torch's
    fused kernel, which is more exact, takes two to four times as long for the backward pass of some hundred tokens."""
    rows, heads, length, width = query.shape
    per_key = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    scores = (query * scale).reshape(rows, -1, per_key * length, width) @ key.transpose(-1, -2)
    shape = rows, -1, per_key, length, key.shape[2]
    weights = (scores.view(shape) + mask[:, :, None]).softmax(-1, torch.float32).to(value.dtype).view_as(scores)
    return (weights @ value).view(rows, heads, length, -1).transpose(1, 2), None


def _without_padding(
    stream: Stream, inner: Attention, module: Any, query: Tensor, key: Tensor, value: Tensor, **words: Any
) -> Tensor:
    """As `_padded`, by functions that take cumulative lengths, and align causal masks to the last key."""
    places, of_shared, of_own = stream.lengths
    words["is_causal"] = True
    out = []
    if stream.shared:
        begin = (x[:, :, : stream.begin] for x in (query, key, value))
        out.append(inner(module, *begin, None, **of_shared, **words)[0])
    keys, values = key[:, :, places], value[:, :, places]
    out.append(inner(module, query[:, :, stream.begin :], keys, values, None, **of_own, **words)[0])
    return torch.cat(out, 1)
