"""An evaluation for the eye: the table on the terminal, in Markdown and as CSV, and continuations side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..files.records import Record
from ..reports.examples import plain, spread
from ..reports.summaries import answer
from ..reports.tables import Column, Table
from .generations import TOXICITY_THRESHOLD, Generated

COLUMNS = (
    Column("expected_max_toxicity", "max toxicity", "{:.3f}", error="expected_max_toxicity_std"),
    Column("toxicity_probability", "toxicity prob.", "{:.3f}"),
    Column("toxic_fraction", "toxic share", "{:.3f}"),
    Column("perplexity", "perplexity", "{:.1f}"),
    Column("dist_1", "dist-1", "{:.3f}"),
    Column("dist_2", "dist-2", "{:.3f}"),
    Column("dist_3", "dist-3", "{:.3f}"),
    Column("empty", "empty"),
)
_COMPARED = {
    "expected_max_toxicity": "expected maximum toxicity",
    "toxicity_probability": "toxicity probability",
    "toxic_fraction": "toxic share",
}


def mask(text: str) -> str:
    """Each word's letters but the first, replaced by ``*``."""
    return re.sub(r"(\w)(\w+)", lambda word: word[1] + "*" * len(word[2]), text)


def table_of(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of `metrics.compare`'s results, with differences to the first file as ``difference_KEY``."""
    rows = []
    for name, row in found.items():
        flat = {"decoding": name, **{key: value for key, value in row.items() if key != "difference"}}
        for key, gap in row.get("difference", {}).items():
            ends = {"": "mean", "_low": "bootstrap_low", "_high": "bootstrap_high"}
            flat |= {f"difference_{key}{suffix}": gap[end] for suffix, end in ends.items()}
        rows.append(flat)
    return Table([Column("decoding", "decoding")], COLUMNS, rows)


def print_table(found: Mapping[str, Mapping[str, Any]], perplexity_model: str | None) -> None:
    """The table on the terminal, and the paired differences to the first file under it."""
    first = next(iter(found))
    notes = []
    if perplexity_model is not None:
        notes.append(f"perplexity of continuations given their prompts, under {perplexity_model}")
    for name, row in found.items():
        for key, title in _COMPARED.items():
            if (gap := row.get("difference", {}).get(key)) is not None:
                low, high = gap["bootstrap_low"], gap["bootstrap_high"]
                interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
                notes.append(f"{title} of {name} minus {first}, paired over prompts: {gap['mean']:+.3f}{interval}")
    notes += [
        f"{name}: {row['missing_scores']} of {row['generations']} continuations without a score"
        for name, row in found.items()
        if row["missing_scores"]
    ]
    title = f"{found[first]['prompts']} prompts; ± deviation over prompts, [95 % interval]"
    table_of(found).show(title, notes, across=True)


def prompt_records(files: Mapping[str, Generated]) -> list[Record]:
    """A record for each prompt: the most toxic continuation of each file, with its score (a missing one counts 0)."""
    first = next(iter(files.values()))
    rows: list[Record] = []
    for i, prompt in enumerate(first.prompts):
        answers = {}
        for name, one in files.items():
            score, place = max((value or 0.0, -place) for place, value in enumerate(one.scores[i]))
            answers[name] = answer(one.texts[i][-place], {"max toxicity": score})
        rows.append({"id": f"prompt {i + 1}", "prompt": plain(prompt).strip(), "answers": answers})
    return rows


def print_samples(count: int, files: Mapping[str, Generated], show: bool) -> None:
    """Some prompts, evenly spread over the files, with the first continuation of each file and its score."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    first = next(iter(files.values()))
    for index in spread(range(len(first.prompts)), count):
        console.rule(f"prompt {index + 1}")
        console.print(_shown(first.prompts[index], first.prompt_scores[index], show))
        for name, one in files.items():
            score = one.scores[index][0]
            shown = "no score" if score is None else f"{score:.2f}"
            console.print(f"-- {name} ({shown}): {_shown(one.texts[index][0], score, show)}")
        console.print()


def _shown(text: str, score: float | None, show: bool) -> str:
    """A text on one line, masked where it is toxic or may be."""
    line = plain(text.replace("\n", " ")).strip()
    return line if show or (score is not None and score < TOXICITY_THRESHOLD) else mask(line)
