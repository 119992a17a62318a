"""The HTML of the page: one file, which loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...cli.errors import UserError
from ...files.records import is_number
from ..examples import spread
from . import sections
from .charts import CONFIG, Figure, svg
from .kinds import KINDS, Kind
from .results import Result
from .runs import Run, by_kind

_FOLDER = Path(__file__).parent
_VEGA_LITE = "6.4"
_MAX_TEXT = 1600  # characters of a prompt or an answer; the middle of a longer one is left out
_MAX_RECORDS = 3_000_000  # bytes of all records together


def check_packages() -> None:
    """Raises UserError if the packages of the extra ``report`` are not installed."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"a report needs {error.name}, which is not installed; run pip install 'orlhf-ext[report]'"
        ) from error


def drawings(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """The charts of the runs' results as SVG, in the page's light colours, with a name for each."""
    root = (_FOLDER / "page.css").read_text(encoding="utf-8").partition("}")[0]
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", root))
    for kind, named in by_kind(runs).items():
        figures = [figure for make in KINDS[kind].figures for figure in make(named)]
        for figure in (*figures, *sections.distributions(KINDS[kind], named)):
            yield re.sub(r"\W+", "-", figure.title.lower()).strip("-"), svg(figure, colours)


def render(runs: Sequence[Run], title: str, generator: str) -> str:
    """The page of some runs.

    Args:
        runs: what `runs.read_runs` found.
        title: above everything.
        generator: the command's name, by which it knows its own files.

    Raises:
        UserError: the packages of the extra ``report`` are not installed.
    """
    check_packages()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in the order of the keys
    specs: list[dict[str, Any]] = []

    def place(figure: Figure) -> int:
        """Keep the specification of a figure; returns its number on the page."""
        specs.append(figure.spec)
        return len(specs) - 1

    found = by_kind(runs)
    share = _MAX_RECORDS // max(1, sum(len(named) for named in found.values()))
    kinds = [
        {
            "kind": KINDS[kind],
            "figures": [figure for make in KINDS[kind].figures for figure in make(named)],
            "distributions": sections.distributions(KINDS[kind], named),
            "results": [{"name": name, "tables": tables_of(one.table)} for name, one in named],
        }
        for kind, named in found.items()
    ]
    browsers = [
        (name, browser(KINDS[kind], one, share)) for kind, named in found.items() for name, one in named if one.records
    ]
    return environment.get_template("page.html.j2").render(
        title=title,
        generator=generator,
        runs=runs,
        about=sections.about(runs),
        times=sections.times(runs),
        kinds=kinds,
        browsers=browsers,
        curves=sections.curves(runs),
        place=place,
        config=CONFIG,
        specs=specs,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        vega=vega(),
    )


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which takes seconds to put together."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _VEGA_LITE)


def tables_of(markdown: str) -> list[dict[str, Any]]:
    """The parts of a Markdown file with tables: ``{"head", "rows"}`` for a table, ``{"text"}`` for another line.

    A table also has ``names``, how many of its first columns are aligned on the left.
    """
    found: list[dict[str, Any]] = []
    table: dict[str, Any] | None = None
    for line in markdown.split("\n"):
        if line.startswith("|"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if table is None:
                table = {"head": cells, "rows": [], "names": 1}
                found.append(table)
            elif all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                table["names"] = sum(not cell.endswith(":") for cell in cells)
            else:
                table["rows"].append(cells)
        else:
            table = None
            if line.strip():
                found.append({"text": line})
    return found


def browser(kind: Kind, result: Result, most: int) -> dict[str, Any]:
    """What the table of prompts is made from: ``{"total", "masked", "lower", "before", "after", "scores", "rows"}``.

    A row is ``[prompt, {NAME: [text, {SCORE: value}]}]``. Where all would take more than ``most`` bytes, rows are
    evenly spread over the records.
    """
    before, after = kind.sides(result.records)
    rows = [
        [
            shorten(str(record.get("prompt") or record.get("id"))),
            {
                name: [shorten(str(answer["text"])), {key: _round(value) for key, value in answer["scores"].items()}]
                for name, answer in record["answers"].items()
            },
        ]
        for record in result.records
    ]
    size = len(json.dumps(rows))
    if size > most:
        rows = list(spread(rows, max(1, len(rows) * most // size)))
    return {
        "total": len(result.records),
        "masked": kind.masked,
        "lower": kind.lower_is_better,
        "before": before,
        "after": after,
        "scores": kind.scores_of(result.records),
        "rows": rows,
    }


def shorten(text: str) -> str:
    """A text with the middle left out, if it is long: a chat's last words say most, and its first ones what it is."""
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[: _MAX_TEXT // 3].rstrip()} […] {text[-2 * _MAX_TEXT // 3 :].lstrip()}"


def _round(value: Any) -> float | None:
    return float(f"{value:.5g}") if is_number(value) else None
