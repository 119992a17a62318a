"""``build_data litbench pairs``: tables to pairs, where the test set comes from, and what leaks between the parts."""

from __future__ import annotations

import csv
import datetime
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from helpers import build_light, failing, meta, read, write
from hypothesis import given
from hypothesis import strategies as st

from data_builders.litbench import graded, sources
from data_builders.litbench.leaks import StoryIndex, prompt_key, runs, words
from data_builders.litbench.sources import BUNDLED, REHYDRATED, Pair, as_pair
from data_builders.litbench.splits import draw_prompts
from orlhf_ext.build_data import main
from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import read_records

CSV_COLUMNS = ["prompt", "chosen_story", "rejected_story", "chosen_comment_id", "rejected_comment_id"]
CSV_COLUMNS += ["chosen_comment_score", "rejected_comment_score", "chosen_username", "rejected_username"]
CSV_COLUMNS += ["chosen_timestamp", "rejected_timestamp"]
VOCABULARY = [f"{start}{end}" for start in "bdfgklmnprstvz" for end in "aeiou"]


def story(seed: object, count: int = 60) -> str:
    """A story of invented words."""
    generator = random.Random(str(seed))
    return " ".join("".join(generator.choices(VOCABULARY, k=generator.randint(1, 3))) for _ in range(count)) + "."


def pair(number: object, **change: Any) -> dict[str, Any]:
    """A row as LitBench-Train has it."""
    row = {"prompt": f"[WP] A tale of {number}", "chosen_story": story(f"c{number}")}
    return {**row, "rejected_story": story(f"r{number}"), "chosen_upvotes": 30, "rejected_upvotes": 12} | change


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [pair(number) for number in range(start, start + count)]


def table(path: Path, data: list[dict[str, Any]]) -> Path:
    """A CSV file with the rehydrated one's columns."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        writer.writerows(data)
    return path


def build(*words: object) -> None:
    main(["litbench", *map(str, words)])


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one sentence that the builder ends with."""
    said = failing(capsys, main, "litbench", *words)
    assert said.count("\n") == 1, said
    return said


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", rows(40))


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    return write(tmp_path / "held.jsonl", rows(10, 1000))


def parts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read(folder / f"pairs_{split}.jsonl") for split in ("train", "val", "test")}


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_and_sidecars(tmp_path: Path, source: Path, held_out: Path):
    build("pairs", source, "--test_file", held_out, "--output_dir", tmp_path / "out")
    found = parts(tmp_path / "out")
    assert {split: len(some) for split, some in found.items()} == {"train": 36, "val": 4, "test": 10}
    originals = {row["chosen_story"]: row for row in rows(40) + rows(10, 1000)}
    for row in [row for some in found.values() for row in some]:
        original = originals.pop(row["chosen"])
        assert (row["prompt"], row["rejected"]) == (original["prompt"], original["rejected_story"])
        assert (row["chosen_upvotes"], row["rejected_upvotes"]) == (30, 12) and len(row["id"]) == 16
    assert not originals
    sidecar = meta(tmp_path / "out" / "pairs_train.jsonl")
    assert sidecar["test_source"] == f"--test_file {held_out}" and sidecar["leaks"] == {
        "found": {},
        "they_are": "dropped",
    }
    assert sidecar["counts"] == {"read": 36, "kept": 36, "not_drawn": 0, "dropped": {}}
    assert meta(tmp_path / "out" / "pairs_val.jsonl")["split"].startswith("by prompt")


def test_prompts_of_the_pairs_each_once(tmp_path: Path, held_out: Path):
    data = [*rows(40), pair(3, chosen_story=story("again")), pair(4, rejected_story=story("another"))]
    source = write(tmp_path / "train.jsonl", data)
    build("pairs", source, "--test_file", held_out, "--out", tmp_path / "out")
    build("prompts", source, "--test_file", held_out, "--out", tmp_path / "out", "--instruction", "Write: ")
    for split, found in parts(tmp_path / "out").items():
        prompts = read(tmp_path / "out" / f"prompts_{split}.jsonl")
        by_prompt: dict[str, dict[str, Any]] = {}
        for row in found:
            by_prompt.setdefault(row["prompt"], row)
        assert prompts == [
            {"id": row["id"], "prompt": f"Write:\n\n{text}", "label": row["chosen"]} for text, row in by_prompt.items()
        ], split
    dropped = [meta(tmp_path / "out" / f"prompts_{split}.jsonl")["counts"]["dropped"] for split in ("train", "val")]
    assert sum(sum(counts.values()) for counts in dropped) == 2


