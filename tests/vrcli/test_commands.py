"""The commands: baselines of records, and scores of sampled plans."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import failing

from data_builders.story.prompts import from_chapter, from_messages
from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.journal import journal_path
from orlhf_ext.files.records import read_records, write_jsonl
from orlhf_ext.files.sidecars import sidecar_path
from orlhf_ext.models import likelihood, logprobs
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.logprobs import load_model
from orlhf_ext.vrcli import baseline
from orlhf_ext.vrcli import score as score_command
from orlhf_ext.vrcli.fingerprint import check_fingerprint, digest, make_fingerprint
from orlhf_ext.vrcli.labels import Baseline, baseline_of, read_label, read_labelled

GOLDS = ["To lay it on the line.", "Nine.", "Because the road was there, and so was she, and it rained.", "No!"]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a longer context, for prompts that are spelt in bytes."""
    folder = tmp_path_factory.mktemp("models") / "long"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return folder


def records() -> list[dict]:
    out = []
    for i, gold in enumerate(GOLDS):
        chat = [{"role": "user", "content": f"Why did hen number {i + 7} cross?" + " Cluck." * i}]
        task: Any = from_messages({"messages": [*chat, {"role": "assistant", "content": gold}]}, "keep", None)
        out.append({"id": f"hen-{i}", "datasource": "messages", "prompt": task.prompt, "task": task})
    chapter: Any = from_chapter({"text_before": "It rained.", "next_chapter": "Then it poured."}, "keep", None)
    out.append({"id": "rain", "datasource": "chapters", "prompt": chapter.prompt, "task": chapter})
    return [{**record, "label": json.dumps(record.pop("task").label(record["id"]))} for record in out]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data.jsonl", records())
    return tmp_path / "data.jsonl"


def run(model: Path, data: Path, out: Path, *more: str) -> list[dict]:
    baseline.main(["--model", str(model), "--data", str(data), "--out", str(out), "--dtype", "float32", *more])
    return [line.record for line in read_records(out)]


def parts_of(model: Path, dtype: str = "float32", **more: Any) -> dict[str, str]:
    return make_fingerprint(model, load_tokenizer(model), dtype, "sdpa", **more)


def loss(model: Any, pre: list[int], scored: list[int]) -> float:
    ids = torch.tensor([pre + scored])
    with torch.inference_mode():
        return model(input_ids=ids, labels=torch.tensor([[-100] * len(pre) + scored])).loss.item()


def test_baselines_are_those_of_transformers(model: Path, data: Path, tmp_path: Path) -> None:
    found = run(model, data, tmp_path / "out" / "data.jsonl", "--batch_tokens", "700")
    loaded, tokenizer = load_model(model, "float32", "sdpa"), load_tokenizer(model)
    fingerprint = digest(parts_of(model))
    for record, given in zip(found, records(), strict=True):
        label = read_label(given["label"])
        pre, gold = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (
                tokenizer.apply_chat_template(label.messages(), tokenize=False, add_generation_prompt=True),
                label.gold + "</s>",
            )
        )
        assert record["nll"] == pytest.approx(loss(loaded, pre, gold), abs=1e-5)
        assert record["tokens"] == len(gold) and record["ppl"] == math.exp(record["nll"])
        assert json.loads(record["label"]) == {
            **json.loads(given["label"]),
            "base": {"nll": record["nll"], "n": len(gold), "fp": fingerprint},
        }
        assert {key: record[key] for key in ("id", "datasource", "prompt")} == {
            key: given[key] for key in ("id", "datasource", "prompt")
        }
    assert ["empty_plan_pct" in record for record in found] == [False] * 4 + [True]
    assert 0 < abs(found[-1]["empty_plan_pct"]) < 50
    meta = json.loads((tmp_path / "out" / "data.meta.json").read_text())
    assert meta["fingerprint"] == parts_of(model) and meta["counts"]["records"] == 5
    assert meta["empty_plan"] == {"records": 1, "pct_improvement_mean": found[-1]["empty_plan_pct"]}
    assert meta["nll_mean"] == pytest.approx(np.mean([record["nll"] for record in found]))


def read_baselines(path: str | Path, fingerprint: dict[str, str]) -> dict[str, Baseline]:
    """The baselines of a file by id, as a run reads them."""
    check_fingerprint(path, fingerprint)
    return {label.id: baseline_of(label, digest(fingerprint)) for _, label in read_labelled(path)}


