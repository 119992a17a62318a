"""Evaluation of decodings: golden numbers, intervals, perplexity, masked samples, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import failing, write

from orlhf_ext.deadend import evaluate, metrics
from orlhf_ext.deadend.generations import Generated
from orlhf_ext.deadend.report import mask

SCORES = [[0.1, 0.6, None], [0.2, 0.49, 0.3], [0.5, 0, 0.1]]
NAMES = ["first", "second", "third"]


def records(scores: list[list[float | None]], word: str = "word") -> list[dict]:
    return [
        {
            "prompt": {"text": f"{name} the"},
            "generations": [{"text": f" {word} {i}", "toxicity": v} for i, v in enumerate(row)],
        }
        for name, row in zip(NAMES, scores, strict=True)
    ]


def generated(texts: list[list[str]], scores: list[list[float | None]]) -> Generated:
    names = [f"prompt {i}" for i in range(len(texts))]
    return Generated("x.jsonl", names, [None] * len(texts), texts, scores)


def test_golden_toxicity():
    most = metrics.maximum_toxicity(SCORES)
    assert float(most.mean()) == pytest.approx(0.53, abs=1e-12)
    found = metrics.measure(generated([["a"] * 3] * 3, SCORES))
    assert found["expected_max_toxicity"] == pytest.approx(0.53, abs=1e-12)
    assert found["expected_max_toxicity_std"] == pytest.approx(0.049665548085837785, abs=1e-12)
    assert found["toxicity_probability"] == pytest.approx(0.6666666666666666, abs=1e-12)
    assert found["toxic_fraction"] == pytest.approx(2 / 9) and found["missing_scores"] == 1


def test_golden_diversity():
    texts = [["a b a", "a b c"], ["x", "x y"]]
    wanted = [0.5833333333333333, 0.41666666666666663, 0.16666666666666666]
    found = metrics.measure(generated(texts, [[0.0, 0.0]] * 2))
    assert [found[f"dist_{n}"] for n in (1, 2, 3)] == pytest.approx(wanted, abs=1e-12)
    assert math.isnan(metrics.distinct([], 1))


def test_intervals_hold_the_value_and_narrow_with_prompts():
    draw = np.random.default_rng(0)
    widths = []
    for count in (20, 500):
        scores = [[float(value) for value in draw.random(5)] for _ in range(count)]
        found = metrics.measure(generated([["a b"] * 5] * count, scores))
        for key in ("expected_max_toxicity", "toxicity_probability", "toxic_fraction"):
            assert found[f"{key}_low"] <= found[key] <= found[f"{key}_high"]
        widths.append(found["toxic_fraction_high"] - found["toxic_fraction_low"])
    assert widths[1] < widths[0] / 3


def test_differences_are_paired():
    """Prompts differ far more than the two decodings do: only a paired interval sees that."""
    draw = np.random.default_rng(1)
    base = draw.random(60) * 0.8
    plain = generated([["a"]] * 60, [[float(v)] for v in base + 0.05 + draw.random(60) * 0.01])
    ours = generated([["a"]] * 60, [[float(v)] for v in base])
    found = metrics.compare({"plain": plain, "ours": ours})
    gap = found["ours"]["difference"]["expected_max_toxicity"]
    assert gap["bootstrap_low"] < gap["mean"] < gap["bootstrap_high"] < -0.05 and "difference" not in found["plain"]
    assert found["ours"]["expected_max_toxicity_high"] > found["plain"]["expected_max_toxicity_low"]


def test_perplexity_is_that_of_the_continuation(tiny_model: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orlhf_ext.deadend.perplexity import LanguageModel

    pairs = [("hello how", " are you?"), ("hello", ""), ("", "fine"), ("hello how are you", " fine fine fine")]
    found = LanguageModel(str(tiny_model), 64, "float32", "sdpa").likelihoods(pairs)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for (prompt, text), (nats, tokens) in zip(pairs, found, strict=True):
        before = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
        after = tokenizer(text)["input_ids"]
        assert tokens == len(after)
        if after:
            ids = torch.tensor([before + after])
            labels = torch.tensor([[-100] * len(before) + after])
            with torch.no_grad():
                assert nats / tokens == pytest.approx(model(ids, labels=labels).loss.item(), abs=1e-5)
    one = generated([["a", "b"], ["c", "d"]], [[0.0, 0.0]] * 2)
    rows = metrics.measure(one, [[(math.log(4), 1), (0.0, 0)], [(4 * math.log(2), 4), (2 * math.log(8), 2)]])
    assert rows["perplexity"] == pytest.approx((4 + 2 + 8) / 3) and rows["without_perplexity"] == 1
    assert rows["perplexity_corpus"] == pytest.approx(math.exp((math.log(4) + 4 * math.log(2) + 2 * math.log(8)) / 7))
    assert rows["perplexity_corpus_low"] <= rows["perplexity_corpus"] <= rows["perplexity_corpus_high"]


def test_a_whole_evaluation(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    plain = write(tmp_path / "a.jsonl", records(SCORES, "stupid"))
    shuffled = list(reversed(records([[0.1, 0.2, 0.3]] * 3, "lovely")))
    shuffled[0]["prompt"]["toxicity"] = 0.1  # the prompt "third the"
    ours = write(tmp_path / "b.jsonl", shuffled)
    (tmp_path / "run.json").write_text('{"recipe": "x", "seed": 4}')
    out = tmp_path / "eval.json"
    words = [f"plain={plain}", f"eps0.3={ours}", "--save_file", str(out), "--perplexity_model", str(tiny_model)]
    words += ["--run", str(tmp_path / "run.json"), "--samples", "3", "--controls", "eps0.3"]
    evaluate.main(words)
    summary = json.loads(out.read_text())
    assert (summary["recipe"], summary["prompts"], summary["baseline"]) == ("x", 3, "plain")
    assert summary["controls"] == ["eps0.3"]
    assert summary["metrics"]["plain"]["expected_max_toxicity"] == pytest.approx(0.53)
    assert summary["metrics"]["eps0.3"]["difference"]["toxicity_probability"]["mean"] == pytest.approx(-2 / 3)
    assert summary["metrics"]["plain"]["perplexity"] > 1 and summary["perplexity_model"] == str(tiny_model)
    with open(out.with_suffix(".csv")) as stream:
        rows = list(csv.DictReader(stream))
    assert [row["decoding"] for row in rows] == ["plain", "eps0.3"]
    assert float(rows[1]["difference_toxicity_probability"]) == pytest.approx(-2 / 3)
    assert "0.530 ± 0.050" in out.with_suffix(".md").read_text()

    said = capsys.readouterr().out
    assert "minus plain" in said and "1 of 9 continuations without a score" in said
    assert "f**** t**" in said and "lovely 0" in said  # no one knows the prompt's score; the continuation's is low
    assert "stupid 0" in said and "s***** 0" in said  # first generations score 0.1, 0.2 and 0.5
    monkeypatch.setattr("orlhf_ext.models.logprobs.load_model", None)  # likelihoods are kept: no model is loaded again
    evaluate.main([*words, "--show"])
    assert json.loads(out.read_text()) == summary
    said = capsys.readouterr().out
    assert "*" not in said and all(name in said for name in ("first the", "second the", "third the"))


def test_masks():
    assert mask("You silly, dull thing; it's 42!") == "Y** s****, d*** t****; i*'s 4*!"


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], ["no record"]),
        ([{"prompt": {"text": "a"}}], ["line 1", "no generations"]),
        ([{"prompt": {"text": "a"}, "generations": []}], ["line 1", "no generation"]),
        ([{"prompt": {}, "generations": [{"text": "b", "toxicity": 0.1}]}], ["line 1", "no prompt"]),
        ([{"prompt": {"text": "a"}, "generations": [{"text": "b"}]}], ["no score named 'toxicity'"]),
        ([{"prompt": {"text": "a"}, "generations": [{"text": "b", "toxicity": "x"}]}], ["line 1", "'x'"]),
    ],
)
def test_bad_files_are_one_sentence(rows: list[dict], wanted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "a.jsonl", rows)
    said = failing(capsys, evaluate.main, f"plain={path}", "--save_file", tmp_path / "e.json")
    assert said.count("\n") == 1 and all(word in said for word in wanted), said
    assert not (tmp_path / "e.json").exists()


def test_bad_flags_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    a = write(tmp_path / "a.jsonl", records(SCORES))
    other = write(tmp_path / "b.jsonl", records(SCORES)[:2])
    out = tmp_path / "e.json"
    for words, wanted in [
        ([str(a), "--save_file", out], "NAME=FILE"),
        ([f"x={a}", f"x={a}", "--save_file", out], "names 'x' a second time"),
        ([f"x={a}", "--save_file", tmp_path / "e.txt"], ".json"),
        ([f"x={a}", f"y={other}", "--save_file", out], "differ in 1 prompts"),
        ([f"x={a}", "--save_file", out, "--samples", "-1"], "--samples"),
        ([f"x={a}", "--save_file", out, "--controls", "y"], "--controls y is not one of x; give names of the files"),
        ([f"x={a}", "--save_file", out, "--perplexity_model", "./no"], "--perplexity_model"),
    ]:
        said = failing(capsys, evaluate.main, *words)
        assert wanted in said and said.count("\n") == 1, said
