"""K-wise losses over a prompt's own samples: ``--ext.use online-exo`` with ``train_ppo_ray``.

The samples of a prompt are its K completions, and their rewards the labels. What is replaced is OpenRLHF's step from
rewards to advantages: with those of `experience`, its own policy loss has exactly the gradient of
`losses.kwise_loss`, on condition that there is one optimizer step a rollout batch.
"""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace

from ..cli.errors import UserError
from ..cli.flags import NOT_NEGATIVE, POSITIVE, whole
from ..extensions import Extension
from ..extensions.inject import say
from ..files.sources import run_records
from .settings import LOSS_TYPES, check_loss_flags

ESTIMATOR = "dr_grpo"  # an estimator without a critic


class OnlineEXO(Extension):
    """K-wise losses in the place of PPO's advantages."""

    name = "online-exo"
    launchers = ("train_ppo_ray",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker": "orlhf_ext.exo.experience:KwiseExperience",
    }

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Flags are named as the metrics are."""
        return ("kwise",)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The ``--kwise.*`` flags."""
        add = parser.add_argument
        add("--kwise.loss_type", default="exo-rw", metavar="LOSS", help=f"{', '.join(LOSS_TYPES)} (%(default)s)")
        add(
            "--kwise.num_contrastive",
            type=whole(),
            default=0,
            metavar="N",
            help="samples a group; divides --rollout.n_samples_per_prompt (default 0: all samples of a prompt)",
        )
        add("--kwise.beta_pi", type=POSITIVE, default=0.1, help="multiplies the policy's log ratio (%(default)s)")
        add(
            "--kwise.beta_r",
            type=POSITIVE,
            default=0.5,
            help="divides rewards; not of *-pref and pl (%(default)s)",
        )
        add("--kwise.epsilon", type=NOT_NEGATIVE, help="label smoothing of *-pref (1e-3 for exo-pref, 0 for dpo-pref)")

    def check(self, args: SimpleNamespace) -> None:
        """Refuse a run whose gradient would not be the loss's.
        Raises UserError with one sentence that names the flag and the way out."""
        _check_loss(args.kwise, args.rollout.n_samples_per_prompt)
        _check_run(args)
        if not args.train.dynamic_batch_enable:
            _check_micro_batches(args)

    def configure(self, args: SimpleNamespace) -> None:
        """Leave out the critic, which the launcher's default estimator would make and nothing would use."""
        if args.algo.advantage.estimator == "gae":
            say(f"--ext.use online-exo has no critic: --algo.advantage.estimator {ESTIMATOR}")
            args.algo.advantage.estimator = ESTIMATOR


def unit(args: SimpleNamespace) -> int:
    """Samples are trained in multiples of so many: each process then has equally many whole micro batches, in sampling
    and in training. OpenRLHF drops samples otherwise, or waits for ever; dynamic batches hold any number."""
    if args.train.dynamic_batch_enable:
        return 1
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    ranks = ranks // (args.ds.ring_attn_size * args.ds.tensor_parallel_size) or 1
    return ranks * math.lcm(args.rollout.micro_batch_size, args.train.micro_batch_size)


def _check_loss(own: SimpleNamespace, samples: int) -> None:
    check_loss_flags(own, "kwise")
    if samples < 2:
        raise UserError(f"--rollout.n_samples_per_prompt {samples} leaves nothing to compare; give at least 2")
    if own.num_contrastive and (own.num_contrastive < 2 or samples % own.num_contrastive):
        raise UserError(
            f"--kwise.num_contrastive {own.num_contrastive} does not part --rollout.n_samples_per_prompt {samples} "
            "into groups of two or more; give a divisor of it, or 0 for all"
        )


def _check_run(args: SimpleNamespace) -> None:
    size = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    if not args.algo.kl.init_coef > 0:
        raise UserError(
            "--ext.use online-exo compares with the reference model, and with --algo.kl.init_coef "
            f"{args.algo.kl.init_coef:g} there is none; give more than 0 (its size has no effect)"
        )
    if args.train.batch_size != size or args.train.max_epochs != 1:
        raise UserError(
            f"--ext.use online-exo takes one optimizer step a rollout batch; give --train.batch_size {size}, which is "
            "--rollout.batch_size times --rollout.n_samples_per_prompt, and --train.max_epochs 1"
        )
    for flag, given, wanted in (
        ("algo.kl.use_loss", args.algo.kl.use_loss, False),
        ("algo.kl.target", args.algo.kl.target, None),
        ("actor.policy_loss_type", args.actor.policy_loss_type, "ppo"),
        ("algo.advantage.is_correction_level", args.algo.advantage.is_correction_level, "off"),
        ("algo.advantage.gamma", args.algo.advantage.gamma, 1.0),
        ("reward.clip_range", tuple(args.reward.clip_range), (-10, 10)),
    ):
        if given != wanted:
            raise UserError(f"--{flag} is not part of the loss of --ext.use online-exo; leave it out")


def _check_micro_batches(args: SimpleNamespace) -> None:
    samples, prompts, multiple = args.rollout.n_samples_per_prompt, args.rollout.batch_size, unit(args)
    sizes = (
        f"micro batches of --rollout.micro_batch_size {args.rollout.micro_batch_size} and --train.micro_batch_size "
        f"{args.train.micro_batch_size} that are equally many for each training process"
    )
    if samples * prompts % multiple:
        raise UserError(
            f"--rollout.batch_size {prompts} times --rollout.n_samples_per_prompt {samples} makes no {sizes}; give "
            f"sizes whose samples are a multiple of {multiple}"
        )
    if args.algo.dynamic_filtering_enable and samples % multiple:
        raise UserError(
            "--algo.dynamic_filtering_enable may leave any number of prompts for an episode's last batch, whose "
            f"samples must make {sizes}; give sizes so that {samples} samples do, or leave it out"
        )
    rows = min(sum(flag == "--data.prompt_dataset" for flag, _ in run_records(args)), args.data.max_samples)
    rest = rows % prompts
    if rest * samples % multiple:
        raise UserError(
            f"--data.prompt_dataset has {rows} prompts, and the {rest} of an episode's last batch make no {sizes}; "
            f"give --data.max_samples {rows - rest}"
        )
