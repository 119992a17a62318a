"""``build_data jigsaw``: comments to a classifier's data, to prompts, and scored continuations to value data."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import re
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT, build_light, failing, meta, read, write
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_builders.jigsaw import BUNDLED, generated
from data_builders.jigsaw.cut import cut
from data_builders.jigsaw.table import find_csv
from orlhf_ext.build_data import main

STORIES = ROOT / "data_builders" / "samples" / "stories"


def build(*words: object) -> None:
    main(["jigsaw", *map(str, words)])


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one sentence that the builder ends with; no data file is there then."""
    said = failing(capsys, main, "jigsaw", *words)
    assert said.count("\n") == 1, said
    folders = [Path(str(words[place + 1])) for place, word in enumerate(words) if word in ("-s", "--out")]
    assert not [path for folder in folders for path in folder.glob("*") if path.suffix in (".json", ".jsonl")]
    return said


def table(path: Path, rows: list[list[Any]], header: str) -> Path:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header.split(","), *rows])
    return path


def toxic(path: Path, labels: list[Any], texts: list[str] | None = None) -> Path:
    """A CSV file of the first competition."""
    texts = texts or [f"t{number}" for number in range(len(labels))]
    rows = [[number, text, label, 0] for number, (text, label) in enumerate(zip(texts, labels, strict=True))]
    return table(path, rows, "id,comment_text,toxic,obscene")


def unintended(path: Path, targets: list[Any], texts: list[str] | None = None) -> Path:
    """A CSV file of the second competition."""
    texts = texts or [f"t{number}" for number in range(len(targets))]
    rows = [[number, target, text, ""] for number, (text, target) in enumerate(zip(texts, targets, strict=True))]
    return table(path, rows, "id,target,comment_text,rating")


def prompts_of(folder: Path) -> list[str]:
    return [row["prompt"]["text"] for row in read(folder / "prompts.jsonl")]


def scored(path: Path, scores: list[list[Any]], kind: str = "toxicity") -> Path:
    """Scored continuations: of prompt n ``" n.0"``, ``" n.1"`` and so on."""
    rows = [
        {
            "prompt": {"text": f"p{n}"},
            "generations": [{"text": f" {n}.{g}", kind: score} for g, score in enumerate(of_prompt)],
        }
        for n, of_prompt in enumerate(scores)
    ]
    return write(path, rows)


GOLDEN = [[0.5, 0.9, 0.2] if number % 3 == 0 else [0.1, 0.2, 0.3] for number in range(12)]


# --- the same rows as upstream ---------------------------------------------------------------------------------------


def test_golden_reward(tmp_path: Path):
    build("reward", "-f", toxic(tmp_path / "a.csv", [int(n % 4 == 0) for n in range(20)]), "-s", tmp_path / "out")
    expected = [{"text": f"t{n}", "label": int(n % 4 == 0)} for n in range(20) if n not in (2, 15)]
    assert read(tmp_path / "out" / "rm_train.json") == expected
    assert read(tmp_path / "out" / "rm_valid.json") == []
    sidecar = meta(tmp_path / "out" / "rm_train.json")
    assert sidecar["counts"] == {
        "read": 20,
        "kept": 18,
        "not_drawn": 0,
        "dropped": {"not toxic, left out at random (--drop_rate)": 2},
    }
    assert sidecar["arguments"]["drop_rate"] == 0.3 and sidecar["arguments"]["label_columns"] == ["toxic"]


def test_golden_prompts(tmp_path: Path):
    source = unintended(tmp_path / "a.csv", [[0.0, 0.2, 0.5, 0.9, 0.49][n % 5] for n in range(20)])
    for words in (["--save_path", tmp_path / "p" / "x.jsonl"], ["-s", tmp_path / "q"], ["--out", tmp_path / "r"]):
        build("prompts", "-f", source, "--max_len", 0, *words)
    expected = [f"t{n}" for n in (2, 3, 7, 8, 12, 13, 16, 17, 18)]
    assert [row["prompt"]["text"] for row in read(tmp_path / "p" / "x.jsonl")] == expected
    assert prompts_of(tmp_path / "q") == prompts_of(tmp_path / "r") == expected


