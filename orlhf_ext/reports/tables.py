"""A table of results on the terminal, in Markdown and as CSV, from one description of its columns and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..files.csv_files import format_csv
from ..files.records import Record


class Column(NamedTuple):
    """A value of each row, and how a table shows it.

    Attributes:
        key: of the value in a row. Where a row has none, or None, its cell is empty.
        title: the column's head.
        form: a format or a function, of the value, of its error and of the ends of its interval.
        error: key of a standard error or deviation, which is shown after ±.
        interval: the interval is from INTERVAL_low to INTERVAL_high; by default, those of the value's own key.
        more: of a row and of what separates the parts of a cell, what follows in the cell.
    """

    key: str
    title: str
    form: str | Callable[[Any], str] = "{}"
    error: str = ""
    interval: str = ""
    more: Callable[[Mapping[str, Any], str], str] | None = None

    def cell(self, row: Mapping[str, Any], gap: str = " ") -> str:
        """``VALUE ± ERROR [LOW, HIGH] MORE``, as far as the row has them; ``gap`` is before interval and more."""
        value, error, low, high = (
            self._format(row.get(key))
            for key in (self.key, self.error, *(f"{self.interval or self.key}_{end}" for end in ("low", "high")))
        )
        if not value:
            return ""
        parts = [f"{value} ± {error}" if error else value, f"[{low}, {high}]" if low and high else ""]
        return gap.join(part for part in parts if part) + (self.more(row, gap) if self.more else "")

    def _format(self, value: Any) -> str:
        if value is None:
            return ""
        return self.form.format(value) if isinstance(self.form, str) else self.form(value)


@dataclass(frozen=True)
class Table:
    """Results, a row for each thing that is compared.

    Attributes:
        names: the columns that say what a row is of.
        columns: its numbers; one that no row has is left out.
        rows: flat records. CSV has all that is in them, also what no column shows.
    """

    names: Sequence[Column]
    columns: Sequence[Column]
    rows: Sequence[Record]

    def grid(self, across: bool, gap: str = " ") -> list[list[str]]:
        """Head and rows as text; with ``across``, rows become columns, and there is a single column of names."""
        columns = [column for column in self.columns if any(row.get(column.key) is not None for row in self.rows)]
        shown = [*self.names, *columns]
        grid = [[column.title for column in shown], *([column.cell(row, gap) for column in shown] for row in self.rows)]
        if across:
            grid = [list(line) for line in zip(*grid, strict=True)]
            grid[0][0] = ""
        return grid

    def markdown(self, across: bool = False) -> str:
        """The table in Markdown, numbers aligned on the right."""
        head, *rows = self.grid(across)
        names = 1 if across else len(self.names)
        lines = [head, [*["---"] * names, *["---:"] * (len(head) - names)], *rows]
        return (
            "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
        )

    def csv(self) -> str:
        """The table as CSV, every number of it; a column for each key, in the order of their first places."""

        def cell(value: Any) -> Any:
            return " ".join(map(str, value)) if isinstance(value, list) else value

        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        return format_csv([keys, *([cell(row.get(key)) for key in keys] for row in self.rows)])

    def show(self, title: str, notes: Sequence[str] = (), across: bool = False, gap: str = "\n") -> None:
        """Print the table, notes under it; a name that is that of the row above is not repeated."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        head, *rows = self.grid(across, gap)
        names = 1 if across else len(self.names)
        table = RichTable(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns are enough
        for number, name in enumerate(head):
            table.add_column(name, justify="left" if number < names else "right", overflow="fold")
        before: list[str] = []
        for row in rows:
            start = next((i for i in range(names) if before[i : i + 1] != row[i : i + 1]), 0)
            table.add_row(*[""] * start, *row[start:])
            before = row
        console = Console(highlight=False, markup=False)
        console.print(table)
        for note in notes:
            console.print(note)
