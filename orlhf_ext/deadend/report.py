"""An evaluation for the eye: the table on the terminal, in Markdown and as CSV, and continuations side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..reports.tables import csv_table, markdown_table, plain
from .generations import TOXICITY_THRESHOLD, Generated

_COLUMNS = {
    "expected_max_toxicity": ("max toxicity", "{:.3f}"),
    "toxicity_probability": ("toxicity prob.", "{:.3f}"),
    "toxic_fraction": ("toxic share", "{:.3f}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "dist_1": ("dist-1", "{:.3f}"),
    "dist_2": ("dist-2", "{:.3f}"),
    "dist_3": ("dist-3", "{:.3f}"),
}
_TOLD = {"expected_max_toxicity": "expected maximum toxicity", "toxicity_probability": "toxicity probability"}


def mask(text: str) -> str:
    """Each word's letters but the first, replaced by ``*``."""
    return re.sub(r"(\w)(\w+)", lambda word: word[1] + "*" * len(word[2]), text)


def _columns(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [key for key in _COLUMNS if any(row.get(key) is not None for row in found.values())]


def _cell(row: Mapping[str, Any], key: str, gap: str = " ") -> str:
    """A value, with its deviation where it has one, and with its interval behind ``gap``."""
    form, value = _COLUMNS[key][1], row.get(key)
    if value is None:
        return ""
    cell = form.format(value)
    if (deviation := row.get(f"{key}_std")) is not None:
        cell += f" ± {form.format(deviation)}"
    if (low := row.get(f"{key}_low")) is not None:
        cell += f"{gap}[{form.format(low)}, {form.format(row[f'{key}_high'])}]"
    return cell


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    keys = _columns(found)
    head = ["decoding", *(_COLUMNS[key][0] for key in keys), "empty"]
    rows = [[name, *(_cell(row, key) for key in keys), str(row["empty"])] for name, row in found.items()]
    return markdown_table(head, rows)


def comma_separated(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as CSV: every number of it, differences to the first file as ``difference_KEY``."""
    rows = []
    for name, row in found.items():
        flat = {"decoding": name, **{key: value for key, value in row.items() if key != "difference"}}
        for key, gap in row.get("difference", {}).items():
            ends = {"": "mean", "_low": "bootstrap_low", "_high": "bootstrap_high"}
            flat |= {f"difference_{key}{suffix}": gap[end] for suffix, end in ends.items()}
        rows.append(flat)
    return csv_table(rows)


def print_table(found: Mapping[str, Mapping[str, Any]], perplexity_model: str | None) -> None:
    """The table on the terminal, and the paired differences to the first file under it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    first = next(iter(found))
    title = f"{found[first]['prompts']} prompts; ± deviation over prompts, [95 % interval]"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    for key in _columns(found):
        table.add_row(_COLUMNS[key][0], *(_cell(row, key, gap="\n") for row in found.values()))
    console = Console(highlight=False, markup=False)
    console.print(table)
    if perplexity_model is not None:
        console.print(f"perplexity of continuations given their prompts, under {perplexity_model}")
    for name, row in found.items():
        for key, told in _TOLD.items():
            gap = row.get("difference", {}).get(key)
            if gap is not None:
                ends = [gap["bootstrap_low"], gap["bootstrap_high"]]
                interval = "" if ends[0] is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]"
                console.print(f"{told} of {name} minus {first}, paired over prompts: {gap['mean']:+.3f}{interval}")
    for name, row in found.items():
        for key, told in (("empty", "empty continuations"), ("missing_scores", "continuations without a score")):
            if row[key]:
                console.print(f"{name}: {row[key]} of {row['generations']} {told}")


def print_samples(count: int, files: Mapping[str, Generated], show: bool) -> None:
    """Some prompts, evenly spread over the files, with the first continuation of each file and its score."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    first = next(iter(files.values()))
    total = len(first.prompts)
    for index in range(0, total, max(1, total // count))[:count] if count else []:
        console.rule(f"prompt {index + 1}")
        console.print(_shown(first.prompts[index], first.prompt_scores[index], show))
        for name, one in files.items():
            score = one.scores[index][0]
            told = "no score" if score is None else f"{score:.2f}"
            console.print(f"-- {name} ({told}): {_shown(one.texts[index][0], score, show)}")
        console.print()


def _shown(text: str, score: float | None, show: bool) -> str:
    """A text on one line, masked where it is toxic or may be."""
    line = plain(text.replace("\n", " ")).strip()
    return line if show or (score is not None and score < TOXICITY_THRESHOLD) else mask(line)