def test_golden_value(tmp_path: Path):
    source = scored(tmp_path / "g.jsonl", GOLDEN)
    build("value", "-f", source, "-s", tmp_path / "most")
    train, val = (read(tmp_path / "most" / f"{split}.jsonl") for split in ("train", "val"))
    assert (len(train), len(val)) == (14, 4)
    assert train[:2] == [{"text": "p0 0.1", "reward": [-1.0]}, {"text": "p0 0.2", "reward": [0.0]}]
    assert [row["text"].split()[0] for row in train[::2]] == [f"p{n}" for n in (0, 3, 4, 7, 8, 10, 11)]
    assert [row["text"].split()[0] for row in val[::2]] == ["p6", "p9"]
    build("value", "-f", source, "-s", tmp_path / "all", "--mode", "all")
    train, val = (read(tmp_path / "all" / f"{split}.jsonl") for split in ("train", "val"))
    assert (len(train), len(val)) == (21, 6)
    assert [row["reward"] for row in train[:3]] == [[-1.0], [-1.0], [0.0]]
    assert meta(tmp_path / "all" / "train.jsonl")["counts"]["dropped"] == {
        "clean prompt, left out at random (--drop_rate)": 3
    }


def test_sampling_goes_on_with_the_same_stream(tmp_path: Path):
    scores = [[0.9, 0.1, 0.7, 0.2]] * 6
    build("value", "-f", scored(tmp_path / "g.jsonl", scores), "-s", tmp_path, "--mode", "sample", "--sample_num", 3)
    generator = random.Random(0)
    expected: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(6):
        generator.random()
        split = "train" if generator.random() < 0.9 else "val"
        expected[split] += [f"p{number} {number}.{g}" for g in generator.sample(range(4), 3)]
    for split, texts in expected.items():
        assert [row["text"] for row in read(tmp_path / f"{split}.jsonl")] == texts


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    """The obvious way, which the benchmark compares with."""
    pytest.importorskip("pandas", reason="no pandas to compare with")
    spec = importlib.util.spec_from_file_location("jigsaw_upstream", ROOT / "tests" / "bench" / "jigsaw_upstream.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ODD_TEXTS = [
    'said "so", twice',
    "two\nlines, one\r\nmore\n\n",
    '"""',
    " leads  and trails \n",
    "café \u2019tis\xa0so\u2003wide",
    "日本語の長い文章です。" * 9,
    "a" * 300,
    "<|endoftext|> or </s><s>now",
    "\x04 tab\tbell\x07",
    "it's we'll they'd've 3,141.59 !!! :-)",
]


