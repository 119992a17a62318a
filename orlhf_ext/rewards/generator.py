"""Rewards at the end of sampling: OpenRLHF's generator, which also scores what it has sampled.

This is the one place from where all the rest stays OpenRLHF's own: dynamic filtering, evaluation, micro batches,
packing and advantages find rewards that are already there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call

from ..backends.machine import torch_device
from ..files.records import write_jsonl
from . import gdpo
from .base import RewardBatch, RewardContext, Rollout, ScoreTokens
from .combine import Combined, RewardSet
from .remote import in_actors
from .scorers import GroupScorer
from .selection import from_args

if TYPE_CHECKING:
    from openrlhf.trainer.ppo_utils.experience import Experience

#: fields of a rollout under ``--ext.rollouts_dir``
_WRITTEN = ("id", "prompt", "response", "label", "token_ids", "action_mask", "truncated")
_BY_GROUP = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")


class RewardedSamples(SamplesGenerator):
    """Samples with rewards, scores and metrics filled in."""

    _rewards: RewardSet | None = None
    _asleep = False

    def setup_rewards(self, score_reference: ScoreTokens | None, policy: Any = None) -> None:
        """Make the rewards that the run's arguments name, and set them up.

        Args:
            score_reference: a scorer on the frozen reference model, where rewards may use it.
            policy: OpenRLHF's group of actors of the policy, which scores for rewards that need it; its GPUs are
                shared where there are no others.

        Raises:
            UserError: as `RewardSet.setup`.
        """
        rewards = from_args(self.args)
        score_policy = None
        if policy is not None and any(reward.needs_policy for reward in rewards.rewards):
            score_policy = GroupScorer(policy, self.args, int(self.tokenizer.pad_token_id))
        rewards.rewards = in_actors(rewards.rewards, self.args, policy)
        rewards.setup(RewardContext(self.tokenizer, self.args, torch_device(), score_reference, score_policy))
        self._rewards = rewards
        self._numbers = {"train": itertools.count(1), "eval": itertools.count(1)}
        self._batches = {what: itertools.count(self._kept(what) + 1) for what in ("train", "eval")}

    def teardown_rewards(self) -> None:
        """Tear the rewards down, if they were ever set up."""
        if self._rewards is not None:
            self._rewards.teardown()

    def generate_samples(self, **generate_kwargs: Any) -> tuple[list[Experience], float | None, int, bool]:
        """A training batch; with ``gdpo``, its sums of normalised rewards are whitened, now that it is whole."""
        samples, *rest = super().generate_samples(**generate_kwargs)
        if self._rewards is not None and self._rewards.how == "gdpo":
            sums = [sample.rewards.item() for sample in samples]
            for sample, advantage in zip(samples, gdpo.whiten(sums), strict=True):
                sample.rewards = torch.tensor([advantage])
                sample.info["reward"] = sample.rewards
        return samples, *rest

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> tuple[list[Experience], int, bool]:
        """Sample ``num_prompts`` prompts, score all their samples, and, with dynamic filtering, do so again for as many
        prompts as were filtered out."""
        if self._rewards is None:
            self.setup_rewards(None)  # asynchronous training, whose generator has no trainer around it
        what = "eval" if dataloader_iter is getattr(self, "_eval_dataloader_iter", None) else "train"
        size = generate_kwargs.get("n_samples_per_prompt", self.args.rollout.n_samples_per_prompt)
        kept: list[Experience] = []
        consumed, exhausted = 0, False
        while len(kept) < num_prompts * size and not exhausted:
            self._wake_up()
            missing = num_prompts - len(kept) // size
            experiences, count, exhausted = super()._generate_vllm(
                dataloader_iter, missing, dynamic_filtering=False, **generate_kwargs
            )
            consumed += count
            if experiences:
                self._sleep()
                self._fill(experiences, what, size)
            groups = [experiences[start : start + size] for start in range(0, len(experiences), size)]
            kept += itertools.chain.from_iterable(g for g in groups if not dynamic_filtering or self._teaches(g))
            if not dynamic_filtering:
                break
        return kept, consumed, exhausted

    def _teaches(self, group: Sequence[Experience]) -> bool:
        """Dynamic filtering: the mean score is inside of the range (as in OpenRLHF), and the rewards are not all equal
        (an estimator that compares the samples of a prompt would give each the advantage 0)."""
        low, high = self.args.algo.dynamic_filtering_range
        assert self._rewards is not None
        scores = [experience.scores.item() for experience in group]
        least = gdpo.SPREAD if self._rewards.how == "gdpo" else 0.0
        equal = gdpo.same([experience.rewards.item() for experience in group], least)
        equal = equal and self.args.algo.advantage.estimator in _BY_GROUP
        return low < sum(scores) / len(scores) < high and not equal

    def _fill(self, experiences: list[Experience], what: str, size: int) -> None:
        """Score all samples of a batch at once."""
        batch = RewardBatch(self._rollouts(experiences, what, size))
        assert self._rewards is not None
        result = self._rewards.score(batch)
        rewards = result.rewards if result.normalised is None or what == "eval" else result.normalised
        columns = {name: _filled(values) for name, values in result.columns.items()}
        for i, experience in enumerate(experiences):
            experience.rewards = torch.tensor([rewards[i]])
            experience.scores = torch.tensor([result.scores[i]])
            experience.info |= {"reward": experience.rewards, "score": experience.scores}
            experience.info |= {name: torch.tensor([values[i]]) for name, values in columns.items()}
        if self.args.ext.rollouts_dir:
            self._keep(batch, result, what)

    def _rollouts(self, experiences: list[Experience], what: str, size: int) -> list[Rollout]:
        rollouts = []
        for place, experience in enumerate(experiences):
            if place % size == 0:
                number = next(self._numbers[what])
            ids = experience.sequences[0].tolist()
            mask = [0, *experience.action_mask[0].tolist()]  # OpenRLHF's begins with the second token
            written = [token for token, ours in zip(ids, mask, strict=True) if ours]
            rollouts.append(
                Rollout(
                    id=f"{what} {number}/{place % size + 1}",
                    prompt=experience.prompts[0],
                    response=self.tokenizer.decode(written, skip_special_tokens=True),
                    label=experience.labels[0],
                    token_ids=ids,
                    action_mask=mask,
                    truncated=bool(experience.truncated.item()),
                    images=experience.images[0],
                    group=number,
                )
            )
        return rollouts

    def _keep(self, batch: RewardBatch, result: Combined, what: str) -> None:
        """Write a batch, under ``--ext.rollouts_dir``."""
        folder = Path(self.args.ext.rollouts_dir)
        folder.mkdir(parents=True, exist_ok=True)
        records = [
            {
                **{name: getattr(rollout, name) for name in _WRITTEN},
                "reward": result.rewards[i],
                **{name: None if math.isnan(values[i]) else values[i] for name, values in result.columns.items()},
            }
            for i, rollout in enumerate(batch)
        ]
        write_jsonl(folder / f"{what}-{next(self._batches[what]):06d}.jsonl", records)

    def _kept(self, what: str) -> int:
        """The number of the last batch under ``--ext.rollouts_dir``: a run that is resumed goes on from there."""
        if not self.args.ext.rollouts_dir:
            return 0
        names = (path.stem for path in Path(self.args.ext.rollouts_dir).glob(f"{what}-*.jsonl"))
        return max((int(number) for name in names if (number := name.rpartition("-")[2]).isdecimal()), default=0)

    def _sleep(self) -> None:
        """With vLLM's sleep mode, its memory is free while rewards are computed."""
        assert self._rewards is not None
        rewards = self._rewards.rewards
        holds_a_model = any(reward.needs_reference or reward.needs_policy or reward.gpus for reward in rewards)
        if self.args.vllm.enable_sleep and holds_a_model:
            batch_vllm_engine_call(self.vllm_engines, "sleep")
            self._asleep = True

    def _wake_up(self) -> None:
        if self._asleep:
            batch_vllm_engine_call(self.vllm_engines, "wake_up")
            self._asleep = False


def _filled(values: list[float]) -> list[float]:
    """With the mean where a reward does not apply, so that the mean that is logged is of those to which it does."""
    mean, _ = gdpo.moments([value for value in values if not math.isnan(value)])
    return [mean if math.isnan(value) else value for value in values]
