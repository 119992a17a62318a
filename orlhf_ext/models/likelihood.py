"""Log-probabilities of spans of tokens under a frozen model: pure torch, for any causal model of transformers.

Only the scored positions reach the output layer. What several sequences begin with (the
plans of one prompt) is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from .logprobs import token_logprobs
from .prompt_once import for_model
from .spans import Span, mean_nll

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: changes whenever the numbers of `span_logprobs` do
VERSION = 2

#: sequences in, mean nll of a scored token for each out, in nats
Scorer = Callable[[Sequence[Span]], list[float]]


@torch.no_grad()
def span_logprobs(
    model: PreTrainedModel,
    spans: Sequence[Span],
    batch_tokens: int = 16384,
    pad_id: int = 0,
) -> list[Tensor]:
    """``log p(s_j | s_<j)`` of every scored token, at temperature 1.

    Args:
        model: a causal language model in evaluation mode, or what passes calls on to one.
        spans: sequences, each with at least one scored token and one before.
        batch_tokens: tokens to compute, padding included, in one batch; a longer sequence is a batch of its own.
        pad_id: any id of the vocabulary.

    Returns:
        for each sequence ``(scored,)``, float32, on the CPU, in nats.

    Raises:
        ValueError: a sequence without a scored token or without context.
    """
    if any(not 0 < span.start < len(span.ids) for span in spans):
        raise ValueError("every sequence needs a scored token and one before it")

    def forward(ids: Tensor, mask: Tensor, members: list[int]) -> tuple[Tensor, ...]:
        firsts = torch.tensor([spans[row].start for row in members], device=ids.device)
        values, _ = token_logprobs(model, ids, mask, firsts)
        return values.cpu().split([spans[row].scored for row in members])

    return for_model(model).map([span.ids for span in spans], batch_tokens, forward, pad_id=pad_id)


def make_scorer(model: PreTrainedModel, pad_id: int, batch_tokens: int) -> Scorer:
    """Mean negative log-likelihood of the scored tokens J under one model, in double precision.

    ``-1/|J| sum over j in J of log p(s_j | s_<j)``, in nats a token; its exp is the perplexity of Gurung & Lapata
    (2025).

    Args:
        model, pad_id, batch_tokens: as in `span_logprobs`.
    """

    def scorer(spans: Sequence[Span]) -> list[float]:
        return [mean_nll(values.tolist()) for values in span_logprobs(model, spans, batch_tokens, pad_id)]

    return scorer
