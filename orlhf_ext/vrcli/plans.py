"""The reward of plans: responses, labels and a scorer in, rewards and metrics out. No framework."""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from .labels import Label, baseline_of
from .reward import extract_plan, improvement, map_reward
from .sequences import Encoder
from .settings import Settings

if TYPE_CHECKING:
    from ..likelihood import Scorer


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
    baselines: MutableMapping[str, float] | None = None,
) -> PlanScores:
    """Reward each response by how much its plan lowers the perplexity of its label's gold text.

    A plan that leaves the baseline's conversation as it is (an empty one, as a rule) improves by exactly 0 and is not
    scored. Sequences of one record are one group of the scorer, so that it can share their context.

    Args:
        responses: the sampled texts, without special tokens.
        labels: of each response's record.
        encoder: of the scorer's model.
        scorer: mean nll of a scored token for each sequence.
        settings: how an improvement becomes a reward.
        fingerprint: digest that stored baselines must have; None: any.
        baselines: baselines that are computed here, by record id, in place of stored ones; missing ones are scored
            along and put in.

    Raises:
        UserError: a record has no usable baseline or is too long; a likelihood is not finite; the record is named.
    """
    plans = [encoder.clean(extract_plan(response, settings.markers)) for response in responses]
    known, tokens = _known_baselines(labels, fingerprint, baselines)
    wanted: list[tuple[Label, str | None]] = [
        (label, None) for label in {label.id: label for label in labels}.values() if label.id not in known
    ]
    new = len(wanted)
    changes = [label.messages(plan) != label.messages() for label, plan in zip(labels, plans, strict=True)]
    wanted += [(label, plan) for label, plan, change in zip(labels, plans, changes, strict=True) if change]
    nlls = iter(_score(wanted, encoder, scorer, tokens))
    for label, _ in wanted[:new]:
        known[label.id] = next(nlls)
    base = [known[label.id] for label in labels]
    found = [next(nlls) if change else nll for change, nll in zip(changes, base, strict=True)]
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


def _known_baselines(
    labels: Sequence[Label], fingerprint: str | None, baselines: MutableMapping[str, float] | None
) -> tuple[MutableMapping[str, float], dict[str, int]]:
    """The baselines that need no computation, and over how many tokens stored ones were taken."""
    if baselines is not None:
        return baselines, {}
    stored = {label.id: baseline_of(label, fingerprint) for label in labels}
    return {name: base.nll for name, base in stored.items()}, {name: base.tokens for name, base in stored.items()}


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
    nlls = scorer(spans, [label.id for label in labels]) if spans else []
    for label, nll in zip(labels, nlls, strict=True):
        if not math.isfinite(nll):
            raise UserError(
                f"{label.name} has a gold text with a likelihood that is not finite ({nll}) under the reference model; "
                "its weights hold NaN or overflow: use another checkpoint or dtype"
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
