"""``likelihood``: how likely a response makes the gold text of its label, under the frozen reference model or the
current policy.

The response up to a marker is the reasoning; the gold text is put behind it and scored (`gold`), and
`likelihood_forms` says what becomes of its log-probabilities.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..cli.errors import UserError
from ..cli.flags import NOT_NEGATIVE
from ..cli.patterns import Pattern
from ..extensions.inject import say
from ..files.records import Line
from ..files.sources import run_records
from ..models.folder import context_length, find_model, load_tokenizer
from ..models.spans import Span
from .base import Reward, RewardBatch, RewardContext, RewardResult, Rollout, ScoreTokens
from .likelihood_forms import COMPARED, Form, jepo, nover, shape, value

if TYPE_CHECKING:
    from .gold import GoldEncoder, Reasoning

_MODEL = "--actor.model_name_or_path"
#: nats of a sum's noise in bf16, by the square root of its tokens: other batches and kernels round otherwise
_NOISE = 0.13
_MOST_GATED = 0.9  # of a batch; beyond, the marker is likely another model's
_TINY = 1e-8
_MOST_NLL = 80.0  # whose perplexity float32 can hold
#: by form, whose papers also train on the gold text itself, which no reward can
_WITH_A_LOSS = {
    "logprob_mean": "FAIR's comparison",
    "logprob_sum": "FAIR's comparison or LaTRO",
    "prob": "VeriFree",
    "jepo": "JEPO",
}


@dataclass
class Likelihood(Reward):
    """How likely the response makes the gold text of the label.

    The label is the gold text, or a JSON object that has it as ``gold``. Logs ``logprob_mean`` and ``logprob_sum`` (in
    nats), ``ppl``, ``alone`` (the baseline), ``gold_tokens`` (those that are scored), ``think_tokens``, ``gated``,
    ``flat`` and ``leak`` (the gold text stands in the reasoning); with ``jepo`` also ``bound`` and ``weight``.
    """

    name: ClassVar[str] = "likelihood"

    form: Annotated[Form, "logprob_mean, logprob_sum, prob, prob_mean, prob_geo, jepo or nover"] = "logprob_mean"
    model: Annotated[Literal["reference", "policy"], "whose likelihood: reference (frozen), or policy (as it is)"] = (
        "reference"
    )
    baseline: Annotated[Literal["none", "alone"], "alone: the same form without reasoning is subtracted"] = "none"
    clip: Annotated[Literal["none", "zero"], "zero: what is below the baseline counts 0"] = "none"
    cut: Annotated[
        str, "the reasoning ends before the first of these, or behind it if it is </...; none: with the response"
    ] = "<answer"
    opener: Annotated[str, "text between reasoning and gold text"] = "<answer>"
    closer: Annotated[str, "text behind the gold text"] = "</answer>"
    blank: Annotated[bool, "a blank begins the gold text"] = False
    scored: Annotated[Literal["all", "gold"], "all: the gold text and what is behind it; gold: it alone"] = "all"
    end: Annotated[
        Literal["none", "eot", "template"],
        "scored behind the closer: none; eot: the end of a turn; template: all that the chat template puts there",
    ] = "none"
    gate: Annotated[
        str | None,
        "what a response must have, beside an end within the limit of its length: marker, a regular expression, or off "
        "(marker; off with jepo, or without a cut)",
    ] = None
    least_spread: Annotated[
        float | None,
        "nats a token that a prompt's samples must be apart, or all count the same (0.13 / sqrt(tokens) in bf16, or 0)",
        NOT_NEGATIVE,
    ] = None

    def __post_init__(self) -> None:
        self.needs_reference = self.model == "reference"
        self.needs_policy = self.model == "policy"
        if not self.cut:
            raise ValueError("cut is empty, which is found everywhere; give a marker, or none")
        if self.form in COMPARED and self.baseline != "none":
            raise ValueError(f"form {self.form} compares the samples of a prompt, and takes no baseline; leave it out")
        if self.clip != "none" and self.baseline == "none":
            raise ValueError("clip zero is of differences from a baseline; give baseline alone")
        if self.scored == "gold" and self.end != "none":
            raise ValueError(f"end {self.end} is not scored with scored gold; leave one of them out")
        if self.form == "jepo" and self.gate not in (None, "off"):
            raise ValueError("form jepo weighs all samples against each other, and has no gate; leave gate out")
        if self.gate == "marker" and self.cut == "none":
            raise ValueError("gate marker has no marker with cut none; leave one of them out")
        self._gate = self.gate or ("off" if self.form == "jepo" or self.cut == "none" else "marker")
        try:
            self._pattern = None if self._gate in ("off", "marker") else Pattern("--likelihood.gate", self._gate)
        except ValueError as error:
            raise ValueError(f"gate {error}") from error
        self._told: set[str] = set()

    def check(self, args: SimpleNamespace) -> None:
        """Refuse labels and a run that this cannot use, before a model is loaded.

        Raises:
            UserError: a label without gold text, or with one that the model cannot read; one sample of a prompt, in a
                form that compares several; a range of dynamic filtering above all rewards.
        """
        if not args.data.label_key:
            raise UserError("reward 'likelihood' reads gold texts from labels; give --data.label_key NAME")
        if self.form in COMPARED and args.rollout.n_samples_per_prompt < 2:
            raise UserError(
                f"--likelihood.form {self.form} compares the samples of a prompt; give "
                "--rollout.n_samples_per_prompt 2 or more"
            )
        low, high = args.algo.dynamic_filtering_range
        if args.algo.dynamic_filtering_enable and self.form.startswith("logprob") and low >= 0:
            raise UserError(
                f"--likelihood.form {self.form} is negative, and --algo.dynamic_filtering_range {low:g} {high:g} drops "
                "every prompt; begin it below 0, at -100, say"
            )
        self._check_records(args)
        if self.model == "policy" and self.form in _WITH_A_LOSS:
            self._tell(
                "loss",
                f"--likelihood.form {self.form} is a reward alone: the loss on the gold text itself that "
                f"{_WITH_A_LOSS[self.form]} adds is no part of it",
            )

    def _check_records(self, args: SimpleNamespace) -> None:
        folder = find_model(args.actor.model_name_or_path, _MODEL)
        encoder, limit = self._make_encoder(load_tokenizer(folder, _MODEL), folder), args.data.max_len
        count = shown = crowded = 0
        for line, gold in _read_golds(args):
            count += 1
            shown += gold.strip() in _text_of(line.record.get(args.data.input_key))
            size = len(gold.encode()) + 1 + encoder.around  # no text has more tokens
            if encoder.context is None or size + limit <= encoder.context:
                continue
            tokens = len(encoder.golds([self._written(gold)])[0]) + encoder.around
            if tokens >= encoder.context:
                raise UserError(
                    f"{line.where} has a gold text of {tokens} tokens, and the model reads {encoder.context}; remove "
                    "the record"
                )
            crowded += tokens + limit > encoder.context
        if shown:
            self._tell("leak", f"{shown} of {count} prompts contain their gold text")
        if crowded:
            self._tell(
                "room",
                f"{crowded} of {count} gold texts find no room in the {encoder.context} tokens that the model reads if "
                f"a response fills --data.max_len {limit}, and the run would end there",
            )

    def _make_encoder(self, tokenizer: Any, folder: Path) -> GoldEncoder:
        from .gold import GoldEncoder

        texts = (self.cut, self.opener, self.closer)
        return GoldEncoder(tokenizer, *texts, self.scored, self.end, context_length(folder))

    def _written(self, gold: str) -> str:
        return " " + gold if self.blank else gold

    def setup(self, context: RewardContext) -> None:
        """Keep the scorers, and make the encoder, which policy and reference have in common."""
        args = context.args
        found = context.score_reference if self.model == "reference" else context.score_policy
        assert found is not None  # `needs_reference`, `needs_policy`
        self._scorer = found
        #: RLPR's baseline is that of the first policy; where there is no reference, it changes with the policy
        self._alone_scorer = context.score_reference or found
        self._frozen = context.score_reference is not None
        self._alone: dict[bytes, float] = {}
        self._encoder = self._make_encoder(context.tokenizer, find_model(args.actor.model_name_or_path, _MODEL))
        self._noise = _NOISE if args.ds.param_dtype == "bf16" else 0.0

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards, and what is logged with them.
        Raises UserError if a label has no gold text, or a sequence is too long; the sample is named."""
        from .gold import read_gold

        golds = [read_gold(rollout.label, f"sample {rollout.id!r}") for rollout in batch]
        thoughts = [self._encoder.reasoning(rollout) for rollout in batch]
        logprobs, alone = self._logprobs(batch, thoughts, golds)
        sums = [math.fsum(values) for values in logprobs]
        means = [total / len(values) for total, values in zip(sums, logprobs, strict=True)]
        lengths = [len(one.ids) for one in thoughts]
        opened = [self._passes(rollout, thought) for rollout, thought in zip(batch, thoughts, strict=True)]
        groups = batch.groups()
        more: dict[str, list[float]] = {}
        if self.form == "jepo":
            rewards, more = _jepo(sums, groups)
        elif self.form == "nover":
            rewards = [0.0] * len(batch)
            for group in groups:
                ranked = nover([means[i] for i in group], [lengths[i] for i in group], [opened[i] for i in group])
                for i, total in zip(group, ranked, strict=True):
                    rewards[i] = total
        else:
            rewards = self._differences(logprobs, alone, lengths)
        floors = [self._over(0.0, base) for base in alone]
        shaped = shape(self.form, rewards, means, groups, opened, self._least_spreads(logprobs), floors)
        self._look(batch, thoughts, opened)
        metrics = {
            "logprob_mean": means,
            "logprob_sum": sums,
            "ppl": [math.exp(min(-mean, _MOST_NLL)) for mean in means],
            "alone": alone,
            "gold_tokens": [float(len(values)) for values in logprobs],
            "think_tokens": [float(length) for length in lengths],
            "gated": [float(not passes) for passes in opened],
            "flat": [float(flat) for flat in shaped.flat],
            "leak": [float(gold.strip() in self._encoder.text(one)) for gold, one in zip(golds, thoughts, strict=True)],
        }
        return RewardResult(shaped.rewards, metrics | more)

    def _logprobs(
        self, batch: RewardBatch, thoughts: Sequence[Reasoning], golds: Sequence[str]
    ) -> tuple[list[list[float]], list[float]]:
        """Of the scored tokens of each sample; and each one's baseline, 0 where there is none.

        A baseline is scored beside the first samples of its prompt, by the same path, and kept if its model is frozen.
        """
        ids = self._encoder.golds([self._written(gold) for gold in golds])
        span = self._encoder.span
        spans = [span(rollout, one.ids, gold) for rollout, one, gold in zip(batch, thoughts, ids, strict=True)]
        if self.baseline == "none":
            return _score(self._scorer, spans), [0.0] * len(spans)
        alone = [span(rollout, [], gold) for rollout, gold in zip(batch, ids, strict=True)]
        keys = [_key(one) for one in alone]
        missing = {key: one for key, one in zip(keys, alone, strict=True) if key not in self._alone}
        if self._alone_scorer is self._scorer:
            both = _score(self._scorer, [*spans, *missing.values()])
            found, fresh = both[: len(spans)], both[len(spans) :]
        else:
            found, fresh = _score(self._scorer, spans), _score(self._alone_scorer, list(missing.values()))
        known = self._alone if self._frozen else {}
        known.update((key, value(self.form, values)) for key, values in zip(missing, fresh, strict=True))
        return found, [known[key] for key in keys]

    def _differences(
        self, logprobs: Sequence[Sequence[float]], alone: Sequence[float], lengths: Sequence[int]
    ) -> list[float]:
        """Each sample's value over its baseline."""
        itself = self.baseline == "alone" and self._alone_scorer is self._scorer  # what has no reasoning
        rows = zip(logprobs, alone, lengths, strict=True)
        values = [base if itself and not length else value(self.form, found) for found, base, length in rows]
        if self.form == "prob" and max(values) < _TINY:
            self._tell(
                "tiny",
                f"all probabilities of a batch are below {_TINY:g}, which most estimators of advantages take for "
                "nothing; give --likelihood.form prob_mean or logprob_mean",
            )
        return [self._over(found, base) for found, base in zip(values, alone, strict=True)]

    def _over(self, found: float, base: float) -> float:
        return max(0.0, found - base) if self.clip == "zero" else found - base

    def _passes(self, rollout: Rollout, thought: Reasoning) -> bool:
        return self._gate == "off" or (self._fits(rollout, thought) and not rollout.truncated)

    def _fits(self, rollout: Rollout, thought: Reasoning) -> bool:
        return self._pattern.search(rollout.response) if self._pattern else thought.marked

    def _least_spreads(self, logprobs: Sequence[Sequence[float]]) -> list[float]:
        if self.least_spread is not None:
            return [self.least_spread] * len(logprobs)
        return [self._noise / math.sqrt(len(values)) for values in logprobs]

    def _look(self, batch: RewardBatch, thoughts: Sequence[Reasoning], opened: Sequence[bool]) -> None:
        """Say what is likely a mistake."""
        gated = opened.count(False)
        if gated > _MOST_GATED * len(batch):
            fits = sum(self._fits(rollout, thought) for rollout, thought in zip(batch, thoughts, strict=True))
            cut = sum(rollout.truncated for rollout in batch)
            self._tell(
                "gate",
                f"the gate holds back {gated} of {len(batch)} responses: {len(batch) - fits} do not have "
                f"{self._gate if self._pattern else self.cut}, and the length limit cut off {cut}; ask for it in the "
                "prompts, let responses be longer, or give another --likelihood.cut or --likelihood.gate",
            )
        opens = any(rollout.prompt.rstrip().endswith("<think>") for rollout in batch)
        if opens and self.baseline == "alone" and "</think>" not in self.opener:
            self._tell(
                "think", "prompts open <think>, and the baseline is scored in it; close it in --likelihood.opener"
            )

    def _tell(self, what: str, words: str) -> None:
        """Say something once."""
        if what not in self._told:
            self._told.add(what)
            say(f"reward 'likelihood': {words}")


