"""What builders are given beside broken lines: values that make no sense, dumps, lists of groups, Parquet, options."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, write
from small_sources import as_csv, hh_groups, hh_prompts, jigsaw_value, litbench_ids, litbench_pairs, pair, story

MADE = ("*.jsonl", "*.json", "*.csv")


def change(path: Path, line: int, **fields: Any) -> None:
    rows = [json.loads(text) for text in path.read_bytes().splitlines()]
    rows[line - 1] |= fields
    write(path, rows)


# --- values ----------------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[Callable, dict[str, Any], str]] = {
    "trait_nan": (hh_groups, {"traits": {"helpful": [float("nan"), 1], "harmless": [1, 2]}}, "not a finite"),
    "trait_infinite": (hh_groups, {"traits": {"helpful": [float("inf"), 1], "harmless": [1, 2]}}, "not a finite"),
    "trait_true": (hh_groups, {"traits": {"helpful": [True, 1], "harmless": [1, 2]}}, "not a finite"),
    "trait_text": (hh_groups, {"traits": {"helpful": "12", "harmless": [1, 2]}}, "no list of scores"),
    "trait_missing": (hh_groups, {"traits": {"helpful": [1, 2]}}, "no trait 'harmless'"),
    "three_scores_for_two": (hh_groups, {"traits": {"helpful": [1, 2, 3], "harmless": [1, 2]}}, "another number of"),
    "one_response": (hh_groups, {"completions": ["yes"]}, "fewer than two|one completion|line 3"),
    "response_is_a_number": (hh_groups, {"completions": ["yes", 3]}, "line 3"),
    "id_twice": (hh_groups, {"id": "0"}, "id of an earlier"),
    "toxicity_above_1": (
        jigsaw_value,
        {"generations": [{"text": "a", "toxicity": 1.5}]},
        "without a score from 0 to 1",
    ),
    "toxicity_nan": (
        jigsaw_value,
        {"generations": [{"text": "a", "toxicity": float("nan")}]},
        "without a score from 0",
    ),
    "toxicity_none": (jigsaw_value, {"generations": [{"text": "a", "toxicity": None}]}, "without a score from 0 to 1"),
    "toxicity_true": (jigsaw_value, {"generations": [{"text": "a", "toxicity": True}]}, "without a score from 0 to 1"),
    "no_generations": (jigsaw_value, {"generations": []}, "no generation"),
    "prompt_is_a_number": (jigsaw_value, {"prompt": {"text": 3}}, "no prompt"),
    "empty_story": (litbench_pairs, {"chosen_story": " \n"}, "no story"),
    "same_stories": (litbench_pairs, {"chosen_story": "x y", "rejected_story": "x  y\n"}, "equal stories"),
    "removed_story": (litbench_pairs, {"rejected_story": "[ Removed by Reddit ]"}, "deleted or removed story"),
    "removed_prompt": (litbench_pairs, {"prompt": "[deleted by user]"}, "no prompt"),
    "story_of_a_test_pair": (
        litbench_pairs,
        {"chosen_story": pair(100)["chosen_story"]},
        "nearly identical to one of a",
    ),
    "id_is_a_path": (litbench_ids, {"chosen_comment_id": "../a"}, "no two base-36 ids"),
    "id_is_true": (litbench_ids, {"chosen_comment_id": True}, "no two base-36 ids"),
    "id_is_null": (litbench_ids, {"rejected_comment_id": None}, "no two base-36 ids"),
    "unknown_comment": (litbench_ids, {"rejected_comment_id": "zzzzz9"}, "rejected story missing"),
    "prompt_is_blank": (hh_prompts, {"prompt": " "}, "no prompt"),
    "prompt_twice": (hh_prompts, {"prompt": "what is 0?"}, "prompt of an earlier|twice|line 3"),
    "no_messages": (story, {"messages": []}, "line 3"),
    "no_assistant": (story, {"messages": [{"role": "user", "content": "x"}]}, "line 3"),
    "content_is_null": (story, {"messages": [{"role": "user", "content": None}] * 2}, "line 3"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_makes_no_sense_is_counted(fault, tmp_path: Path, name: str):
    make, fields, says = VALUES[name]
    words, path = make(tmp_path / "in")
    change(path, 3, **fields)
    fault("build_data", *words, "--out", tmp_path / "out", says=says, rc=0, makes=MADE)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"group_id": 10**9}, "the group_id 1000000000, and there are 2 groups: minority, majority"),
        ({"group_id": -1}, "the group_id -1, and there are 2 groups"),
        ({"group_id": True}, "the group_id True, and there are 2 groups"),
        ({"group_id": "2"}, "the group_id 2, and there are 2 groups"),
        ({"group_id": 0.5}, "the group_id 0.5, and there are 2 groups"),
        ({"group_id": [0]}, r"the group_id \[0\]; give a text or a number"),
        ({"group_id": None, "group": "majorty"}, "unknown group 'majorty'; did you mean 'majority'"),
        ({"group": "majority"}, "is of group 'majority' and has the group_id 0"),
        ({"group_id": None}, "has no group_id, but earlier ones have one"),
        ({"style": "chat"}, "has the style chat, not hh"),
        ({"style": "new"}, "has the style 'new', which is none of"),
    ],
    ids=str,
)
def test_records_of_other_groups(fault, tmp_path: Path, fields: dict[str, Any], says: str):
    words, path = hh_groups(tmp_path / "in")
    change(path, 3, **fields)
    fault("build_data", *words, "--out", tmp_path / "out", says=rf"scored.jsonl line 3 \(id '2'\).*{says}")


@pytest.mark.parametrize("field", ["", "x", "2", "-0.5", "nan", "1e999", "0.5x", "٣"])
@pytest.mark.parametrize("column", ["toxic", "target"])
def test_numbers_in_csv(fault, tmp_path: Path, column: str, field: str):
    rows = [{"comment_text": f"words {n}", column: "1"} for n in range(20)]
    path = as_csv(tmp_path / "a.csv", [*rows, {"comment_text": "odd", column: field}])
    step, reason = (
        ("reward", "label that is neither 0 nor 1") if column == "toxic" else ("prompts", "target that is no")
    )
    more = [] if column == "toxic" else ["--max_len", 0]
    words = ["jigsaw", step, "-f", path, *more, "--out", tmp_path / "out"]
    fault("build_data", *words, says=f"line 22: {reason}", rc=0, makes=MADE)
    fault("build_data", *words[:-1], tmp_path / "strict", "--strict", says=f"line 22: {reason}")


# --- lists of groups -------------------------------------------------------------------------------------------------

GROUPS: dict[str, tuple[str, str]] = {
    "empty": ("", "has no list of groups"),
    "no_yaml": ("groups: [", "is not valid YAML"),
    "a_list": ("- a", "has no list of groups"),
    "a_python_object": ("groups: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    "binary": ("groups: \x00\x01", "is not valid YAML"),
    "unknown_key": ("groups: [{name: a, weights: {helpful: 1}, wieght: 2}]", "has 'wieght', which means nothing here"),
    "beside_groups": ("groups: [{name: a, weights: {helpful: 1}}]\nmore: 1", "has 'more' beside groups"),
    "nan_weight": ("groups: [{name: a, weights: {helpful: .nan}}]", "weight of helpful is nan, not a number"),
    "true_weight": ("groups: [{name: a, weights: {helpful: yes}}]", "weight of helpful is True, not a number"),
    "no_weights": ("groups: [{name: a, weights: {}}]", "weights is {}, not"),
    "number_as_name": ("groups: [{name: 1, weights: {helpful: 1}}]", "name is 1, not text"),
    "names_twice": (
        "groups: [{name: a, weights: {helpful: 1}}, {name: a, weights: {harmless: 1}}]",
        "two groups named 'a'",
    ),
    "shares": (
        "groups: [{name: a, proportion: 0.5, weights: {h: 1}}, {name: b, proportion: 0.6, weights: {h: 1}}]",
        "add up to 1.1, not to 1",
    ),
    "share_of_one": (
        "groups: [{name: a, proportion: 0.5, weights: {helpful: 1}}, {name: b, weights: {helpful: 1}}]",
        "group 'b' has no proportion, but another has",
    ),
    "negative_share": ("groups: [{name: a, proportion: -1, weights: {helpful: 1}}]", "proportion is -1, not"),
    "unknown_trait": ("groups: [{name: a, weights: {funny: 1}}, {name: b, weights: {funny: 2}}]", "no trait 'funny'"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_lists_of_groups(fault, tmp_path: Path, name: str):
    words, _ = hh_groups(tmp_path / "in")
    text, says = GROUPS[name]
    (tmp_path / "groups.yaml").write_text(text)
    words[words.index("--groups") + 1] = tmp_path / "groups.yaml"
    fault("build_data", *words, "--out", tmp_path / "out", says=says)


# --- dumps -----------------------------------------------------------------------------------------------------------


def test_dumps(fault, tmp_path: Path):
    words, _ = litbench_ids(tmp_path / "in")
    dump = words[-1]
    assert isinstance(dump, Path)
    data = dump.read_bytes()
    out = ("--out", tmp_path / "out")

    def refused(name: str, content: bytes, says: str) -> None:
        dump.with_name(name).write_bytes(content)
        words[-1] = dump.with_name(name)
        fault("build_data", *words, "--out", tmp_path / name[:-3], says=says, makes=["rehydrate_progress*"])

    fault("build_data", *words[:-1], tmp_path / "gone.jsonl", *out, says="--dump: .*gone.jsonl does not exist")
    fault("build_data", *words[:-1], tmp_path, *out, says="--dump: .* is a folder")
    refused("cut.gz", gzip.compress(data)[:-20], r"--dump: .*cut\.gz is a truncated or broken gzip file")
    refused("plain.gz", data, r"--dump: .*plain\.gz is a truncated or broken gzip file")
    refused("plain.zst", data, r"--dump: .*plain\.zst is not a readable zstd file")
    zst = pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    refused("cut.zst", zst[:-10], r"--dump: .*cut\.zst is (a truncated|no) zstd file")
    refused("other.jsonl", b'{"id": "b1", "body": "x"}\n', "none of the 8 pairs is complete")


DUMP_LINES: dict[str, tuple[bytes, str]] = {
    "cut_off": (b'{"id": "a2", "body": "x', "1 lines of the dump name an id of the list and are not JSON"),
    "deep": (b'{"id": "a2", "body": ' + b"[" * 5000, "1 lines of the dump name an id of the list and are not JSON"),
    "body_is_a_number": (b'{"id": "a2", "body": 5}', "rejected story missing"),
    "body_is_blank": (b'{"id": "a2", "body": " "}', "rejected story missing"),
    "removed": (b'{"id": "a2", "body": "[ Removed by Reddit ]"}', "rejected story removed"),
    "deleted": (b'{"id": "a2", "body": "[deleted by user]", "author": "[deleted]"}', "rejected story deleted"),
    "half_a_pair": (b'{"id": "a2", "body": "x \\ud83d y", "author": "\\udc00", "link_id": "t3_\\ud83d"}', "8 of 8"),
}


@pytest.mark.parametrize("name", DUMP_LINES)
def test_lines_of_dumps(fault, tmp_path: Path, name: str):
    words, _ = litbench_ids(tmp_path / "in")
    dump = words[-1]
    assert isinstance(dump, Path)
    line, says = DUMP_LINES[name]
    lines = dump.read_bytes().split(b"\n")
    lines[2] = line
    dump.write_bytes(b"\n".join(lines))
    fault("build_data", *words, "--out", tmp_path / "out", says=says, rc=0, makes=MADE)


def test_a_table_that_others_made_is_kept(fault, tmp_path: Path):
    words, _ = litbench_ids(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    table = out / "rehydrated_test_data.csv"
    table.write_text("mine\n")
    fault(
        "build_data",
        *words,
        "--out",
        out,
        says="is there already, and was not made from",
        makes=["rehydrate_progress*"],
    )
    assert table.read_text() == "mine\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "rehydrate_progress.jsonl").write_text('{"id": "a0", "status": "missing", "data": null}\n')
    fault("build_data", *words, "--out", other, says="rehydrate_progress.jsonl has answers from another source")


@pytest.mark.parametrize("name", ["", "REDDIT_CLIENT_ID", "REDDIT_CLIENT_SECRET"])
def test_no_credentials(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    words, _ = litbench_ids(tmp_path / "in")
    for one in ("REDDIT_CLIENT_ID", "REDDIT_CLIENT_SECRET"):
        monkeypatch.setenv(one, "planted 1" if one == name else "")
    said = fault("build_data", *words[:-2], "--out", tmp_path / "out", says="set REDDIT_CLIENT_")
    assert "planted" not in said
    monkeypatch.setenv("REDDIT_CLIENT_ID", "planted\n1")
    monkeypatch.setenv("REDDIT_CLIENT_SECRET", "plánted")
    said = fault("build_data", *words[:-2], "--out", tmp_path / "out", says="has characters that no credential has")
    assert "planted" not in said and "plánted" not in said


# --- Parquet ---------------------------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(fault, tmp_path: Path):
    _, source = litbench_pairs(tmp_path / "in")
    rows = [json.loads(line) for line in source.read_bytes().splitlines()]
    out = ("--test_file", tmp_path / "in" / "held_out.jsonl", "--out", tmp_path / "out")

    def says(path: Path, wanted: str) -> None:
        fault("build_data", "litbench", "pairs", path, *out, says=wanted)

    whole = parquet(tmp_path / "a.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    says(
        parquet(tmp_path / "none.parquet", {"prompt": [], "chosen_story": [], "rejected_story": []}),
        "has no row for training pairs",
    )
    says(parquet(tmp_path / "other.parquet", {"text": ["a"]}), "other.parquet record 1 has no column prompt")
    says(parquet(tmp_path / "numbers.parquet", {name: [1, 2] for name in rows[0]}), "prompt or story that is no text")
    data = whole.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-20])
    says(tmp_path / "cut.parquet", "cut.parquet is not a readable Parquet file")
    (tmp_path / "flipped.parquet").write_bytes(data[:60] + bytes(40) + data[100:])
    says(tmp_path / "flipped.parquet", "flipped.parquet is not a readable Parquet file")
    (tmp_path / "text.parquet").write_text("prompt,chosen\n")
    says(tmp_path / "text.parquet", "text.parquet is not a readable Parquet file")


def test_parquet_text_that_is_not_utf8(fault, tmp_path: Path):
    import pyarrow

    _, source = litbench_pairs(tmp_path / "in")
    rows = [json.loads(line) for line in source.read_bytes().splitlines()]
    texts = [row["chosen_story"].encode() for row in rows]
    texts[2] = b"A t\xe9le of three mills, and of a wind."
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["chosen_story"] = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    path = parquet(tmp_path / "a.parquet", columns)
    words = ("--test_file", tmp_path / "in" / "held_out.jsonl", "--out", tmp_path / "out")
    says = "a.parquet record 3: not UTF-8 text"
    fault("build_data", "litbench", "pairs", path, *words, says=says, rc=0, makes=MADE)
    fault("build_data", "litbench", "pairs", path, *words[:-1], tmp_path / "strict", "--strict", says=says)


# --- options ---------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[str, str]] = {
    "step": ("litbench pars", "invalid choice: 'pars'"),
    "no_step": ("litbench", "arguments are required: rehydrate|pairs|rationales"),
    "of_another_step": ("litbench pairs sample --use_cot", "unrecognized arguments: --use_cot"),
    "jigsaw_of_another_step": ("jigsaw reward --max_len 3", "unrecognized arguments: --max_len"),
    "rate": ("jigsaw reward --drop_rate 1.5", "--drop_rate 1.5 is too large; give at most 1"),
    "rate_nan": ("jigsaw reward --drop_rate nan", "--drop_rate nan is not a finite number"),
    "limit": ("hh --limit 0", "--limit 0 is too small; give at least 1"),
    "limit_word": ("story --limit many", "--limit many is not a whole number"),
    "share": ("story --val_size 1", "--val_size 1 is too large; give less than 1"),
    "share_nan": ("hh --test_size nan", "--test_size nan is not a finite number"),
    "prefix": ("hh --lim 3", "unrecognized arguments: --lim"),
    "shuffle": ("hh --shuffle", "--shuffle draws the rows of a limit at random"),
    "two_sources": ("hh a --source b", "are both given; leave one out"),
    "two_folders": ("jigsaw reward -s a --out b", "are both given; leave one out"),
    "no_tokenizer": ("hh --max_tokens 5", "add --tokenizer"),
    "unknown_tokenizer": ("jigsaw prompts --raw_dir sample --tokenizer ./nowhere", "nowhere does not exist"),
    "raw_dir": ("jigsaw --raw_dir nowhere", "--raw_dir: nowhere is not a folder"),
    "groups_file": ("hh-groups x.jsonl --groups nowhere.yaml", "nowhere.yaml does not exist"),
    "heading": ("story sample --heading (", r"--heading: \( is not a regular expression"),
    "style": ("litbench rationales sample --style loud", "invalid choice: 'loud'"),
    "answer_tokens": (
        "litbench rationales sample --answer_tokens 3",
        "--answer_tokens has no effect without --max_len",
    ),
    "seed": ("hh-groups x.jsonl --groups y.yaml --seed -1", "--seed -1"),
    "max_len": ("litbench rationales sample --max_len 9", "--max_len has no effect without --tokenizer"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    words, says = OPTIONS[name]
    fault("build_data", *words.split(), says=says)


def test_the_bundled_groups_are_read(fault, tmp_path: Path):
    words, _ = hh_groups(tmp_path / "in")
    fault(
        "build_data", *words, "--proportion", 0.2, "--out", tmp_path / "out", says="but the records of .* name theirs"
    )
    assert (ROOT / "recipes/groups/hh.yaml").exists()
