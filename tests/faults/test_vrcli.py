"""Labels, baselines, settings and results that VR-CLI cannot use."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import write

from data_builders.story.prompts import from_messages

READ = "has a label that VR-CLI cannot read: "


def record(name: str = "r0", **label: Any) -> dict[str, Any]:
    """What build_data story writes, with fields of its label changed."""
    chat = [
        {"role": "user", "content": "Why did it cross?"},
        {"role": "assistant", "content": "To lay it on the line."},
    ]
    task: Any = from_messages({"messages": chat}, "keep", None)
    fields = {**json.loads(json.dumps(task.label(name))), **label}
    return {"id": name, "prompt": task.prompt, "label": json.dumps(fields)}


def splice(**changes: Any) -> dict[str, Any]:
    """A label's place of the plan, changed."""
    return {"plan": {**json.loads(record()["label"])["plan"], **changes}}


def base(**changes: Any) -> dict[str, Any]:
    return {"base": {"nll": 2.0, "n": 7, "fp": "f", **changes}}


CHAT = [{"role": "user", "content": "Why?"}]
LABELS: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"v": 9}, "its version v is 9, not"),
    "no version": ({"v": None}, "its version v is None"),
    "an id of numbers": ({"id": 7}, "its id is not text"),
    "an empty id": ({"id": ""}, "its id is not text"),
    "an adapter": ({"adapter": "joke"}, "its adapter is 'joke'"),
    "no gold": ({"gold": None}, "its gold text is empty or no text"),
    "blank gold": ({"gold": " \n"}, "its gold text is empty or no text"),
    "gold as a list": ({"gold": ["a"]}, "its gold text is empty or no text"),
    "no messages": ({"messages": []}, "its messages are not a chat of texts that ends with the user"),
    "messages as text": ({"messages": "Why?"}, "its messages are not a chat"),
    "an answer at the end": (
        {"messages": [*CHAT, {"role": "assistant", "content": "x"}]},
        "its messages are not a chat",
    ),
    "a message without text": ({"messages": [{"role": "user", "content": None}]}, "its messages are not a chat"),
    "no plan": ({"plan": None}, "its plan is not an object with message, start"),
    "a plan without its end": ({"plan": {"message": 0, "start": 0}}, "its plan is not an object"),
    "a plan as true": (splice(message=True), "its plan is not an object"),
    "a plan in a third message": (splice(message=3), "its plan goes into message 3 of"),
    "a plan before the first": (splice(message=-1), "its plan goes into message -1 of"),
    "a plan behind the text": (splice(start=0, end=10**6), "its plan goes to 0:1000000, outside of the message"),
    "a plan that ends before it starts": (splice(start=5, end=2), "its plan goes to 5:2, outside"),
    "a baseline as a number": ({"base": 2.0}, "its base has no number nll"),
    "a baseline as text": (base(nll="2"), "its base has no number nll"),
    "a baseline as true": (base(nll=True), "its base has no number nll"),
    "a baseline of NaN": (base(nll=float("nan")), "its base has no number nll"),
    "an infinite baseline": (base(nll=float("inf")), "its base has no number nll"),
    "a likelihood above 1": (base(nll=-0.5), r"its base has an nll of -0\.5"),
    "a baseline over nothing": (base(n=0), "its base lacks n"),
    "a baseline over half a token": (base(n=1.5), "its base lacks n"),
    "a baseline without its fingerprint": (base(fp=None), "its base lacks n .* or fp"),
}


@pytest.mark.parametrize(("label", "says"), LABELS.values(), ids=LABELS)
def test_labels(fault: Any, label: dict[str, Any], says: str, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [record("first"), record(**label)])
    said = rf"d\.jsonl line 2 .*{READ}{says}.*; make the data with build_data story"
    fault("vrcli.baseline", "--model", tiny_model, "--data", data, "--out", tmp_path / "out/b.jsonl", says=said)


def test_labels_that_are_no_objects(fault: Any, tiny_model: Path, tmp_path: Path) -> None:
    for number, value in enumerate((None, 7, "", "[1]", "no JSON", "{", '{"v": 1', '"v"')):
        data = write(tmp_path / f"{number}.jsonl", [{**record(), "label": value}])
        out = tmp_path / "out/b.jsonl"
        fault(
            "vrcli.baseline",
            "--model",
            tiny_model,
            "--data",
            data,
            "--out",
            out,
            says=rf"{number}.jsonl line 1 .*{READ}",
        )


FILES: dict[str, tuple[Callable[[list[dict]], list[dict]], str]] = {
    "an id twice": (lambda rows: [*rows, rows[0]], r"line 3 .*has the id of .*line 1; give each record its own"),
    "another id outside": (lambda rows: [{**rows[0], "id": "x"}], "is called 'x' outside of its label"),
    "no record": (lambda _: [], "has no record"),
}


