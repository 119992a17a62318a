"""``build_data hh-prompts`` and ``hh-groups``: from pairs to prompts, and from scored responses to groups' pairs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, build_light, draw_groups, failing, meta, read, write

from orlhf_ext.build_data import main
from orlhf_ext.groups.render import answer_text, prompt_text

PROMPTS, GROUPS = "hh-prompts", "hh-groups"
YAML = ROOT / "recipes" / "groups" / "hh.yaml"


def hh(*options: object) -> None:
    main(["data_builders.hh:Builder", *map(str, options)])


def prompts(*options: object) -> None:
    main([PROMPTS, *map(str, options)])


def groups(*options: object) -> None:
    main([GROUPS, *map(str, options)])


def refused(capsys: pytest.CaptureFixture, builder: str, *options: object) -> str:
    """The one sentence that a command ends with."""
    said = failing(capsys, main, builder, *options)
    assert said.count("\n") == 1, said
    return said


def test_building_loads_nothing_heavy(tmp_path: Path):
    hh("--out", tmp_path / "hh")
    sizes = ("--num_prompts", "50", "--num_rl", "20", "--num_test", "10")
    source = write(tmp_path / "s.jsonl", scored(100))
    prompts, groups, *_ = build_light(
        [PROMPTS, "--help"],
        [GROUPS, "--help"],
        [PROMPTS, str(tmp_path / "hh"), "--out", str(tmp_path / "p"), *sizes],
        [GROUPS, str(source), "--groups", str(YAML), "--style", "hh", "--out", str(tmp_path / "g")],
    )
    assert "--share_prompts" in prompts and "(data/hh-prompts)" in prompts
    assert "--compat" in groups and "(data/hh-groups)" in groups
    assert (tmp_path / "p" / "rl.meta.json").is_file() and (tmp_path / "g" / "test.meta.json").is_file()


# --- build_data hh --format legacy, template -----------------------------------------------------------------------


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {text}" for n, text in enumerate(turns))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two dialogues, the second with the word of a label inside."""
    rows = [
        {"chosen": dialogue("Q1", "A1"), "rejected": dialogue("Q1", "B1")},
        {
            "chosen": dialogue("Q1", "A1", "say Human: now", "A2"),
            "rejected": dialogue("Q1", "A1", "say Human: now", "B"),
        },
    ]
    write(tmp_path / "raw" / "train.jsonl", rows)
    write(tmp_path / "raw" / "test.jsonl", [{"chosen": dialogue("T", "good"), "rejected": dialogue("T", "bad")}])
    return tmp_path / "raw"


def test_legacy_text(tmp_path: Path, raw: Path):
    hh(raw, "--out", tmp_path / "out", "--format", "legacy", "--kwise")
    pairs = read(tmp_path / "out" / "train.jsonl")
    tags = "    <|user|>\n    Q1</s>\n    <|assistant|>\n    "
    assert pairs[0] == {"id": "train-000001", "prompt": tags, "chosen": "A1", "rejected": "B1"}
    assert pairs[1]["prompt"] == f"{tags}A1</s>\n    <|user|>\n    say Human: now</s>\n    <|assistant|>\n    "
    assert meta(tmp_path / "out" / "train.jsonl")["format"] == "legacy"
    assert read(tmp_path / "out" / "train_kwise.jsonl")[0]["completions"] == ["A1", "B1"]


