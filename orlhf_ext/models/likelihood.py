"""Log-probabilities of spans of tokens under a frozen model: pure torch, for any causal model of transformers.

Only the scored positions reach the output layer. Sequences of one group (the plans of one prompt) share the beginning
of their context, up to the plan: its keys and values are computed once, and each sequence goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .batches import cut_batches, pad_right
from .logprobs import scored_positions, token_logprobs
from .spans import Span, mean_nll, rows_of_groups, shared_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: changes whenever the numbers of `span_logprobs` do
VERSION = 1

_WORTH_SHARING = 32  # tokens; a shorter common beginning costs more as a forward pass of its own

#: sequences and the group of each in, mean nll of a scored token for each out, in nats
Scorer = Callable[[Sequence[Span], Sequence[Hashable]], list[float]]


@torch.no_grad()
def span_logprobs(
    model: PreTrainedModel,
    spans: Sequence[Span],
    groups: Sequence[Hashable] | None = None,
    batch_tokens: int = 16384,
    pad_id: int = 0,
) -> list[Tensor]:
    """``log p(s_j | s_<j)`` of every scored token, at temperature 1.

    Args:
        model: a causal language model in evaluation mode, or what passes calls on to one.
        spans: sequences, each with at least one scored token and one before.
        groups: a key for each sequence; those with equal keys share what they begin with. None: nothing is shared.
        batch_tokens: tokens, padding and shared ones included, in one batch; a longer sequence is a batch of its own.
        pad_id: any id of the vocabulary.

    Returns:
        for each sequence ``(scored,)``, float32, on the CPU, in nats.

    Raises:
        ValueError: a sequence without a scored token or without context.
    """
    if any(not 0 < span.start < len(span.ids) for span in spans):
        raise ValueError("every sequence needs a scored token and one before it")
    out: dict[int, Tensor] = {}
    alone = []
    for rows in rows_of_groups(groups if groups is not None else range(len(spans))):
        length = shared_length([spans[row] for row in rows])
        prefix = _compute_prefix(model, spans[rows[0]].ids[:length]) if length >= _WORTH_SHARING else None
        if prefix is None:
            alone += rows
            continue
        for batch in cut_batches([len(spans[row].ids) for row in rows], batch_tokens):
            members = [rows[i] for i in batch]
            out.update(zip(members, _score_batch(model, [spans[row] for row in members], pad_id, prefix), strict=True))
    alone.sort()
    for batch in cut_batches([len(spans[row].ids) for row in alone], batch_tokens):
        members = [alone[i] for i in batch]
        out.update(zip(members, _score_batch(model, [spans[row] for row in members], pad_id), strict=True))
    return [out[row] for row in range(len(spans))]


def make_scorer(model: PreTrainedModel, pad_id: int, batch_tokens: int) -> Scorer:
    """Mean negative log-likelihood of the scored tokens J under one model, in double precision.

    ``-1/|J| sum over j in J of log p(s_j | s_<j)``, in nats a token; its exp is the perplexity of Gurung & Lapata
    (2025).

    Args:
        model, pad_id, batch_tokens: as in `span_logprobs`.
    """

    def scorer(spans: Sequence[Span], groups: Sequence[Hashable]) -> list[float]:
        return [mean_nll(values.tolist()) for values in span_logprobs(model, spans, groups, batch_tokens, pad_id)]

    return scorer


class _Shared(DynamicLayer):
    """The keys and values, ``(1, heads, length, head_dim)``, that all rows of a batch begin with. What a batch adds is
    given to its attention and not kept, so that one prefix serves batch after batch."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Shared ones for each row, and the new ones behind them."""
        assert self.keys is not None and self.values is not None
        rows = (len(key_states), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(rows), key_states], dim=-2),
            torch.cat([self.values.expand(rows), value_states], dim=-2),
        )


def _compute_prefix(model: PreTrainedModel, ids: list[int]) -> Cache | None:
    """Keys and values of a common beginning; None for a model that keeps anything else (a sliding window, a state)."""
    row = torch.tensor([ids], device=model.device)
    first = torch.zeros_like(row, dtype=torch.bool)
    first[:, 0] = True  # nobody asks for the logits
    with scored_positions(model.get_output_embeddings(), first):
        found = model(row, attention_mask=torch.ones_like(row), use_cache=True)
    cache = getattr(found, "past_key_values", None)
    layers: list[Any] = list(getattr(cache, "layers", []))
    if not layers or any(type(layer) is not DynamicLayer or not layer.is_initialized for layer in layers):
        return None
    return Cache(layers=[_Shared(layer.keys, layer.values) for layer in layers])


def _score_batch(
    model: PreTrainedModel, spans: Sequence[Span], pad_id: int, prefix: Cache | None = None
) -> tuple[Tensor, ...]:
    """`span_logprobs` of one batch; with a prefix, only what comes behind it is computed."""
    done = prefix.get_seq_length() if prefix is not None else 0
    ids, mask = pad_right([span.ids[done:] for span in spans], pad_id, model.device)
    starts = torch.tensor([span.start - done for span in spans], device=model.device)
    values, _ = token_logprobs(model, ids, mask, starts, prefix=prefix)
    return values.cpu().split([span.scored for span in spans])
