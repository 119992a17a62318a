"""Model cards: what is said of a model that a stage made, what stays, and what never gets into one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import failing

from orlhf_ext.commands import card
from orlhf_ext.reports.card import MARK


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a recipe with data, an SFT model, a reward model of it, and a result."""
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "train.jsonl").write_text("")
    meta = {"source": "Anthropic/hh-rlhf", "licence": "MIT", "counts": {"kept": 24}}
    (out / "data" / "train.meta.json").write_text(json.dumps(meta))
    (out / "run.json").write_text(json.dumps({"recipe": "hh_exo", "profile": "cpu"}))
    (out / "summary.json").write_text("{}")
    (out / "summary.md").write_text("| model | reward |\n| --- | ---: |\n| SFT | 0.3 |\n")
    data = f"{out}/data/train.jsonl"
    for name, launcher, base in (("sft", "train_sft", "org/base"), ("rm", "train_rm", f"{out}/sft")):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_bytes(b"")
        words = ["python", "-m", "orlhf_ext.launch", launcher, "--model.model_name_or_path", base]
        words += ["--data.dataset", data, "--train.seed", "7", "--logger.wandb.host", "https://me:secret@host/x"]
        inputs = {data: "1"} | ({base: "2"} if name == "rm" else {})
        stamp = {"state": "done", "command": words, "inputs": inputs, "outputs": [f"{out}/{name}"]}
        (out / f"{name}.stage.json").write_text(json.dumps({**stamp, "versions": {"torch": "2.13.0"}}))
    return out


def test_what_a_card_says(run: Path) -> None:
    from huggingface_hub import ModelCard

    card.main([str(run / "sft"), str(run / "rm"), "--summary", str(run / "summary.json")])
    found = ModelCard.load(run / "rm" / "README.md")
    assert found.data.base_model == ["org/base"] and found.data.datasets == ["Anthropic/hh-rlhf"]
    assert found.data.library_name == "transformers" and "orlhf-ext" in found.data.tags
    text = found.text
    for said in (
        "A reward model, trained on pairs",
        "| base model | `$OUT/sft` |",
        "| seed | 7 |",
        "| torch | 2.13.0 |",
    ):
        assert said in text, said
    assert "| `$OUT/data/train.jsonl` | training | 24 | Anthropic/hh-rlhf | MIT |" in text and "| SFT | 0.3 |" in text
    whole = (run / "rm" / "README.md").read_text()
    assert "secret" not in whole and str(run) not in whole and whole.rstrip().endswith(MARK)


def test_a_card_of_ones_own_stays(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "sft" / "README.md").write_text("mine")
    card.main([str(run / "sft")])
    assert (run / "sft" / "README.md").read_text() == "mine"
    assert "README.md is not of this command and stays" in capsys.readouterr().out
    card.main([str(run / "rm")])
    first = (run / "rm" / "README.md").read_text()
    card.main([str(run / "rm"), "--summary", str(run / "summary.json")])
    assert "## Results" in (run / "rm" / "README.md").read_text() and "## Results" not in first


def test_what_has_no_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert "other has no weights" in failing(capsys, card.main, other)
    (other / "model.safetensors").write_bytes(b"")
    card.main([str(other)])
    assert "no card, no stage of a recipe made it" in capsys.readouterr().out and not (other / "README.md").exists()
    assert "has no table beside it" in failing(capsys, card.main, run / "sft", "--summary", run / "run.json")
