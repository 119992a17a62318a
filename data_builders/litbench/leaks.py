"""Whether two prompts are the same, and whether two stories are nearly identical.

Texts are compared by their words: lower case, no punctuation. Two stories are nearly identical when their words are
the same, or when they share at least `NEAR` of the runs of eight words of the one that has fewer (counted as `LEAST`
if there are less, so that a phrase in common is not enough). So a story that was copied, lengthened, cut or lightly
edited is found; two stories about the same thing are not.

A run is known by a polynomial of its bytes modulo 2^64. The polynomials of all runs of a text come from one cumulative
sum (Karp and Rabin, 1987), which takes a tenth of a millisecond for a story.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from ..common import digest

#: words in a run
RUN = 8
#: share of the runs
NEAR = 0.5
LEAST = 16

_TAG = re.compile(r"\A\s*[\[({]\s*[A-Za-z]{2}\s*[\])}]")
_QUOTES_AND_DASHES = re.compile(b"\xe2\x80[\x80-\xbf]")  # U+2000 to U+203F
_SPACE = 32
_BYTES = np.array([byte if byte > 127 or chr(byte).isalnum() else _SPACE for byte in range(256)], np.uint8)
_BITS = 24
_SHIFTS = (np.uint64(64 - _BITS), np.uint64(64 - 2 * _BITS))
_MASK = np.uint64((1 << _BITS) - 1)
_BASE = 0x9E3779B97F4A7C15  # odd: it has an inverse modulo 2^64
_MIX = np.uint64(0xFF51AFD7ED558CCD)


def words(text: str) -> bytes:
    """The words of a text for comparisons, a space behind each."""
    data = text.lower().encode("utf-8", "replace")
    if b"\xe2\x80" in data:
        data = _QUOTES_AND_DASHES.sub(b" ", data)
    letters = _BYTES[np.frombuffer(data + b" ", np.uint8)]
    keep = letters != _SPACE
    keep[1:] |= keep[:-1]  # the first of several spaces
    return letters[keep].tobytes()


def prompt_key(prompt: str) -> int:
    """A 64-bit number that is the same for prompts of the same words; a tag such as ``[WP]`` in front is no word."""
    text = _TAG.sub("", prompt)
    return digest(words(text).decode("utf-8", "replace") or text.strip())


@cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``2^bits`` powers of the base modulo 2^64, and of its inverse."""
    base, inverse = (np.full(1 << bits, factor, np.uint64) for factor in (_BASE, pow(_BASE, -1, 2**64)))
    base[0] = inverse[0] = 1
    return np.cumprod(base), np.cumprod(inverse)


def runs(text: bytes) -> np.ndarray:
    """A 64-bit hash of each run of eight words of `words` (of all its words, if it has fewer), in its order."""
    letters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(letters == _SPACE)
    if not len(ends):
        return np.empty(0, np.uint64)
    base, inverse = _powers(len(letters).bit_length())
    sums = np.cumsum(letters * base[: len(letters)])
    count = max(1, len(ends) - RUN + 1)
    starts = np.append(0, ends[: count - 1] + 1)
    whole = sums[ends[-count:]]  # up to the end of each run
    whole[1:] -= sums[starts[1:] - 1]  # less what is before it
    hashes = whole * inverse[starts] * _MIX
    return hashes ^ (hashes >> np.uint64(32))


class StoryIndex:
    """Finds out whether a story is nearly identical to one of some stories.

    Twelve bytes for each run of these, and 32 MiB.
    """

    def __init__(self, stories: Iterable[str]) -> None:
        self._same: set[bytes] = set()
        parts: list[np.ndarray] = []
        for story in stories:
            if (name := _name(text := words(story), story)) not in self._same:
                self._same.add(name)
                parts.append(np.unique(runs(text)))
        self._sizes = np.array([len(part) for part in parts], np.int64)
        joined = np.concatenate([*parts, np.empty(0, np.uint64)])
        order = np.argsort(joined, kind="stable")
        self._runs = joined[order]
        self._owners = np.repeat(np.arange(len(parts), dtype=np.int32), self._sizes)[order]
        # nearly all runs of other stories are ruled out by one or two looks here (Bloom, 1970)
        self._there = [np.zeros(1 << _BITS, bool) for _ in _SHIFTS]
        for there, shift in zip(self._there, _SHIFTS, strict=True):
            there[(self._runs >> shift) & _MASK] = True

    def overlap(self, story: str) -> float:
        """The largest share of runs in common with one of the stories; 1 if their words are the same."""
        text = words(story)
        if _name(text, story) in self._same:
            return 1.0
        mine = asked = runs(text)
        for table, shift in zip(self._there, _SHIFTS, strict=True):
            asked = asked[table[(asked >> shift) & _MASK]]
        first = np.searchsorted(self._runs, asked)
        there = self._runs.take(first, mode="clip") == asked if len(self._runs) else np.zeros(0, bool)
        if not there.any():
            return 0.0
        shared = np.unique(asked[there])
        first, last = (np.searchsorted(self._runs, shared, side) for side in ("left", "right"))  # type: ignore[call-overload]
        owners = np.concatenate([self._owners[low:high] for low, high in zip(first, last, strict=True)])
        who, count = np.unique(owners, return_counts=True)
        return float((count / np.minimum(self._sizes[who], len(np.unique(mine))).clip(LEAST)).max())

    def near(self, *stories: str) -> bool:
        """Whether one of these is nearly identical to one of the index."""
        return any(self.overlap(story) >= NEAR for story in stories)


def _name(text: bytes, story: str) -> bytes:
    """What is equal for stories of the same words."""
    return hashlib.blake2b(text.strip() or story.strip().encode("utf-8", "replace"), digest_size=8).digest()
