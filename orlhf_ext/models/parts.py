"""What rows of token ids begin with in common, and batches of such rows. Pure Python: no model, no torch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_LEAST = 16  # tokens; what is shorter (a few words, a template's first tokens) is not worth the gathering
_MOST_ROWS = 64  # of a part, so that finding parts takes time in proportion to the rows


class Part(NamedTuple):
    """Rows with a common beginning of ``length`` tokens (0: a row alone)."""

    rows: list[int]
    length: int

    def tokens(self, lengths: Sequence[int] | Mapping[int, int]) -> int:
        """Tokens to compute: the beginning once, and what is each row's own."""
        return self.length + sum(lengths[row] - self.length for row in self.rows)


def find_parts(ids: Sequence[Sequence[int]]) -> list[Part]:
    """What rows of token ids begin with: of all ways to put rows that begin alike together, the one that saves most
    tokens. Each row keeps one token of its own at least.

    Returns:
        parts that have each row once, in the order of their first rows.
    """
    heads = [row[:-1] for row in ids]
    order = sorted(range(len(heads)), key=lambda row: (heads[row], row))
    common = [_common(heads[a], heads[b]) for a, b in itertools.pairwise(order)]
    # (tokens saved by the rows before each place, where their last part begins, its length)
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    for end in range(1, len(order) + 1):
        choice, length = (best[end - 1][0], end - 1, 0), sys.maxsize
        for first in range(end - 2, max(-1, end - 1 - _MOST_ROWS), -1):
            length = min(length, common[first])
            if length < _LEAST:
                break
            choice = max(choice, (best[first][0] + (end - first - 1) * length, first, length))
        best.append(choice)
    parts: list[Part] = []
    end = len(order)
    while end:
        _, first, length = best[end]
        parts.append(Part(sorted(order[first:end]), length))
        end = first
    return sorted(parts)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with."""
    if one == other:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def cut_parts(parts: Iterable[Part], lengths: Sequence[int], budget: int) -> list[list[Part]]:
    """Parts in batches of at most ``budget`` tokens to compute, those with the longest rows first (so that a lack of
    memory shows at once); equal lengths keep their order.

    A part of more tokens is cut into several, and each of them computes the beginning; a longer row is a batch alone.
    """
    pieces: list[Part] = []
    for part in parts:
        rows: list[int] = []
        room = budget - part.length
        for row in part.rows:
            own = lengths[row] - part.length
            if rows and own > room:
                pieces.append(Part(rows, part.length if len(rows) > 1 else 0))
                rows, room = [], budget - part.length
            rows.append(row)
            room -= own
        pieces.append(Part(rows, part.length if len(rows) > 1 else 0))
    batches: list[list[Part]] = []
    used = 0
    for part in sorted(pieces, key=lambda part: (-max(lengths[row] for row in part.rows), part.rows[0])):
        tokens = part.tokens(lengths)
        if not batches or used + tokens > budget:
            batches.append([])
            used = 0
        batches[-1].append(part)
        used += tokens
    return batches
