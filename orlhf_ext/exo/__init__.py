"""EXO and DPO over groups of K completions (Ji et al., ICML 2024): ``--ext.use exo`` with ``train_dpo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

from ..cli.errors import UserError
from ..cli.flags import LENGTH, NOT_NEGATIVE, POSITIVE, whole
from ..extensions import Extension
from ..extensions.inject import first_process
from ..files.outputs import check_folder
from ..files.sources import run_records
from ..models.folder import check_context, load_tokenizer
from ..openrlhf_fixes.chat_data import template_of
from .rows import Rules, chat_texts, parse_record
from .settings import LOSS_TYPES, SHARING, check_loss_flags, taking_apart

CACHE = "~/.cache/orlhf_ext/reference"
DPO_BETA = 0.1  # OpenRLHF's default of --model.beta


class EXO(Extension):
    """K-wise data set, trainer and loss in OpenRLHF's ``train_dpo``."""

    name = "exo"
    launchers = ("train_dpo",)
    replacements = {  # noqa: RUF012
        "openrlhf.datasets.reward_dataset:RewardDataset": "orlhf_ext.exo.dataset:KwiseDataset",
        "openrlhf.trainer.dpo_trainer:DPOTrainer": "orlhf_ext.exo.trainer:KwiseTrainer",
    }
    relies_on = ("openrlhf.models.utils:log_probs_from_logits",)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The ``--exo.*`` flags; defaults are those of the paper's HH experiment."""
        add = parser.add_argument
        add("--exo.loss_type", default="exo-pref", metavar="LOSS", help=f"{', '.join(LOSS_TYPES)} (%(default)s)")
        add("--exo.num_contrastive", type=LENGTH, default=2, metavar="N", help="completions a group; divides K (2)")
        add("--exo.beta_pi", type=POSITIVE, default=0.5, help="multiplies the policy's log ratio (%(default)s)")
        add("--exo.beta_r", type=POSITIVE, default=0.5, help="divides rewards; not of *-pref and pl (%(default)s)")
        add(
            "--exo.temperature",
            type=POSITIVE,
            default=0.8,
            help="divides the logits of policy and reference; give the one that completions were sampled at "
            "(%(default)s)",
        )
        add(
            "--exo.epsilon",
            type=NOT_NEGATIVE,
            help="label smoothing of *-pref (default 1e-3 for exo-pref; 0 for dpo-pref, which is then plain DPO)",
        )
        add(
            "--exo.max_completion_len",
            type=whole(),
            default=0,
            metavar="TOKENS",
            help="cut completions to this many tokens, before the prompt is cut on its left to --data.max_len "
            "(default 0: only --data.max_len; the paper's HH value is 200)",
        )
        add(
            "--exo.share_prompt",
            choices=SHARING,
            default="auto",
            help="compute the prompt of a record once for all of its completions: where that pays and holds (auto), or "
            "else stop (on), or never (off) (%(default)s)",
        )
        add(
            "--exo.cache_reference",
            nargs="?",
            const=CACHE,
            metavar="DIR",
            help="compute the reference model's log-probabilities once, keep them in DIR, and free the reference model "
            f"(DIR is {CACHE} unless given)",
        )

    def check(self, args: SimpleNamespace) -> None:
        """Refuse flags that contradict each other, and records that cannot be trained on, before a model is loaded.
        Raises UserError with one sentence that names the flag, or the file and line."""
        _check_flags(args)
        folder = Path(args.model.model_name_or_path or "")
        local = (folder / "config.json").is_file()
        if local:  # longer rows end in an index error on a device, or in noise
            check_context(folder, args.data.max_len, "--data.max_len")
        if not first_process():
            return
        if local:
            load_tokenizer(folder, "--model.model_name_or_path")  # completions end with its EOS
        rules = Rules.from_args(args)
        render = template_of(args) if rules.chat else None
        for _, line in run_records(args):
            kwise = parse_record(line.record, line.where, rules)
            if render:
                chat_texts(render, kwise, line.where)


def _check_flags(args: SimpleNamespace) -> None:
    exo = args.exo
    check_loss_flags(exo, "exo")
    if exo.max_completion_len >= args.data.max_len:
        raise UserError(
            f"--exo.max_completion_len {exo.max_completion_len} must be less than --data.max_len {args.data.max_len}, "
            "so that a part of the prompt fits (0 sets no limit of its own)"
        )
    if args.model.ipo_enable:
        raise UserError("--model.ipo_enable is another loss; leave it out, or train without --ext.use exo")
    if args.model.label_smoothing:
        raise UserError("--model.label_smoothing has no effect here; use --exo.epsilon")
    if args.model.beta != DPO_BETA:
        raise UserError("--model.beta has no effect here; use --exo.beta_pi")
    if exo.share_prompt == "on" and (apart := taking_apart(args.ds)):
        raise UserError(
            f"--exo.share_prompt on needs the completions of a record together, and {apart} takes them apart; leave "
            "one of them out"
        )
    if exo.cache_reference:
        check_folder(Path(exo.cache_reference).expanduser(), "--exo.cache_reference")
