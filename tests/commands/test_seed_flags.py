"""The flags of the papers' commands, as their READMEs spell them, are those of the commands here."""

from __future__ import annotations

import importlib
import re

import pytest

FLAGS = {
    # rectification
    "build_data jigsaw reward": "-f -s --drop_rate",
    "build_data jigsaw prompts": "-f -s --drop_rate",
    "build_data jigsaw value": "-f -s --drop_rate --toxicity_type --mode",
    "deadend.classifier": "--train_file --validation_file --model_name_or_path --max_length --learning_rate "
    "--per_device_train_batch_size --num_train_epochs --output_dir",
    "deadend.continuations": "--model_name_or_path --data_file --save_file --num_returns --batch_size --sample_size",
    "deadend.score": "--model_name_or_path --data_file --toxicity_type --batch_size",
    # SharedRep
    "build_data hh-groups": "--seed --proportion",
    # LitBench
    "build_data litbench rehydrate": "--output_dir --max_workers",
    "build_data litbench rationales": "--output_dir --use_cot",
    # next-chapter prediction
    "build_data story": "--tokenizer_name --data_dir --dataset_name",
    "vrcli.baseline": "--model_name --nice_model_name",
}
#: command -> our names of flags, each with the one that it also has
ALIASES = {
    "deadend.classifier": "--model=--model_name_or_path --data=--train_file --out=--output_dir "
    "--overwrite=--overwrite_output_dir",
    "deadend.continuations": "--model=--model_name_or_path --data=--data_file --out=--save_file",
    "deadend.decode_prompts": "--model=--model_name_or_path --q_model=--q_model_name_or_path --data=--data_file "
    "--out=--save_file",
    "deadend.score": "--model=--model_name_or_path --data=--data_file --out=--save_file",
    "deadend.hold_out": "--data=--data_file --out=--save_dir",
    "deadend.calibration": "--q_model=--q_model_name_or_path --data=--data_file --out=--save_file",
    "deadend.evaluate": "--out=--save_file",
    "vrcli.baseline": "--model=--model_name",
}


def help_of(command: str, capsys: pytest.CaptureFixture) -> str:
    """What ``--help`` prints."""
    module, *words = command.split()
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"orlhf_ext.{module}").main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", FLAGS)
def test_the_papers_flags(command: str, capsys: pytest.CaptureFixture):
    said = help_of(command, capsys).replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert not set(FLAGS[command].split()) - set(said)


@pytest.mark.parametrize("command", ALIASES)
def test_help_shows_our_name_first(command: str, capsys: pytest.CaptureFixture):
    said = help_of(command, capsys)
    for pair in ALIASES[command].split():
        name, alias = pair.split("=")
        assert re.search(rf"^  {name}\b[^\n]*, {alias}\b", said, re.MULTILINE), pair
