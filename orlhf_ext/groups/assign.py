"""Which group labels which row, and which of K responses it prefers. Pure functions; numpy alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

_CHUNK = 1024


def groups_of(uniform: np.ndarray, proportions: Sequence[float]) -> np.ndarray:
    """The groups that uniform numbers fall into.

    Args:
        uniform: ``(N,)`` numbers in ``[0, 1)``.
        proportions: U shares that add up to 1.

    Returns:
        ``(N,)`` ids. With two groups 0 where ``u < p``, else 1, so that for one seed the rows of the first group at a
        small p are among those at a larger p.
    """
    found = np.searchsorted(np.cumsum(proportions), uniform, side="right")
    return np.minimum(found, len(proportions) - 1)  # a sum of 0.9999999999999999 leaves a gap below 1


def stream_groups(proportions: Sequence[float], seed: int) -> Iterator[int]:
    """Ids of groups, one draw for each row in the order of the file, whatever is in the rows; without an end.

    The numbers are those of numpy's legacy generator, as in SharedRep's own scripts.
    """
    state = np.random.RandomState(seed)
    while True:
        yield from groups_of(state.random_sample(_CHUNK), proportions).tolist()


def best_and_worst(scores: Sequence[float]) -> tuple[int, int]:
    """The places of the best of K >= 2 scores and of the worst of the others; of equal ones the first.

    With K = 2 a tie prefers the first response, as SharedRep's own scripts do.
    """
    places = range(len(scores))
    best = max(places, key=lambda place: scores[place])
    worst = min((place for place in places if place != best), key=lambda place: scores[place])
    return best, worst


def held_out(groups: Sequence[int], test_size: float, seed: int) -> set[int]:
    """The places of the rows for testing, drawn from each group apart.

    Args:
        groups: the group of each row.
        test_size: the share of each group's rows; at least one of a group with two or more, and never all of it.
        seed: of the draw.
    """
    places: set[int] = set()
    for group, count in sorted(Counter(groups).items()):
        if count < 2:
            continue
        size = min(count - 1, max(1, round(count * test_size)))
        own = np.flatnonzero(np.asarray(groups) == group)
        places.update(np.random.RandomState([seed, group]).permutation(own)[:size].tolist())
    return places
