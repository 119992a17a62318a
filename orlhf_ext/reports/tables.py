"""An evaluation for the eye: tables on the terminal, in Markdown and as CSV, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.csv_files import format_csv
from ..files.records import Record, atomic_write
from ..models.texts import Sample, Text

_COLUMNS = {
    "reward_mean": ("reward", "{:z.3f}"),
    "win_rate_vs_sft": ("wins vs SFT", "{:.1%}"),
    "win_rate_vs_chosen": ("wins vs chosen", "{:.1%}"),
    "length_mean": ("tokens", "{:.1f}"),
    "kl": ("KL (nats)", "{:z.2f}"),
}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A table in Markdown; all columns but the first ``names`` are aligned on the right."""
    lines = [head, [*["---"] * names, *["---:"] * (len(head) - names)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def csv_table(rows: Sequence[Record]) -> str:
    """A table as CSV, every number of it; a column for each key, in the order of their first places."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return format_csv([keys, *([row.get(key) for key in keys] for row in rows)])


def write_tables(summary: str | Path, markdown: str, numbers: str) -> None:
    """Write the table of ``O.json`` beside it, in Markdown as ``O.md`` and as ``O.csv``."""
    for suffix, text in ((".md", markdown), (".csv", numbers)):
        with atomic_write(Path(summary).with_suffix(suffix)) as stream:
            stream.write(text)


def table_rows(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names and metrics, SFT first."""
    rows = [("SFT", metrics["sft"]), *((row["name"], row) for row in metrics.get("checkpoints", []))]
    return [*rows, *([("chosen", metrics["chosen"])] if "chosen" in metrics else [])]


def _cells(row: Mapping[str, Any], gap: str = " ") -> list[str]:
    """A value with its standard error, or with its interval behind ``gap``."""
    cells = []
    for key, (_, form) in _COLUMNS.items():
        value = row.get(key)
        cell = "" if value is None else form.format(value)
        if value is not None and row.get(f"{key}_low") is not None:
            cell += f"{gap}[{form.format(row[f'{key}_low'])}, {form.format(row[f'{key}_high'])}]"
        error = row.get("reward_se") if key == "reward_mean" else None
        cells.append(cell if error is None else f"{cell} ± {error:.3f}")
    return cells


def markdown(metrics: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    head = ["model", *(title for title, _ in _COLUMNS.values())]
    return markdown_table(head, [[name, *_cells(row)] for name, row in table_rows(metrics)])


def comma_separated(metrics: Mapping[str, Any]) -> str:
    """The table as CSV, with full numbers, interval ends and steps."""
    ends = [f"{key}_{end}" for key in ("win_rate_vs_sft", "win_rate_vs_chosen") for end in ("low", "high")]
    keys = ["step", *_COLUMNS, "reward_se", "kl_se", *ends]
    return csv_table([{"model": name, **{key: row.get(key) for key in keys}} for name, row in table_rows(metrics)])


def print_table(metrics: Mapping[str, Any]) -> None:
    """The table on the terminal, and the paired difference under it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{metrics['prompts']} held-out prompts; ± standard error, [95 % interval]"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns are enough
    table.add_column("model", overflow="fold")
    for title, _ in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in table_rows(metrics):
        table.add_row(name, *_cells(row, gap="\n"))
    console = Console()
    console.print(table)
    if "policy" in metrics and (gap := metrics["policy"]["reward_diff"])["low"] is not None:
        console.print(
            f"reward of {metrics['checkpoints'][-1]['name']} minus SFT, paired over prompts: "
            f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]",
            highlight=False,
            markup=False,
        )


def print_examples(count: int, before: Mapping[str, Sample], name: str, after: Mapping[str, Sample]) -> None:
    """Some prompts, evenly spread over the file, with the first answer of SFT and of the final policy."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    ids = list(before)
    for identifier in ids[:: max(1, len(ids) // count)][:count] if count else []:
        old, new = before[identifier], after[identifier]
        console.rule(f"prompt {identifier}")
        console.print(plain(old.prompt).strip())
        console.print(f"\n-- SFT: {plain(old.completions[0]).strip()}")
        console.print(f"-- {name}: {plain(new.completions[0]).strip()}\n")


def plain(text: Text) -> str:
    """A string as it is, messages with their roles (a lone one without)."""
    if isinstance(text, str):
        return "".join(c if c.isprintable() or c == "\n" else " " for c in text)  # no terminal codes
    if len(text) == 1:
        return plain(text[0]["content"])
    return "\n\n".join(f"{plain(message['role'])}: {plain(message['content'])}" for message in text)