def test_the_same_bytes_again_and_in_any_order(tmp_path: Path, held_out: Path):
    data = rows(40)
    for name in ("a", "b"):
        build("pairs", write(tmp_path / "x.jsonl", data), "--test_file", held_out, "--out", tmp_path / name)
    random.Random(1).shuffle(data)
    build("pairs", write(tmp_path / "x.jsonl", data), "--test_file", held_out, "--out", tmp_path / "c")
    build("pairs", tmp_path / "x.jsonl", "--test_file", held_out, "--out", tmp_path / "d", "--seed", 7)
    for split in ("train", "val", "test"):
        name = f"pairs_{split}.jsonl"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        a, c = ({row["id"]: row for row in read(tmp_path / folder / name)} for folder in "ac")
        assert a == c
    assert {row["id"] for row in parts(tmp_path / "d")["val"]} != {row["id"] for row in parts(tmp_path / "a")["val"]}


def test_dropped_rows_are_counted_by_reason(tmp_path: Path, held_out: Path, capsys: pytest.CaptureFixture):
    bad = [
        pair(1, chosen_story=None),
        pair(2, rejected_story="  \n"),
        pair(3, chosen_story="[deleted]"),
        pair(4, rejected_story=" [removed]\n"),
        pair(5, prompt=None),
        pair(6, prompt=""),
        pair(7, rejected_story=story("c7").replace(" ", "\n", 3)),
        pair(8, chosen_story=8),
        pair(20),
        pair(21, chosen_story=story("r21"), rejected_story=story("c21")),
        pair(9, prompt=["x"]),
    ]
    source = write(tmp_path / "x.jsonl", rows(30, 20) + bad)
    with source.open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "cut o\n')
    build("pairs", source, "--test_file", held_out, "--out", tmp_path / "out")
    counts = meta(tmp_path / "out" / "pairs_train.jsonl")["counts"]
    assert counts["dropped"] == {
        "deleted or removed story": 2,
        "no prompt": 2,
        "no story": 2,
        "pair of an earlier row": 2,
        "prompt or story that is no text": 2,
        "equal stories": 1,
        "not JSON": 1,
    }
    assert (counts["read"], counts["kept"]) == (39, 27)
    assert f"dropped {source} line 31: no story" in capsys.readouterr().out
    said = refused(capsys, "pairs", source, "--test_file", held_out, "--out", tmp_path / "o", "--strict")
    assert f"{source} line 38: prompt or story that is no text" in said and not (tmp_path / "o").exists()


def test_word_filters_and_limits(tmp_path: Path, held_out: Path):
    data = [*rows(30), pair(50, chosen_story=story(1, 20)), pair(51, rejected_story=story(2, 90))]
    words = ("pairs", write(tmp_path / "x.jsonl", data), "--test_file", held_out, "--out", tmp_path / "out")
    build(*words)
    assert len(parts(tmp_path / "out")["train"]) == 29
    build(*words, "--min_words", 50, "--max_words", 80, "--limit", 5, "--limit_test", 4, "--val_pairs", 2)
    found = parts(tmp_path / "out")
    assert {split: len(some) for split, some in found.items()} == {"train": 5, "val": 2, "test": 4}
    assert meta(tmp_path / "out" / "pairs_train.jsonl")["counts"] == {
        "read": 30,
        "kept": 5,
        "not_drawn": 23,
        "dropped": {"story of less than 50 words": 1, "story of more than 80 words": 1},
    }


def test_kinds_of_tables(tmp_path: Path, held_out: Path):
    import pyarrow
    import pyarrow.parquet as parquet

    time = datetime.datetime(2022, 5, 6, 7, 8, 9)
    data = [pair(n, chosen_timestamp=time, chosen_story=f'"Quote", {n}\n\n{story(n)}\r\nend') for n in range(12)]
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("chosen_story", pyarrow.string())])
    schema = schema.append(pyarrow.field("rejected_story", pyarrow.string()))
    schema = schema.append(pyarrow.field("chosen_timestamp", pyarrow.timestamp("ns")))
    for number, some in enumerate((data[:6], data[6:])):
        some = [{name: row[name] for name in schema.names} for row in some]
        shard = folder / f"train-{number:05d}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(some, schema), shard)
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    for row in data:
        row["chosen_timestamp"] = time.replace(tzinfo=datetime.UTC).timestamp()
    (tmp_path / "x.json").write_text(json.dumps(data), encoding="utf-8")
    table(tmp_path / "x.csv", [{name: row.get(name) for name in CSV_COLUMNS} for row in data])
    found = []
    for spec in ("hub", "x.json", "x.csv"):
        build("pairs", tmp_path / spec, "--test_file", held_out, "--out", tmp_path / "out")
        some = [row for split in ("train", "val") for row in parts(tmp_path / "out")[split]]
        found.append([(row["id"], row["chosen"], row["chosen_timestamp"]) for row in some])
    assert found[0] == found[1] == found[2] and len(found[0]) == 12
    assert found[0][0][2] == 1651820889 and '"Quote", ' in found[0][0][1]


