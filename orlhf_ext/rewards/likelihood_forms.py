"""What becomes of the log-probabilities of a gold text: the forms of the reward `likelihood`. Pure Python, in float64.

With ``l_t = log pi(y_t | x, z, y_<t)`` for the N scored tokens of the gold text y, behind the prompt x and the
reasoning z of a sample, and ``S = sum_t l_t``::

    logprob_mean   S / N             FAIR, arXiv 2602.03979, Eq. 3
    logprob_sum    S                 FAIR, Eq. 2; the first term of LaTRO, arXiv 2411.04282, Eq. 4
    prob           exp(S)            VeriFree, arXiv 2505.21493, Eq. 4; FAIR, Eq. 5
    prob_mean      mean_t exp(l_t)   FAIR, Eq. 8; RLPR, arXiv 2506.18254
    prob_geo       exp(S / N)        RLPR's other form: 1 / perplexity
    jepo           LME(all S) - LME(all S but this)      JEPO, arXiv 2503.19618, Eq. 6 and 7; LME = log mean exp
    nover          ranks of exp(-S/N / max(1, 1 + log10 |z|)) among the samples of a prompt    NOVER, arXiv 2505.16022
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Form = Literal["logprob_mean", "logprob_sum", "prob", "prob_mean", "prob_geo", "jepo", "nover"]
FORMS: tuple[Form, ...] = get_args(Form)
#: which need the other samples of a prompt, and give no number of one alone
COMPARED: tuple[Form, ...] = ("jepo", "nover")


def value(form: Form, logprobs: Sequence[float]) -> float:
    """One sample's value, in a form that needs no other sample.

    Args:
        form: none of `COMPARED`.
        logprobs: of the scored tokens, in nats.

    Raises:
        ValueError: a form that compares samples.
    """
    total = math.fsum(logprobs)
    if form == "logprob_mean":
        return total / len(logprobs)
    if form == "logprob_sum":
        return total
    if form == "prob":
        return math.exp(total)
    if form == "prob_mean":
        return math.fsum(map(math.exp, logprobs)) / len(logprobs)
    if form == "prob_geo":
        return math.exp(total / len(logprobs))
    raise ValueError(f"{form} compares the samples of a prompt")


class Jepo(NamedTuple):
    """What `jepo` makes of the samples of a prompt."""

    #: for each sample; 0 for one alone
    advantages: list[float]
    #: ``LME(all S)``, a lower bound of the gold text's log-probability whatever the reasoning
    bound: float
    #: ``softmax(S)``, which the paper weighs the gold text's own loss term with
    weights: list[float]


def jepo(sums: Sequence[float]) -> Jepo:
    """How much each sample raises the bound of several (JEPO, Eq. 7, with the control variate of its samples).

    Each mean without a sample is computed anew: ``log(exp(all) - exp(one))`` cancels where one sample has it all.

    Args:
        sums: ``S`` of each sample of a prompt.
    """
    bound, total = _log_mean_exp(sums), _log_mean_exp(sums) + math.log(len(sums))
    weights = [math.exp(one - total) for one in sums]
    if len(sums) == 1:
        return Jepo([0.0], bound, weights)
    others = ([*sums[:i], *sums[i + 1 :]] for i in range(len(sums)))
    return Jepo([bound - _log_mean_exp(rest) for rest in others], bound, weights)


def _log_mean_exp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(math.fsum(math.exp(value - most) for value in values) / len(values))


def nover(means: Sequence[float], lengths: Sequence[int], valid: Sequence[bool]) -> list[float]:
    """Validity, rank and efficiency of the samples of a prompt, each in [0, 1], added (NOVER's code, weights of 1).

    A sample that is not valid gets 0 and takes no part in ranks. Of V valid ones, the rank by perplexity (ties by
    place, from 0) gives ``(V - rank) / V``, and the efficiency is the share of the others that are both longer and less
    likely.

    Args:
        means: ``S / N`` of each sample.
        lengths: tokens of its reasoning.
        valid: whether its format is right.
    """
    nlls = [-mean / max(1.0, 1 + math.log10(max(1, n))) for mean, n in zip(means, lengths, strict=True)]
    kept = [i for i, good in enumerate(valid) if good]
    found = [0.0] * len(means)
    for rank, i in enumerate(sorted(kept, key=lambda i: nlls[i])):
        beaten = sum(lengths[i] < lengths[j] and nlls[i] < nlls[j] for j in kept)
        found[i] = 1.0 + (len(kept) - rank) / len(kept) + beaten / max(1, len(kept) - 1)
    return found


class Shaped(NamedTuple):
    """What `shape` gives, for each sample."""

    rewards: list[float]
    #: whether its prompt's samples are too close to tell apart
    flat: list[bool]


def shape(
    form: Form,
    rewards: Sequence[float],
    means: Sequence[float],
    groups: Sequence[Sequence[int]],
    opened: Sequence[bool],
    least_spreads: Sequence[float],
    floors: Sequence[float],
) -> Shaped:
    """Even out differences that are noise, and replace the rewards of samples that the gate holds back.

    Where the ``means`` of a prompt's samples (those that pass the gate, two at least) are less than the least spread
    apart, all of these get their mean reward. A sample that does not pass gets its floor in a form of probabilities,
    and in one of log-probabilities the lowest reward of its prompt's samples that pass (0 if there is none): a far
    floor would take all of the prompt's spread.

    Args:
        form: of the rewards.
        rewards: of each sample.
        means: ``S / N`` of each, in nats.
        groups: the indices of each prompt's samples.
        opened: whether each passes the gate.
        least_spreads: in nats; of a prompt's samples, the first's counts.
        floors: what a probability of 0 gives each.
    """
    found, flat = list(rewards), [False] * len(rewards)
    for group in groups:
        passing = [i for i in group if opened[i]]
        values = [means[i] for i in passing]
        if len(passing) > 1 and max(values) - min(values) < least_spreads[group[0]]:
            mean = math.fsum(rewards[i] for i in passing) / len(passing)
            for i in passing:
                found[i], flat[i] = mean, True
        lowest = min((found[i] for i in passing), default=0.0)
        for i in group:
            if not opened[i]:
                found[i] = lowest if form.startswith("logprob") else floors[i]
    return Shaped(found, flat)
