"""``build_data hh``: the files that come out, what is counted, and what bad input says."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import subprocess
import tracemalloc
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT, build_light, failing, meta, read, run_python, serving, write
from hub_server import ONLINE
from hypothesis import given
from hypothesis import strategies as st

from data_builders.common import draw
from data_builders.hh import BUNDLED, Builder, generated
from data_builders.hh.dialogues import make_pair
from data_builders.lengths import LengthFilter
from orlhf_ext.build_data import main, make_parser
from orlhf_ext.files.built import Counts

Q = "\n\nHuman: Name a fruit\n\nAssistant:"


def build(*options: object) -> None:
    main(["hh", *map(str, options)])


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def row(name: object, size: int = 1) -> dict[str, str]:
    return {"chosen": dialogue(f"q {name}", "good " * size), "rejected": dialogue(f"q {name}", "bad " * size)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small data set in HH's format: 20 training and 6 test rows."""
    write(tmp_path / "hh" / "train.jsonl", [row(n) for n in range(20)])
    write(tmp_path / "hh" / "test.jsonl", [row(n) for n in range(100, 106)])
    return tmp_path / "hh"


def refused(capsys: pytest.CaptureFixture, *options: object) -> str:
    """The one sentence that a command ends with."""
    said = failing(capsys, main, "hh", *options)
    assert said.count("\n") == 1, said
    return said