@pytest.mark.parametrize(("change", "says"), FILES.values(), ids=FILES)
def test_files(fault: Any, change: Any, says: str, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", change([record("a"), record("b")]))
    fault("vrcli.baseline", "--model", tiny_model, "--data", data, "--out", tmp_path / "out/b.jsonl", says=says)


SETTINGS: list[tuple[str, str]] = [
    ("--thresholds 1 0.5 --values 1 2", "thresholds must rise, and do not: 1, 0.5"),
    ("--thresholds 1 1 --values 1 2", "thresholds must rise"),
    ("--thresholds 1 2", "2 thresholds and 3 values"),
    ("--values 1", "3 thresholds and 1 values"),
    ("--thresholds nan 1 2", "thresholds nan is not a finite number"),
    ("--values 1 2 inf", "values inf is not a finite number"),
    ("--reward raw --thresholds 1 2 3", "thresholds and values are of reward tiers, not of raw"),
    ("--reward binary --values 1 2 3", "thresholds and values are of reward tiers, not of binary"),
    ("--cap 1", "cap bounds the rewards positive and raw"),
    ("--reward positive --cap 0", "cap 0 would make all positive rewards the same"),
    ("--reward positive --cap nan", "cap nan is not a finite number"),
    ("--reward raw --cap inf", "cap inf is not a finite number"),
    ("--reward best", "invalid choice: 'best'"),
    ("--tail end", "invalid choice: 'end'"),
    ("--system off", "invalid choice: 'off'"),
]


@pytest.mark.parametrize(("flags", "says"), SETTINGS, ids=[flags for flags, _ in SETTINGS])
def test_settings(fault: Any, flags: str, says: str, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [record(**base())])
    samples = write(tmp_path / "s.jsonl", [{"id": "r0", "prompt": "Why?", "completions": ["In summary: x"]}])
    words = ("--model", tiny_model, "--data", data, "--samples", samples, "--out", tmp_path / "out/r.jsonl")
    fault("vrcli.score", *words, *flags.split(), says=says)


def test_an_empty_marker(fault: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [record(**base())])
    words = ("--model", tiny_model, "--data", data, "--samples", data, "--out", tmp_path / "out/r.jsonl")
    fault("vrcli.score", *words, "--markers", "", says="an empty marker matches everywhere")


def test_samples_of_other_records(fault: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [record(**base())])
    samples = write(tmp_path / "s.jsonl", [{"id": "r9", "prompt": "Why?", "completions": ["x"]}])
    words = ("--model", tiny_model, "--data", data, "--samples", samples, "--out", tmp_path / "out/r.jsonl")
    fault("vrcli.score", *words, says=r"s\.jsonl line 1 \(id 'r9'\) is not a record of .*d\.jsonl")


ROW = {"id": "a", "sample": 0, "plan": "x", "reward": 0.5, "pct_improvement": 0.1, "nll": 2.0, "base_nll": 2.1}
ROW |= {"plan_tokens": 3, "marker": True, "empty": False}
RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no improvement": ({"pct_improvement": None}, "is not a scored plan"),
    "NaN": ({"nll": float("nan")}, "is not a scored plan"),
    "an infinite reward": ({"reward": float("inf")}, "is not a scored plan"),
    "a reward as text": ({"reward": "0.5"}, "is not a scored plan"),
    "a reward as true": ({"reward": True}, r"is not a scored plan \(no number reward\)"),
    "no baseline": ({"base_nll": None}, r"is not a scored plan \(no number base_nll\)"),
    "a plan of numbers": ({"plan": 3}, r"is not a scored plan \(no id or no plan\)"),
    "an id of numbers": ({"id": 3}, r"is not a scored plan \(no id or no plan\)"),
    "another record": ({"id": "z"}, "lacks the record with id"),
    "another baseline": ({"base_nll": 2.2}, "have the record with id 'a' with different baselines"),
    "a sample twice": ({}, "has sample 0 of the record with id 'a' twice"),
}


@pytest.mark.parametrize(("change", "says"), RESULTS.values(), ids=RESULTS)
def test_results(fault: Any, change: dict[str, Any], says: str, tmp_path: Path) -> None:
    before = write(tmp_path / "before.jsonl", [ROW])
    rows = [copy.deepcopy(ROW) | change]
    after = write(tmp_path / "after.jsonl", rows if change else [*rows, *rows])
    fault("vrcli.evaluate", "--before", before, "--after", after, "--out", tmp_path / "out/e.json", says=says)
