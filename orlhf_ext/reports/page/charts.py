"""Charts in Vega-Lite, by Altair, from plain rows: no chart knows a method.

Colours are variables of the page's style sheet, so that one drawing serves light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

COLOURS = tuple(f"var(--c{i})" for i in range(7))
MUTED = "var(--muted)"
CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    "padding": {"left": 2, "top": 2, "right": 6, "bottom": 2},  # half of an axis's last number is beyond its end
    "view": {"stroke": None},
    "axis": {
        **{f"{part}Color": "var(--soft)" for part in ("label", "title")},
        **{f"{part}Color": "var(--muted)" for part in ("domain", "tick")},
        "gridColor": "var(--line)",
        "labelFontSize": 11.5,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "tickSize": 4,
    },
    "axisX": {"grid": False},
    "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
    "text": {"color": "var(--ink)"},
}
_LINE = 34  # pixels of a row of dots or bars


@dataclass(frozen=True)
class Figure:
    """A chart with its caption.

    Attributes:
        title: above the chart.
        spec: Vega-Lite.
        legend: names and their colours; none where there is one series.
        note: what the marks are, under the chart.
        wide: over the whole width of the page.
    """

    title: str
    spec: dict[str, Any]
    legend: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""
    wide: bool = False


def svg(figure: Figure, colours: Mapping[str, str], width: int = 560) -> str:
    """A figure by itself, with its title and legend.

    Args:
        figure: as the page has it.
        colours: the style sheet's variables, such as ``--c0``.
        width: pixels.
    """
    import vl_convert

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            # on the page a list above the chart is its legend, and the chart has none
            kept = {key: one for key, one in value.items() if (key, one) != ("legend", None) or not figure.legend}
            return {key: plain(one) for key, one in kept.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], value) if isinstance(value, str) else value

    title = {"text": figure.title, "anchor": "start", "fontSize": 14, "color": "var(--ink)", "offset": 10}
    legend = {"title": None, "orient": "top", "labelColor": "var(--soft)", "labelFontSize": 12}
    config = {**CONFIG, "background": "var(--paper)", "padding": 12, "legend": legend}
    return vl_convert.vegalite_to_svg(plain({**figure.spec, "width": width, "title": title}), config=plain(config))


def colours(names: Sequence[str], muted: str | None = None) -> dict[str, str]:
    """A colour for each series, the same wherever the same names are given; grey for what others are compared with."""
    strong = [name for name in names if name != muted]
    found = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(strong)}
    return {name: found.get(name, MUTED) for name in names}


def line(title: str, rows: Sequence[Row], palette: Mapping[str, str], x: str, y: str) -> Figure:
    """Curves: rows ``{x, y, series}``."""
    import altair as alt

    few = len(rows) <= 60 * len(palette)
    chart = (
        alt.Chart(_data(rows))
        .mark_line(point={"size": 28, "filled": True} if few else False, strokeWidth=1.8, interpolate="linear")
        .encode(
            x=_number(alt.X, "x", x, zero=False, axis={"tickMinStep": 1}),
            y=_number(alt.Y, "y", y, zero=False),
            color=_colour(alt, palette),
            tooltip=_tooltip(alt, "series", {"x": x, "y": y}),
        )
    )
    return Figure(title, _spec(chart, 170), [])


def bars(title: str, rows: Sequence[Row], palette: Mapping[str, str], x: str) -> Figure:
    """Bars from zero with their numbers: rows ``{label, series, value}``, in their order."""
    import altair as alt

    labels = list(dict.fromkeys(row["label"] for row in rows))
    room = 1.12 * max(row["value"] for row in rows)  # for the number beside the longest bar
    base = alt.Chart(_data(rows)).encode(
        x=_number(alt.X, "value", x).scale(domain=[0, room]),
        y=_labels(alt, labels),
        color=_colour(alt, palette),
        tooltip=_tooltip(alt, "label", {"value": x}, series=len(palette) > 1),
    )
    if len(palette) > 1:
        base = base.encode(yOffset=alt.YOffset("series:N", sort=list(palette)))
    numbers = base.mark_text(align="left", dx=4, fontSize=10).encode(text=alt.Text("value:Q", format=".3~g"))
    chart = alt.layer(base.mark_bar(cornerRadiusEnd=2), numbers)
    height = len(labels) * (16 + 8 * (len(palette) - 1)) + 8
    return Figure(title, _spec(chart, height), legend(palette), wide=True)


def intervals(
    title: str,
    rows: Sequence[Row],
    palette: Mapping[str, str],
    x: str,
    reference: float | None = None,
    note: str = "",
) -> Figure:
    """Dots with whiskers: rows ``{label, series, value, low, high}``, in their order."""
    import altair as alt

    labels = list(dict.fromkeys(row["label"] for row in rows))
    base = alt.Chart(_data(rows)).encode(
        y=_labels(alt, labels),
        color=_colour(alt, palette),
        tooltip=_tooltip(alt, "label", {"value": x, "low": "low", "high": "high"}, series=len(palette) > 1),
    )
    if len(palette) > 1:
        base = base.encode(yOffset=alt.YOffset("series:N", sort=list(palette)))
    whiskers = base.mark_rule(strokeWidth=2).encode(x=_number(alt.X, "low", x, zero=False), x2="high:Q")
    dots = base.mark_point(filled=True, size=64, opacity=1).encode(x=_number(alt.X, "value", x, zero=False))
    chart = alt.layer(*_reference(alt, reference), whiskers, dots)
    height = len(labels) * max(_LINE - 8, 15 * len(palette)) + 8
    return Figure(title, _spec(chart, height), legend(palette), note)


def scatter(title: str, rows: Sequence[Row], palette: Mapping[str, str], x: str, y: str, note: str) -> Figure:
    """Points with whiskers in both directions, each series joined in its order.

    Rows ``{name, series, x, y, x_low, x_high, y_low, y_high, order}``; an end may be None.
    """
    import altair as alt

    base = alt.Chart(_data(rows)).encode(color=_colour(alt, palette))
    at_x, at_y = _number(alt.X, "x", x, zero=False), _number(alt.Y, "y", y, zero=False)
    whiskers = base.mark_rule(strokeWidth=1.4, opacity=0.55)
    layers = [
        whiskers.encode(x=at_x, y=_number(alt.Y, "y_low", y, zero=False), y2="y_high:Q").transform_filter(
            "isValid(datum.y_low)"
        ),
        whiskers.encode(x=_number(alt.X, "x_low", x, zero=False), x2="x_high:Q", y=at_y).transform_filter(
            "isValid(datum.x_low)"
        ),
        base.mark_line(strokeWidth=1.4, opacity=0.5).encode(x=at_x, y=at_y, order="order:Q"),
    ]
    tooltip = _tooltip(alt, "name", {"x": x, "y": y}, series=len(palette) > 1)
    layers.append(base.mark_point(filled=True, size=70, opacity=1).encode(x=at_x, y=at_y, tooltip=tooltip))
    middle = (min(row["x"] for row in rows) + max(row["x"] for row in rows)) / 2
    names = {  # they stay within the chart
        "<=": base.mark_text(align="left", dx=8, dy=-8, fontSize=11),
        ">": base.mark_text(align="right", dx=-8, dy=-8, fontSize=11),
    }
    for side, name in names.items():
        layers.append(name.encode(x=at_x, y=at_y, text="name:N").transform_filter(f"datum.x {side} {middle}"))
    return Figure(title, _spec(alt.layer(*layers), 280), legend(palette), note)


def histogram(
    title: str,
    values: Mapping[str, Sequence[float]],
    palette: Mapping[str, str],
    x: str,
    reference: float | None = None,
) -> Figure:
    """Shares of prompts in bins of equal width, the same for each series."""
    import altair as alt
    import numpy as np

    pool = np.concatenate([np.asarray(one, dtype=np.float64) for one in values.values()])
    edges = np.histogram_bin_edges(pool, bins=int(np.clip(2 * len(pool) ** 0.5, 8, 40)))
    rows = []
    for name, one in values.items():
        counts, _ = np.histogram(one, edges)
        rows += [
            {"series": name, "low": low, "high": high, "share": count / len(one), "count": int(count)}
            for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        ]
    chart = (
        alt.Chart(_data(rows))
        .mark_bar(opacity=0.55, binSpacing=0)
        .encode(
            x=alt.X("low:Q", bin=alt.BinParams(binned=True), title=x, axis=alt.Axis(tickCount=5)),
            x2="high:Q",
            y=alt.Y("share:Q", title="share of prompts", stack=None, axis=alt.Axis(format="%", tickCount=4)),
            color=_colour(alt, palette),
            tooltip=_tooltip(alt, "series", {"low": "from", "high": "to", "count": "prompts"}),
        )
    )
    return Figure(title, _spec(alt.layer(chart, *_reference(alt, reference)), 200), legend(palette))


def reliability(title: str, rows: Sequence[Row], palette: Mapping[str, str], x: str, y: str, note: str) -> Figure:
    """Observed shares against predicted ones: rows ``{series, x, y, low, high, count}``, and the diagonal."""
    import altair as alt

    ends = alt.Scale(domain=[0.5 if all(row["x"] >= 0.5 for row in rows) else 0, 1])
    diagonal = alt.Chart(_data([{"x": at, "y": at} for at in ends.domain]))  # type: ignore[attr-defined]
    at_x = alt.X("x:Q", title=x, scale=ends, axis=alt.Axis(tickCount=5))
    base = alt.Chart(_data(rows)).encode(x=at_x, color=_colour(alt, palette))
    chart = alt.layer(
        diagonal.mark_line(strokeDash=[4, 4], strokeWidth=1, color=MUTED).encode(x=at_x, y="y:Q"),
        base.mark_rule(strokeWidth=1.6).encode(y=alt.Y("low:Q", title=y, scale=alt.Scale(domain=[0, 1])), y2="high:Q"),
        base.mark_point(filled=True, opacity=1).encode(
            y=alt.Y("y:Q", title=y),
            size=alt.Size("count:Q", legend=None, scale=alt.Scale(range=[30, 200])),
            tooltip=_tooltip(alt, "series", {"x": x, "y": y, "count": "cases"}),
        ),
    )
    return Figure(title, _spec(chart, 280), legend(palette), note)


def _data(rows: Sequence[Row]) -> Any:
    import altair as alt

    return alt.Data(values=[dict(row) for row in rows])


def _number(channel: Any, key: str, title: str, zero: bool = True, axis: Mapping[str, Any] | None = None) -> Any:
    import altair as alt

    return channel(
        f"{key}:Q", title=title, scale=alt.Scale(zero=zero, nice=True), axis=alt.Axis(tickCount=5, **(axis or {}))
    )


def _labels(alt: Any, labels: Sequence[str]) -> Any:
    return alt.Y("label:N", title=None, sort=list(labels), axis=alt.Axis(labelLimit=170, ticks=False, domain=False))


def _colour(alt: Any, palette: Mapping[str, str]) -> Any:
    scale = alt.Scale(domain=list(palette), range=list(palette.values()))
    return alt.Color("series:N", legend=None, scale=scale)


def _tooltip(alt: Any, name: str, numbers: Mapping[str, str], series: bool = False) -> list[Any]:
    names = [name, *(["series"] if series and name != "series" else [])]
    return [
        *(alt.Tooltip(f"{key}:N", title="run" if key == "series" else key) for key in names),
        *(alt.Tooltip(f"{key}:Q", title=title, format=".4~g") for key, title in numbers.items()),
    ]


def _reference(alt: Any, value: float | None) -> list[Any]:
    if value is None:
        return []
    return [alt.Chart(_data([{"at": value}])).mark_rule(strokeDash=[4, 4], color=MUTED).encode(x="at:Q")]


def legend(palette: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and colours, where there is more than one."""
    return list(palette.items()) if len(palette) > 1 else []


def _spec(chart: Any, height: int) -> dict[str, Any]:
    return chart.properties(width="container", height=height).to_dict()
