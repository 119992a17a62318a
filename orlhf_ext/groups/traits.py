"""Traits of a response, from which the groups' gold scores are made: ``--trait NAME=KIND``.

KIND is one of

- ``positiveness``: VADER's compound sentiment c of the response, as (c + 1) / 2 (Hutto & Gilbert, ICWSM 2014);
- ``conciseness`` or ``conciseness:N``: 1 - words / N of the response, at least 0; N is 100 where it is not given;
- a reward model with one score (a folder or a hub name; train_rm's, or a transformers sequence classifier): its raw
  score of prompt and response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, NamedTuple

from ..cli.errors import UserError
from ..models.batches import Compute, Row
from ..models.folder import check_ids, identity, length_limit
from ..models.head_settings import Eos
from ..models.reward_models import RewardModel, load_scorer
from ..models.texts import encode as tokens
from .render import encode

MAX_WORDS = 100  # beyond which an answer is not concise at all


@dataclass(frozen=True)
class TraitSpec:
    """One ``NAME=KIND``."""

    name: str
    kind: Literal["positiveness", "conciseness", "model"]
    #: folder or hub name of a model
    model: str = ""
    #: N of conciseness
    words: int = MAX_WORDS

    def __str__(self) -> str:
        kind = f"conciseness:{self.words}" if self.kind == "conciseness" else self.kind
        return f"{self.name}={self.model or kind}"


def parse_traits(specs: Sequence[str], flag: str = "--trait") -> list[TraitSpec]:
    """Read ``NAME=KIND`` texts. Raises UserError if there is none, one is wrong, or a name is there twice."""
    found: list[TraitSpec] = []
    for text in specs:
        name, _, kind = (part.strip() for part in text.partition("="))
        if not name or not kind:
            raise UserError(
                f"{flag} {text} must be NAME=KIND, with positiveness, conciseness, conciseness:N or a reward model"
            )
        if any(name == other.name for other in found):
            raise UserError(f"{flag} names {name!r} twice; give each trait a name of its own")
        what, colon, number = kind.partition(":")
        if kind == "positiveness":
            found.append(TraitSpec(name, "positiveness"))
        elif what == "conciseness":
            if colon and not (number.isdecimal() and int(number)):
                raise UserError(
                    f"{flag} {text} must give a number of words after the colon, as conciseness:{MAX_WORDS}"
                )
            found.append(TraitSpec(name, "conciseness", words=int(number) if colon else MAX_WORDS))
        else:
            found.append(TraitSpec(name, "model", model=kind))
    if not found:
        raise UserError(f"{flag} names no trait; give at least one NAME=KIND")
    return found


def positiveness() -> Callable[[str], float]:
    """Load VADER's lexicon; the function that comes back maps a text to 0 (negative) to 1 (positive).

    Raises:
        UserError: vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise UserError('the trait positiveness needs vaderSentiment; pip install "orlhf-ext[groups]"') from error
    analyser = SentimentIntensityAnalyzer()
    return lambda text: (analyser.polarity_scores(text)["compound"] + 1) / 2


def conciseness(text: str, words: int = MAX_WORDS) -> float:
    """``max(0, 1 - n / words)`` for a text of n words."""
    return max(0.0, 1 - len(text.split()) / words)


class TraitRows(NamedTuple):
    """What a model reads of prompts and responses."""

    rows: list[Row]
    #: texts that were cut on the left
    truncated: int
    #: of these, texts with nothing left of the prompt
    prompt_lost: int


