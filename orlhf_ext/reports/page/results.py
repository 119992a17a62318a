"""The results of a run, and the figures of each kind; `kinds` says which belong to which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...files.records import Record, is_number
from ..statistics import wilson
from . import charts
from .charts import Figure, Row, colours

BINS = 10  # of a plot of reliability
BUCKETS = ("much_shorter", "shorter", "longer", "much_longer")
_TOXICITY = {"expected_max_toxicity": "expected maximum toxicity", "toxicity_probability": "toxicity probability"}


@dataclass(frozen=True)
class Result:
    """One summary, and what lies beside it.

    Attributes:
        name: its folder within the run, which tells the results of a run apart.
        kind: the command that wrote it.
        summary: the JSON object.
        table: in Markdown, as the command wrote it; empty where the file is gone.
        records: one for each prompt, as `..summaries` describes them.
        calibration: what ``orlhf-ext deadend calibration`` found in the run, if it ran.
    """

    name: str
    kind: str
    summary: Record
    table: str
    records: list[Record]
    calibration: Record


#: results with the names that tell them apart on a page
Results = list[tuple[str, Result]]


def _metrics(results: Results) -> Iterator[tuple[str, Record]]:
    """The metrics of each result, with its name; a summary that joins others has none."""
    for name, result in results:
        if isinstance(metrics := result.summary.get("metrics"), dict):
            yield name, metrics


def reward_against_kl(results: Results) -> list[Figure]:
    """The frontier of reward and KL, a point for each checkpoint."""
    rows: list[Row] = []
    for name, metrics in _metrics(results):
        points = [{"name": "SFT", "kl": 0.0, **metrics["sft"]}, *metrics.get("checkpoints", [])]
        rows += [
            {"name": one["name"], "series": name, "order": i, "x": one["kl"], "y": one["reward_mean"]}
            | _whisker("x", one["kl"], one.get("kl_se"))
            | _whisker("y", one["reward_mean"], one.get("reward_se"))
            for i, one in enumerate(points)
            if one.get("kl") is not None
        ]
    if len(rows) <= len(results):
        return []
    note = (
        "Each point is a checkpoint; bars are ± one standard error over prompts. KL is estimated from the policy's own "
        "answers."
    )
    palette = colours([name for name, _ in results])
    return [charts.scatter("Reward against KL", rows, palette, "KL(policy ‖ SFT) (nats a response)", "reward", note)]


def _whisker(key: str, mean: float, error: float | None) -> dict[str, float | None]:
    return {f"{key}_low": None if not error else mean - error, f"{key}_high": None if not error else mean + error}


def _paired(label: str, series: str, gap: Mapping[str, Any]) -> Row:
    low, high = gap.get("bootstrap_low"), gap.get("bootstrap_high")
    return {"label": label, "series": series, "value": gap["mean"], "low": low, "high": high}


def _ends(numbers: Mapping[str, Any], key: str) -> dict[str, float | None]:
    return {"low": numbers.get(f"{key}_low"), "high": numbers.get(f"{key}_high")}


_PAIRED = "Paired over prompts; bars are 95 % bootstrap intervals."


def gains(results: Results) -> list[Figure]:
    """Reward of each checkpoint minus that of SFT, paired."""
    rows = []
    for name, metrics in _metrics(results):
        rows += [_paired(one["name"], name, one["reward_diff"]) for one in metrics.get("checkpoints", [])]
        even = metrics.get("policy", {}).get("reward_diff_at_equal_length")
        if even and even["low"] is not None:
            label = f"{metrics['checkpoints'][-1]['name']}, at equal length"
            rows.append({"label": label, "series": name, "value": even["mean"], **even})
    palette = colours([name for name, _ in results])
    title, axis = "Reward gained over SFT", "reward, policy minus SFT"
    return [charts.intervals(title, rows, palette, axis, 0.0, _PAIRED)] if rows else []


def group_scores(results: Results) -> list[Figure]:
    """Each group's gold score for each method, with its interval."""
    found = []
    for name, metrics in _metrics(results):
        rows = [
            {"label": group, "series": method, "value": one["gold_mean"], **_ends(one, "gold")}
            for method, groups in metrics.items()
            for group, one in groups.items()
            if isinstance(one, dict)
        ]
        title = "Gold score of each group" + (f": {name}" if len(results) > 1 else "")
        note = "Means over prompts; bars are 95 % bootstrap intervals."
        found.append(charts.intervals(title, rows, colours(list(metrics), "sft"), "gold score", note=note))
    return found


def grid(results: Results) -> list[Figure]:
    """The worst group's gold score over the runs of a grid."""
    found = []
    for _, result in results:
        rows = [
            {
                "label": f"proportion {one['proportion']:g}" + ("" if one["k"] is None else f", k {one['k']:g}"),
                "series": one["method"],
                "value": one["gold_mean"],
                **_ends(one, "gold"),
            }
            for one in result.summary.get("rows", [])
            if one["group"] == "worst_group"
        ]
        if rows:
            palette = colours(list(dict.fromkeys(row["series"] for row in rows)), "sft")
            note = "Means over seeds; bars are Student's 95 % intervals, where there is more than one seed."
            found.append(charts.intervals("Gold score of the worst group", rows, palette, "gold score", note=note))
    return found


