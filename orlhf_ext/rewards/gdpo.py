"""``--ext.reward_combine gdpo``: each reward is normalised among the samples of a prompt, then they are added (Liu et
al., 2026, arXiv 2601.05242), with the constants of TRL's ``normalize_then_sum``::

    z_ik = (r_ik - mean_i r_ik) / (std_i r_ik + 1e-4)     for each prompt and reward k, over its samples i
    a_i  = sum_k w_k z_ik
    A_i  = (a_i - mean a) / (std a + 1e-4)                over a training batch

in float64, with standard deviations over n - 1. A reward that does not apply to a sample is NaN: it counts neither in
the mean nor in the sum. A reward that is constant for a prompt counts exactly 0; in float32 its rounding would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

from ..cli.errors import UserError
from ..extensions.inject import say

EPSILON = 1e-4
#: sums of z that are less apart within a prompt teach nothing: opposed rewards leave rounding of `EPSILON`
SPREAD = 1e-3

_FEW_PROMPTS = 8


def sums_of_z(
    rewards: Sequence[Sequence[float]], weights: Sequence[float], groups: Sequence[Sequence[int]]
) -> list[float]:
    """``a_i`` of the formula.

    Args:
        rewards: for each reward a float for each sample, NaN where it does not apply.
        weights: for each reward.
        groups: the indices of each prompt's samples.

    Returns:
        for each sample; NaN where no reward applies.
    """
    sums = [math.nan] * len(rewards[0])
    for group in groups:
        table = zip(*(_standardised([column[i] for i in group]) for column in rewards), strict=True)
        for i, row in zip(group, table, strict=True):
            known = [w * z for w, z in zip(weights, row, strict=True) if not math.isnan(z)]
            sums[i] = math.fsum(known) if known else math.nan
    return sums


def whiten(sums: Sequence[float]) -> list[float]:
    """``A_i`` of the formula; 0 where no reward applies."""
    return [0.0 if math.isnan(value) else value for value in _standardised(sums)]


def _standardised(values: Sequence[float]) -> list[float]:
    known = [value for value in values if not math.isnan(value)]
    mean, deviation = moments(known)
    if not deviation:
        return [value if math.isnan(value) else 0.0 for value in values]
    return [(value - mean) / (deviation + EPSILON) for value in values]


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (over n - 1), which is exactly 0 where all are equal."""
    if not values or min(values) == max(values):
        return (values[0] if values else 0.0), 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def same(values: Sequence[float], apart: float = 0.0) -> bool:
    """Whether the values that are known lie within ``apart``."""
    known = [value for value in values if not math.isnan(value)]
    return not known or max(known) - min(known) <= apart


def conflicts(
    rewards: Sequence[Sequence[float]], sums: Sequence[float], groups: Sequence[Sequence[int]]
) -> list[float]:
    """For each sample, 1 where the rewards of its prompt cancel each other: they differ, and the sums do not."""
    found = [0.0] * len(sums)
    for group in groups:
        differ = any(not same([column[i] for i in group]) for column in rewards)
        if differ and same([sums[i] for i in group], SPREAD):
            for i in group:
                found[i] = 1.0
    return found


def is_faint(column: Sequence[float], groups: Sequence[Sequence[int]]) -> bool:
    """Whether a reward varies by so little that `EPSILON` shrinks it: by less than 1e-3 for every prompt, yet not
    nothing."""
    deviations = [moments([column[i] for i in group if not math.isnan(column[i])])[1] for group in groups]
    return 0 < max(deviations, default=0.0) < 10 * EPSILON


def check(args: SimpleNamespace) -> None:
    """Refuse a run in which what comes out of it would be changed again, before training.

    Args:
        args: the launcher's nested arguments.

    Raises:
        UserError: an estimator that normalises once more, one sample or prompt alone, a penalty on top.
    """
    how = "--ext.reward_combine gdpo"
    if args.algo.advantage.estimator != "dr_grpo":
        raise UserError(
            f"{how} normalises rewards itself, and --algo.advantage.estimator {args.algo.advantage.estimator} would do "
            "so again; give --algo.advantage.estimator dr_grpo, which leaves them as they are"
        )
    if args.rollout.n_samples_per_prompt < 2:
        raise UserError(f"{how} compares the samples of a prompt; give --rollout.n_samples_per_prompt 2 or more")
    if args.rollout.batch_size < 2:
        raise UserError(
            f"{how} normalises over the prompts of a batch, too, and with one prompt that undoes the first step; give "
            "--rollout.batch_size 2 or more"
        )
    for name in ("overlong_buffer_len", "stop_properly_penalty_coef"):
        if getattr(args.reward, name, None) is not None:
            raise UserError(f"--reward.{name} would be added to what {how} has normalised; leave one of them out")
    if args.rollout.batch_size < _FEW_PROMPTS:
        say(
            f"{how} normalises over --rollout.batch_size {args.rollout.batch_size} prompts, which are few to estimate "
            f"a spread from; {_FEW_PROMPTS} or more are better"
        )
