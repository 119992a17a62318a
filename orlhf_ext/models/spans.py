"""Sequences of token ids whose ends are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Token ids of which the last ones, from ``start`` (at least 1) on, are scored."""

    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


def mean_nll(logprobs: Sequence[float]) -> float:
    """The mean negative log-likelihood of a token, summed in double precision."""
    return -math.fsum(logprobs) / len(logprobs)