def _jepo(sums: Sequence[float], groups: Sequence[Sequence[int]]) -> tuple[list[float], dict[str, list[float]]]:
    """`jepo` of the samples of each prompt: rewards, and what is logged with them."""
    rewards = [0.0] * len(sums)
    more = {"bound": [0.0] * len(sums), "weight": [0.0] * len(sums)}
    for group in groups:
        found = jepo([sums[i] for i in group])
        for i, advantage, weight in zip(group, found.advantages, found.weights, strict=True):
            rewards[i], more["bound"][i], more["weight"][i] = advantage, found.bound, weight
    return rewards, more


def _score(scorer: ScoreTokens, spans: Sequence[Span]) -> list[list[float]]:
    """Log-probabilities of the scored tokens of each sequence; equal ones are computed once."""
    keys = [_key(span) for span in spans]
    unique = dict(zip(keys, spans, strict=True))
    masks = [[0] * span.start + [1] * span.scored for span in unique.values()]
    found = dict(zip(unique, scorer([span.ids for span in unique.values()], masks), strict=True))
    return [found[key] for key in keys]


def _key(span: Span) -> bytes:
    return hashlib.sha256(repr(span).encode()).digest()


def _read_golds(args: SimpleNamespace) -> Iterator[tuple[Line, str]]:
    """The records of a run with their gold texts."""
    from .gold import read_gold

    for _, line in run_records(args):
        yield line, read_gold(line.record.get(args.data.label_key), line.where)


def _text_of(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