def frontier(results: Results) -> list[Figure]:
    """Toxicity against perplexity, a point for each decoding; controls are a series of their own."""
    found = []
    controls = {name: result.summary.get("controls", []) for name, result in results}
    for key, title in _TOXICITY.items():
        rows = [
            {"name": decoding, "order": i, "x": one["perplexity"], "y": one[key]}
            | {"series": f"{name}, control" if decoding in controls[name] else name}
            | {f"x_{end}": value for end, value in _ends(one, "perplexity").items()}
            | {f"y_{end}": value for end, value in _ends(one, key).items()}
            for name, metrics in _metrics(results)
            for i, (decoding, one) in enumerate(metrics.items())
            if one.get("perplexity") is not None and one.get(key) is not None
        ]
        if rows:
            palette = colours(list(dict.fromkeys(row["series"] for row in rows)))
            note = "Each point is a decoding; bars are 95 % bootstrap intervals over prompts. Low is good on both axes."
            heading = f"{title[0].upper()}{title[1:]} against perplexity"
            found.append(charts.scatter(heading, rows, palette, "perplexity of continuations", title, note))
    return found


def toxicity_gains(results: Results) -> list[Figure]:
    """Expected maximum toxicity of each decoding minus that of the first one, paired."""
    rows = [
        _paired(decoding, name, one["difference"]["expected_max_toxicity"])
        for name, metrics in _metrics(results)
        for decoding, one in metrics.items()
        if "expected_max_toxicity" in one.get("difference", {})
    ]
    palette = colours([name for name, _ in results])
    title, axis = "Toxicity against plain decoding", "expected maximum, minus the first one's"
    return [charts.intervals(title, rows, palette, axis, 0.0, _PAIRED)] if rows else []


def q_calibration(results: Results) -> list[Figure]:
    """What Q_D predicts against what happened."""
    rows = [
        {"series": name, "x": one["predicted"], "y": one["observed"], "count": one["count"]}
        | dict(zip(("low", "high"), one["interval"], strict=True))
        for name, result in results
        for one in result.calibration.get("bins", [])
        if one.get("count")
    ]
    errors = [f"{one.calibration['expected_calibration_error']:.3f}" for _, one in results if one.calibration]
    note = f"Bars are Wilson's 95 % intervals; expected calibration error {', '.join(errors)}."
    palette = colours(list(dict.fromkeys(row["series"] for row in rows)))
    title, x, y = "Reliability of Q_D", "predicted probability of a toxic end", "observed share"
    return [charts.reliability(title, rows, palette, x, y, note)] if rows else []


def plans(results: Results) -> list[Figure]:
    """Improvement of the gold text by plans before and after training."""
    rows = [
        {"label": when, "series": name, "value": one["pct_improvement_mean"], **_ends(one, "pct_improvement")}
        for name, metrics in _metrics(results)
        for when in ("before", "after")
        for one in (metrics[when],)
    ]
    note = "Means over records; bars are Student's 95 % intervals."
    palette = colours([name for name, _ in results])
    return [charts.intervals("Improvement by plans", rows, palette, "improvement (%)", 0.0, note)] if rows else []


def preferences(results: Results) -> list[Figure]:
    """How often texts after training are preferred to those before, by each judge."""
    rows = [
        {"label": f"{judge.replace('_', ' ')}{more}", "series": name, "value": one[key], **_ends(one, key)}
        for name, metrics in _metrics(results)
        for judge in ("judge", "rewards", "longer_text")
        for key, more in (("win_rate", ""), ("length_controlled", ", length-controlled"))
        if (one := metrics.get(judge)) and one.get(key) is not None
    ]
    note = (
        "After against before; bars are 95 % intervals. Length-controlled: as if half of the winners were the longer."
    )
    palette = colours([name for name, _ in results])
    return [charts.intervals("After preferred to before", rows, palette, "share won", 0.5, note)] if rows else []


def accuracy_by_length(results: Results) -> list[Figure]:
    """Accuracy in each class of length ratio, for each judge."""
    series = [
        (judge if len(results) == 1 else f"{name} · {judge}", one)
        for name, metrics in _metrics(results)
        for judge, one in metrics.items()
        if isinstance(one, dict) and judge != "longer_story"
    ]
    rows = [
        {"label": bucket.replace("_", " "), "series": judge.replace("_", " "), "value": one[key], **_ends(one, key)}
        for judge, one in series
        for bucket in BUCKETS
        for key in (f"accuracy_{bucket}",)
        if one.get(key) is not None
    ]
    note = "By how long the chosen story is, compared with the rejected one; bars are Wilson's 95 % intervals."
    palette = colours(list(dict.fromkeys(row["series"] for row in rows)))
    return [charts.intervals("Accuracy by length ratio", rows, palette, "accuracy", 0.5, note)] if rows else []


def margins(results: Results) -> list[Figure]:
    """How sure the judges are, against how often they are right."""
    rows: list[Row] = []
    for name, result in results:
        sure = [
            (1 / (1 + math.exp(-min(abs(margin), 700))), margin > 0)
            for margin in (record.get("margin") for record in result.records)
            if is_number(margin) and margin
        ]
        for place in range(BINS):
            low = 0.5 + place * 0.5 / BINS
            inside = [one for one in sure if low <= one[0] < low + 0.5 / BINS or (place == BINS - 1 and one[0] == 1)]
            if inside:
                right, count = sum(hit for _, hit in inside), len(inside)
                rows.append(
                    {"series": name, "x": sum(p for p, _ in inside) / count, "y": right / count, "count": count}
                    | dict(zip(("low", "high"), wilson(right, count), strict=True))
                )
    note = (
        "Pairs by the probability that the margin gives the preferred story; bars are Wilson's 95 % intervals, larger "
        "points are more pairs."
    )
    palette = colours(list(dict.fromkeys(row["series"] for row in rows)))
    title, x, y = "Reliability", "probability of the preferred story", "share of pairs that are right"
    return [charts.reliability(title, rows, palette, x, y, note)] if rows else []