def test_what_a_finished_file_gives_back(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.jsonl"
    found = run(model, data, out)
    read = read_baselines(out, parts_of(model))
    assert {name: base.nll for name, base in read.items()} == {record["id"]: record["nll"] for record in found}
    for other, said in (
        ({"dtype": "bf16"}, r"dtype \(float32 there, bfloat16 here\)"),
        ({"tail": "none", "system": "drop"}, r"system \(keep there, drop here\), tail \(auto there, none here\)"),
        ({"device": "cuda"}, r"device \(cpu there, cuda here\)"),
    ):
        with pytest.raises(UserError, match=rf"b.jsonl has baselines with another {said}; compute it .* again$"):
            read_baselines(out, parts_of(model, **other))
    newer = {**parts_of(model), "transformers": "9.9", "model": "0" * 64}
    with pytest.raises(UserError, match=r"model \(\w{12} there, 0{12} here\), transformers \(5\S+ there, 9.9 here\)"):
        read_baselines(out, newer)
    # one record of another run
    mixed = json.loads(found[1]["label"])
    mixed["base"]["fp"] = "else"
    found[1]["label"] = json.dumps(mixed)
    write_jsonl(out, found)
    with pytest.raises(UserError, match=r"line 2 \(id 'hen-1'\) has a baseline of another model or setting"):
        read_baselines(out, parts_of(model))
    del mixed["base"]
    found[1]["label"] = json.dumps(mixed)
    write_jsonl(out, found)
    with pytest.raises(UserError, match=r"line 2 \(id 'hen-1'\) has no baseline"):
        read_baselines(out, parts_of(model))
    with pytest.raises(
        UserError, match=r"data.jsonl has no baselines \(.*data.meta.json has no fingerprint\); compute it"
    ):
        read_baselines(data, parts_of(model))


def test_the_fingerprint_knows_model_and_template(model: Path, tmp_path: Path) -> None:
    def changed(folder: Path, **more: Any) -> set[str]:
        one, two = parts_of(model), parts_of(folder, **more)
        return {name for name in one if one[name] != two[name]}

    other = tmp_path / "other"
    shutil.copytree(model, other)
    assert changed(other) == set()
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{# #}")
    assert changed(other) == {"model", "template"}
    assert changed(model, tail="eot") == {"tail"}
    assert "flash_attn" in make_fingerprint(model, load_tokenizer(model), "bf16", "flash_attention_2")


def test_a_run_that_was_cut_short_goes_on(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    line = ("--batch_tokens", "300")
    whole = run(model, data, tmp_path / "whole.jsonl", *line)
    real, batches = likelihood.span_logprobs, []

    def stops_after_two(*args: Any, **kwargs: Any) -> Any:
        batches.append(len(args[1]))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    out = tmp_path / "cut.jsonl"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(likelihood, "span_logprobs", stops_after_two)
        run(model, data, out, *line)
    assert not out.exists() and len(journal_path(out).read_bytes().splitlines()) == 3
    left: list[int] = []
    monkeypatch.setattr(likelihood, "span_logprobs", lambda *a, **k: left.append(len(a[1])) or real(*a, **k))
    assert run(model, data, out, *line) == whole
    assert sum(left) + sum(batches[:2]) == 6 and not journal_path(out).exists()
    # and is not done again, until something that it depends on is another
    capsys.readouterr()
    monkeypatch.setattr(logprobs, "load_model", None)
    assert run(model, data, out, *line) == whole
    assert "done before" in capsys.readouterr().out
    with pytest.raises(TypeError):
        run(model, data, out, *line, "--tail", "none")


def test_several_files_and_a_second_pass(model: Path, data: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "two.jsonl", records()[:1])
    outs = [tmp_path / "o1.jsonl", tmp_path / "o2.jsonl"]
    words = f"--model {model} --data {data} {tmp_path}/two.jsonl --out {outs[0]} {outs[1]} --dtype float32"
    baseline.main(words.split())
    assert [len(read_labelled(out)) for out in outs] == [5, 1]
    again = run(model, outs[0], tmp_path / "again.jsonl", "--vrcli.tail", "none", "--vrcli.system", "drop")
    assert again[0]["tokens"] == read_labelled(outs[0])[0][0]["tokens"] - 1
    assert json.loads(again[0]["label"])["base"]["n"] == again[0]["tokens"]


def test_the_seeds_flags(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(model, data, tmp_path / "whole.jsonl")
    monkeypatch.chdir(tmp_path)
    Path("data/story").mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(data, f"data/story/{split}.jsonl")
    baseline.main(["--model_name", str(model), "--nice_model_name", "tiny-1B", "--dtype", "float32"])
    for split in ("train", "test"):
        found = read_records(f"data/story/{split}_with_baseline_ppl_tiny-1B.jsonl")
        assert [line.record for line in found] == whole
    assert read_baselines("data/story/test_with_baseline_ppl_tiny-1B.jsonl", parts_of(model))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data d.jsonl", "--out and --nice_model_name are both missing; give one of them"),
        ("--data d.jsonl --out o.jsonl --nice_model_name n", "--out and --nice_model_name are both given"),
        ("--data d.jsonl --nice_model_name ../n", "--nice_model_name ../n cannot be part of a file's name"),
        ("--nice_model_name n", "data/story has no train.jsonl; name the records as --data FILE"),
    ],
)
def test_names_of_outputs(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = failing(capsys, baseline.main, "--model", "m", *words.split())
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        ({"label": None}, "", "line 2 has a label that VR-CLI cannot read: it is missing"),
        ({"label": "{}"}, "", "line 2 has a label that VR-CLI cannot read: its version v is None"),
        ({"id": "else"}, "", "line 2 (id 'hen-1') is called 'else' outside of its label"),
        ({"label": records()[0]["label"], "id": "hen-0"}, "", "line 2 (id 'hen-0') has the id of"),
        ({}, "--max_len 90", "tokens with its gold text"),
        ({}, "--max_len 4096", "--max_len 4096 is more than the 2048 positions"),
        ({}, "--plan_tokens 1700", "line 5 (id 'rain') takes"),
        ({}, "--plan_tokens 1700", "leave longer records out with build_data story --tokenizer DIR --max_tokens 348"),
        ({}, "--plan_tokens -1", "--plan_tokens -1 is too small"),
        ({}, "--batch_tokens 1", "--batch_tokens 1 is too small"),
    ],
)
def test_mistakes_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, flags: str, said: str
) -> None:
    rows = records()
    rows[1] |= change
    write_jsonl(tmp_path / "d.jsonl", rows)
    words = f"--model {model} --data {tmp_path}/d.jsonl --out {tmp_path}/o.jsonl {flags}"
    error = failing(capsys, baseline.main, *words.split())
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_a_model_without_a_chat_template(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    error = failing(capsys, baseline.main, "--model", bare, "--data", data, "--out", tmp_path / "o.jsonl")
    assert "has no chat template" in error


PLANS = {
    "hen-0": ["I think. In summary: fame.", "nothing"],
    "hen-1": ["In summary: nine lives."],
    "rain": ["In summary:", "In summary: water, and more of it."],
}


@pytest.fixture
def scored(model: Path, data: Path, tmp_path: Path) -> tuple[Path, Path]:
    run(model, data, tmp_path / "base.jsonl")
    prompts = {record["id"]: record["prompt"] for record in records()}
    rows = [
        {"id": name, "prompt": prompts[name], "completions": [[{"role": "assistant", "content": t}] for t in texts]}
        for name, texts in PLANS.items()
    ]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    return tmp_path / "base.jsonl", tmp_path / "samples.jsonl"


def words_of(model: Path, base: Path, samples: Path, out: Path, *more: str) -> list[str]:
    words = f"--model {model} --data {base} --samples {samples} --out {out} --dtype float32"
    return [*words.split(), *more]


@pytest.mark.slow
@pytest.mark.launcher
def test_numbers_do_not_depend_on_the_workers(
    model: Path, scored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: None
) -> None:
    monkeypatch.setattr(score_command, "PROMPTS_AT_ONCE", 1)
    files: dict[str, list[bytes]] = {}
    for count in ("1", "2"):
        one, other = tmp_path / f"b{count}.jsonl", tmp_path / f"s{count}.jsonl"
        run(model, scored[0], one, "--batch_tokens", "400", "--workers", count)
        score_command.main(words_of(model, *scored, other, "--workers", count))
        files[count] = [path.read_bytes() for out in (one, other) for path in (out, sidecar_path(out))]
    assert files["1"] == files["2"]


def test_scores_of_samples(
    model: Path, scored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    monkeypatch.setattr(score_command, "PROMPTS_AT_ONCE", 2)
    score_command.main(words_of(model, *scored, out, "--reward", "positive", "--cap", "1.5"))
    rows = [line.record for line in read_records(out)]
    assert [(row["id"], row["sample"]) for row in rows] == [
        (n, i) for n, texts in PLANS.items() for i in range(len(texts))
    ]
    assert [row["plan"] for row in rows] == ["fame.", "nothing", "nine lives.", "", "water, and more of it."]
    assert [row["marker"] for row in rows] == [True, False, True, True, True]
    bases = {record["id"]: record for record in (line.record for line in read_records(scored[0]))}
    loaded, tokenizer = load_model(model, "float32", "sdpa"), load_tokenizer(model)
    for row in rows:
        label = read_label(bases[row["id"]]["label"])
        text = tokenizer.apply_chat_template(label.messages(row["plan"]), tokenize=False, add_generation_prompt=True)
        pre, gold = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, label.gold + "</s>"))
        assert row["base_nll"] == bases[row["id"]]["nll"]
        assert row["nll"] == pytest.approx(loss(loaded, pre, gold), abs=1e-5)
        gain = 100 * (1 - math.exp(row["nll"] - row["base_nll"]))
        assert row["pct_improvement"] == pytest.approx(gain, abs=1e-9)
        assert row["reward"] == pytest.approx(min(max(gain, 0), 1.5))
        assert row["plan_tokens"] == len(tokenizer(row["plan"], add_special_tokens=False)["input_ids"])
    assert rows[3]["pct_improvement"] == pytest.approx(bases["rain"]["empty_plan_pct"], abs=1e-3)
    noise = json.loads(sidecar_path(out).read_text())["noise"]
    assert 0 <= noise["percent"] < 1e-3 and noise["records"] == 2  # of the first piece
    assert not journal_path(out).exists()


