"""``--groups.aggregate batch-min``: train on the group whose mean reward is the least, over the whole batch
(MaxMin-RLHF). The reward ``groups`` switches this extension on."""

from __future__ import annotations

from types import SimpleNamespace

from ..cli.errors import UserError
from ..extensions import Extension
from ..rewards.selection import from_args
from .reward import BATCH_MIN, Groups


class BatchMin(Extension):
    """The reward ``groups`` with ``--groups.aggregate batch-min`` in ``train_ppo_ray``."""

    name = "batch-min"
    launchers = ("train_ppo_ray",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker": "orlhf_ext.groups.experience:WorstGroup",
    }

    def check(self, args: SimpleNamespace) -> None:
        """Refuse a run whose rewards it cannot know.

        Raises:
            UserError: there is no reward ``groups`` with ``batch-min``, or it is combined by ``min``; prompts are
                filtered by rewards that are not known yet, or samples are of earlier policies.
        """
        rewards = from_args(args) if args.ext.reward else None
        found = [reward for reward in rewards.rewards if isinstance(reward, Groups)] if rewards else []
        if rewards is None or [reward.aggregate for reward in found] != [BATCH_MIN]:
            raise UserError(
                "--ext.use batch-min needs one reward of groups that leaves the choice to it; add --ext.reward groups "
                "--groups.aggregate batch-min"
            )
        if rewards.how != "sum":
            raise UserError(
                f"--ext.reward_combine {rewards.how} needs the reward of each response, which --groups.aggregate "
                "batch-min knows only for a whole batch; combine with sum"
            )
        if args.algo.dynamic_filtering_enable:
            raise UserError(
                "--algo.dynamic_filtering_enable filters prompts by rewards, which --groups.aggregate batch-min knows "
                "only after filtering; leave one of them out"
            )
        if args.train.async_enable:
            raise UserError(
                "--groups.aggregate batch-min is a minimum over what the current policy gets, and --train.async_enable "
                "trains on samples of earlier ones; leave one of them out"
            )
        weights = {reward.name: weight for reward, weight in zip(rewards.rewards, rewards.weights, strict=True)}
        self._sum = {"groups": found[0].name, "weights": weights}

    def configure(self, args: SimpleNamespace) -> None:
        """Write down which reward is that of groups, and the weights of all, by name."""
        args.ext.batch_min = self._sum
