"""The toxicity classifier: its metrics, a real training, going on after a kill, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import failing, write

from orlhf_ext.deadend import classifier

GOOD = ["the", "park", "is", "lovely", "and", "lake", "was", "calm", "today", "with", "friends"]
BAD = ["silly", "dull", "grumpy", "soggy", "rotten"]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of label 1 hold two of the bad words."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        label = int(draw.random() < 0.4)
        words = draw.choices(GOOD, k=draw.randint(2, 10)) + draw.choices(BAD, k=2 * label)
        draw.shuffle(words)
        found.append({"text": " ".join(words), "label": label})
    return found


@pytest.fixture
def words(tiny_model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A command line for 160 texts, ten steps an epoch."""
    train = write(tmp_path / "rm_train.json", rows(160, 0))
    valid = write(tmp_path / "rm_valid.json", rows(60, 1))

    def make(out: str, *more: str) -> list[str]:
        command = f"--model_name_or_path {tiny_model} --train_file {train} --validation_file {valid}".split()
        command += f"--output_dir {tmp_path / out} --per_device_train_batch_size 16 --learning_rate 1e-3".split()
        return [*command, "--num_train_epochs", "2", *more]

    return make


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_auc_is_the_share_of_pairs_in_order():
    labels = np.array([0, 1, 0, 1, 1, 0])
    scores = np.array([0.1, 0.4, 0.4, 0.8, 0.05, 0.3])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert classifier.auc(labels, scores) == pytest.approx(float(np.mean(pairs)), abs=1e-12)
    assert classifier.auc(labels, -scores) == pytest.approx(1 - float(np.mean(pairs)), abs=1e-12)
    assert classifier.auc(np.ones(3), scores[:3]) is None


def test_f1_and_accuracy():
    labels, found = np.array([1, 1, 1, 0, 0]), np.array([1, 0, 1, 1, 0])
    assert classifier.f1(labels, found) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert classifier.accuracy(labels, found) == 0.6
    assert classifier.f1(np.zeros(3), np.zeros(3)) == 0.0
    logits = np.eye(3)[[0, 1, 2, 2]]
    assert classifier.metrics(np.array([0, 1, 2, 0]), logits) == {"accuracy": 0.75}


@pytest.mark.launcher
def test_training_tells_the_labels_apart(words: Callable[..., list[str]], tmp_path: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier.main(words("rm"))
    out = tmp_path / "rm"
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.8 and results["eval_auc"] > 0.8 and 0 < results["eval_f1"] <= 1
    assert (results["train_rows"], results["validation_rows"], results["steps"]) == (160, 60, 20)
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"} and config["label2id"] == {"0": 0, "1": 1}
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["pad_token_id"] is not None
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert not (tmp_path / ".rm.checkpoints").exists()

    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = []
    for row in rows(60, 1):  # one by one: what is saved gives the accuracy that was told, without padding
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
        found.append(int(model(ids).logits.argmax()) == row["label"])
    assert np.mean(found) == pytest.approx(results["eval_accuracy"], abs=1 / 60)


@pytest.mark.launcher
def test_a_killed_training_goes_on(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from transformers import Trainer

    classifier.main(words("whole", "--checkpointing_steps", "4"))
    step, count = Trainer.training_step, 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 11:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dying)
    with pytest.raises(SystemExit, match="130"):
        classifier.main(words("killed", "--checkpointing_steps", "4"))
    assert not (tmp_path / "killed").exists() and (tmp_path / ".killed.checkpoints" / "checkpoint-8").is_dir()
    capsys.readouterr()
    classifier.main(words("killed", "--checkpointing_steps", "4"))
    assert "goes on from checkpoint-8" in capsys.readouterr().out and count == 11 + 12
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)

    count = 0  # a checkpoint of other settings is not gone on from
    with pytest.raises(SystemExit, match="130"):
        classifier.main(words("other", "--checkpointing_steps", "4"))
    capsys.readouterr()
    classifier.main(words("other", "--checkpointing_steps", "4", "--seed", "1"))
    assert "checkpoints of another run are discarded" in capsys.readouterr().out and count == 11 + 20


@pytest.mark.parametrize(
    ("train", "valid", "wanted"),
    [
        ([{"text": "a", "label": 1.0}], None, ["line 1", "1.0", "not a whole number"]),
        ([{"text": "a", "label": True}], None, ["line 1", "True"]),
        ([{"text": "a", "label": 1}, {"comment": "b", "label": 0}], None, ["line 2", "no 'text'"]),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], None, ["the label 1 only"]),
        ([], None, ["no record"]),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 0}], [{"text": "c", "label": 2}], ["the label 2"]),
    ],
)
def test_bad_data_is_one_sentence(
    train: list[dict], valid: list[dict] | None, wanted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    command = ["--model_name_or_path", "nowhere/nothing", "--output_dir", tmp_path / "out"]
    command += ["--train_file", write(tmp_path / "t.json", train)]
    command += [] if valid is None else ["--validation_file", write(tmp_path / "v.json", valid)]
    said = failing(capsys, classifier.main, *command)
    assert said.count("\n") == 1 and all(word in said for word in wanted), said
    assert not (tmp_path / "out").exists()


def test_bad_flags_are_one_sentence(words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture):
    for more, wanted in [
        (["--learning_rate", "0"], "--learning_rate"),
        (["--checkpointing_steps", "often"], "--checkpointing_steps"),
        (["--max_length", "1000"], "512 positions"),
        (["--model_name_or_path", "./nowhere"], "nowhere"),
    ]:
        assert wanted in failing(capsys, classifier.main, *words("out", *more))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    assert "replace it with --overwrite" in failing(capsys, classifier.main, *words("mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"
