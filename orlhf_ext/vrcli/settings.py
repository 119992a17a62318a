"""How a response becomes a reward: what the reward class, the commands and the checks share. Pure Python.

The annotations are kept as objects, not as text, so that a subclass in another module has them as they are.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..cli.errors import UserError
from ..cli.flags import FINITE
from .improvement import MARKERS, THRESHOLDS, VALUES, Kind, check_mapping

PREFIX = "--vrcli."
System = Literal["keep", "drop", "merge"]
Tail = Literal["auto", "template", "eot", "none"]


@dataclass
class Settings:
    """Every field is a flag. Raises ValueError for values that do not fit each other."""

    reward: Annotated[Kind, "of an improvement I in percent: tiers, max(I, 0), 0 or 1 (I >= 0), min(I, 0), I"] = "tiers"
    thresholds: Annotated[
        tuple[float, ...],
        "of the tiers, rising, in percent (the default is made for chapters of thousands of tokens)",
        FINITE,
    ] = THRESHOLDS
    values: Annotated[tuple[float, ...], "of the tiers, one for each threshold", FINITE] = VALUES
    cap: Annotated[float | None, "the most that positive and raw give (no bound)", FINITE] = None
    markers: Annotated[tuple[str, ...], "the plan follows the last of them, looked for in this order"] = MARKERS
    system: Annotated[System, "system messages: kept, left out, or put before the user's first text"] = "keep"
    tail: Annotated[
        Tail,
        "what is scored behind the gold text: all that the chat template puts there, that up to the end-of-turn token, "
        "or nothing; auto: template for next chapters, eot for other conversations",
    ] = "auto"

    def __post_init__(self) -> None:
        """Refuse what makes no sense or has no effect."""
        check_mapping(self.reward, self.thresholds, self.values)
        if self.reward != "tiers" and (self.thresholds, self.values) != (THRESHOLDS, VALUES):
            raise ValueError(f"thresholds and values are of reward tiers, not of {self.reward}; leave them out")
        if self.cap is not None and (self.reward not in ("positive", "raw") or not math.isfinite(self.cap)):
            raise ValueError("cap bounds the rewards positive and raw, by a finite number; leave it out")
        if self.cap is not None and self.reward == "positive" and self.cap <= 0:
            raise ValueError(f"cap {self.cap:g} would make all positive rewards the same; give more than 0")
        if not all(self.markers):
            raise ValueError("an empty marker matches everywhere; leave it out of markers")

    @staticmethod
    def from_args(args: Any) -> "Settings":
        """From a namespace with the values of the flags that `add_flags` adds.
        Raises UserError for values that do not fit each other."""
        given: dict[str, Any] = {field.name: getattr(args, field.name) for field in fields(Settings)}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        try:
            return Settings(**given)
        except ValueError as error:
            raise UserError(f"the flags {PREFIX}* do not fit each other: {error}") from error


#: what a baseline depends on: which tokens are scored after which
SCORING = ("system", "tail")


def add_flags(parser: Any, names: tuple[str, ...] = ()) -> None:
    """Add a command's flags ``--NAME``, known as ``--vrcli.NAME``, too; ``names`` chooses some fields of `Settings`."""
    hints = get_type_hints(Settings, include_extras=True)
    for field in fields(Settings):
        if names and field.name not in names:
            continue
        hint, words, *ranges = get_args(hints[field.name])
        settings: dict[str, Any] = {"choices": get_args(hint)} if get_origin(hint) is Literal else {}
        if get_origin(hint) is tuple:
            settings = {"nargs": "+", "type": ranges[0] if ranges else str, "metavar": "VALUE"}
            words += f" ({' '.join(map(repr, field.default))})"  # type: ignore[arg-type]
        elif field.default is None:
            settings = {"type": ranges[0], "metavar": "VALUE"}
        else:
            words += " (%(default)s)"
        parser.add_argument(f"--{field.name}", f"{PREFIX}{field.name}", default=field.default, help=words, **settings)