def test_plans_of_others(model: Path, scored: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base, samples = scored
    score_command.main(words_of(model, base, samples, tmp_path / "others.jsonl", "--plans_of_others"))
    moved = [dict(line.record) for line in read_records(samples)]
    texts = [row["completions"] for row in moved]
    for row, other in zip(moved, [*texts[1:], texts[0]], strict=True):
        row["completions"] = other
    write_jsonl(tmp_path / "moved.jsonl", moved)
    score_command.main(words_of(model, base, tmp_path / "moved.jsonl", tmp_path / "by_hand.jsonl"))
    assert (tmp_path / "others.jsonl").read_bytes() == (tmp_path / "by_hand.jsonl").read_bytes()
    write_jsonl(samples, moved[:1])
    said = failing(
        capsys, score_command.main, *words_of(model, base, samples, tmp_path / "o.jsonl", "--plans_of_others")
    )
    assert "has one prompt, and --plans_of_others needs plans of another; leave it out" in said


def test_scores_go_on_after_a_kill(
    model: Path, scored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_command, "PROMPTS_AT_ONCE", 1)
    score_command.main(words_of(model, *scored, tmp_path / "whole.jsonl"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(score_command.Journal, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        score_command.main(words_of(model, *scored, tmp_path / "cut.jsonl"))
    monkeypatch.setattr(logprobs, "load_model", None)  # all is in the journal
    score_command.main(words_of(model, *scored, tmp_path / "cut.jsonl"))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_mistakes_in_scoring(
    model: Path, scored: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base, samples = scored
    out = tmp_path / "r.jsonl"
    for more, said in (
        (["--tail", "none"], "has baselines with another tail (auto there, none here)"),
        (["--thresholds", "1", "0.5"], "the flags --vrcli.* do not fit each other: 2 thresholds and 3 values"),
        (["--out", str(base)], "is also an input; give the output a name of its own"),
    ):
        assert said in failing(capsys, score_command.main, *words_of(model, base, samples, out, *more))
    write_jsonl(samples, [{"id": "fox", "prompt": "x", "completions": ["y"]}])
    said = "line 1 (id 'fox') is not a record of"
    assert said in failing(capsys, score_command.main, *words_of(model, base, samples, out))
    assert not out.exists()
