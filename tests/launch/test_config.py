"""``--config``: what a file says of flags, what the command line says against it, and a run's own file given back."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from helpers import failing

from orlhf_ext.cli.errors import UserError
from orlhf_ext.launch.config import Config, given, write
from orlhf_ext.launch.launcher import main


def parser() -> argparse.ArgumentParser:
    """Flags of every kind that OpenRLHF and this project have."""
    found = argparse.ArgumentParser()
    found.add_argument("--ext.use", action="append", default=[])
    found.add_argument("--adam.lr", type=float, default=1e-6)
    found.add_argument("--adam.betas", type=float, nargs=2, default=(0.9, 0.95))
    found.add_argument("--train.seed", type=int, default=42)
    found.add_argument("--data.dataset")
    found.add_argument("--logger.name", default="")
    found.add_argument("--ds.overlap_comm", action="store_true")
    found.add_argument("--muon.nesterov", action="store_true", default=True)
    found.add_argument("--muon.no_nesterov", dest="muon.nesterov", action="store_false")
    found.add_argument("--exo.share", action=argparse.BooleanOptionalAction, default=True)
    return found


def read(tmp_path: Path, text: str, *words: str) -> dict:
    """The flags of a file and a command line."""
    (tmp_path / "run.yaml").write_text(text)
    config = Config([*words, "--config", str(tmp_path / "run.yaml")])
    found = vars(parser().parse_args(config.words(parser())))
    config.refuse_unknown()
    return found


def test_flags_of_every_kind(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
adam: {lr: 1e-5, betas: [0.8, 0.9]}
train.seed: 7
data:
  dataset: "a b.jsonl"
logger: {name: -5 }
ds: {overlap_comm: true}
muon: {nesterov: false}
exo: {share: false}
ext: {use: [exo, "mine:Own"]}
""",
    )
    assert found == {
        "ext.use": ["exo", "mine:Own"],
        "adam.lr": 1e-5,
        "adam.betas": [0.8, 0.9],
        "train.seed": 7,
        "data.dataset": "a b.jsonl",
        "logger.name": "-5",
        "ds.overlap_comm": True,
        "muon.nesterov": False,
        "exo.share": False,
    }


def test_the_command_line_wins(tmp_path: Path) -> None:
    text = "adam: {lr: 1e-5, betas: [0.1, 0.2]}\next: {use: [exo]}\nmuon: {nesterov: true}\ntrain: {seed: null}\n"
    words = ("--adam.lr=0.5", "--ext.use", "deadend", "--muon.no_nesterov")
    found = read(tmp_path, text, *words)
    assert found["adam.lr"] == 0.5 and found["adam.betas"] == [0.1, 0.2]
    assert found["ext.use"] == ["deadend"] and found["muon.nesterov"] is False and found["train.seed"] == 42


@pytest.mark.parametrize(
    "text, says",
    [
        ("adam: {lrr: 1}", "line 1: unknown flag adam.lrr; did you mean 'adam.lr'?"),
        ("a:\n  b: 1", "line 2: unknown flag a.b"),
        ("train:\n  seed: 1\ntrain.seed: 2", "line 3: train.seed is set already in line 2"),
        ("ds: {overlap_comm: 1}", "--ds.overlap_comm is a switch and not 1; write true or false"),
        ("train: {seed: [1, 2]}", "--train.seed takes one value and not a list"),
        ("adam: {betas: [[1], 2]}", "[1] is no value of --adam.betas"),
        ("- train", "is not a mapping of flags"),
        ("train: [", "cannot be read as YAML"),
        ("? [a, b]\n: 1", "does not name a flag"),
        ("a: &x\n  b: *x\n", "does not name a flag"),
        ("train: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert says in str(error.value) and "run.yaml" in str(error.value)


def test_the_launcher_reads_the_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "none.yaml does not exist" in failing(capsys, main, "train_dpo", "--config", tmp_path / "none.yaml")
    (tmp_path / "run.yaml").write_text("ext: {use: [exoo]}")
    assert "'exoo' is none of the extensions" in failing(capsys, main, "train_dpo", "--config", tmp_path / "run.yaml")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    words = [
        "--ext.use",
        "exo",
        "--adam.lr",
        "1e-05",
        "--adam.betas",
        "0.5",
        "0.75",
        "--no-exo.share",
        "--data.dataset=x=y",
    ]
    before = vars(parser().parse_args(words))
    write(str(tmp_path / "model"), given(parser(), words) | {"adam.betas": (0.5, 0.75)})
    config = Config(["--config", str(tmp_path / "model.config.yaml")])
    assert vars(parser().parse_args(config.words(parser()))) == {**before, "adam.betas": [0.5, 0.75]}
