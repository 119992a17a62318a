"""Hostile, damaged or odd data: JSON that is nested without end, journals, ids, values out of range, slow patterns."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import write

from data_builders.litbench.progress import NAME, Progress
from orlhf_ext.cli.patterns import Pattern
from orlhf_ext.deadend.classifier import read_labelled
from orlhf_ext.deadend.generations import read_generated
from orlhf_ext.deadend.score import look
from orlhf_ext.files.columns import read_columns
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.files.records import load_json, parse_object, read_records
from orlhf_ext.files.sources import count_rows
from orlhf_ext.groups import GroupRM, trained_groups
from orlhf_ext.groups.config import read_groups
from orlhf_ext.groups.em import read_pairs
from orlhf_ext.models.texts import read_prompts, read_samples

DEEP = {"lists": "[" * 100_000, "objects": '{"a":' * 20_000, "closed": "[" * 101 + "]" * 101}


# ---- JSON that is nested without end


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("read", [read_records, read_prompts, read_samples, read_columns, read_labelled])
def test_deep_lines(fault, tmp_path: Path, read: Any, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1, "prompt": "a", "text": "a", "label": 1, "completions": ["a"]}\n{"a": ' + text + "}\n")
    fault.call(read, path, says="x.jsonl line 2 is not JSON that can be read .nested too deep")


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a": ' + "[" * 5000 + "]" * 5000 + "}]"], ids=["open", "closed"])
@pytest.mark.parametrize("read", [read_records, read_prompts, read_columns])
def test_deep_arrays(fault, tmp_path: Path, read: Any, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    fault.call(read, path, says="x.json is nested deeper than 100 levels, before byte")


def test_brackets_in_texts_are_no_depth(tmp_path: Path) -> None:
    text = "[" * 300 + '"\\{' + "]" * 10
    path = write(tmp_path / "x.jsonl", [{"a": text, "b": [[1]] * 200}])
    assert next(iter(read_records(path))).record["a"] == text
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": text * 300, "b": [[1]] * 200}]))
    assert next(iter(read_records(path))).record["a"] == text * 300
    assert load_json("[" * 100 + "]" * 100) and parse_object("[" * 101 + "]" * 101) == "it is not JSON"


@pytest.mark.launcher
@pytest.mark.parametrize(
    "name, flag, text",
    [
        ("evaluate", "--run", "[" * 100_000),
        ("vrcli.evaluate", "--run", "[" * 100_000),
        ("groups.evaluate", "--grid", "[" * 100_000),
        ("groups.evaluate", "--groups", "groups: " + "[" * 5000),
    ],
)
def test_deep_side_files(fault, tmp_path: Path, name: str, flag: str, text: str) -> None:
    deep = tmp_path / "deep"
    deep.write_text(text)
    rows = [{"id": "a", "prompt": "a", "completions": ["b", "c"], "rewards": [1, 0], "plan": "p", "base_nll": 1}]
    rows[0] |= dict.fromkeys(("pct_improvement", "reward", "marker", "empty", "plan_tokens", "nll"), 0)
    data = write(tmp_path / "x.jsonl", rows)
    words = {"evaluate": ["--sft", data], "vrcli.evaluate": ["--before", data, "--after", data]}.get(name, [])
    words += ["--sft", data, "--baseline", "sft"] if flag == "--groups" else []
    fault(name, *words, flag, deep, "--out", tmp_path / "o.json", says="deep.*cannot be read|deep is not YAML")


# ---- journals

MARK = {"model": "m"}
BROKEN = {
    "no JSON": b'{"key": "b", "va\n',
    "zeros": b"\0\0\0\0\n",
    "no key": b'{"value": 2}\n',
    "a list": b"[1]\n",
    "a number for a key": b'{"key": 1, "value": 2}\n',
    "nested": b'{"key": "b", "value": ' + b"[" * 100_000 + b"}\n",
    "not UTF-8": b'{"key": "\xff", "value": 2}\n',
    "an empty line": b"\n",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_damaged_journal(fault, tmp_path: Path, line: bytes) -> None:
    out = tmp_path / "x.jsonl"
    with Journal(out, MARK) as journal:
        for key in "abc":
            journal.add(key, 1)
    first, a, _, c = journal_path(out).read_bytes().splitlines(keepends=True)
    journal_path(out).write_bytes(first + a + line + c)
    damaged = journal_path(out).read_bytes()
    fault.call(Journal, out, MARK, says=r"\.x\.jsonl\.part line 3 is damaged.*remove that line .* or remove the file")
    assert journal_path(out).read_bytes() == damaged
    journal_path(out).write_bytes(first + a + c)
    with Journal(out, MARK) as journal:
        assert journal.done == {"a": 1, "c": 1}


@pytest.mark.parametrize("line", [b"{\n", b"{}\n", b'{"fingerprint": 1}\n', b'{"key": "a", "value": 1}\n'])
def test_a_damaged_head(fault, tmp_path: Path, line: bytes) -> None:
    out = tmp_path / "x.jsonl"
    journal_path(out).write_bytes(line + b'{"key": "a", "value": 1}\n')
    fault.call(Journal, out, MARK, says="line 1 is damaged, which no killed run does: remove the file")


@pytest.mark.parametrize(
    "line",
    [b"{\n", b'{"id": "a"}\n', b'{"id": 1, "status": "ok", "data": {}}\n', b'{"id": "a", "status": "?", "data": {}}\n'],
)
def test_damaged_progress(fault, tmp_path: Path, line: bytes) -> None:
    good = b'{"id": "b", "status": "missing", "data": null}\n'
    (tmp_path / "rehydrate_progress.meta.json").write_text('{"origin": 1}')
    (tmp_path / NAME).write_bytes(good + line + good)
    fault.call(Progress, tmp_path, 1, says=f"{NAME} line 2 is damaged")
    (tmp_path / NAME).write_bytes(good + b'{"id": "c", "sta')
    with Progress(tmp_path, 1) as progress:
        assert list(progress.known) == ["b"]


# ---- ids of groups and annotators


def check_groups(path: Path, **changes: Any) -> trained_groups.Training:
    """What a run on a file of pairs trains."""
    space = SimpleNamespace
    flags = {"head": "shared", "k": None, "squash": "tanh", "weighting": "proportional", "centering": 0.0}
    flags |= {"train_backbone": False, "only": None, "names": None, "style": None, "eos": "append", "aggregate": "min"}
    args = space(
        groups=space(**{**flags, "cache_features": None, **changes}),
        ds=space(packing_samples=False, load_in_4bit=False, lora=space(rank=0)),
        model=space(model_name_or_path="base", loss_type="sigmoid"),
        data=space(dataset=str(path)),
        train=space(batch_size=1),
        eval=space(dataset=None),
    )
    made = GroupRM()
    made.check(args)  # type: ignore[arg-type]
    made.configure(args)  # type: ignore[arg-type]
    found = trained_groups.from_args(args)  # type: ignore[arg-type]
    assert found is not None
    return found


def pairs(ids: list[Any], **more: Any) -> list[dict[str, Any]]:
    """A pair of each group."""
    return [{"group_id": one, "chosen": "a", "rejected": "b", **more} for one in ids]


@pytest.mark.parametrize(
    "ids, names",
    [
        ([10**9, 3], ["3", "1000000000"]),
        ([5000, 0], ["0", "5000"]),
        (["w10", "w9", 2, "11", 1.5], ["1.5", "2", "11", "w10", "w9"]),
        ([-1, True, False], ["-1", "false", "true"]),
        ([7, 7.0, "7", 8], ["7", "8"]),
        (["nan", "1e999", "1" * 30], ["1" * 30, "1e999", "nan"]),
    ],
)
def test_any_id_is_a_group(tmp_path: Path, ids: list[Any], names: list[str]) -> None:
    now = check_groups(write(tmp_path / "x.jsonl", pairs(ids)))
    again = check_groups(write(tmp_path / "y.jsonl", pairs(ids[::-1])))
    assert now.settings.names == names == again.settings.names
    assert [now.group_of(row) for row in pairs(ids)] == [names.index(trained_groups.id_text(one) or "") for one in ids]
    assert now.settings.as_config()["ids"] == names


@pytest.mark.parametrize("bad", [[1], {"a": 1}, "", float("nan"), float("inf")], ids=str)
def test_what_is_no_id(fault, tmp_path: Path, bad: Any) -> None:
    fault.call(
        check_groups, write(tmp_path / "x.jsonl", pairs([0, bad, 1])), says="line 2 has the group_id .* a text or"
    )


def test_an_id_that_the_names_lack(fault, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pairs([0, 1, 10**9]))
    fault.call(
        check_groups, path, names=["a", "b"], says="line 3 has the group_id 1000000000, and there are 2 groups: a, b"
    )


@pytest.mark.parametrize("bad", [None, "", [1], {}], ids=str)
def test_no_annotator(fault, tmp_path: Path, bad: Any) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write(tmp_path / "x.jsonl", [{**row, "annotator_id": 10**9}, {**row, "annotator_id": bad}])
    fault.call(read_pairs, str(path), None, says="line 2 has no annotator_id")


# ---- values out of their range


@pytest.mark.parametrize("bad", [2, -1, 0.5, True, "1", None, 10**30], ids=str)
def test_labels(fault, tmp_path: Path, bad: Any) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": bad}])
    fault.call(read_labelled, path, says="line 2 has .* label .*labels are 0 or 1")


@pytest.mark.parametrize("bad", [1.01, -0.1, float("nan"), True, "0.5", [0.5]], ids=str)
@pytest.mark.parametrize("read", [lambda path: look(path, "toxicity"), lambda path: read_generated(path, "toxicity")])
def test_toxicity(fault, tmp_path: Path, read: Any, bad: Any) -> None:
    rows = [{"prompt": {"text": "a"}, "generations": [{"text": "b", "toxicity": one}]} for one in (0.5, bad)]
    fault.call(
        read, write(tmp_path / "x.jsonl", rows), says="line 2 has .* under 'toxicity', which is not a score from 0 to 1"
    )


@pytest.mark.parametrize("launcher", ["train_rm", "train_dpo"])
@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": "a", "completions": ["b", "c", "d"]}, "line 2 has no 'chosen', which --data.chosen_key names"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "line 2 has no 'rejected', which --data.rejected_key names"),
        ({"chosen": "b", "rejected": "c"}, "line 2 has no 'prompt', which --data.prompt_key names"),
        ({"prompt": "a", "chosen": 5, "rejected": "c"}, "line 2 has a 'chosen' that is neither text nor messages"),
        ({"prompt": "a", "chosn": "b", "rejected": "c"}, "no 'chosen', .* did you mean 'chosn'"),
    ],
    ids=["k-wise", "null", "no prompt", "a number", "a typo"],
)
def test_pairs_are_meant(fault, tmp_path: Path, launcher: str, row: dict, says: str) -> None:
    from orlhf_ext.launch.preflight import check_pair

    data = SimpleNamespace(prompt_key="prompt", chosen_key="chosen", rejected_key="rejected")
    check = partial(check_pair, launcher, SimpleNamespace(data=data))
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}, row])
    fault.call(count_rows, "--data.dataset", str(path), check, says=says)


def test_samples_where_scored_pairs_are_meant(fault, tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "p", "completions": ["x", "y", "z"], "rewards": [1, 2, 3]}
    path = write(tmp_path / "x.jsonl", [row])
    words = ["--sft", path, "--chosen", path, "--out", tmp_path / "o.json"]
    fault("evaluate", *words, says="line 1 .* has 3 completions, and --chosen takes scored pairs")


@pytest.mark.parametrize("bad", [2**63, -(2**63) - 1, [2**70], {"a": 10**30}], ids=str)
def test_numbers_of_more_than_64_bits(fault, tmp_path: Path, bad: Any) -> None:
    path = write(tmp_path / "x.jsonl", [{"a": "text"}, {"a": bad}])
    fault.call(read_columns, path, says="line 2 has a whole number of more than 64 bits in its column 'a'")


# ---- patterns


@pytest.mark.parametrize("pattern", [r"(a|aa)+$", r"(.*?,){25}P", r"(?:a?){120}a{120}$"])
def test_patterns_that_take_for_ever(fault, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr("orlhf_ext.cli.patterns.MAX_SECONDS", 0.05)
    text = "a" * 119 + "!" + "," * 60
    fault.call(
        Pattern("--format.pattern", pattern).search,
        text if "P" in pattern else "a" * 119 + "!",
        says=r"--format.pattern .* takes more than 0\.05 s on a text of \d+ characters",
    )


def test_groups_of_a_deep_yaml_file(fault, tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("groups: " + "{a: " * 5000)
    fault.call(read_groups, path, says="g.yaml is not YAML that can be read")