def test_facts_of_the_rehydrated_table():
    record = dict.fromkeys(CSV_COLUMNS, "") | pair(1) | {"chosen_upvotes": None, "rejected_upvotes": None}
    record |= {"chosen_comment_id": "t1_abc", "rejected_comment_id": "xyz", "chosen_comment_score": "41"}
    record |= {"chosen_username": "someone", "chosen_timestamp": "1672617600.0", "rejected_timestamp": "nan"}
    found = as_pair(record)
    assert isinstance(found, Pair) and found.id == "abc-xyz"
    assert found.facts == {
        "chosen_upvotes": 41,
        "chosen_timestamp": 1672617600,
        "chosen_comment_id": "t1_abc",
        "rejected_comment_id": "xyz",
    }
    # without both comment ids: of the texts alone
    again = as_pair(pair(1))
    assert isinstance(again, Pair) and as_pair(record | {"chosen_comment_id": ""})[0] == again.id


def test_text_that_is_not_utf8(tmp_path: Path, held_out: Path):
    data = [pair(n) for n in range(15)]
    table(tmp_path / "x.csv", [{name: row.get(name) for name in CSV_COLUMNS} for row in data])
    text = (tmp_path / "x.csv").read_bytes().replace(b"A tale of 3,", b"A t\xe9le of 3,")
    (tmp_path / "x.csv").write_bytes(text)
    build("pairs", tmp_path / "x.csv", "--test_file", held_out, "--out", tmp_path / "out")
    assert meta(tmp_path / "out" / "pairs_train.jsonl")["counts"]["dropped"] == {"text that is not UTF-8": 1}


# --- where the test pairs come from ----------------------------------------------------------------------------------


def test_the_rehydrated_file_is_found(tmp_path: Path, source: Path, held_out: Path):
    data = [pair(n, chosen_comment_id=f"c{n}", rejected_comment_id=f"d{n}") for n in range(1000, 1005)]
    data.append(pair(1009, chosen_story=""))
    (tmp_path / "out").mkdir()
    rehydrated = [{name: row.get(name) for name in CSV_COLUMNS} for row in data]
    table(tmp_path / "out" / REHYDRATED, rehydrated)
    build("pairs", source, "--out", tmp_path / "out")
    assert [row["id"] for row in parts(tmp_path / "out")["test"]] == [f"c{n}-d{n}" for n in range(1000, 1005)]
    sidecar = meta(tmp_path / "out" / "pairs_test.jsonl")
    assert sidecar["test_source"] == str(tmp_path / "out" / REHYDRATED)
    assert sidecar["counts"]["dropped"] == {"no story": 1}
    build("pairs", source, "--out", tmp_path / "out", "--test_file", held_out)  # what is asked for goes first
    assert len(parts(tmp_path / "out")["test"]) == 10