@dataclass
class ModelTrait:
    """A trait that a reward model scores; the folder is looked at when it is first asked for, the weights later."""

    spec: TraitSpec
    max_len: int
    eos: Eos
    dtype: str
    attn_implementation: str
    flag: str

    @cached_property
    def model(self) -> RewardModel:
        """Its reader.
        Raises UserError if it is not a reward model with one score, or has fewer positions than are asked for."""
        model = RewardModel(self.spec.model, f"{self.flag} {self.spec.name}:")
        length_limit(model.folder, self.max_len, "--max_len", model.flag)
        return model

    def encode(self, texts: Sequence[tuple[str, str, int, int]]) -> TraitRows:
        """Token ids of ``(prompt, response, sample, completion)``, cut on the left.
        Raises UserError if the tokenizer gives ids that the model does not have."""
        model = self.model
        max_len = length_limit(model.folder, self.max_len, "--max_len", model.flag)
        found = encode(model.tokenizer, [(prompt, response) for prompt, response, *_ in texts], self.eos, max_len)
        end = int(model.tokenizer.eos_token_id)  # type: ignore[arg-type]
        rows = [
            Row(sample, completion, model.as_pooled(whole.ids or [end]), 0)
            for (_, _, sample, completion), whole in zip(texts, found, strict=True)
        ]
        check_ids(model.folder, (row.ids for row in rows), model.flag)
        cut = [(prompt or " ", whole.lost) for (prompt, *_), whole in zip(texts, found, strict=True) if whole.lost]
        prompts = tokens(model.tokenizer, [prompt for prompt, _ in cut])
        lost = sum(lost >= len(ids) for (_, lost), ids in zip(cut, prompts, strict=True))
        return TraitRows(rows, len(cut), lost)

    def load(self) -> Compute:
        """Load the weights, at the first call; what comes back maps rows to raw scores.
        Raises UserError as `RewardModel.load` does."""
        return self.model.load(self.dtype, self.attn_implementation)

    @cached_property
    def in_worker(self) -> Callable[[], Compute]:
        """`load` in a worker, as `Pool.run` asks for."""
        model = self.model
        how = (self.dtype, self.attn_implementation)
        return partial(load_scorer, self.spec.model, identity(model.folder, times=False), *how, flag=model.flag)

    @cached_property
    def identity(self) -> str:
        """What tells this model from another."""
        return identity(self.model.folder)


@dataclass
class Traits:
    """Several traits of responses.

    Args:
        specs: ``NAME=KIND`` texts, or what `parse_traits` made of them.
        max_len: tokens that a model reads, the last ones of a text; 0: all that it has positions for.
        eos: ``none``, a text ends where it ends; ``append``, OpenRLHF's rule for reward models.
        batch_tokens: padded tokens in a batch.
        dtype: bfloat16 or float16.
        attn_implementation: as in transformers.
        flag: how the user gave the traits, for messages.

    Raises:
        UserError: as `parse_traits`; models are looked at and loaded at first use.
    """

    specs: Sequence[str | TraitSpec]
    max_len: int = 0
    eos: Eos = "none"
    batch_tokens: int = 16384
    dtype: str = "bfloat16"
    attn_implementation: str = "sdpa"
    flag: str = "--trait"
    #: the traits, in order
    parsed: list[TraitSpec] = field(init=False)
    #: those that a model scores
    models: dict[str, ModelTrait] = field(init=False)

    def __post_init__(self) -> None:
        self.parsed = parse_traits([str(spec) for spec in self.specs], self.flag)
        how = (self.max_len, self.eos, self.dtype, self.attn_implementation, self.flag)
        self.models = {spec.name: ModelTrait(spec, *how) for spec in self.parsed if spec.kind == "model"}

    @property
    def names(self) -> list[str]:
        """The traits' names, in order."""
        return [spec.name for spec in self.parsed]

    @property
    def holds_models(self) -> bool:
        """Whether a trait needs a model, and so memory, and a GPU where there is one."""
        return bool(self.models)

    @cached_property
    def _positiveness(self) -> Callable[[str], float]:
        return positiveness()

    def check(self) -> None:
        """Look at models, tokenizers and the lexicon without loading weights.
        Raises UserError if one is missing, or does not fit."""
        for model in self.models.values():
            _ = model.model.tokenizer
        if any(spec.kind == "positiveness" for spec in self.parsed):
            _ = self._positiveness

    def of_text(self, spec: TraitSpec, response: str) -> float:
        """A trait that needs no model."""
        return conciseness(response, spec.words) if spec.kind == "conciseness" else self._positiveness(response)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float]]:
        """Each trait of each response; a model's score may be NaN, which is for the caller to refuse.

        Args:
            prompts: a prompt for each response, as the policy read it.
            responses: what was sampled, without EOS.

        Raises:
            UserError: as `check`; a model's tokenizer gives ids that it does not have.
        """
        return {spec.name: self._score(spec, prompts, responses) for spec in self.parsed}

    def _score(self, spec: TraitSpec, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if spec.kind != "model":
            return [self.of_text(spec, response) for response in responses]
        model = self.models[spec.name]
        texts = [(*pair, i, 0) for i, pair in enumerate(zip(prompts, responses, strict=True))]
        rows = model.encode(texts).rows
        model.load()
        return [score for (score,) in model.model.score([row.ids for row in rows], self.batch_tokens)]
