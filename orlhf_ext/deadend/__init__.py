"""Dead-end analysis: a value function Q_D, and decoding that avoids what it says ends badly (Cao et al., ICLR 2023).

``--ext.use dead-end`` trains Q_D with ``train_sft``.

- The method: ``loss`` (pure torch), ``model`` (Q_D) and ``settings`` (what its config.json says of it), ``rows`` (its
  data), and ``actor``, ``dataset`` and ``trainer``, which replace OpenRLHF's in ``train_sft``.
- Its use: ``decoding`` (rectification, pure torch), ``stepper`` (values while texts grow), ``hf`` and ``vllm`` (logits
  processors), ``memory`` (of Q_D beside vLLM), and ``reward`` (Q_D as a reward in ``train_ppo_ray``).
- The commands ``orlhf-ext deadend NAME``: ``continuations`` and ``decode_prompts`` (both by ``sampling``),
  ``classifier``, ``score`` (by a scorer of ``toxicity``, such as ``perspective``), ``hold_out``, ``calibration``, and
  ``evaluate`` (numbers in ``metrics`` and ``perplexity``, tables in ``report``). ``generations`` reads their records.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

from ..cli.errors import UserError
from ..cli.flags import FINITE, PART
from ..extensions import Extension
from ..extensions.inject import first_process
from ..files.sources import run_records
from ..models.folder import check_context
from .rows import parse_row

_INPUT_TEMPLATE = "User: {}\nAssistant: "  # OpenRLHF's default, which this data set does not read
_INPUT_KEYS = ("input", "text")


class DeadEnd(Extension):
    """Q_D in the place of the language model that OpenRLHF's ``train_sft`` trains."""

    name = "dead-end"
    launchers = ("train_sft",)
    replacements = {  # noqa: RUF012
        "openrlhf.models.actor:Actor": "orlhf_ext.deadend.actor:QActor",
        "openrlhf.datasets.sft_dataset:SFTDataset": "orlhf_ext.deadend.dataset:QDataset",
        "openrlhf.trainer.sft_trainer:SFTTrainer": "orlhf_ext.deadend.trainer:QTrainer",
    }
    relies_on = ("openrlhf.utils.utils:zero_pad_sequences",)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """``--deadend.``"""
        return ("deadend",)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The ``--deadend.*`` flags; defaults are those of the paper's experiment."""
        add = parser.add_argument
        add("--deadend.gamma", type=PART, default=1.0, help="discount of a step (%(default)s)")
        add(
            "--deadend.polyak",
            type=PART,
            default=0.1,
            metavar="ALPHA",
            help="how far the target head follows the online head at each step (%(default)s)",
        )
        add("--deadend.q_min", type=FINITE, default=-1.0, help="least training target (%(default)s)")
        add("--deadend.q_max", type=FINITE, default=0.0, help="greatest training target (%(default)s)")
        add(
            "--deadend.loss_norm",
            choices=("tokens", "actions"),
            default="tokens",
            help="what the summed loss is divided by; the authors divide by tokens, of which the first is no action "
            "(%(default)s)",
        )
        add(
            "--deadend.append_eos",
            action="store_true",
            help="end every text with EOS, so that EOS gets a value (the authors do not)",
        )
        add(
            "--deadend.equal_rows",
            action="store_true",
            help="begin with one row of the output layer for all tokens, so that a value begins as that of the state: "
            "a few thousand texts do then (the authors draw each row)",
        )

    def check(self, args: SimpleNamespace) -> None:
        """Refuse what has no effect or cannot be trained on before a model is loaded.
        Raises UserError with one sentence that names the flag, or the file and line."""
        own = args.deadend
        if own.q_min >= own.q_max:
            raise UserError(f"--deadend.q_min {own.q_min:g} is not less than --deadend.q_max {own.q_max:g}")
        _check_flags(args)
        folder = Path(args.model.model_name_or_path)
        if (folder / "config.json").is_file():
            check_context(folder, args.data.max_len, "--data.max_len")
        if first_process():
            for _, line in run_records(args):
                parse_row(line.record, line.where, own.q_min, own.q_max)


def _check_flags(args: SimpleNamespace) -> None:
    """What OpenRLHF offers for language models, and Q_D has no use for."""
    ds, data, model = args.ds, args.data, args.model
    whole = "which trains and saves whole weights"
    rows = "whose rows are single texts with a reward"
    head = "which has no output layer of a language model"
    refused = [
        ("ds.lora.rank", ds.lora.rank > 0, whole),
        ("ds.load_in_4bit", ds.load_in_4bit, whole),
        ("ds.use_liger_kernel", ds.use_liger_kernel, head),
        ("ds.packing_samples", ds.packing_samples, rows),
        ("ds.ring_attn_size", ds.ring_attn_size > 1, rows),
        ("ds.tensor_parallel_size", ds.tensor_parallel_size > 1, "whose heads are not split"),
        ("model.aux_loss_coef", model.aux_loss_coef > 0, head),
        ("model.pretrain_mode_enable", model.pretrain_mode_enable, rows),
        ("data.multiturn", data.multiturn, rows),
        ("data.apply_chat_template", data.apply_chat_template, rows),
        ("data.tokenizer_chat_template", data.tokenizer_chat_template is not None, rows),
        ("data.output_key", data.output_key is not None, rows),
        ("data.input_template", data.input_template not in (None, "", _INPUT_TEMPLATE), rows),
        ("data.input_key", data.input_key not in _INPUT_KEYS, "which reads the columns 'text' and 'reward'"),
    ]
    for flag, given, why in refused:
        if given:
            raise UserError(f"--{flag} does not go with --ext.use dead-end, {why}; leave it out")
