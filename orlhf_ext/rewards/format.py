"""``format``: 1 for a response that a regular expression matches, 0 for any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..cli.patterns import Pattern
from .base import Reward, RewardBatch


@dataclass
class Format(Reward):
    """1 where a regular expression (as Python's ``re``, and bounded in time) matches the response, else 0.

    ``search`` looks for it anywhere, ``fullmatch`` wants the whole response, white space around it aside, to match. A
    dot matches a line's end only under ``(?s)``: ``(?s)<think>.*</think>.*``.
    """

    pattern: Annotated[str, "a regular expression"]
    match: Annotated[Literal["search", "fullmatch"], "search or fullmatch"] = "search"

    def __post_init__(self) -> None:
        try:
            compiled = Pattern("--format.pattern", self.pattern)
        except ValueError as error:
            raise ValueError(f"--format.pattern {error}") from error
        self._matches = compiled.search if self.match == "search" else compiled.fullmatch

    def score(self, batch: RewardBatch) -> list[float]:
        """Ones and zeros."""
        return [float(self._matches(response.strip())) for response in batch.responses]