def test_without_a_test_set(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    said = refused(capsys, "pairs", source, "--out", tmp_path / "out")
    assert "litbench rehydrate" in said and "--allow_train_holdout" in said and "cannot be fetched" in said
    assert not (tmp_path / "out").exists()
    hub = {"ids": [{"chosen_comment_id": "a", "rejected_comment_id": "b"}], "texts": rows(3, 1000)}
    for name, data in hub.items():
        write(tmp_path / name / "train.jsonl", data)
    monkeypatch.setattr("data_builders.common.fetch", lambda *_: tmp_path / "ids")
    assert "LitBench-Test has ids only" in refused(capsys, "pairs", source, "--out", tmp_path / "out")
    monkeypatch.setattr("data_builders.common.fetch", lambda *_: tmp_path / "texts")
    build("pairs", source, "--out", tmp_path / "out")
    assert meta(tmp_path / "out" / "pairs_test.jsonl")["test_source"] == "SAA-Lab/LitBench-Test (it has texts)"


def test_a_holdout_says_what_it_is(tmp_path: Path, source: Path):
    data = rows(60) + [pair(n, chosen_story=story(f"again {n}")) for n in range(20)]
    write(source, data)
    build("pairs", source, "--out", tmp_path / "out", "--allow_train_holdout", 0.3)
    found = parts(tmp_path / "out")
    assert sum(map(len, found.values())) == 80 and 8 < len(found["test"]) < 45
    prompts = [{row["prompt"] for row in some} for some in found.values()]
    assert len(set().union(*prompts)) == sum(map(len, prompts)) == 60
    for split in found:
        said = meta(tmp_path / "out" / f"pairs_{split}.jsonl")["test_source"]
        assert said == "held out of the training set: 0.3 of its prompts, not LitBench's test set"
    # the same prompts, whatever else the source has
    write(source, data[:30])
    build("pairs", source, "--out", tmp_path / "b", "--allow_train_holdout", 0.3)
    assert {row["prompt"] for row in parts(tmp_path / "b")["test"]} < prompts[2]


def test_validation_from_the_test_set(tmp_path: Path, source: Path):
    held = write(tmp_path / "held.jsonl", rows(60, 1000))
    words = ("pairs", source, "--test_file", held, "--out", tmp_path / "out", "--val_source", "test")
    build(*words, "--val_pairs", 12)
    found = parts(tmp_path / "out")
    assert {split: len(some) for split, some in found.items()} == {"train": 40, "val": 12, "test": 60}
    assert {row["id"] for row in found["val"]} < {row["id"] for row in found["test"]}
    sidecar = meta(tmp_path / "out" / "pairs_val.jsonl")
    assert "test pairs all the same" in sidecar["split"] and sidecar["counts"]["read"] == 12
    assert meta(tmp_path / "out" / "pairs_test.jsonl")["counts"]["kept"] == 60


def test_the_sample_brings_its_test_file(tmp_path: Path):
    (said,) = build_light(["litbench", "pairs", "sample", "--out", str(tmp_path)])
    assert "pairs_train.jsonl" in said
    found = parts(tmp_path)
    prompts = [{prompt_key(row["prompt"]) for row in some} for some in found.values()]
    assert len(found["test"]) >= 20 and len(set().union(*prompts)) == sum(map(len, prompts)) >= 80
    sidecar = meta(tmp_path / "pairs_train.jsonl")
    assert sidecar["licence"] == "Apache-2.0" and not sidecar["counts"]["dropped"]


def test_the_graded_pairs_are_woven_from_the_sample(tmp_path: Path):
    """The bundled files are what the script writes; more careful parts are better, and length says nothing."""
    for seed, (name, ranges) in enumerate(graded.RANGES.items()):
        bundled = list(read_records(BUNDLED["graded"] / f"{name}.jsonl"))
        tellings = [line.record for line in read_records(BUNDLED["sample"] / f"{name}.jsonl")]
        assert [line.record for line in bundled] == list(graded.weave(tellings, ranges, seed))
        longer = 0
        for i, line in enumerate(bundled):
            telling, pair = tellings[i // len(ranges)], line.record
            careful = graded.cut(telling["chosen_story"])
            assert " ".join(careful) == " ".join(telling["chosen_story"].split()) and len(careful) == graded.PARTS
            more, fewer = (sum(part in pair[side] for part in careful) for side in ("chosen_story", "rejected_story"))
            least, most = ranges[i % len(ranges)]
            assert least <= more - fewer <= most and pair["prompt"] == telling["prompt"]
            longer += len(pair["chosen_story"].split()) > len(pair["rejected_story"].split())
        assert 0.45 < longer / len(bundled) < 0.55
    build_light(["litbench", "pairs", "graded", "--out", str(tmp_path)])
    assert {name: len(some) for name, some in parts(tmp_path).items()} == {"train": 142, "val": 14, "test": 78}
    assert meta(tmp_path / "pairs_train.jsonl")["licence"] == "Apache-2.0"


# --- leaks -----------------------------------------------------------------------------------------------------------


def edited(text: str, every: int) -> str:
    """A story with every nth word replaced."""
    return " ".join("qux" if place % every == 0 else word for place, word in enumerate(text.split(), 1))


def test_what_is_nearly_identical():
    stories = [story("one", 200), story("two", 300), story("two", 300).replace("a", "A"), "Too short to tell."]
    index = StoryIndex(stories)
    assert index.overlap(stories[0]) == index.overlap(stories[0].upper().replace(" ", ", ")) == 1
    assert index.overlap(story("other", 200)) == 0
    assert index.overlap(edited(stories[0], 40)) == pytest.approx(1 - (4 * 8 + 1) / 193)
    assert index.near(edited(stories[0], 40)) and not index.near(edited(stories[0], 9))
    assert index.near(stories[1] + " " + story("a second part", 900))  # lengthened
    assert index.near(" ".join(stories[1].split()[:60]))  # cut
    assert not index.near(story("new", 100) + " " + " ".join(stories[0].split()[:14]))  # a quotation
    assert index.near("too short, to tell") and not index.near("too short to say", "tell")
    assert not index.near("", "...") and not StoryIndex([]).near("x", story(1))


def test_runs_are_the_same_for_the_same_words_and_no_others():
    text = story("x", 40)
    mine = set(runs(words(text)).tolist())
    assert len(mine) == 33
    tail = " ".join(text.split()[5:])
    assert len(mine & set(runs(words(f"Quite another beginning: {tail}")).tolist())) == 28
    assert (
        len(runs(words("a b c"))) == 1 and len(runs(words("..."))) == 0 and words(" A--b\u2019s  _") == ["a", "b", "s"]
    )


@given(st.lists(st.sampled_from(VOCABULARY[:6]), max_size=30), st.lists(st.sampled_from(VOCABULARY[:6]), max_size=30))
def test_overlap_is_that_of_the_obvious_way(one: list[str], two: list[str]):
    def obvious(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[place : place + 8]) for place in range(max(1, len(text) - 7))} if text else set()

    a, b = obvious(one), obvious(two)
    expected = len(a & b) / max(16, min(len(a), len(b)))
    if one == two:
        expected = 1
    assert StoryIndex([" ".join(one)]).overlap(" ".join(two)) == pytest.approx(expected)


def test_prompts_are_compared_by_their_words():
    keys = {prompt_key(text) for text in ("[WP] You wake, alone.", "you wake alone", " [ wp ] You  wake - alone!")}
    assert len(keys) == 1 and keys != {prompt_key("You wake with a friend")}
    assert prompt_key("?!") != prompt_key("...") and prompt_key("\u65e5\u672c") != prompt_key("\u4e2d\u56fd")


def leaking(tmp_path: Path) -> tuple[Path, Path]:
    data = rows(40)
    data[3]["prompt"] = "A TALE, of 1001"  # the prompt of a test pair
    data[5]["rejected_story"] = edited(story("c1002"), 60) + " The end."  # the story of one
    data[7] = pair(1003)  # both
    return write(tmp_path / "leaky.jsonl", data), write(tmp_path / "held.jsonl", rows(10, 1000))


def test_the_test_set_wins(tmp_path: Path):
    source, held = leaking(tmp_path)
    words = ("pairs", source, "--test_file", held, "--out", tmp_path / "out")
    build(*words)
    leaks = {"prompt of a test pair": 2, "story nearly identical to one of a test pair": 1}
    sidecar = meta(tmp_path / "out" / "pairs_train.jsonl")
    assert sidecar["leaks"] == {"found": leaks, "they_are": "dropped"} and sidecar["counts"]["dropped"] == leaks
    assert len(parts(tmp_path / "out")["test"]) == 10
    build(*words, "--keep_leaks")
    sidecar = meta(tmp_path / "out" / "pairs_train.jsonl")
    assert sidecar["leaks"] == {"found": leaks, "they_are": "kept"} and not sidecar["counts"]["dropped"]
    assert sum(len(some) for some in parts(tmp_path / "out").values()) == 50


def test_validation_pairs_share_no_story_with_training_pairs(tmp_path: Path, held_out: Path):
    data = rows(40)
    for row in data[20:]:  # a story of an earlier row under another prompt
        row["rejected_story"] = data[int(row["prompt"].split()[-1]) - 20]["chosen_story"] + " Or so they say."
    build("pairs", write(tmp_path / "x.jsonl", data), "--test_file", held_out, "--out", tmp_path / "out")
    found = parts(tmp_path / "out")
    sidecar = meta(tmp_path / "out" / "pairs_train.jsonl")
    lost = sidecar["counts"]["dropped"]["story nearly identical to one of a validation pair"]
    assert len(found["val"]) == 4 and lost == sidecar["leaks"]["found"].popitem()[1] == 36 - len(found["train"]) > 0
    index = StoryIndex(row[side] for row in found["val"] for side in ("chosen", "rejected"))
    assert not any(index.near(row["chosen"], row["rejected"]) for row in found["train"])


@given(st.lists(st.integers(1, 6), min_size=2, max_size=40), st.integers(1, 30), st.integers(0, 5))
def test_whole_prompts_are_drawn(sizes: list[int], wanted: int, seed: int):
    rows_of = dict(enumerate(sizes))
    chosen = draw_prompts(rows_of, wanted, str(seed))
    assert chosen == draw_prompts(dict(reversed(rows_of.items())), wanted, str(seed))
    assert 0 < len(chosen) < len(sizes)
    drawn = sum(rows_of[prompt] for prompt in chosen)
    assert drawn <= max(wanted, min(sizes))
    if sizes.count(1) > wanted:
        assert drawn == wanted


def test_split_sizes_of_litbench():
    assert len(draw_prompts(dict.fromkeys(range(43_736), 1), 2187, "42")) == 2187
    assert len(draw_prompts(dict.fromkeys(range(43_827), 1), 500, "42")) == 500


@pytest.mark.launcher
def test_memory_does_not_grow_with_the_source(tmp_path: Path, held_out: Path):
    peaks = []
    for count in (50, 400):
        data = [pair(n, chosen_story=story(n, 200) * 5, rejected_story=story(-n - 1, 200) * 5) for n in range(count)]
        size = write(tmp_path / "x.jsonl", data).stat().st_size
        del data
        tracemalloc.start()
        build("pairs", tmp_path / "x.jsonl", "--test_file", held_out, "--out", tmp_path / "out", "--val_pairs", 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert size > 3e6 and peaks[1] - peaks[0] < 5e5


# --- bad input -------------------------------------------------------------------------------------------------------

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
NAMES = ["prompt", "chosen_story", "rejected_story", "story_a", "story_b", "preferred", "rationale", "chosen_upvotes"]
NAMES += ["chosen_comment_id", "chosen_timestamp", "chosen"]


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING | st.just("A"), max_size=9))
def test_no_row_is_too_odd(record: dict[str, Any]):
    found = as_pair(record)
    if isinstance(found, Pair):
        assert found.prompt.strip() and found.chosen.strip() and found.rejected.strip() and found.id
        json.dumps(found.facts, allow_nan=False)