NO_ANSWER = "the first difference is not in an Assistant turn"
NO_HUMAN = "does not begin with a Human turn"


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_bundled_sample_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture):
    build("--out", tmp_path, "--kwise")
    train, test = read(tmp_path / "train.jsonl"), read(tmp_path / "test.jsonl")
    assert len(train) >= 240 and len(test) >= 50
    assert train[0]["id"] == "train-000001" and test[0]["id"] == "test-000001"
    assert not {pair["prompt"] for pair in train} & {pair["prompt"] for pair in test}
    assert sum(pair["prompt"].count("\n\nHuman: ") > 1 for pair in train) >= 20
    for split, pairs in (("train", train), ("test", test)):
        kwise = read(tmp_path / f"{split}_kwise.jsonl")
        assert [set(pair) for pair in pairs] == [{"id", "prompt", "chosen", "rejected"}] * len(pairs)
        assert kwise == [
            {"id": p["id"], "prompt": p["prompt"], "completions": [p["chosen"], p["rejected"]], "rewards": [1, 0]}
            for p in pairs
        ]
        source = ROOT / "data_builders" / "samples" / "hh" / f"{split}.jsonl"
        sidecar = meta(tmp_path / f"{split}.jsonl")
        assert sidecar["counts"] == {"read": len(pairs), "kept": len(pairs), "not_drawn": 0, "dropped": {}}
        assert sidecar["licence"] == "Apache-2.0" and sidecar["builder"] == "hh" and sidecar["seed"] == 0
        assert sidecar["sources"] == [{"file": str(source), "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}]
        assert sidecar["arguments"]["source"] == "sample" and sidecar["arguments"]["kwise"] is True
    assert f"{tmp_path}/train.jsonl: {len(train)} of {len(train)} rows kept" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    build("--out", tmp_path, "--kwise")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_kind_of_source_file_gives_the_same_pairs(tmp_path: Path, folder: Path):
    build(folder, "--out", tmp_path / "jsonl")
    wanted = {split: read(tmp_path / "jsonl" / f"{split}.jsonl") for split in ("train", "test")}
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for kind in ("jsonl.gz", "json", "parquet"):
        for split in wanted:
            rows, target = read(folder / f"{split}.jsonl"), tmp_path / kind / "in" / "helpful-base" / f"{split}.{kind}"
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "parquet":
                parquet.write_table(pyarrow.Table.from_pylist(rows), target)
            elif kind == "json":
                target.write_text(json.dumps(rows, indent=4))
            else:
                target.write_bytes(gzip.compress((folder / f"{split}.jsonl").read_bytes()))
        build("--source", tmp_path / kind / "in", "--out", tmp_path / kind / "out")  # one folder further in
        for split in wanted:
            assert read(tmp_path / kind / "out" / f"{split}.jsonl") == wanted[split]
    # pairs that were built before, or by upstream, are read as what they are
    build(tmp_path / "jsonl", "--out", tmp_path / "again")
    assert read(tmp_path / "again" / "train.jsonl") == wanted["train"]


def test_counts_add_up_and_no_text_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture):
    secret = "SECRET"
    lines = [
        json.dumps(row(1)),
        f'{{"chosen": "{secret}',
        json.dumps({"chosen": secret}),
        json.dumps({"chosen": secret, "rejected": secret}),
        json.dumps({"chosen": Q + secret, "rejected": Q + secret}),
        json.dumps({"chosen": Q + " ", "rejected": Q + secret}),
        "",
        json.dumps({"chosen": dialogue(secret, "a"), "rejected": dialogue("other", "b")}),
        json.dumps([secret]),
        json.dumps(row(2)),
    ]
    write(tmp_path / "hh" / "test.jsonl", [row(1), row(3), row(3)])
    (tmp_path / "hh" / "train.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"chosen": "\xff"}\n')
    build(tmp_path / "hh", "--out", tmp_path)
    assert [pair["id"] for pair in read(tmp_path / "train.jsonl")] == ["train-000001", "train-000010"]
    counts = meta(tmp_path / "train.jsonl")["counts"]
    assert counts == {
        "read": 10,
        "kept": 2,
        "not_drawn": 0,
        "dropped": {
            "chosen and rejected do not differ": 1,
            "does not begin with a Human turn": 1,
            "empty response": 1,
            "no chosen or rejected text": 1,
            "not JSON": 1,
            "not UTF-8 text": 1,
            "not a JSON object": 1,
            "the first difference is not in an Assistant turn": 1,
        },
    }
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert meta(tmp_path / "test.jsonl")["counts"]["dropped"] == {"prompt also in the training rows": 1}
    assert [pair["id"] for pair in read(tmp_path / "test.jsonl")] == ["test-000002", "test-000003"]
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err
    assert captured.out.count("  dropped ") == 5 + 1  # five of the training rows, the one of the test rows
    assert f"dropped {tmp_path}/hh/train.jsonl line 2: not JSON" in captured.out
    build(tmp_path / "hh", "--out", tmp_path, "--max_count_of_reported", 0)
    assert "  dropped " not in capsys.readouterr().out
    # upstream knows no such rule, and has the same rows otherwise
    build(tmp_path / "hh", "--out", tmp_path, "--compat")
    assert len(read(tmp_path / "test.jsonl")) == 3


def test_compat_and_strict(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [row(1), {"chosen": Q, "rejected": Q + " No"}, {"chosen": Q + "  a", "rejected": Q + "  b"}]
    for split in ("train", "test"):
        write(tmp_path / "hh" / f"{split}.jsonl", rows)
    build(tmp_path / "hh", "--out", tmp_path, "--compat")
    assert [pair["id"] for pair in read(tmp_path / "train.jsonl")] == ["train-000001", "train-000003"]
    assert read(tmp_path / "train.jsonl")[1]["rejected"] == "  b"
    assert meta(tmp_path / "train.jsonl")["counts"]["dropped"] == {NO_ANSWER: 1}
    before = (tmp_path / "train.jsonl").read_bytes()
    said = refused(capsys, tmp_path / "hh", "--out", tmp_path, "--compat", "--strict")
    assert f"train.jsonl line 2: {NO_ANSWER}; fix or remove that row" in said
    assert (tmp_path / "train.jsonl").read_bytes() == before
    with (tmp_path / "hh" / "train.jsonl").open("a") as stream:
        stream.write("{\n")
    said = refused(capsys, tmp_path / "hh", "--out", tmp_path, "--strict")
    assert "train.jsonl line 4: not JSON (Expecting property name enclosed in double quotes); fix" in said


def test_limits_take_the_first_rows_or_a_seeded_draw(tmp_path: Path, folder: Path):
    def ids(*options: object) -> list[str]:
        build(folder, "--out", tmp_path / "out", "--limit", 5, "--limit_test", 2, *options)
        assert len(read(tmp_path / "out" / "test.jsonl")) == 2
        return [pair["id"] for pair in read(tmp_path / "out" / "train.jsonl")]

    assert ids() == [f"train-{n:06d}" for n in range(1, 6)]
    assert meta(tmp_path / "out" / "train.jsonl")["counts"]["read"] == 5  # and no further
    first = ids("--shuffle", "--seed", 1)
    assert len(set(first)) == 5 and first == ids("--shuffle", "--seed", 1) != ids("--shuffle", "--seed", 2)
    counts = meta(tmp_path / "out" / "train.jsonl")["counts"]
    assert counts == {"read": 20, "kept": 5, "not_drawn": 15, "dropped": {}}


def test_a_random_draw_is_uniform():
    rng = random.Random(0)
    drawn = Counter(row for _ in range(3000) for row in draw(range(10), 3, rng, Counts()))
    assert set(drawn) == set(range(10))
    # 900 expected each, standard deviation 25
    assert all(abs(count - 900) < 125 for count in drawn.values())
    assert sorted(draw(range(2), 3, rng, Counts())) == [0, 1]


def test_one_file_is_split_by_prompt(tmp_path: Path):
    rows = [row(n % 150) for n in range(300)] + [{"chosen": "x", "rejected": "y"}]
    source = write(tmp_path / "all.jsonl", rows)
    build(source, "--out", tmp_path / "out", "--test_size", 0.3)
    train, test = (read(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "test"))
    assert len(train) + len(test) == 300
    prompts = {pair["prompt"] for pair in train}, {pair["prompt"] for pair in test}
    assert not prompts[0] & prompts[1]
    assert 25 <= len(prompts[1]) <= 65  # 45 expected, standard deviation 5.6
    counts = [meta(tmp_path / "out" / f"{split}.jsonl")["counts"] for split in ("train", "test")]
    assert counts[0]["read"] + counts[1]["read"] == 301 and counts[0]["dropped"] == {NO_HUMAN: 1}
    assert "0.3 of the prompts" in meta(tmp_path / "out" / "test.jsonl")["split"]
    build(source, "--out", tmp_path / "other", "--test_size", 0.3, "--seed", 1)
    assert {pair["prompt"] for pair in read(tmp_path / "other" / "test.jsonl")} != prompts[1]


def test_chat_format(tmp_path: Path, folder: Path):
    build(folder, "--out", tmp_path / "out", "--format", "chat", "--kwise")
    pair = read(tmp_path / "out" / "train.jsonl")[0]
    assert pair == {
        "id": "train-000001",
        "prompt": [{"role": "user", "content": "q 0"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    assert read(tmp_path / "out" / "train_kwise.jsonl")[0]["completions"] == [pair["chosen"], pair["rejected"]]
    assert meta(tmp_path / "out" / "train.jsonl")["format"] == "chat"


def test_pairs_to_kwise(tmp_path: Path, capsys: pytest.CaptureFixture):
    pairs = [{"prompt": Q, "chosen": " Apple", "rejected": " No"}]
    for split in ("train", "test"):  # as upstream writes them
        (tmp_path / f"{split}.json").write_text(json.dumps(pairs, indent=4))
    build("--from_pairs", tmp_path, "--out", tmp_path / "p2r")
    wanted = {"prompt": Q, "completions": [" Apple", " No"], "rewards": [1, 0]}
    assert read(tmp_path / "p2r" / "test_kwise.jsonl") == [{"id": "test-000001", **wanted}]
    assert read(tmp_path / "p2r" / "train_kwise.jsonl") == [{"id": "train-000001", **wanted}]
    chat = [{"role": "user", "content": "q"}]
    mine = [
        {"id": "a", **pairs[0]},
        {"prompt": chat, "chosen": " text", "rejected": " text"},
        {"prompt": Q, "chosen": " ", "rejected": " No"},
        {"id": "b", "prompt": chat, "chosen": chat, "rejected": chat},
        {"prompt": Q},
    ]
    source = write(tmp_path / "mine.jsonl", mine)
    build("--from_pairs", source, "--out", tmp_path)
    assert [kwise["id"] for kwise in read(tmp_path / "mine_kwise.jsonl")] == ["a", "b"]
    dropped = meta(tmp_path / "mine_kwise.jsonl")["counts"]["dropped"]
    assert dropped == {"no prompt, chosen and rejected that are all text or all message lists": 2, "empty response": 1}
    assert "mine.jsonl line 2: no prompt, chosen" in refused(
        capsys, "--from_pairs", source, "--out", tmp_path, "--strict"
    )


def test_length_filters(tmp_path: Path, tiny_model: Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    rows = [row("x " * n, size) for n, size in ((1, 1), (1, 30), (40, 1), (3, 3))]
    for split, some in (("train", rows), ("test", [row("t")])):
        write(tmp_path / "hh" / f"{split}.jsonl", some)

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    pairs = [make_pair(one["chosen"], one["rejected"]) for one in rows]
    most_prompt = max(tokens(pairs[place].prompt) for place in (0, 1, 3))
    most = max(tokens(pairs[3].prompt + text) for text in (pairs[3].chosen, pairs[3].rejected)) + 2
    options = (tmp_path / "hh", "--out", tmp_path / "out", "--tokenizer", tiny_model)
    build(*options, "--max_prompt_tokens", most_prompt, "--max_tokens", most)
    assert [pair["id"] for pair in read(tmp_path / "out" / "train.jsonl")] == ["train-000001", "train-000004"]
    sidecar = meta(tmp_path / "out" / "train.jsonl")
    assert sidecar["counts"]["dropped"] == {
        f"longer than {most} tokens": 1,
        f"prompt longer than {most_prompt} tokens": 1,
    }
    assert str(tiny_model / "tokenizer.json") in [source["file"] for source in sidecar["sources"]]
    build(*options[:-1], tiny_model / "tokenizer.json", "--max_tokens", most - 1)
    assert [pair["id"] for pair in read(tmp_path / "out" / "train.jsonl")] == ["train-000001"]


@pytest.fixture(scope="module")
def cutting(tiny_model: Path) -> LengthFilter:
    return LengthFilter(str(tiny_model), 12, 20)


TEXTS = st.text(st.sampled_from(" ab\n.é漢🙂\u0301"), min_size=1, max_size=60)


@given(TEXTS, TEXTS, TEXTS)
def test_what_is_cut_fits_and_is_the_longest_end_or_beginning(cutting, prompt: str, one: str, other: str):
    short, kept = cutting.cut(prompt, [one, other])
    room = 20 - 2  # a space and the end token
    for whole, part in zip((one, other), kept, strict=True):
        assert whole.startswith(part) and cutting.count(part) <= room - 12
        assert part == whole or cutting.count(whole) > room - 12
    assert prompt.endswith(short) and all(cutting.count(short + text) <= room for text in kept)
    if short != prompt:  # no more than a character's bytes is cut in vain
        assert cutting.count(short) >= 12 - 4


def test_long_rows_are_cut_instead_of_dropped(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture):
    talk = "".join(f"\n\nHuman: question {n}\n\nAssistant: answer {n}" for n in range(20))
    rows = [
        {"chosen": talk + dialogue("last", "good"), "rejected": talk + dialogue("last", "bad")},
        row("short"),
        {"chosen": dialogue("q", "same " * 40 + "a"), "rejected": dialogue("q", "same " * 40 + "b")},
        {"chosen": dialogue("r", "one " * 40), "rejected": dialogue("r", "two")},
    ]
    for split, some in (("train", rows), ("test", [row("t")])):
        write(tmp_path / "hh" / f"{split}.jsonl", some)
    options = (tmp_path / "hh", "--out", tmp_path, "--cut", "--tokenizer", tiny_model, "--max_prompt_tokens", 60)
    build(*options, "--max_tokens", 100, "--kwise")
    long, short, answers = read(tmp_path / "train.jsonl")
    assert (talk + dialogue("last", "")).strip().endswith(long["prompt"]) and "question 0" not in long["prompt"]
    assert long["prompt"].endswith("\n\nHuman: last\n\nAssistant:") and long["chosen"] == " good"
    assert short["prompt"] == "\n\nHuman: q short\n\nAssistant:"
    assert (" one" * 40).startswith(answers["chosen"]) and answers["rejected"] == " two"
    tokens = LengthFilter(str(tiny_model), None, None).count
    assert 56 <= tokens(long["prompt"]) <= 60
    assert tokens(answers["chosen"]) + 2 == 40
    counts = meta(tmp_path / "train.jsonl")["counts"]
    assert counts == {
        "read": 4, "kept": 3, "not_drawn": 0, "cut": {"prompts": 1, "responses": 1},
        "dropped": {"chosen and rejected do not differ when they are cut": 1},
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "  prompts cut in 1 of them" in said and "  responses cut in 1 of them" in said
    assert [one["prompt"] for one in read(tmp_path / "train_kwise.jsonl")] == [
        long["prompt"],
        short["prompt"],
        answers["prompt"],
    ]

    # of a chat, whole turns go, and it begins with the user's
    for form in ("chat", "template", "legacy"):
        build(*options, "--format", form)
        chat = read(tmp_path / "train.jsonl")[0]["prompt"]
        if form == "chat":
            assert chat[0]["role"] == "user" and chat[-1]["content"] == "last" and 1 < len(chat) < 40
        assert "question 0" not in str(chat) and "last" in str(chat)
        assert meta(tmp_path / "train.jsonl")["counts"]["cut"] == {"prompts": 1}


def test_all_folders_of_a_source(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture):
    for number, name in enumerate(("b", "a")):
        write(tmp_path / "in" / name / "train.jsonl", [row(f"{name} {n}") for n in range(3 + number)])
        write(tmp_path / "in" / name / "test.jsonl", [row(f"{name} t")])
    (tmp_path / "in" / "other").mkdir()
    (tmp_path / "in" / "other" / "attempts.jsonl").write_text("{}")
    assert "has several data sets (a, b); choose one with --data_dir" in refused(capsys, tmp_path / "in")
    build(tmp_path / "in", "--data_dir", "all", "--out", tmp_path / "out")
    pairs = read(tmp_path / "out" / "train.jsonl")
    assert [pair["id"] for pair in pairs] == [f"a-train-{n:06d}" for n in range(1, 5)] + [
        f"b-train-{n:06d}" for n in range(1, 4)
    ]
    sidecar = meta(tmp_path / "out" / "test.jsonl")
    assert sidecar["counts"]["kept"] == 2 and [Path(one["file"]).parent.name for one in sidecar["sources"]] == [
        "a",
        "b",
    ]
    build(folder, "--data_dir", "all", "--out", tmp_path / "one")  # a folder alone is all of its folders
    assert read(tmp_path / "one" / "train.jsonl")[0]["id"] == "train-000001"
    (tmp_path / "in" / "b" / "test.jsonl").unlink()
    assert "has train.jsonl but no test file" in refused(capsys, tmp_path / "in", "--data_dir", "all")


def test_lengths_of_chats_are_those_of_the_chat_template(tmp_path: Path, tiny_model: Path, folder: Path, capsys):
    import shutil

    from transformers import AutoTokenizer

    template = (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\n"
        "{%- for message in messages %}\n"
        "    {% if message['content'] == 'q 7' %}{{ raise_exception('no 7') }}{% endif %}\n"
        "<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    options = (folder, "--out", tmp_path / "out", "--format", "chat", "--tokenizer", model, "--max_tokens", 1000)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for file in model.glob("chat_template*"):
        file.unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert "has no chat template; use --format hh" in refused(capsys, *options)
    (model / "chat_template.jinja").write_text("{% if %}")
    assert f"the chat template of {model} is not valid" in refused(capsys, *options)
    (model / "chat_template.jinja").write_text(template)
    render = LengthFilter(str(model), None, 5).chat_template()
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "a\n\nb"}]
    for generation in (False, True):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        assert render(messages, generation) == wanted
        assert wanted.startswith("<s>") and "</s>" in wanted
    build(*options)
    counts = meta(tmp_path / "out" / "train.jsonl")["counts"]
    assert counts["dropped"] == {"refused by the chat template": 1} and counts["kept"] == 19
    text = render([{"role": "user", "content": "q 1"}, {"role": "assistant", "content": "good"}], False)
    most = len(tokenizer(text, add_special_tokens=False).input_ids) + 2
    write(folder / "train.jsonl", [row(1), row(10_000)])
    write(folder / "test.jsonl", [row(2)])
    build(*options[:-1], most)
    assert [pair["id"] for pair in read(tmp_path / "out" / "train.jsonl")] == ["train-000001"]


def peak(folder: Path, count: int, *options: str) -> int:
    """Bytes that Python holds at most while building from ``count`` lines of 1.6 kB."""
    write(folder / "train.jsonl", [row(number, size=150) for number in range(count)])
    write(folder / "test.jsonl", [row("t")])
    args = make_parser(Builder(), "hh").parse_args([str(folder), "--out", str(folder / "out"), *options])
    tracemalloc.start()
    kept = [built.counts.kept for built in Builder().run(args)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(kept)
    return most


@pytest.mark.launcher
def test_memory_does_not_grow_with_the_input(tmp_path: Path):
    peak(tmp_path / "warm", 10)
    small, large = peak(tmp_path / "small", 400), peak(tmp_path / "large", 2800)
    assert (tmp_path / "large" / "train.jsonl").stat().st_size > 3e6
    # 2400 more rows: the 8-byte hashes of their prompts, in a set, are all that may grow
    assert large - small < 2400 * 128
    options = ("--limit", "50", "--shuffle", "--seed", "1")
    small, large = peak(tmp_path / "small2", 400, *options), peak(tmp_path / "large2", 2800, *options)
    assert large - small < 50_000


@pytest.mark.launcher
def test_no_real_row_is_dropped_for_its_length_when_it_may_be_cut(tmp_path: Path, shared_data: Path, tiny_model: Path):
    source = shared_data / "hh-rlhf" / "harmless-base"
    if not source.is_dir():
        pytest.skip("../shared/data/hh-rlhf/harmless-base is absent")
    limits = ("--tokenizer", tiny_model, "--max_prompt_tokens", 312, "--max_tokens", 512)
    build(source, "--out", tmp_path, *limits)
    dropped = meta(tmp_path / "train.jsonl")["counts"]["dropped"]
    assert sum(number for reason, number in dropped.items() if "longer than" in reason) > 50
    build(source, "--out", tmp_path, *limits, "--cut")
    counts = meta(tmp_path / "train.jsonl")["counts"]
    assert not any("longer than" in reason for reason in counts["dropped"]) and counts["cut"]["prompts"] > 50
    count = LengthFilter(str(tiny_model), None, None).count
    for pair in read(tmp_path / "train.jsonl"):
        assert max(count(pair["prompt"] + pair[side]) for side in ("chosen", "rejected")) + 2 <= 512, pair["id"]
        assert pair["prompt"].endswith("\n\nAssistant:"), pair["id"]


def test_real_data(tmp_path: Path, shared_data: Path):
    source = shared_data / "hh-rlhf" / "harmless-base"
    if not source.is_dir():
        pytest.skip("../shared/data/hh-rlhf/harmless-base is absent")
    for options in ([], ["--compat"], ["--format", "chat"]):
        build(source, "--out", tmp_path, "--kwise", *options)
        for split, total in (("train", 1200), ("test", 300)):
            pairs = read(tmp_path / f"{split}.jsonl")
            counts = meta(tmp_path / f"{split}.jsonl")["counts"]
            assert counts["read"] == total and counts["kept"] == len(pairs) >= 0.99 * total
            assert counts["kept"] + sum(counts["dropped"].values()) == total
            assert len({pair["id"] for pair in pairs}) == len(pairs) == len(read(tmp_path / f"{split}_kwise.jsonl"))
            # never `assert text`: a failure would print it
            if "chat" not in options:
                wrong = [p["id"] for p in pairs if not re.match(r"\n\nHuman: (?s:.*)\n\nAssistant:\Z", p["prompt"])]
                assert not wrong
            wrong = [p["id"] for p in pairs if p["chosen"] == p["rejected"]]
            assert not wrong


# --- bad input: one sentence, exit code 2 --------------------------------------------------------------------------


def test_bad_sources(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture):
    out = ("--out", tmp_path / "out")
    (tmp_path / "void").mkdir()
    assert "nothere.jsonl does not exist" in refused(capsys, tmp_path / "nothere.jsonl", *out)
    assert "void has no train.jsonl and test.jsonl" in refused(capsys, tmp_path / "void", *out)
    two = tmp_path / "two"
    for name in ("a", "b"):
        write(two / name / "train.jsonl", [row(1)])
        write(two / name / "test.jsonl", [row(2)])
    assert "two has several data sets (a, b); choose one with --data_dir" in refused(capsys, two, *out)
    build(two, "--data_dir", "b", *out)
    assert "--data_dir: there is no folder" in refused(capsys, two, "--data_dir", "c", *out)
    (two / "a" / "test.jsonl").unlink()
    assert "has train.jsonl but no test file" in refused(capsys, two / "a", *out)
    empty = write(tmp_path / "empty" / "train.jsonl", [])
    write(empty.with_name("test.jsonl"), [row(1)])
    assert f"{empty} has no row for train.jsonl" in refused(capsys, empty.parent, *out)
    write(empty, [{"chosen": Q + " a"}] * 2 + [{"chosen": "a", "rejected": "b"}])
    said = refused(capsys, empty.parent, *out)
    assert f"none of the 3 rows of {empty} can be kept for train.jsonl (2 of them: no chosen or rejected text)" in said
    packed = tmp_path / "hh.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / "train.jsonl").read_bytes())[:-9])
    assert "hh.jsonl.gz is a truncated or broken gzip file; fetch it again" in refused(capsys, packed, *out)
    assert "is not a .jsonl" in refused(capsys, write(tmp_path / "hh.csv", []), *out)
    said = refused(capsys, write(empty, [row(1), {"chosen": Q}]).parent, "--strict", *out)
    assert f"{empty} line 2: no chosen or rejected text" in said
    assert "is the source itself" in refused(capsys, folder, "--out", folder)
    assert read(folder / "train.jsonl") == [row(n) for n in range(20)]
    assert "hh.csv is a file, where a folder" in refused(capsys, folder, "--out", tmp_path / "hh.csv")
    assert "does not exist; give a folder with a tokenizer.json" in refused(
        capsys, folder, *out, "--tokenizer", tmp_path, "--max_tokens", 5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "x", "y"], "are both given; leave one out"),
        (["--compat", "--format", "chat"], "--compat follows the authors' rules"),
        (["--shuffle"], "add --limit N"),
        (["--max_tokens", "5"], "add --tokenizer"),
        (["--tokenizer", "x"], "--tokenizer has no effect alone"),
        (["--test_size", "0.5"], "--test_size splits a single file"),
        (["--from_pairs", "x.jsonl", "--compat"], "--compat has no effect with --from_pairs"),
        (["--from_pairs", "x.jsonl", "y"], "SOURCE has no effect with --from_pairs"),
        (["--from_pairs", "x.jsonl"], "x.jsonl does not exist"),
    ],
)
def test_options_that_exclude_one_another(tmp_path: Path, capsys, options: list[str], message: str):
    assert message in refused(capsys, "--out", tmp_path, *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--limit", "0"], ["--test_size", "1"], ["--lim", "3"], ["--limit_test", "x"]])
def test_options_out_of_range(capsys, options: list[str]):
    with pytest.raises(SystemExit) as caught:
        build(*options)
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err


# --- the command ---------------------------------------------------------------------------------------------------


def test_help_and_building_load_nothing_heavy(tmp_path: Path, tiny_model: Path):
    words = ["hh", "--out", str(tmp_path), "--tokenizer", str(tiny_model), "--max_tokens", "4000", "--kwise"]
    listed, options, _ = build_light(["--help"], ["hh", "--help"], words)
    assert re.search(r"^  hh +" + re.escape(Builder.help) + "$", listed, re.M)
    for flag in ("SOURCE", "--compat", "--kwise", "--limit", "--strict", "--out DIR", "(data/hh)"):
        assert flag in options
    assert (tmp_path / "test_kwise.meta.json").is_file()


def test_a_builder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "my_builders.py").write_text(
        "from data_builders.common import Built, Counts\n"
        "from orlhf_ext.files.records import write_jsonl\n"
        "class Mine:\n"
        "    name, help = 'mine', 'one row'\n"
        "    def add_arguments(self, parser):\n"
        "        parser.add_argument('--word', default='w')\n"
        "    def run(self, args):\n"
        "        counts = Counts()\n"
        "        counts.read = counts.kept = write_jsonl(args.out / 'x.jsonl', [{'word': args.word}])\n"
        "        yield Built(args.out / 'x.jsonl', counts, [], 'CC0-1.0')\n"
        "class NotOne:\n"
        "    name = 'no'\n"
    )
    monkeypatch.chdir(tmp_path)
    main(["my_builders:Mine", "--word", "hello"])
    assert read(tmp_path / "data" / "mine" / "x.jsonl") == [{"word": "hello"}]
    assert meta(tmp_path / "data" / "mine" / "x.jsonl")["licence"] == "CC0-1.0"
    with pytest.raises(SystemExit):
        main(["my_builders:NotOne"])
    assert "my_builders:NotOne is not a builder: it lacks help, add_arguments, run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["hhh"])
    assert "did you mean 'hh'?" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that fetching files takes."""

    repo, revision = "Anthropic/hh-rlhf", "a" * 40
    files: dict[str, bytes]

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/datasets/{self.repo}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif self.path.startswith(f"/api/datasets/{self.repo}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(200, json.dumps({"id": self.repo, "sha": self.revision, "siblings": siblings}).encode())
        elif self.path.startswith("/api/datasets/owner/gated"):
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith(prefix := f"/datasets/{self.repo}/resolve/{self.revision}/"):
            data = self.files[self.path.removeprefix(prefix)]
            self.answer(200, data, {"X-Repo-Commit": self.revision, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.launcher
def test_a_hub_name(tmp_path: Path, folder: Path):
    Hub.files = {
        f"{name}/{split}.jsonl.gz": gzip.compress((folder / f"{split}.jsonl").read_bytes(), mtime=0)
        for name in ("helpful-base", "harmless-base")
        for split in ("train", "test")
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    online = {**ONLINE, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}

    def fetch(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "orlhf_ext.build_data", "hh", name, *words, "--out", str(tmp_path / "out"), **online)

    with serving(server):
        done = fetch(Hub.repo)
        assert done.returncode == 0, done.stderr
        assert len(read(tmp_path / "out" / "train.jsonl")) == 20
        sidecar = meta(tmp_path / "out" / "train.jsonl")
        assert sidecar["licence"] == "MIT" and sidecar["source"] == Hub.repo
        assert sidecar["sources"][0]["file"].endswith("helpful-base/train.jsonl.gz")
        assert not list((tmp_path / "hub").rglob("harmless-base"))  # nothing else was fetched
        assert fetch(Hub.repo, "--data_dir", "all").returncode == 0
        assert len(read(tmp_path / "out" / "train.jsonl")) == 40
        unknown = fetch("owner/none")
        assert unknown.returncode == 2 and "the hub has no data set owner/none" in unknown.stderr
        gated = fetch("owner/gated")
        assert gated.returncode == 2 and "owner/gated is gated: accept its terms" in gated.stderr
    again = fetch(Hub.repo)  # no network any more, but the hub's cache has it
    assert again.returncode == 0, again.stderr
    lost = fetch("owner/none")
    assert lost.returncode == 2 and "Traceback" not in lost.stderr
    assert "there is no path owner/none here, and the hub cannot be reached" in lost.stderr


def test_the_generated_dialogues_are_those_of_the_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "FOLDER", tmp_path)
    generated.main()
    styles: Counter[tuple[bool, bool]] = Counter()
    for name in generated.SHARES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (BUNDLED["generated"] / f"{name}.jsonl").read_bytes()
        for ours in read(tmp_path / f"{name}.jsonl"):
            prompt, _, answer = ours["chosen"].rpartition("Assistant: ")
            assert ours["rejected"].startswith(f"{prompt}Assistant: ") and ours["chosen"] != ours["rejected"]
            wishes = [wish for wish in generated.WISHES[generated.SHARES[name]] if f" {wish}" in prompt]
            assert wishes, prompt
            praise = next((one for one in generated.PRAISES if answer.startswith(one)), "")
            advice = answer.removeprefix(praise).count(".")
            assert advice in (1, generated.PIECES)
            styles[advice == 1, bool(praise)] += 1
    count = sum(styles.values())
    assert 0.25 < sum(styles[True, praised] for praised in (False, True)) / count < 0.35
    assert 0.45 < sum(styles[short, True] for short in (False, True)) / count < 0.55 and min(styles.values()) > 20
    build("generated", "--out", tmp_path / "out")
    assert meta(tmp_path / "out" / "train.jsonl")["licence"] == "Apache-2.0"