TEMPLATE = (
    "{% for message in messages %}{% if message['content'] == 'T' %}{{ raise_exception('no T') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_text_by_the_chat_template(tmp_path: Path, raw: Path, tiny_model: Path, capsys: pytest.CaptureFixture):
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    options = (raw, "--out", tmp_path / "out", "--format", "template", "--tokenizer", model)
    assert "none of the 1 rows" in (said := refused(capsys, "data_builders.hh:Builder", *options))
    assert "refused by the chat template" in said
    write(raw / "test.jsonl", [{"chosen": dialogue("t", "good"), "rejected": dialogue("t", "bad")}])
    hh(*options)
    pairs = read(tmp_path / "out" / "train.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(model)

    def rendered(messages: Any, add_generation_prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))

    turns = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    turns += [{"role": "user", "content": "say Human: now"}]
    assert pairs[1] == {
        "id": "train-000002",
        "prompt": prompt_text(turns, "chat", rendered),
        "chosen": answer_text("A2", "chat"),
        "rejected": answer_text("B", "chat"),
    }
    assert pairs[1]["prompt"].endswith("now</s><assistant>")
    sidecar = meta(tmp_path / "out" / "train.jsonl")
    assert sidecar["format"] == "template" and any("jinja" in one["file"] for one in sidecar["sources"])
    # lengths are those of the text that is written
    whole = len(tokenizer(pairs[1]["prompt"] + "A2", add_special_tokens=False).input_ids) + 2
    for most, kept in ((whole, 2), (whole - 1, 1)):
        hh(*options, "--max_tokens", most)
        assert len(read(tmp_path / "out" / "train.jsonl")) == kept


def test_formats_that_do_not_fit(tmp_path: Path, raw: Path, tiny_model: Path, capsys: pytest.CaptureFixture):
    def said(*options: object) -> str:
        return refused(capsys, "data_builders.hh:Builder", raw, "--out", tmp_path / "out", *options)

    assert "--format template renders a tokenizer's own chat template; add --tokenizer" in said("--format", "template")
    assert "leave it out, or --format legacy" in said("--format", "legacy", "--compat")
    assert "--tokenizer has no effect alone" in said("--format", "legacy", "--tokenizer", tiny_model)
    assert not (tmp_path / "out").exists()


# --- prompts -------------------------------------------------------------------------------------------------------


def pair(name: object, prompt: object) -> dict[str, Any]:
    return {"id": str(name), "prompt": prompt, "chosen": " a", "rejected": " b"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 training rows with 40 different prompts, 12 test rows of which 2 have a training prompt."""
    rows = [pair(f"train-{n}", f"\n\nHuman: q {n % 40}\n\nAssistant:") for n in range(60)]
    write(tmp_path / "hh" / "train.jsonl", rows)
    tests = [pair(f"test-{n}", f"\n\nHuman: q {n + 38}\n\nAssistant:") for n in range(12)]
    write(tmp_path / "hh" / "test.jsonl", tests)
    (tmp_path / "hh" / "train.meta.json").write_text(json.dumps({"format": "hh", "licence": "MIT"}))
    return tmp_path / "hh"


SIZES = ("--num_prompts", 10, "--num_rl", 20, "--num_test", 8)


def files(folder: Path) -> list[list[dict[str, Any]]]:
    return [read(folder / f"{stem}.jsonl") for stem in ("rm", "rl", "test")]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"] for row in rows]


def test_prompts_of_three_stages(tmp_path: Path, source: Path):
    out = tmp_path / "out"
    prompts(source, "--out", out, *SIZES)
    rm, rl, test = files(out)
    assert [len(rm), len(rl), len(test)] == [10, 20, 8]
    assert len({*texts(rm), *texts(rl), *texts(test)}) == 38  # none twice, none in two
    assert not set(texts(test)) & {row["prompt"] for row in read(source / "train.jsonl")}
    by_id = {row["id"]: row["prompt"] for split in ("train", "test") for row in read(source / f"{split}.jsonl")}
    for row in rm + rl + test:
        assert set(row) == {"id", "prompt", "style", "label"} and row["style"] == "hh"
        assert json.loads(row["label"]) == {"v": 1, "id": row["id"], "style": "hh"}
        assert by_id[row["id"]] == row["prompt"]
    dropped = {"prompt of an earlier row": 20}
    assert meta(out / "rm.jsonl")["counts"] == {"read": 60, "kept": 10, "not_drawn": 30, "dropped": dropped}
    assert meta(out / "rl.jsonl")["counts"] == {"read": 60, "kept": 20, "not_drawn": 20, "dropped": dropped}
    dropped = {"prompt also in the training rows": 2}
    assert meta(out / "test.jsonl")["counts"] == {"read": 12, "kept": 8, "not_drawn": 2, "dropped": dropped}
    sidecar = meta(out / "rl.jsonl")
    assert sidecar["builder"] == "hh-prompts" and sidecar["style"] == "hh" and sidecar["licence"] == "MIT"
    digest = hashlib.sha256((source / "train.jsonl").read_bytes()).hexdigest()
    assert sidecar["sources"] == [{"file": str(source / "train.jsonl"), "sha256": digest}]


def test_the_draw_of_prompts(tmp_path: Path, source: Path):
    def drawn(*options: object) -> list[list[dict[str, Any]]]:
        prompts(source, "--out", tmp_path / "out", *options)
        return files(tmp_path / "out")

    first = drawn(*SIZES)
    assert first == drawn(*SIZES) != drawn(*SIZES, "--seed", 1)
    assert texts(first[0]) != sorted(texts(first[0]))
    fewer = drawn("--num_prompts", 10, "--num_rl", 3, "--num_test", 5)
    assert fewer == [first[0], first[1][:3], first[2][:5]]
    assert [len(rows) for rows in drawn("--num_prompts", 20, "--num_test", 5)] == [20, 20, 5]
    rm, rl, test = drawn("--num_prompts", 40, "--share_prompts", "--num_test", 5)
    assert rm == rl and len(rm) == 40 and test == first[2][:5]
    assert rm[:10] == first[0]
    # every prompt can be drawn: 12 draws of half of them leave a given one out with a chance of 2e-4
    half = ("--num_prompts", 20, "--share_prompts", "--num_test", 1)
    assert len({text for seed in range(12) for text in texts(drawn(*half, "--seed", seed)[0])}) == 40


def test_styles_of_prompts(tmp_path: Path, source: Path, raw: Path, capsys: pytest.CaptureFixture):
    out = ("--out", tmp_path / "out", *SIZES)
    (source / "train.meta.json").write_text(json.dumps({"format": "template"}))
    prompts(source, *out)
    assert read(tmp_path / "out" / "rm.jsonl")[0]["style"] == "chat"
    assert "--style hh, but" in (said := refused(capsys, PROMPTS, source, *out, "--style", "hh"))
    assert "was built with --format template; leave --style out" in said
    (source / "train.meta.json").unlink()
    assert "that says how its prompts were rendered; add --style hh, chat, legacy" in refused(
        capsys, PROMPTS, source, *out
    )
    prompts(source, *out, "--style", "legacy")
    assert json.loads(read(tmp_path / "out" / "rl.jsonl")[0]["label"])["style"] == "legacy"
    write(source / "test.jsonl", [pair(1, [{"role": "user", "content": "q"}])])
    said = refused(capsys, PROMPTS, source, *out, "--style", "hh")
    assert "test.jsonl line 1 has prompts that are message lists, not text" in said and "--format template" in said
    hh(raw, "--out", tmp_path / "chat", "--format", "chat")
    assert "--format template --tokenizer MODEL" in refused(capsys, PROMPTS, tmp_path / "chat", *out)
    (source / "train.meta.json").write_text("{")
    said = refused(capsys, PROMPTS, source, *out)
    assert "train.meta.json cannot be read as JSON (" in said and "; build the data again" in said


def test_too_few_prompts_and_other_mistakes(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture):
    def said(*options: object) -> str:
        return refused(capsys, PROMPTS, *options, "--out", tmp_path / "out")

    few = said(source, "--num_prompts", 30, "--num_rl", 11, "--num_test", 1)
    assert "train.jsonl has 40 different prompts, too few" in few
    assert "too few for --num_prompts 30 and --num_rl 11; lower them, or add --share_prompts" in few
    few = said(source, "--num_prompts", 41, "--share_prompts", "--num_test", 1)
    assert "has 40 different prompts" in few and "too few for --num_prompts 41; lower it" in few
    few = said(source, "--num_prompts", 1, "--num_test", 11)
    assert "test.jsonl has 10 different prompts" in few and "too few for --num_test 11; lower it" in few
    none = tmp_path / "none"
    for split in ("train", "test"):
        write(none / f"{split}.jsonl", [{"chosen": "x"}])
    assert "has 0 different prompts (" in (few := said(none, "--style", "hh"))
    assert "train.jsonl line 1: no prompt that is text), too few" in few
    assert not (tmp_path / "out").exists()
    assert "--num_rl 3 has no effect with --share_prompts" in said(source, *SIZES[:2], "--num_rl", 3, "--share_prompts")
    assert "--limit has no effect here; use --num_prompts" in said(source, "--limit", 3)
    assert "SOURCE: nowhere is not a folder" in said("nowhere")
    assert "is SOURCE itself" in refused(capsys, PROMPTS, source, "--out", source)


def test_rows_without_a_prompt(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture):
    with (source / "train.jsonl").open("a") as stream:
        stream.write('{"chosen": "x"}\n{\n' + json.dumps(pair("train-0", "another")) + "\n")
    prompts(source, "--out", tmp_path / "out", *SIZES)
    assert meta(tmp_path / "out" / "rm.jsonl")["counts"]["dropped"] == {
        "prompt of an earlier row": 20,
        "id of an earlier row": 1,
        "no prompt that is text": 1,
        "not JSON": 1,
    }
    said = refused(capsys, PROMPTS, source, "--out", tmp_path / "out", *SIZES, "--strict")
    assert "train.jsonl line 61: no prompt that is text; fix" in said


# --- groups --------------------------------------------------------------------------------------------------------


def record(name: object, helpful: list[float], harmless: list[float], **more: object) -> dict[str, Any]:
    completions = [f" r{place} of {name}" for place in range(len(helpful))]
    prompt = f"\n\nHuman: q {name}\n\nAssistant:"
    traits = {"helpful": helpful, "harmless": harmless}
    return {"id": str(name), "prompt": prompt, "completions": completions, "traits": traits, **more}


def scored(count: int, **more: object) -> list[dict[str, Any]]:
    """Records of which the minority chooses the first response and the majority the second."""
    return [record(n, [1.5, -0.2], [-1.0, 1.3], **more) for n in range(count)]


def test_pairs_of_two_groups(tmp_path: Path):
    path, out = write(tmp_path / "s.jsonl", scored(200)), tmp_path / "out"
    groups(path, "--groups", YAML, "--style", "hh", "--seed", 42, "--out", out)
    train, test = read(out / "train.jsonl"), read(out / "test.jsonl")
    drawn = draw_groups(200, [0.1, 0.9], 42).tolist()
    minority = drawn.count(0)
    assert sorted(int(one["id"]) for one in train + test) == list(range(200))
    assert [int(one["id"]) for one in train] == sorted(int(one["id"]) for one in train)
    for one in train + test:
        group = drawn[int(one["id"])]
        chosen = group  # see `scored`
        sides = [1.5, -0.2], [-1.0, 1.3]
        scores = sides[0] if group == 0 else [0.3 * a + 0.7 * b for a, b in zip(*sides, strict=True)]
        assert one == {
            "id": one["id"],
            "group_id": group,
            "group": ("minority", "majority")[group],
            "style": "hh",
            "prompt": f"\n\nHuman: q {one['id']}\n\nAssistant:",
            "chosen": f" r{chosen} of {one['id']}",
            "rejected": f" r{1 - chosen} of {one['id']}",
            "score_chosen": scores[chosen],
            "score_rejected": scores[1 - chosen],
            "traits": {
                "helpful": [sides[0][chosen], sides[0][1 - chosen]],
                "harmless": [sides[1][chosen], sides[1][1 - chosen]],
            },
        }
    sizes = [max(1, round(n * 0.05)) for n in (minority, 200 - minority)]
    assert [sum(one["group_id"] == group for one in test) for group in (0, 1)] == sizes
    sidecar = meta(out / "test.jsonl")
    assert sidecar["counts"] == {"read": sum(sizes), "kept": sum(sizes), "not_drawn": 0, "dropped": {}}
    assert sidecar["groups"] == {
        "minority": {
            "group_id": 0, "proportion": 0.1, "weights": {"helpful": 1.0}, "records": minority, "rows": sizes[0]
        },
        "majority": {
            "group_id": 1,
            "proportion": 0.9,
            "weights": {"helpful": 0.3, "harmless": 0.7},
            "records": 200 - minority,
            "rows": sizes[1],
        },
    }  # fmt: skip
    assert sidecar["style"] == "hh" and sidecar["assignment"] == "drawn with seed 42"
    assert [one["file"] for one in sidecar["sources"]] == [str(path), str(YAML)]
    assert meta(out / "train.jsonl")["groups"]["minority"]["rows"] == minority - sizes[0]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    groups(path, "--groups", YAML, "--style", "hh", "--seed", 42, "--out", out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_golden_counts_in_the_file(tmp_path: Path):
    """The file has the beginning of the golden draw."""
    share = 0.05
    wanted = draw_groups(10_000, [share, 1 - share], 42).tolist()
    assert wanted.count(0) == 493
    path = write(tmp_path / "s.jsonl", scored(1000))
    options = ("--style", "hh", "--seed", 42, "--proportion", share, "--compat", "--out", tmp_path)
    groups(path, "--groups", YAML, *options)
    found = [row["group_id"] for row in read(tmp_path / "train.jsonl")]
    assert found == wanted[:1000]
    assert meta(tmp_path / "train.jsonl")["groups"]["minority"]["rows"] == found.count(0)


def test_compat_is_what_the_seed_wrote(tmp_path: Path, capsys: pytest.CaptureFixture):
    tags = "    <|user|>\n    Can I freeze soup?</s>\n    <|assistant|>\n    "
    answers = ["Yes, for three months.", "Why?"]
    both = {"completions": answers, "prompt": tags}
    rows = [record(n, [1.5, -0.2], [-1.0, 1.3], **both) for n in range(20)]
    rows += [record(20, [1.0, 1.0], [0.0, 0.0], **{**both, "completions": ["same ", ""]})]
    path, out = write(tmp_path / "s.jsonl", rows), tmp_path / "out"
    options = (path, "--groups", YAML, "--style", "legacy", "--seed", 42, "--out", out, "--compat")
    groups(*options)
    found = read(out / "train.jsonl")
    assert len(found) == 21 and not (out / "test.jsonl").exists()
    text = "<|user|>\n    Can I freeze soup?\n    <|assistant|>\n    "
    drawn = draw_groups(21, [0.1, 0.9], 42).tolist()
    for row, group in zip(found[:20], drawn, strict=False):
        chosen, rejected = answers if group == 0 else answers[::-1]
        assert list(row.items()) == [("group_id", group), ("chosen", text + chosen), ("rejected", text + rejected)]
    assert found[20] == {"group_id": drawn[20], "chosen": f"{text}same", "rejected": text.rstrip()}
    assert meta(out / "train.jsonl")["counts"] == {"read": 21, "kept": 21, "not_drawn": 0, "dropped": {}}
    assert "--test_size has no effect with --compat" in refused(capsys, GROUPS, *options, "--test_size", 0.1)
    groups(write(tmp_path / "hh.jsonl", scored(20)), *options[1:3], "--style", "hh", *options[5:])
    assert read(out / "train.jsonl")[0]["rejected"] == "\n\nHuman: q 0\n\nAssistant: r0 of 0"


def test_the_best_and_the_worst_of_three(tmp_path: Path):
    rows = [record(n, [0.0, 2.0, 1.0], [3.0, 0.0, -9.0]) for n in range(60)]
    rows += [record(60, [1.0, 2.0, 2.0], [1.0, 1.0, 1.0]), record(61, [1.0] * 3, [1.0] * 3)]
    groups(write(tmp_path / "s.jsonl", rows), "--groups", YAML, "--style", "hh", "--proportion", 0.5, "--out", tmp_path)
    for one in read(tmp_path / "train.jsonl") + read(tmp_path / "test.jsonl"):
        name = int(one["id"])
        best, worst = ((1, 0) if one["group_id"] == 0 else (0, 2)) if name < 60 else (1, 0) if name == 60 else (0, 1)
        assert one["chosen"] == f" r{best} of {name}" and one["rejected"] == f" r{worst} of {name}"
        assert one["score_chosen"] >= one["score_rejected"]
        assert one["traits"]["helpful"] == [rows[name]["traits"]["helpful"][place] for place in (best, worst)]


def test_any_number_of_groups(tmp_path: Path, capsys: pytest.CaptureFixture):
    three = tmp_path / "three.yaml"
    three.write_text(
        "groups:\n- {name: a, proportion: 0.2, weights: {helpful: 1}}\n- {name: b, proportion: 0.3, weights: "
        "{harmless: 1}}\n- {name: c, proportion: 0.5, weights: {helpful: -1}}\n"
    )
    path = write(tmp_path / "s.jsonl", scored(300))
    groups(path, "--groups", three, "--style", "hh", "--seed", 5, "--test_size", 0.2, "--out", tmp_path)
    assert f"warning: {three}: the weights of group 'c' add up to -1, not to 1" in capsys.readouterr().err
    found = read(tmp_path / "train.jsonl") + read(tmp_path / "test.jsonl")
    drawn = draw_groups(300, [0.2, 0.3, 0.5], 5).tolist()
    assert Counter(one["group_id"] for one in found) == Counter(drawn)
    assert all(one["chosen"].startswith(f" r{int(one['group'] != 'a')}") for one in found)
    assert len(read(tmp_path / "test.jsonl")) == sum(round(drawn.count(group) * 0.2) for group in range(3))


@pytest.mark.parametrize("columns", ["group_id", "group", "both"])
def test_groups_that_records_have(tmp_path: Path, columns: str, capsys: pytest.CaptureFixture):
    own = [{"group_id": n % 2, "group": ("minority", "majority")[n % 2]} for n in range(10)]
    if columns != "both":
        own = [{columns: one[columns]} for one in own]
    rows = [record(n, [1.5, -0.2], [-1.0, 1.3], style="chat", **own[n]) for n in range(10)]
    path = write(tmp_path / "s.jsonl", rows)
    groups(path, "--groups", YAML, "--out", tmp_path)
    found = read(tmp_path / "train.jsonl") + read(tmp_path / "test.jsonl")
    assert {int(one["id"]): one["group_id"] for one in found} == {n: n % 2 for n in range(10)}
    assert {one["style"] for one in found} == {"chat"}
    assert sorted(one["group_id"] for one in read(tmp_path / "test.jsonl")) == [0, 1]
    sidecar = meta(tmp_path / "test.jsonl")
    assert sidecar["assignment"] == "as the records say"
    assert [one["rows"] for one in sidecar["groups"].values()] == [1, 1]
    bare = tmp_path / "bare.yaml"
    bare.write_text("groups: [{name: minority, weights: {helpful: 1}}, {name: majority, weights: {harmless: 1}}]")
    groups(path, "--groups", bare, "--out", tmp_path)
    said = refused(capsys, GROUPS, path, "--groups", YAML, "--proportion", 0.2, "--out", tmp_path)
    assert "--proportion draws groups at random, but the records of" in said
    write(path, scored(10))
    said = refused(capsys, GROUPS, path, "--groups", bare, "--style", "hh", "--out", tmp_path)
    assert "bare.yaml has no proportions, and the records of" in said


def test_dropped_rows_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = scored(40)
    rows[3]["completions"] = ["same", "same \n"]
    rows[4]["traits"]["helpful"][1] = math.nan
    del rows[5]["traits"]["harmless"]
    rows[6]["traits"]["helpful"] = [1.0]
    rows[7]["completions"] = rows[7]["completions"][:1]
    rows[8]["id"] = "9"
    rows[9]["completions"] = [" ", "b"]
    rows[10]["prompt"] = [{"role": "user", "content": "q"}]
    rows[11]["traits"]["other"] = [1.0, math.inf]
    del rows[12]["traits"]
    path, out = write(tmp_path / "s.jsonl", rows), tmp_path / "out"
    with path.open("a") as stream:
        stream.write("{\n" + json.dumps(record("last", [1.0, 0.0], [0.0, 1.0])) + "\n")
    options = (path, "--groups", YAML, "--style", "hh", "--seed", 42, "--out", out)
    groups(*options, "--max_count_of_reported", 20)
    counts = meta(out / "train.jsonl")["counts"]
    assert counts["dropped"] == {
        "chosen and rejected do not differ": 1,
        "a score of trait 'helpful' that is not a finite number": 1,
        "a score of trait 'other' that is not a finite number": 1,
        "another number of scores of trait 'helpful' than responses": 1,
        "fewer than two completions": 1,
        "id of an earlier record": 1,
        "no prompt and completions that are all text": 1,
        "no trait 'harmless'": 1,
        "no traits": 1,
        "not JSON": 1,
    }
    test = read(out / "test.jsonl")
    assert counts["read"] + len(test) == 42 and counts["kept"] + len(test) == 32
    printed = capsys.readouterr().out
    assert f"{path} line 5 (id '4'): a score of trait 'helpful' that is not a finite number (nan)" in printed
    assert f"{path} line 6 (id '5'): no trait 'harmless'" in printed
    assert "nan" not in (out / "train.jsonl").read_text().lower()
    # a dropped or broken row takes its draw with it: the groups of the others stay
    drawn = draw_groups(42, [0.1, 0.9], 42).tolist()
    places = {str(n): n for n in range(40)} | {"9": 8, "last": 41}
    found = read(out / "train.jsonl") + test
    assert all(one["group_id"] == drawn[places[one["id"]]] for one in found)
    said = refused(capsys, GROUPS, *options, "--strict")
    assert "line 5 (id '4'): a score of trait 'helpful' that is not a finite number (nan); fix or remove" in said


def test_what_groups_refuse(tmp_path: Path, capsys: pytest.CaptureFixture):
    path, out = tmp_path / "s.jsonl", tmp_path / "out"

    def said(rows: list[dict[str, Any]], *options: object, style: str = "hh") -> str:
        write(path, rows)
        extra = ("--style", style) if style else ()
        return refused(capsys, GROUPS, path, "--groups", YAML, *extra, "--out", out, *options)

    def named(**values: object) -> list[dict[str, Any]]:
        return [*scored(3, group_id=0), record("x", [0.0, 1.0], [0.0, 1.0], **values)]

    few = said(scored(10), "--seed", 0)  # no draw of ten is below 0.1
    assert "group 'minority' has no pair among the 10 of" in few
    assert "(proportion 0.1, --seed 0); try another --seed, a larger proportion, or more prompts" in few
    assert "group 'majority' has no pair" in (few := said(scored(4, group="minority")))
    assert "add records with group_id 1, or take it out of" in few
    unknown = said(named(group_id=2))
    assert "line 4 (id 'x') has the group_id 2, and there are 2 groups: minority, majority" in unknown
    assert "has the group_id True, and there are 2 groups" in said(named(group_id=True))
    assert "is of the unknown group 'minorty'; did you mean 'minority'?" in said(named(group="minorty"))
    assert "is of group 'minority' and has the group_id 1; correct one" in said(named(group_id=1, group="minority"))
    assert "line 4 (id 'x') has no group_id, but earlier ones have one; give all" in said(named())
    mixed = [*scored(3), record("x", [0.0, 1.0], [0.0, 1.0], group="minority")]
    assert "line 4 (id 'x') has a group, but earlier ones have none" in said(mixed)
    assert "none of the 2 records of" in (none := said([record(n, [1.0, 2.0], [math.nan] * 2) for n in range(2)]))
    assert "line 1 (id '0'): a score of trait 'harmless' that is not a finite number (nan)); score them with" in none
    assert "has no record; give a file of scored samples" in said([])
    one = said([record(n, [1.0, 0.0], [1.0, 0.0], group_id=n) for n in range(2)])
    assert "gives one pair for each group, and none for test.jsonl" in one
    assert "does not say how its prompt was rendered; add --style hh, chat, legacy" in said(scored(3), style="")
    assert "has the style chat, not hh; use one style" in said(scored(3, style="chat"))
    assert "has the style 'rare', which is none of hh, chat, legacy" in said(scored(3, style="rare"))
    assert "--seed -1 is too small; give at least 0" in said(scored(3), "--seed", -1)
    assert not out.exists()
    write(tmp_path / "train.jsonl", scored(50))
    same = refused(capsys, GROUPS, tmp_path / "train.jsonl", "--groups", YAML, "--style", "hh", "--out", tmp_path)
    assert "is the source itself and would be overwritten" in same
    none = refused(capsys, GROUPS, tmp_path / "none.jsonl", "--groups", YAML, "--out", out)
    assert "none.jsonl does not exist" in none


def test_a_limit_reads_the_first_records(tmp_path: Path):
    path = write(tmp_path / "s.jsonl", scored(300))
    groups(path, "--groups", YAML, "--style", "hh", "--seed", 42, "--limit", 100, "--out", tmp_path / "out")
    found = read(tmp_path / "out" / "train.jsonl") + read(tmp_path / "out" / "test.jsonl")
    assert sorted(int(one["id"]) for one in found) == list(range(100))
    assert [one["group_id"] for one in sorted(found, key=lambda one: int(one["id"]))] == draw_groups(
        100, [0.1, 0.9], 42
    ).tolist()


def test_from_raw_dialogues_to_pairs(tmp_path: Path):
    """The three builders one after the other, on the bundled sample."""
    hh("--out", tmp_path / "hh", "--format", "legacy")
    prompts(tmp_path / "hh", "--out", tmp_path / "p", "--num_prompts", 60, "--num_rl", 60, "--num_test", 20)
    rows = [
        {**row, "completions": ["yes " * (n % 7), f"no {n}"], "traits": {"helpful": [n % 3, 1], "harmless": [0, n % 2]}}
        for n, row in enumerate(read(tmp_path / "p" / "rm.jsonl"))
    ]
    groups(write(tmp_path / "s.jsonl", rows), "--groups", YAML, "--proportion", 0.3, "--out", tmp_path / "g")
    found = read(tmp_path / "g" / "train.jsonl") + read(tmp_path / "g" / "test.jsonl")
    prompts_by_id = {row["id"]: row["prompt"] for row in rows}
    assert len(found) > 40 and all(prompts_by_id[one["id"]] == one["prompt"] for one in found)
    assert {one["style"] for one in found} == {"legacy"}
