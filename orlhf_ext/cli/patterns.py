"""Regular expressions that users give: as Python's ``re``, but bounded in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import UserError

MAX_SECONDS = 2.0
"""That one text may take."""


@dataclass(frozen=True)
class Pattern:
    """A regular expression, and the flag that gives it. Raises ValueError if it is not one."""

    flag: str
    pattern: str
    _compiled: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import regex

        try:
            object.__setattr__(self, "_compiled", regex.compile(self.pattern))
        except regex.error as error:
            raise ValueError(f"{self.pattern} is not a regular expression ({error})") from error

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in the text. Raises UserError if it takes too long."""
        return self._find("search", text)

    def fullmatch(self, text: str) -> bool:
        """Whether it matches the whole text. Raises UserError if it takes too long."""
        return self._find("fullmatch", text)

    def _find(self, how: str, text: str) -> bool:
        try:
            return getattr(self._compiled, how)(text, timeout=MAX_SECONDS) is not None
        except TimeoutError as error:
            raise UserError(
                f"{self.flag} {self.pattern} takes more than {MAX_SECONDS:g} s on a text of {len(text)} characters; "
                "write it without a repetition inside of a repetition, such as (a+)+"
            ) from error
