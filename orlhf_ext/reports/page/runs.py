"""What is in a recipe's output folder: what ran, its results with their records, and what its trainings logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...cli.errors import UserError
from ...files.records import Record, read_object, read_records
from ..summaries import RECORDS
from .curves import Curves, read_curves
from .kinds import KINDS
from .results import Result, Results


@dataclass(frozen=True)
class Run:
    """One output folder.

    Attributes:
        name: unique among the runs of a page.
        about: what ``run.json`` says, or a summary where there is none.
        missing: a sentence on each thing that a finished run would have.
    """

    name: str
    about: dict[str, Any]
    results: list[Result]
    curves: Curves = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in some folders.

    Raises:
        UserError: a folder is missing, given twice, or no run; or a file in it is broken.
    """
    folders = [Path(path) for path in paths]
    resolved = [folder.resolve() for folder in folders]
    if twice := next((path for i, path in enumerate(paths) if resolved[i] in resolved[:i]), None):
        raise UserError(f"{twice} is given twice; name each run once")
    return [read_run_folder(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it apart from the others."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(n for n in range(1, 99) if len({one[-n:] for one in parts}) == len(parts))
    return ["/".join(one[-length:]).removeprefix("//") for one in parts]


def read_run_folder(folder: Path, name: str) -> Run:
    """The run in a folder.

    Raises:
        UserError: it is missing or no run; or a file in it is broken.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; give the output folder of a recipe")
    about, copy = (_object(folder / f"{one}.json") for one in ("run", "summary"))
    found = [read_result(path, folder) for path in summaries_of(folder)]
    found = [one for one in found if one.kind in KINDS]
    if not found and copy.get("command") in KINDS:
        found = [Result("", str(copy["command"]), copy, "", [], _object(folder / "calibration.json"))]
    if not (about or found):
        raise UserError(
            f"{folder} is not a run: it has no run.json and no summary of an evaluation; give the output folder of a "
            "recipe"
        )
    missing = []
    if about and not copy:
        done = list(about.get("seconds") or {})
        last = f"its last finished stage is {done[-1]}" if done else "no stage is finished"
        missing.append(f"{name} has not finished ({last}); run its recipe again: it goes on from there.")
    if not found:
        missing.append(f"{name} has no result yet: no summary of an evaluation is in it.")
    missing += [
        f"{name}: the result {one.name} has no records of its prompts; evaluate it again to browse them."
        for one in found
        if not one.records and "metrics" in one.summary
    ]
    return Run(name, about or found[0].summary, found, read_curves(folder / "tb"), missing)


def summaries_of(folder: Path) -> list[Path]:
    """The summaries in a run's folder, two levels deep at most: JSON files with their table beside them.

    What joins others, such as a grid, lies at the top and comes last.
    """
    return [
        path
        for pattern in ("*/*.json", "*/*/*.json", "*.json")
        for path in sorted(folder.glob(pattern))
        if path.with_suffix(".md").is_file() and path.with_suffix(".csv").is_file()
    ]


def read_result(path: Path, folder: Path) -> Result:
    """The result whose summary is in a file.

    Raises:
        UserError: the summary, or a record, is broken.
    """
    summary = _object(path)
    place = path.relative_to(folder)
    name = place.parent.as_posix() if path.name == "summary.json" else place.with_suffix("").as_posix()
    beside = path.with_suffix(RECORDS)
    records = [line.record for line in read_records(beside)] if beside.is_file() else []
    if bad := next((one for one in records if not isinstance(one.get("answers"), dict)), None):
        raise UserError(f"{beside} has a record without answers (id {bad.get('id')!r}); evaluate the run again")
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    return Result(name, str(summary.get("command")), summary, table, records, _object(folder / "calibration.json"))


def by_kind(runs: Sequence[Run]) -> dict[str, Results]:
    """The results of all runs, with names that tell them apart, by the command that wrote them."""
    found: dict[str, Results] = {}
    for run in runs:
        for result in run.results:
            alone = len(run.results) == 1
            name = run.name if alone else f"{run.name} · {result.name}" if len(runs) > 1 else result.name
            found.setdefault(result.kind, []).append((name, result))
    return found


def _object(path: Path) -> Record:
    """What is in a file of a recipe; an empty object where it is not there. Raises UserError if it is broken."""
    return read_object(path, "remove it and run the recipe again") if path.exists() else {}
