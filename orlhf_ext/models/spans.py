"""Sequences of token ids whose ends are scored, and what several of them begin with."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Token ids of which the last ones, from ``start`` (at least 1) on, are scored."""

    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


def shared_length(spans: Sequence[Span]) -> int:
    """How many tokens all sequences begin with and none scores or needs to predict its first scored one; 0 for one
    sequence alone."""
    if len(spans) < 2:
        return 0
    # what lies between the smallest and the largest in order begins with whatever those two share
    first, last = min(span.ids for span in spans), max(span.ids for span in spans)
    most = min(span.start for span in spans) - 1
    return next((i for i, (a, b) in enumerate(zip(first[:most], last[:most], strict=False)) if a != b), most)


def rows_of_groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """The rows of each key, in order."""
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return list(found.values())


def mean_nll(logprobs: Sequence[float]) -> float:
    """The mean negative log-likelihood of a token, summed in double precision."""
    return -math.fsum(logprobs) / len(logprobs)
