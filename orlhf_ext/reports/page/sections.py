"""What ran, how long its stages took, what its trainings logged, and how the scores of prompts are distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files.records import Record, is_number
from . import charts
from .charts import Figure, colours
from .curves import is_main
from .kinds import Kind
from .results import Results
from .runs import Run

#: keys of ``run.json`` that are shown in a way of their own, or not at all
_OWN = ("seconds", "versions", "data", "metrics", "command", "baseline", "prompts", "run", "rows", "runs")
_MANY_STAGES = 24


@dataclass(frozen=True)
class Group:
    """Figures under a heading of their own.

    Attributes:
        legend: of all figures, where it is the same.
        more: figures that are a click away.
    """

    title: str
    figures: list[Figure]
    legend: list[tuple[str, str]] = field(default_factory=list)
    more: list[Figure] = field(default_factory=list)


def about(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Rows of the table of what ran: a name, and a value for each run."""
    rows: dict[str, list[str]] = {}

    def put(key: str, place: int, value: Any) -> None:
        if value is not None and value != "":
            rows.setdefault(key, [""] * len(runs))[place] = str(value)

    for place, run in enumerate(runs):
        for key, value in run.about.items():
            if key not in _OWN and isinstance(value, str | int | float):
                put(key.replace("_", " "), place, value)
        data = run.about.get("data") or {}
        put("data", place, _source(data.get("source")))
        counts = [f"{data[split]:,} {split}" for split in ("train", "val", "test") if isinstance(data.get(split), int)]
        put("rows", place, ", ".join(counts))
        seconds = run.about.get("seconds") or {}
        put("time", place, duration(sum(seconds.values())) if seconds else "")
        for name, version in (run.about.get("versions") or {}).items():
            put(name, place, version)
    return list(rows.items())


def _source(source: Any) -> str:
    if isinstance(source, list):
        return ", ".join(map(_source, source))
    if isinstance(source, Mapping):
        file = source.get("path") or source.get("file")
        return "/".join(Path(file).parts[-2:]) if file else source.get("name") or ", ".join(map(str, source.values()))
    return str(source or "")


def duration(seconds: float) -> str:
    """A time in words: ``8 s``, ``3 min 20 s``, ``5 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def times(runs: Sequence[Run]) -> list[Figure]:
    """Seconds of each stage; of a run with very many, of each kind of stage."""
    stages = {run.name: {k: v for k, v in (run.about.get("seconds") or {}).items() if is_number(v)} for run in runs}
    if max(map(len, stages.values())) > _MANY_STAGES:
        for name, seconds in stages.items():
            joined: dict[str, float] = {}
            for stage, value in seconds.items():
                joined[stage.partition("/")[0]] = joined.get(stage.partition("/")[0], 0) + value
            stages[name] = joined
    longest = max((value for seconds in stages.values() for value in seconds.values()), default=0)
    units = {"hours": 3600, "minutes": 60}
    unit, size = next(((name, size) for name, size in units.items() if longest >= 3 * size), ("seconds", 1))
    rows = [
        {"label": stage, "series": name, "value": value / size}
        for name, seconds in stages.items()
        for stage, value in seconds.items()
    ]
    palette = colours([name for name, seconds in stages.items() if seconds])
    return [charts.bars("Time of each stage", rows, palette, f"time ({unit})")] if rows else []


def curves(runs: Sequence[Run]) -> list[Group]:
    """Training curves, trainings of one sort in the same axes."""
    sorts: dict[str, list[tuple[Run, str]]] = {}
    for run in runs:
        for training in run.curves:
            sorts.setdefault(training.replace("-", "_").partition("_")[0], []).append((run, training))
    groups = []
    for members in sorts.values():
        trainings = {training for _, training in members}
        titled = trainings.pop() if len(trainings) == 1 else members[0][1].replace("-", "_").partition("_")[0]
        names = [_label(run.name, training, members) for run, training in members]
        palette = colours(names)
        tags = dict.fromkeys(tag for run, training in members for tag in run.curves[training])
        shown: dict[bool, list[Figure]] = {True: [], False: []}
        for tag in tags:
            rows = [
                {"series": name, "x": x, "y": y}
                for name, (run, training) in zip(names, members, strict=True)
                for x, y in run.curves[training].get(tag, [])
            ]
            if rows:  # one point is no curve
                curve = charts.line(tag, rows, palette, "step", tag.rpartition("/")[2])
                shown[is_main(tag) and len(rows) > len(members)].append(curve)
        groups.append(Group(titled, shown[True], charts.legend(palette), shown[False]))
    return groups


def _label(run: str, training: str, members: Sequence[tuple[Run, str]]) -> str:
    if len({one.name for one, _ in members}) == 1:
        return training
    return run if len({one for _, one in members}) == 1 else f"{run} · {training}"


def distributions(kind: Kind, results: Results) -> list[Figure]:
    """The scores of prompts before and after, and the gain of each prompt."""
    found = []
    for name, result in results:
        if not result.records:
            continue
        before, after = sides = kind.sides(result.records)
        if before == after:
            continue
        for score in kind.scores_of(result.records):
            pairs = [
                (a, b)
                for a, b in ((_score(record, side, score) for side in sides) for record in result.records)
                if a is not None and b is not None
            ]
            if len(pairs) < 2:
                continue
            suffix = f": {name}" if len(results) > 1 else ""
            values = {before: [a for a, _ in pairs], after: [b for _, b in pairs]}
            if kind.scores:
                what, axis = score.replace("_", " ").replace("pct", "%"), kind.unit(score)
            else:
                what, axis = f"score of {score}", f"gold score of {score}"
            palette = colours([before, after], before)
            found.append(charts.histogram(f"{what[0].upper()}{what[1:]} of each prompt{suffix}", values, palette, axis))
            gain = {after: [b - a for a, b in pairs]}
            title = f"Change of each prompt's {what}{suffix}"
            found.append(charts.histogram(title, gain, colours([after]), f"{after} minus {before}", 0.0))
    return found


def _score(record: Record, name: str, score: str) -> float | None:
    value = record["answers"].get(name, {}).get("scores", {}).get(score)
    return value if is_number(value) else None
