"""The flags of the papers' commands, as their READMEs spell them, are those of the commands here."""

from __future__ import annotations

import importlib

import pytest

FLAGS = {
    # rectification
    "build_data jigsaw": "-f -s --drop_rate --toxicity_type --mode",
    "deadend.classifier": "--train_file --validation_file --model_name_or_path --max_length --learning_rate "
    "--per_device_train_batch_size --num_train_epochs --output_dir",
    "deadend.continuations": "--model_name_or_path --data_file --save_file --num_returns --batch_size --sample_size",
    "deadend.score": "--model_name_or_path --data_file --toxicity_type --batch_size",
    # SharedRep
    "build_data hh-groups": "--seed --proportion",
    # LitBench
    "build_data litbench": "--output_dir --max_workers --use_cot",
    # next-chapter prediction
    "build_data story": "--tokenizer_name --data_dir --dataset_name",
    "vrcli.baseline": "--model_name --nice_model_name",
}


@pytest.mark.parametrize("command", FLAGS)
def test_the_papers_flags(command: str, capsys: pytest.CaptureFixture):
    module, *words = command.split()
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"orlhf_ext.{module}").main([*words, "--help"])
    said = capsys.readouterr().out.replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert not set(FLAGS[command].split()) - set(said)
