"""What a builder reports: rows kept, and rows left out with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..cli.errors import UserError


class Reject(NamedTuple):
    """Why a row is left out. ``bad``: the row is broken (an error under ``--strict``), not merely unwanted."""

    reason: str
    bad: bool = False


class Counts:
    """Rows read, kept and dropped by reason; ``read == kept + not_drawn + sum(dropped.values())``."""

    def __init__(self, strict: bool = False, reported: int = 5) -> None:
        self.strict = strict
        self.reported = reported
        self.read = self.kept = self.not_drawn = 0
        self.dropped: Counter[str] = Counter()
        #: kept rows of which a part was cut off, by part
        self.cut: Counter[str] = Counter()
        #: the first few dropped rows, each as ``file line N: reason``, never with its text
        self.examples: list[str] = []

    def drop(self, where: str, reject: Reject) -> None:
        """Count a row that is left out.
        Raises UserError if the row is broken and ``strict`` is set; the row is named."""
        if reject.bad and self.strict:
            raise UserError(
                f"{where}: {reject.reason}; fix or remove that row, or leave out --strict to have such rows counted"
            )
        # "not JSON (Expecting value)" and its like are one reason
        self.dropped[reject.reason.partition(" (")[0]] += 1
        if len(self.examples) < self.reported:
            self.examples.append(f"{where}: {reject.reason}")

    def as_dict(self) -> dict[str, Any]:
        """The counts for a sidecar, the most frequent reason first."""
        return {
            "read": self.read,
            "kept": self.kept,
            "not_drawn": self.not_drawn,
            "dropped": dict(sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))),
            **({"cut": dict(sorted(self.cut.items()))} if self.cut else {}),
        }


@dataclass
class Built:
    """One data file that a builder has written; ``build_data`` writes its sidecar."""

    path: Path
    counts: Counts
    sources: Sequence[Path]
    licence: str
    #: anything else a reader of the sidecar should know
    details: dict[str, Any] = field(default_factory=dict)
