"""What trainings logged for TensorBoard, as curves of a length that a page can hold."""

from __future__ import annotations

import math
import re
from pathlib import Path

MAX_POINTS = 300  # of a curve; longer ones are means over equal pieces

#: training -> tag -> points (step, value)
Curves = dict[str, dict[str, list[tuple[float, float]]]]

#: what a person of the field looks at first, in this order; other tags are a click away
MAIN = tuple(
    re.compile(pattern)
    for pattern in (
        r"^train/(loss_mean|policy_loss|critic_loss)$",
        r"^eval/(eval_loss|eval gpt_loss)$",
        r"(^|/)(reward|reward_mean|chosen_reward|pct_improvements?)$",
        r"(^|/)(kl|ref_kl)$",
        r"(^|[/_])response_length(_mean)?$",
        r"(^|/)(acc_mean|accuracy)$",
    )
)


def is_main(tag: str) -> bool:
    """Whether a curve is shown at once."""
    return any(pattern.search(tag) for pattern in MAIN)


def rank(tag: str) -> int:
    """The place of a tag among those of its training."""
    return next((place for place, pattern in enumerate(MAIN) if pattern.search(tag)), len(MAIN))


def read_curves(folder: Path) -> Curves:
    """The scalars of each training that has event files somewhere below a folder; none without the folder.

    Where a step was logged twice, as by a training that went on from a checkpoint, the later value counts.
    """
    places = sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})
    if not places:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Curves = {}
    for place in places:
        events = EventAccumulator(str(place), size_guidance={"scalars": 0})
        events.Reload()
        name = place.relative_to(folder).as_posix().removeprefix(".")
        found[name or "training"] = {
            tag: thin(sorted({one.step: one.value for one in events.Scalars(tag) if math.isfinite(one.value)}.items()))
            for tag in sorted(events.Tags()["scalars"], key=lambda tag: (rank(tag), tag))
        }
    return found


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: means over equal pieces."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size < 2:
        return points
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in pieces]