def test_the_same_bytes_as_with_pandas(tmp_path: Path, upstream: ModuleType, tiny_model: Path):
    pytest.importorskip("transformers", reason="no transformers to compare with")
    generator = random.Random(3)
    words = " ".join(path.read_text() for path in sorted(STORIES.glob("*.txt")))
    starts = [generator.randrange(len(words)) for _ in range(400)]
    texts = [words[start : start + generator.randrange(1, 400)] or "x" for start in starts] + ODD_TEXTS * 20
    generator.shuffle(texts)
    labels = [generator.randrange(2) for _ in texts]
    (tmp_path / "up").mkdir()
    upstream.build_reward(toxic(tmp_path / "a.csv", labels, texts), tmp_path / "up")
    build("reward", "-f", tmp_path / "a.csv", "-s", tmp_path / "out")
    targets = [generator.choice([0.0, 0.3, 0.5, 0.9, ""]) for _ in texts]
    for place, missing in ((7, "NA"), (47, ""), (87, "null")):  # as pandas has it
        texts[place], targets[place] = missing, 0.9
    upstream.build_prompts(unintended(tmp_path / "b.csv", targets, texts), tmp_path / "up", str(tiny_model / FILE))
    build("prompts", "-f", tmp_path / "b.csv", "-s", tmp_path / "out", "--tokenizer", tiny_model)
    for name in ("rm_train.json", "rm_valid.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "up" / name).read_bytes()
    dropped = meta(tmp_path / "out" / "prompts.jsonl")["counts"]["dropped"]
    assert dropped["target that is no number from 0 to 1"] > 20 and dropped["no comment"] == 3
    # a row without a target is one that upstream keeps: there are no others
    theirs = iter(read(tmp_path / "up" / "prompts.jsonl"))
    assert all(row in theirs for row in read(tmp_path / "out" / "prompts.jsonl"))


# --- cutting to the first tokens -------------------------------------------------------------------------------------

FILE = "tokenizer.json"


def train_tokenizer(digits: bool = False, alphabet: bool = True) -> Tokenizer:
    """A byte-level tokenizer that knows the words of the sample stories."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    if digits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(STORIES.glob("*.txt"))[:2]], trainer)
    return tokenizer


TOKENIZERS = {
    "gpt2": train_tokenizer(),
    "digits": train_tokenizer(digits=True),
    "lossy": train_tokenizer(alphabet=False),
}
ODD_SPACES = " \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u3000\ufeff"
WORDS = ["the", "The", "station", "lantern", "1", "2017", "!", '",', "'s", "'ll", "'", "_", "<|endoftext|>", "<|"]
WORDS += ["é", "ß", "\u0301", "日本", "😀", "\x04", "\x7f"]
PIECES = st.sampled_from([*ODD_SPACES, *WORDS, " station", "  ", "\n\n"])
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=40).map("".join)


def whole(tokenizer: Tokenizer, text: str, max_len: int) -> str:
    """What upstream does."""
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids[:max_len], skip_special_tokens=False)


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5), max_len=st.integers(1, 30), name=st.sampled_from(sorted(TOKENIZERS))
)
@example(texts=ODD_TEXTS, max_len=20, name="gpt2")
@example(texts=ODD_TEXTS, max_len=20, name="lossy")
@example(texts=["the station <|endoftext|>  the"], max_len=4, name="gpt2")
def test_cutting_equals_encoding_the_whole(texts: list[str], max_len: int, name: str):
    tokenizer = TOKENIZERS[name]
    assert cut(texts, tokenizer, max_len) == [whole(tokenizer, text, max_len) for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "normalizer", normalizers.NFC()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda t: setattr(t, "decoder", decoders.Fuse()),
        lambda t: t.add_tokens([AddedToken("a lantern", normalized=False)]),
        lambda t: t.add_tokens([AddedToken("lantern", lstrip=True)]),
    ],
)
def test_cutting_with_other_tokenizers(change: Any):
    tokenizer = Tokenizer.from_str(TOKENIZERS["gpt2"].to_str())
    change(tokenizer)
    texts = ["the station of a lantern, lit", *ODD_TEXTS]
    assert cut(texts, tokenizer, 5) == [whole(tokenizer, text, 5) for text in texts]


def test_cut_options(tmp_path: Path):
    TOKENIZERS["gpt2"].save(str(tmp_path / "my.json"))
    source = unintended(tmp_path / "a.csv", [0.9], ["It does n't , he said . Well ?"])
    words = ("prompts", "-f", source, "-s", tmp_path / "out", "--tokenizer", tmp_path / "my.json")
    build(*words, "--max_len", 4, "--drop_rate", 0)
    text = whole(TOKENIZERS["gpt2"], "It does n't , he said . Well ?", 4)
    assert prompts_of(tmp_path / "out") == [text]
    sidecar = meta(tmp_path / "out" / "prompts.jsonl")
    assert sidecar["tokenizer"] == str(tmp_path / "my.json") and len(sidecar["sources"]) == 2
    build(*words, "--max_len", 40, "--clean_up_tokenization_spaces")
    assert prompts_of(tmp_path / "out") == ["It doesn't, he said. Well?"]


@pytest.mark.slow
def test_when_gpt2_cannot_be_fetched(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("gguf", reason="no gguf to read SmolLM2's tokenizer with")
    from orlhf_ext.models.small_models import _gguf_tokenizer, find_smollm2_gguf, gguf_tokenizer

    source = unintended(tmp_path / "a.csv", [0.9], ["Nobody has asked for this, " * 9])
    build("prompts", "-f", source, "-s", tmp_path / "out")
    said = "SmolLM2's tokenizer, since gpt2's cannot be fetched"
    assert f"tokenizer: {said}\n" in capsys.readouterr().out
    sidecar = meta(tmp_path / "out" / "prompts.jsonl")
    assert (sidecar["tokenizer"], sidecar["tokenizer_asked_for"]) == (said, "gpt2")
    mine = gguf_tokenizer(find_smollm2_gguf())[0]
    assert prompts_of(tmp_path / "out") == [whole(mine, "Nobody has asked for this, " * 9, 20)]
    theirs = _gguf_tokenizer(find_smollm2_gguf())[0].backend_tokenizer
    assert json.loads(theirs.to_str())["model"] == json.loads(mine.to_str())["model"]
    texts = [*ODD_TEXTS, (STORIES / "lantern_station.txt").read_text(encoding="utf-8")[:5000]]
    for text in texts:
        assert mine.encode(text).ids == theirs.encode(text, add_special_tokens=False).ids
    assert cut(texts, mine, 20) == [whole(mine, text, 20) for text in texts]


# --- CSV files -------------------------------------------------------------------------------------------------------


def raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_quotes_over_many_lines(tmp_path: Path, capsys: pytest.CaptureFixture):
    data = (
        b'\xef\xbb\xbfid,comment_text,toxic\r\n1,"one\r\n\r\n""two"", three",1\r\n\r\n2,plain,1\r\n3,"",1\r\n4,last,1'
    )
    build("reward", "-f", raw(tmp_path / "a.csv", data), "-s", tmp_path)
    rows = read(tmp_path / "rm_train.json") + read(tmp_path / "rm_valid.json")
    assert {row["text"] for row in rows} == {'one\r\n\r\n"two", three', "plain", "last"}
    assert f"dropped {tmp_path / 'a.csv'} line 7: no comment" in capsys.readouterr().out.replace("\n ", " ")


def test_bad_rows_are_counted_by_reason_and_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [b'1,"good\nand long",1', b"2,caf\xe9,1", b"3,x,maybe", b"4,x,-1", b"5,x,", b"6,x", b"7,x,1,1,1", b"8,NaN,1"]
    rows += [b"9,good,0.0", b"10,null,1"]
    source = raw(tmp_path / "a.csv", b"id,comment_text,toxic\n" + b"\n".join(rows) + b"\n")
    words = ("reward", "-f", source, "--drop_rate", 0)
    build(*words, "-s", tmp_path / "out", "--max_count_of_reported", 9)
    said = capsys.readouterr().out
    counts = meta(tmp_path / "out" / "rm_train.json")["counts"]
    assert counts["dropped"] == {
        "label that is neither 0 nor 1": 3,
        "no comment": 2,
        "a row with fewer fields than the header has columns": 1,
        "a row with more fields than the header has columns": 1,
        "comment that is not UTF-8 text": 1,
    }
    for line, reason in [(4, "comment that is not"), (5, "label"), (6, "label"), (7, "label")]:
        assert f"{source} line {line}: {reason}" in said
    for line, reason in [(8, "a row with fewer"), (9, "a row with more"), (10, "no comment"), (12, "no comment")]:
        assert f"{source} line {line}: {reason}" in said
    assert "caf" not in said
    assert f"{source} line 4: comment that is not UTF-8 text; fix" in refused(
        capsys, *words, "-s", tmp_path / "strict", "--strict"
    )
    build(*words, "-s", tmp_path / "na", "--keep_na")
    counts = meta(tmp_path / "na" / "rm_train.json")["counts"]
    assert "no comment" not in counts["dropped"]


def test_bad_targets(tmp_path: Path):
    targets = [0.9, "", "nan", "much", "inf", 1.5, -0.1, "1e-1", 0.7]
    build("prompts", "-f", unintended(tmp_path / "a.csv", targets), "-s", tmp_path, "--max_len", 0, "--drop_rate", 0)
    assert prompts_of(tmp_path) == ["t0", "t7", "t8"]
    assert meta(tmp_path / "prompts.jsonl")["counts"]["dropped"] == {"target that is no number from 0 to 1": 6}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"id,comment_text,toxic\n", "has no row"),
        (b"id,comment,toxic\n1,a,0\n", "has no column comment_text (it has id, comment, toxic)"),
        (b'id,comment_text,toxic\n1,a,1\n2,"cut of', "cannot be read as CSV from line 3 on (the file ends in"),
        (b'id,comment_text,toxic\n1,"' + b"word \n" * 40_000, "cannot be read as CSV from line 2 on (the file ends"),
        (b"id,comment_text,toxic\n1,a\rb,1\n", "cannot be read as CSV from line 2 on (a carriage return"),
        (b"id,comment_text,toxic,toxic\n1,a,0,1\n", "names the column toxic twice in its header"),
        ("id,comment_text,toxic\n1,a,0\n".encode("utf-16"), "is UTF-16 text; re-encode it as UTF-8"),
        (b"PK\x03\x04rest", "is a zip, not a CSV file; unpack it"),
        (b"\x1f\x8brest", "is a gzip file"),
        (b"id,comment_text,toxic\n1,,1\n2,b,\n", "none of the 2 rows"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture, data: bytes, what: str):
    source = raw(tmp_path / "a.csv", data)
    said = refused(capsys, "reward", "-f", source, "-s", tmp_path / "out")
    assert f"{source} {what}" in said or (f"rows of {source}" in said and what in said)


def test_all_rows_dropped(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = unintended(tmp_path / "a.csv", [0.0] * 5)
    said = refused(capsys, "prompts", "-f", source, "-s", tmp_path / "out", "--drop_rate", 1, "--max_len", 0)
    assert "none of the 5 rows" in said and "5 of them: not toxic, left out at random" in said
    assert "does not exist; give a CSV file" in refused(capsys, "reward", "-f", tmp_path / "no.csv")


@pytest.mark.launcher
def test_memory_does_not_grow(tmp_path: Path):
    peaks = []
    for size in (6_000, 24_000):
        texts = [f"comment {number} " * 20 for number in range(size)]
        source = unintended(tmp_path / f"{size}.csv", [0.9] * size, texts)
        tracemalloc.start()
        build("prompts", "-f", source, "-s", tmp_path, "--max_len", 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < source.stat().st_size / 2


# --- options and sources ---------------------------------------------------------------------------------------------


def test_labels_of_several_columns(tmp_path: Path):
    rows = [[0, "a", 0, 0], [1, "b", 0, 1], [2, "c", 1, 0], [3, "d", 1, 1]]
    source = table(tmp_path / "a.csv", rows, "id,comment_text,toxic,obscene")
    build("reward", "-f", source, "-s", tmp_path, "--drop_rate", 0, "--label_columns", "toxic", "obscene")
    rows = read(tmp_path / "rm_train.json") + read(tmp_path / "rm_valid.json")
    assert {row["text"]: row["label"] for row in rows} == {"a": 0, "b": 1, "c": 1, "d": 1}


def test_limit_and_seed(tmp_path: Path):
    source = toxic(tmp_path / "a.csv", [n % 2 for n in range(200)])
    build("reward", "-f", source, "-s", tmp_path / "a", "--limit", 10)
    build("reward", "-f", source, "-s", tmp_path / "b")
    few, all_rows = (read(tmp_path / name / "rm_train.json") for name in "ab")
    assert few == all_rows[:10]
    counts = [meta(tmp_path / "a" / f"rm_{split}.json")["counts"] for split in ("train", "valid")]
    assert all(one["read"] == one["kept"] + sum(one["dropped"].values()) for one in counts)
    build("reward", "-f", source, "-s", tmp_path / "c", "--seed", 1)
    assert read(tmp_path / "c" / "rm_train.json") != all_rows
    source = unintended(tmp_path / "p.csv", [0.9] * 30)
    build("prompts", "-f", source, "-s", tmp_path / "d", "--limit", 7, "--max_len", 0)
    assert prompts_of(tmp_path / "d") == [f"t{number}" for number in range(7)]
    build("value", "-f", scored(tmp_path / "g.jsonl", GOLDEN), "-s", tmp_path / "e", "--limit", 3)
    assert len(read(tmp_path / "e" / "train.jsonl")) == 3


def test_comments_to_tune_a_policy_on(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = toxic(tmp_path / "a.csv", [1, 0, "x", 1, 0, 1])
    build("policy", "-f", source, "-s", tmp_path)
    assert read(tmp_path / "policy.jsonl") == [{"text": f"t{number}"} for number in (0, 3, 5)]
    counts = meta(tmp_path / "policy.jsonl")["counts"]
    assert counts["dropped"] == {"not toxic": 2, "label that is neither 0 nor 1": 1} and counts["read"] == 6
    build("policy", "-f", source, "-s", tmp_path, "--limit", 2, "--overwrite")
    assert [row["text"] for row in read(tmp_path / "policy.jsonl")] == ["t0", "t3"]
    polite = toxic(tmp_path / "b.csv", [0, 0])
    assert "not toxic" in refused(capsys, "policy", "-f", polite, "--out", tmp_path / "none")
    assert "unrecognized arguments: --drop_rate 0.1" in refused(capsys, "policy", "-f", source, "--drop_rate", 0.1)


def test_both_steps_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    inner = tmp_path / "raw" / "inner"
    inner.mkdir(parents=True)
    toxic(inner / "one.csv", [0, 1] * 20)
    unintended(inner / "two.csv", [0.0, 0.9] * 20)
    raw(inner / "junk.csv", b"\x00\xff\xfe")
    words = ("--raw_dir", tmp_path / "raw", "--max_len", 0)
    build(*words, "--out", tmp_path / "out", "--reward_drop_rate", 0, "--prompts_drop_rate", 1)
    assert len(read(tmp_path / "out" / "rm_train.json") + read(tmp_path / "out" / "rm_valid.json")) == 40
    assert len(prompts_of(tmp_path / "out")) == 20
    build("reward", *words[:2], "--out", tmp_path / "one")
    toxic(tmp_path / "raw" / "more.csv", [0, 1])
    assert "has several CSV files with comment_text and toxic (" in refused(capsys, *words, "--out", tmp_path / "no")
    (inner / "two.csv").unlink()
    (tmp_path / "raw" / "more.csv").unlink()
    said = refused(capsys, *words, "--out", tmp_path / "no")
    assert "has no CSV file with the columns comment_text and target; add the train.csv of Kaggle's" in said
    assert "is not a folder" in refused(capsys, "--raw_dir", tmp_path / "nowhere", "--out", tmp_path / "no")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["reward", "--max_len", "3"], "unrecognized arguments: --max_len 3"),
        (["value", "--raw_dir", "sample"], "unrecognized arguments: --raw_dir sample"),
        (["--drop_rate", "0.1"], "unrecognized arguments: --drop_rate 0.1"),
        (["reward", "--reward_drop_rate", "0.1"], "unrecognized arguments: --reward_drop_rate 0.1"),
        (["-f", "x.csv"], "unrecognized arguments: -f x.csv"),
        (["rewards"], "invalid choice: 'rewards'"),
        (["reward", "-f", "x.csv", "--raw_dir", "y"], "are both given; leave one out"),
        (["reward", "-s", "x", "--out", "y"], "-s x and --out y are both given; leave one out"),
        (["prompts", "-f", "x.csv", "--tokenizer", "nowhere.json"], "nowhere.json does not exist; give a folder"),
    ],
)
def test_options_without_effect(
    capsys: pytest.CaptureFixture, words: list[str], what: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert what in refused(capsys, *words)


def test_a_source_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = scored(tmp_path / "train.jsonl", GOLDEN)
    before = source.read_bytes()
    assert "is the source itself" in failing(capsys, main, "jigsaw", "value", "-f", source, "-s", tmp_path)
    assert source.read_bytes() == before


# --- value data ------------------------------------------------------------------------------------------------------


def test_fixes_of_the_value_data(tmp_path: Path):
    source = scored(tmp_path / "prompts_and_gens.jsonl", [[0.5]] * 40)
    build("value", "--out", tmp_path)  # that file is the default
    kept = read(tmp_path / "train.jsonl") + read(tmp_path / "val.jsonl")
    assert len(kept) < 60 and {row["reward"][0] for row in kept} == {-1.0}
    build("value", "-f", source, "-s", tmp_path / "b", "--one_threshold", "--no_repeat")
    assert len(read(tmp_path / "b" / "train.jsonl") + read(tmp_path / "b" / "val.jsonl")) == 40


def test_other_scores(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = scored(tmp_path / "g.jsonl", GOLDEN, kind="BERT_RM")
    words = ("value", "-f", source, "-s", tmp_path / "out")
    said = refused(capsys, *words)
    assert "line 1: its generations have no score 'toxicity', only BERT_RM; add --toxicity_type BERT_RM" in said
    build(*words, "--toxicity_type", "BERT_RM")
    assert len(read(tmp_path / "out" / "train.jsonl")) == 14
    rows: list[Any] = [
        {"prompt": {"text": "p"}, "generations": generations}
        for generations in (
            [{"text": "a", "toxicity": 0.9}, {"text": "b", "toxicity": 0.1}],
            [{"text": "a", "toxicity": -1.0}],
            [{"text": "a", "toxicity": float("nan")}],
            [{"text": "a", "toxicity": 0.5}, {"text": "a"}],
            [{"text": "a", "toxicity": True}],
            [],
            [{"toxicity": 0.3}],
        )
    ]
    source = write(tmp_path / "h.jsonl", [*rows, {"prompt": "text", "generations": rows[0]["generations"]}])
    with source.open("a") as stream:
        stream.write("{broken\n")
    build("value", "-f", source, "-s", tmp_path / "h", "--drop_rate", 0)
    counts = meta(tmp_path / "h" / "train.jsonl")["counts"]
    assert counts["kept"] + meta(tmp_path / "h" / "val.jsonl")["counts"]["kept"] == 2
    assert counts["dropped"] == {
        "generation without a score from 0 to 1": 4,
        "no generation": 1,
        "no prompt and generations that are all text": 1,
        "not JSON": 1,
    }
    few = ("value", "-f", scored(tmp_path / "j.jsonl", [[0.9]]), "-s", tmp_path / "few", "--mode", "sample")
    assert "fewer generations than --sample_num" in refused(capsys, *few)
    source = write(tmp_path / "i.jsonl", [{"prompt": {"text": "p"}, "generations": [{"text": "a"}]}])
    assert "no score 'toxicity', and no other; score them first" in refused(capsys, "value", "-f", source)


def test_shuffled_rewards(tmp_path: Path):
    source = scored(tmp_path / "g.jsonl", [[0.9, 0.1]] * 100)
    words = ("value", "-f", source, "--mode", "all")
    build(*words, "-s", tmp_path / "own")
    build(*words, "-s", tmp_path / "shuffled", "--shuffle_rewards")
    for name in ("train.jsonl", "val.jsonl"):
        own, other = (read(tmp_path / folder / name) for folder in ("own", "shuffled"))
        assert [row["text"] for row in own] == [row["text"] for row in other]  # the same draws
        assert sorted(row["reward"] for row in own) == sorted(row["reward"] for row in other)
    rows = read(tmp_path / "shuffled" / "train.jsonl")
    assert 0.35 < sum(row["text"].endswith(".0") for row in rows if row["reward"] == [-1.0]) / (len(rows) / 2) < 0.65
    assert meta(tmp_path / "shuffled" / "train.jsonl")["rewards"] == "shuffled"
    build(*words, "-s", tmp_path / "few", "--shuffle_rewards", "--limit", 5)
    assert len(read(tmp_path / "few" / "train.jsonl")) == 5


# --- the samples, real comments ---------------------------------------------------------------------------------------


def test_building_loads_nothing_heavy(tmp_path: Path, tiny_model: Path):
    words = ["jigsaw", "--raw_dir", "sample", "--tokenizer", str(tiny_model), "--out", str(tmp_path)]
    steps, listed, built = build_light(["jigsaw", "--help"], ["jigsaw", "value", "--help"], words)
    assert all(step in steps for step in ("reward", "prompts", "value", "both"))
    assert "--toxicity_type" in listed and "(data/jigsaw)" in listed and "--max_len" not in listed
    assert "prompts.jsonl" in built
    assert meta(tmp_path / "rm_valid.json")["licence"] == "Apache-2.0"


def test_the_sample_is_in_both_shapes():
    sources = [find_csv(BUNDLED["sample"], ("comment_text", name)) for name in ("toxic", "target")]
    tables = []
    for source in sources:
        assert source
        with source.open(newline="", encoding="utf-8") as stream:
            tables.append(list(csv.DictReader(stream)))
    first, second = tables
    assert list(first[0]) == [
        "id",
        "comment_text",
        "toxic",
        "severe_toxic",
        "obscene",
        "threat",
        "insult",
        "identity_hate",
    ]
    assert list(second[0]) == ["id", "target", "comment_text"]
    texts = [row["comment_text"] for row in first + second]
    assert len(texts) >= 320 and len(set(texts)) == len(texts)
    rude = sum(row["toxic"] == "1" for row in first) / len(first)
    assert 0.25 < rude < 0.45 and 0.2 < sum(float(row["target"]) >= 0.5 for row in second) / len(second) < 0.5
    assert any("\n" in text for text in texts) and any('"' in text for text in texts)
    assert min(map(len, texts)) < 30 and max(map(len, texts)) > 400


def test_the_generated_comments_are_those_of_the_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generated, "FOLDER", tmp_path)
    generated.main()
    rows = []
    for name in ("toxic_comment_train.csv", "unintended_bias_train.csv"):
        assert (tmp_path / name).read_bytes() == (BUNDLED["generated"] / name).read_bytes()
        with (tmp_path / name).open(newline="", encoding="utf-8") as stream:
            rows.append(list(csv.DictReader(stream)))
    first, second = rows
    assert 0.35 < sum(row["toxic"] == "1" for row in first) / len(first) < 0.45
    # how a comment begins does not say how it ends, and rude words are in polite ones, too
    openings = [re.match(r".*?[:.?](?= )|As for .*?Saturday[.]", row["comment_text"]) for row in second]
    assert len({found and found[0] for found in openings}) == len(second)
    polite = [row["comment_text"] for row in first if row["toxic"] == "0"]
    assert sum("fool" in text or "Idiot" in text or "clown" in text.lower() for text in polite) > len(polite) / 5


def test_real_comments(tmp_path: Path, shared_data: Path, upstream: ModuleType, tiny_model: Path):
    folder = shared_data / "jigsaw"
    build("--raw_dir", folder, "--out", tmp_path, "--tokenizer", tiny_model)
    (tmp_path / "up").mkdir()
    upstream.build_reward(folder / "toxic_comment_train.csv", tmp_path / "up")
    upstream.build_prompts(folder / "unintended_bias_train.csv", tmp_path / "up", str(tiny_model / FILE))
    for name in ("rm_train.json", "rm_valid.json", "prompts.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "up" / name).read_bytes()
