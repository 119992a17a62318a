"""The reward of plans: responses, labels and a scorer in, rewards and metrics out. No framework."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cli.errors import UserError
from .improvement import extract_plan, improvement, map_reward
from .labels import Label, baseline_of
from .sequences import Encoder
from .settings import PREFIX, Settings

if TYPE_CHECKING:
    from ..models.likelihood import Scorer


#: records that the noise is measured on, at most
NOISE_RECORDS = 8


class Noise(NamedTuple):
    """What `measure_noise` found."""

    #: the largest difference, in percent of perplexity
    percent: float
    records: int

    def describe(self, settings: Settings) -> str:
        """One line about it; with a first tier that it could reach by itself, about that.

        Where kernels do not depend on the batch (bfloat16 on a CPU with AMX, for one) there is nothing to measure, and
        yet a plan and its baseline are rounded differently.
        """
        if not self.percent:
            return (
                "the scorer's own noise is unknown: the same gold text has the same score in any batch "
                f"({self.records} measured), though a plan and its baseline are rounded differently; "
                "float32 has little such noise"
            )
        what = f"{self.percent:.3g} % (the same gold text in several batches, the largest of {self.records})"
        if settings.reward == "tiers" and settings.thresholds[0] <= self.percent:
            return (
                f"{PREFIX}thresholds begins with {settings.thresholds[0]:g} %, below the scorer's own noise of {what}; "
                "its value is given by chance: begin higher"
            )
        return f"the scorer's own noise is {what}"


class PlanScores(NamedTuple):
    """What came of some responses; every list has a value for each of them."""

    rewards: list[float]
    #: for dynamic filtering, whose usual range is (0, 1): rewards of tiers and binary, else 1 where I > 0
    scores: list[float]
    #: the same keys for all: pct_improvements, vrcli_nll, vrcli_base_nll (nats a token), vrcli_plan_tokens,
    #: vrcli_marker and vrcli_empty (0 or 1)
    metrics: dict[str, list[float]]
    plans: list[str]


def score_plans(
    responses: Sequence[str],
    labels: Sequence[Label],
    encoder: Encoder,
    scorer: Scorer,
    settings: Settings,
    fingerprint: str | None = None,
) -> PlanScores:
    """Reward each response by how much its plan lowers the perplexity of its label's gold text.

    Each record's baseline is scored again beside its plans, in the same call: another path, batch or dtype moves a mean
    by more than the first tier, but moves both alike. A stored baseline gives the level, ``stored + (plan - again)``.
    A plan that leaves the baseline's conversation as it is (an empty one, as a rule) improves by exactly 0 and is not
    scored. Sequences of one record are one group of the scorer, so that it can share their context.

    Args:
        responses: the sampled texts, without special tokens.
        labels: of each response's record.
        encoder: of the scorer's model.
        scorer: mean nll of a scored token for each sequence.
        settings: how an improvement becomes a reward.
        fingerprint: digest that stored baselines must have; None: any.

    Raises:
        UserError: a record has no usable baseline or is too long; a likelihood is not finite; the record is named.
    """
    plans = [encoder.clean(extract_plan(response, settings.markers)) for response in responses]
    stored = {label.id: baseline_of(label, fingerprint) for label in labels}
    changes = [label.messages(plan) != label.messages() for label, plan in zip(labels, plans, strict=True)]
    again = {label.id: label for label, change in zip(labels, changes, strict=True) if change}
    wanted: list[tuple[Label, str | None]] = [(label, None) for label in again.values()]
    wanted += [(label, plan) for label, plan, change in zip(labels, plans, changes, strict=True) if change]
    nlls = iter(_score(wanted, encoder, scorer, {name: base.tokens for name, base in stored.items()}))
    fresh = {name: next(nlls) for name in again}
    base = [stored[label.id].nll for label in labels]
    found = [
        nll + (next(nlls) - fresh[label.id]) if change else nll
        for label, change, nll in zip(labels, changes, base, strict=True)
    ]
    gains = [improvement(before, after) for before, after in zip(base, found, strict=True)]
    rewards = [map_reward(gain, settings.reward, settings.thresholds, settings.values, settings.cap) for gain in gains]
    metrics = {
        "pct_improvements": gains,
        "vrcli_nll": found,
        "vrcli_base_nll": base,
        "vrcli_plan_tokens": [float(count) for count in encoder.count(plans)],
        "vrcli_marker": [float(any(marker in text for marker in settings.markers)) for text in responses],
        "vrcli_empty": [float(not plan) for plan in plans],
    }
    within = settings.reward in ("tiers", "binary")
    return PlanScores(rewards, rewards if within else [float(gain > 0) for gain in gains], metrics, plans)


def measure_noise(
    responses: Sequence[str], labels: Sequence[Label], encoder: Encoder, scorer: Scorer, markers: Sequence[str]
) -> Noise | None:
    """How far scores of one and the same text are apart: baselines beside all plans of their record, beside the first
    one, and by themselves. A plan and its baseline are rounded as differently, since the gold text has other positions.

    Args:
        responses, labels, encoder, scorer: as in `score_plans`.
        markers: what introduces a plan.

    Returns:
        None where no response has a plan.

    Raises:
        UserError: as `score_plans`.
    """
    plans: dict[str, list[tuple[Label, str | None]]] = {}
    for response, label in zip(responses, labels, strict=True):
        plan = encoder.clean(extract_plan(response, markers))
        if label.messages(plan) != label.messages() and (label.id in plans or len(plans) < NOISE_RECORDS):
            plans.setdefault(label.id, [(label, None)]).append((label, plan))
    found = []
    for most in (None, 2, 1):
        rows = [row for of_record in plans.values() for row in of_record[:most]]
        nlls = _score(rows, encoder, scorer, {})
        found.append([nll for (_, plan), nll in zip(rows, nlls, strict=True) if plan is None])
    apart = [abs(improvement(min(nlls), max(nlls))) for nlls in zip(*found, strict=True)]
    return Noise(max(apart), len(apart)) if apart else None


def _score(
    wanted: Sequence[tuple[Label, str | None]], encoder: Encoder, scorer: Scorer, tokens: dict[str, int]
) -> list[float]:
    labels = [label for label, _ in wanted]
    spans = encoder.encode(labels, [plan for _, plan in wanted])
    for label, span in zip(labels, spans, strict=True):
        if span.scored != tokens.get(label.id, span.scored):
            raise UserError(
                f"{label.name} has {span.scored} scored tokens here and a baseline over {tokens[label.id]}; compute "
                "the baselines again, with this tokenizer and this --vrcli.tail"
            )
    nlls = scorer(spans) if spans else []
    for label, nll in zip(labels, nlls, strict=True):
        if not math.isfinite(nll):
            raise UserError(
                f"{label.name} has a gold text with a likelihood that is not finite ({nll}) under the reference model; "
                "its weights are NaN or overflow: use another checkpoint or dtype"
            )
    return nlls


def result_rows(labels: Sequence[Label], samples: Sequence[int], scores: PlanScores) -> Iterator[dict[str, Any]]:
    """One JSON record for each response, as `orlhf_ext.vrcli.evaluate` reads them.

    Args:
        labels: of each response's record.
        samples: the number of each response among those of its prompt.
        scores: what `score_plans` made of the responses.
    """
    metrics = scores.metrics
    for i, (label, sample) in enumerate(zip(labels, samples, strict=True)):
        yield {
            "id": label.id,
            "sample": sample,
            "plan": scores.plans[i],
            "reward": scores.rewards[i],
            "pct_improvement": metrics["pct_improvements"][i],
            "nll": metrics["vrcli_nll"][i],
            "base_nll": metrics["vrcli_base_nll"][i],
            "plan_tokens": int(metrics["vrcli_plan_tokens"][i]),
            "marker": bool(metrics["vrcli_marker"][i]),
            "empty": bool(metrics["vrcli_empty"][i]),
        }