def test_one_sentence(tmp_path: Path, source: Path, held_out: Path, capsys: pytest.CaptureFixture):
    def said(*words: object) -> str:
        return refused(capsys, "pairs", *words, "--out", tmp_path / "out")

    held = ("--test_file", held_out)
    assert "no/such/file does not exist" in said(source, "--test_file", "no/such/file")
    assert "there is no path no/such here" in said("no/such", *held)
    (tmp_path / "empty").mkdir()
    assert "empty has no file of training rows" in said(tmp_path / "empty", *held)
    ids = write(tmp_path / "ids.jsonl", [{"prompt": "x", "chosen_comment_id": "a"}])
    assert "has no column chosen_story and no column rejected_story (it has prompt, chosen_comment_id)" in said(
        source, "--test_file", ids
    )
    for text, reason in {
        "": "x.csv is empty",
        'prompt,chosen_story,rejected_story\n"a,b,c': "as CSV from line 2 on (the file ends inside quotes)",
        "prompt,chosen_story,rejected_story\n": "has no row for training pairs; give a file with records",
        "prompt,chosen_story,rejected_story\na,b,c,d\n": "(1 of them: a row with more fields than the header has",
        "prompt,chosen_story,rejected_story\na,b,c\na,d,e\n": "have one prompt, and validation needs another",
    }.items():
        (tmp_path / "x.csv").write_text(text)
        assert reason in said(tmp_path / "x.csv", *held)
    assert "(3 of them: no story)" in said(
        source, "--test_file", write(tmp_path / "y.jsonl", [pair(n, chosen_story="") for n in range(3)])
    )
    assert "unrecognized arguments: --use_cot" in said(source, *held, "--use_cot")
    assert "are both given" in said(source, *held, "--data_dir", tmp_path)
    build("pairs", source, *held, "--out", tmp_path / "out")
    assert "is the source itself" in said(tmp_path / "out" / "pairs_train.jsonl", *held)
    with pytest.raises(UserError, match="cannot be read"):
        list(sources.read_csv(tmp_path))
