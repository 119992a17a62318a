"""Whether two prompts are the same, and whether two stories are nearly identical.

Texts are compared by their words: lower case, no punctuation. Two stories are nearly identical when their words are
the same, or when they share at least `MIN_OVERLAP` of the runs of eight words of the one that has fewer (counted as
`MIN_RUNS` if there are fewer, so that a phrase in common is not enough). So a story that was copied, lengthened, cut or
lightly edited is found; two stories about the same thing are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..common import digest

#: words in a run
RUN = 8
#: the share of runs in common, and of how many, from which two stories are nearly identical
MIN_OVERLAP = 0.5
MIN_RUNS = 16

_TAG = re.compile(r"\A\s*[\[({]\s*[A-Za-z]{2}\s*[\])}]")
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text for comparisons."""
    return _WORD.findall(text.lower())


def prompt_key(prompt: str) -> int:
    """A 64-bit number that is the same for prompts of the same words; a tag such as ``[WP]`` in front is no word."""
    text = _TAG.sub("", prompt)
    return digest(" ".join(words(text)) or text.strip())


def runs(text: Sequence[str]) -> np.ndarray:
    """Hashes of all runs of eight words (of all words, if there are fewer), sorted; other processes have others."""
    count = max(1, len(text) - RUN + 1) if text else 0
    return np.unique(np.array([hash(tuple(text[start : start + RUN])) for start in range(count)], np.int64))


class StoryIndex:
    """Whether a story is nearly identical to one of the indexed stories; twelve bytes for each of their runs."""

    def __init__(self, stories: Iterable[str]) -> None:
        self._same: set[int] = set()
        parts: list[np.ndarray] = []
        for story in stories:
            if (name := _name(text := words(story), story)) not in self._same:
                self._same.add(name)
                parts.append(runs(text))
        self._sizes = np.array([len(part) for part in parts], np.int64)
        joined = np.concatenate([*parts, np.empty(0, np.int64)])
        order = np.argsort(joined, kind="stable")
        self._runs = joined[order]
        self._owners = np.repeat(np.arange(len(parts), dtype=np.int32), self._sizes)[order]

    def overlap(self, story: str) -> float:
        """The largest share of runs in common with one of the stories; 1 if their words are the same."""
        text = words(story)
        if _name(text, story) in self._same:
            return 1.0
        mine = runs(text)
        first, last = (np.searchsorted(self._runs, mine, side) for side in ("left", "right"))  # type: ignore[call-overload]
        owners = [self._owners[low:high] for low, high in zip(first, last, strict=True) if low < high]
        if not owners:
            return 0.0
        who, count = np.unique(np.concatenate(owners), return_counts=True)
        return float((count / np.minimum(self._sizes[who], len(mine)).clip(MIN_RUNS)).max())

    def near(self, *stories: str) -> bool:
        """Whether one of these is nearly identical to one of the index."""
        return any(self.overlap(story) >= MIN_OVERLAP for story in stories)


def _name(text: Sequence[str], story: str) -> int:
    """What is equal for stories of the same words."""
    return hash(tuple(text) or story.strip())
