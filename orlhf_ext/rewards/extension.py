"""The extension that ``--ext.reward`` switches on: rewards are computed where OpenRLHF samples, and all that follows
finds them there."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..backends.resources import check_part, cluster_address
from ..cli.errors import UserError
from ..cli.flags import COUNT, LENGTH, PART, POSITIVE, whole
from ..cli.user_code import user_code
from ..extensions import Extension
from ..files.outputs import check_folder
from ..files.sources import run_records
from . import gdpo
from .combine import HOW, RewardSet
from .selection import Chosen, add_flags, build, from_args

#: where a reward needs the policy; an extension of the user's may have its place otherwise
_POLICY = {"openrlhf.trainer.ray.ppo_actor:PolicyModelActor": "orlhf_ext.rewards.policy:ScoringPolicy"}
_AGENT = Path(__file__).with_name("agent.py")


class Rewards(Extension):
    """Rewards of `orlhf_ext.rewards` in ``train_ppo_ray``.

    Args:
        chosen: what ``--ext.reward`` names.
    """

    name = "rewards"
    launchers = ("train_ppo_ray",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator": "orlhf_ext.rewards.generator:RewardedSamples",
        "openrlhf.trainer.ppo_trainer:PPOTrainer": "orlhf_ext.rewards.trainer:RewardedTrainer",
        "openrlhf.trainer.ppo_trainer:compute_eval_metrics": "orlhf_ext.rewards.evaluation:compute_eval_metrics",
        "openrlhf.trainer.ray.launcher:ReferenceModelActor": "orlhf_ext.rewards.reference:ScoringReference",
    }
    relies_on = (
        "openrlhf.utils.agent:SingleTurnAgentExecutor",
        "openrlhf.trainer.ray.vllm_engine:batch_vllm_engine_call",
        "openrlhf.trainer.ray.launcher:RayActorGroup",
        "openrlhf.trainer.ppo_utils.experience:Experience",
    )

    def __init__(self, chosen: Sequence[Chosen] = ()) -> None:
        self.chosen = list(chosen)
        self._rewards: RewardSet | None = None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """``--ext.`` and a prefix for each reward."""
        return ("ext", *(item.cls.name for item in self.chosen))

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """How rewards are combined and computed, and the flags of each."""
        add = parser.add_argument
        words = "sum, min, or gdpo: each is normalised apart, then they are added (%(default)s)"
        add("--ext.reward_combine", choices=HOW, default="sum", help=words)
        words = "that a reward may take for a batch; it then runs in a thread (no limit)"
        add("--ext.reward_timeout", type=POSITIVE, metavar="SECONDS", help=words)
        add("--ext.reward_args", metavar="JSON", help='arguments of rewards, {"NAME": {"argument": value}}')
        add(
            "--ext.reward_actors",
            type=COUNT,
            default=1,
            metavar="N",
            help="copies of each reward with a model, each on its part of a GPU (%(default)s)",
        )
        add(
            "--ext.reference_batch_tokens",
            type=LENGTH,
            default=16384,
            metavar="N",
            help="padded tokens in a batch that the reference model scores for a reward (%(default)s)",
        )
        add("--ext.rollouts_dir", metavar="DIR", help="write all rollouts with their rewards there, as JSON Lines")
        add("--ext.eval_on_start", action="store_true", help="evaluate before the first step, too")
        add("--ext.eval_top_p", type=PART, default=1.0, metavar="P", help="for evaluation samples (%(default)s)")
        add("--ext.eval_top_k", type=whole(1, also=(-1,)), default=-1, metavar="K", help="for evaluation samples (all)")
        add_flags(parser, self.chosen)

    def needed(self, flags: Mapping[str, Any]) -> list[str]:
        """The names of the extensions that the rewards need.

        Args:
            flags: of all extensions, ``"NAME.ARGUMENT"`` -> value.

        Raises:
            UserError: as `selection.build`.
        """
        self._rewards = build(self.chosen, flags, flags["ext.reward_combine"], flags["ext.reward_args"])
        if any(reward.needs_policy for reward in self._rewards.rewards):
            self.replacements = {**self.replacements, **_POLICY}  # type: ignore[misc]
        found: list[str] = []
        for reward in self._rewards.rewards:
            with user_code(f"reward {reward.name!r} cannot say which extensions it needs:"):
                found += reward.needs_extensions
        return list(dict.fromkeys(found))

    def _made(self, args: SimpleNamespace) -> RewardSet:
        self._rewards = self._rewards or from_args(args)
        return self._rewards

    def check(self, args: SimpleNamespace) -> None:
        """Refuse what cannot work.
        Raises UserError if another source of rewards is given, or if a reward refuses its arguments or the run."""
        for flag, value in (
            ("--reward.remote_url", args.reward.remote_url),
            ("--train.agent_func_path", args.train.agent_func_path),
        ):
            if value:
                raise UserError(f"--ext.reward and {flag} {value} both give rewards; leave one of them out")
        if args.ext.rollouts_dir and not cluster_address():  # whose machines may have other folders
            check_folder(args.ext.rollouts_dir, "--ext.rollouts_dir")
        if args.ext.eval_on_start and not args.eval.dataset:
            raise UserError("--ext.eval_on_start has nothing to evaluate on; give --eval.dataset")
        own_sampling = (args.ext.eval_top_p, args.ext.eval_top_k) != (1.0, -1)
        if args.train.async_enable and (args.ext.eval_on_start or own_sampling):
            raise UserError(
                "--ext.eval_on_start, --ext.eval_top_p and --ext.eval_top_k have no effect with --train.async_enable, "
                "whose evaluation is OpenRLHF's own; leave them out"
            )
        if args.ext.reward_combine == "gdpo":
            gdpo.check(args)
        rewards = self._made(args).rewards
        if blind := next((reward for reward in rewards if not reward.reads_images), None):
            _refuse_images(blind.name, args)
        for reward in rewards:
            if reward.needs_reference and args.train.async_enable:
                raise UserError(
                    f"reward {reward.name!r} needs the reference model, which the trainer uses while "
                    "--train.async_enable samples; train without it"
                )
            if reward.needs_policy and args.train.async_enable:
                raise UserError(
                    f"reward {reward.name!r} needs the policy as it was when it sampled, and with "
                    "--train.async_enable it is trained meanwhile; train without it"
                )
            if reward.needs_reference and not args.algo.kl.init_coef > 0:
                raise UserError(
                    f"reward {reward.name!r} needs the reference model, and with --algo.kl.init_coef "
                    f"{args.algo.kl.init_coef:g} there is none; give more than 0 (1e-6, say)"
                )
            check_part(reward.name, reward.gpus)
            with user_code(f"reward {reward.name!r} cannot check the run:"):
                reward.check(copy.deepcopy(args))

    def configure(self, args: SimpleNamespace) -> None:
        """Let rollouts come without a reward of OpenRLHF's own."""
        args.train.agent_func_path = str(_AGENT)

    def gpu_parts(self, args: SimpleNamespace) -> dict[str, list[float]]:
        """What the copies of each reward with a model take."""
        rewards = self._made(args).rewards
        return {reward.name: [reward.gpus] * args.ext.reward_actors for reward in rewards if reward.gpus}


def _refuse_images(name: str, args: SimpleNamespace) -> None:
    """Raises UserError for the first prompt with images."""
    key = getattr(args.data, "image_key", "images")
    for _, line in run_records(args):
        if line.record.get(key):
            raise UserError(
                f"reward {name!r} reads text only, and {line.where} has {key!r}; remove such records, or set "
                "reads_images = True in its class if it may pass over them"
            )
