"""Toxicity of texts, by a scorer of one's choice: ``load_scorer(SPEC)``.

SPEC is one of

- any sequence-classification model of transformers (a folder or a hub name): the probability of its toxic label, a
  softmax over the labels (for a multi-label model the label's own sigmoid);
- ``perspective``: Google's Perspective API, see `orlhf_ext.deadend.perspective`;
- ``module:attribute``: a function from a list of texts to a number between 0 and 1 for each, or a class without
  arguments whose instances are such functions. That is also the way to a service: a class that asks it, with the key
  from the environment. A `NoScore` in the place of a number says why a text has none. Where it has an attribute
  ``version``, a change of it makes older scores another scorer's; ``at_once`` is the number of texts whose scores are
  kept together (some thousands), which a killed run has to ask for again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import backends
from ..backends.machine import torch_device
from ..cli.errors import UserError
from ..cli.user_code import user_code
from ..extensions import load
from ..models.batches import cut_batches, pad_right
from ..models.folder import check_ids, context_length, find_model, find_same, identity, read_config, read_tokenizer
from ..models.reward_models import is_classifier
from ..models.texts import count_cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: scorers that come with the project
READY = {"perspective": "orlhf_ext.deadend.perspective:Perspective"}
_TOXIC = ("toxic", "toxicity", "label_1", "1")  # names of the toxic label, the surest first


class NoScore(str):
    """Why a text has no score, in a few words."""


class Scorer(Protocol):
    """What scores texts."""

    #: texts whose scores are kept together; 0: as many as is usual
    at_once: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the scores depend on, as JSON."""
        ...

    def batches(self, texts: Sequence[str], batch_size: int) -> list[list[int]]:
        """Indices of the texts in batches."""
        ...

    def __call__(self, texts: Sequence[str]) -> Sequence[float | NoScore]:
        """One batch: a number between 0 and 1 for each text, or why there is none."""
        ...


def load_scorer(
    spec: str,
    label: str | None = None,
    max_length: int = 0,
    batch_tokens: int = 16384,
    dtype: str = "float32",
    attention: str = "sdpa",
) -> Scorer:
    """Find a scorer and look at it; a model's weights are loaded when the first text is scored.

    Args:
        spec: a folder, a hub name, ``perspective``, or ``module:attribute``.
        label: index or name of the toxic label; None: the one that is called toxic, toxicity, LABEL_1 or 1.
        max_length: tokens of a text that a model reads; 0: all that its tokenizer and its positions allow.
        batch_tokens: padded tokens in a batch.
        dtype: of a model's weights; the softmax is in float32 in any case.
        attention: as in transformers.

    Raises:
        UserError: there is no such thing, or it is not a classifier, or it does not say which label is the toxic one.
    """
    if not Path(spec).exists():
        spec = READY.get(spec, spec)
    if ":" in spec and not Path(spec).exists():
        if label is not None or max_length:
            raise UserError(f"--model {spec} is a function, which has no --label and no --max_length; leave them out")
        return Function(spec)
    return Classifier(find_model(spec), label, max_length, batch_tokens, dtype, attention)


def load_worker(
    spec: str, copy_of: str, label: str | None, max_length: int, batch_tokens: int, dtype: str, attention: str
) -> Scorer:
    """`load_scorer` in a worker; ``copy_of`` of a model as in `find_same`, else empty."""
    if copy_of:
        find_same(spec, copy_of)
    return load_scorer(spec, label, max_length, batch_tokens, dtype, attention)


class Function:
    """A scorer of one's own."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        found = load(spec)
        with user_code(f"--model {spec} cannot be made:"):
            self._score = found() if isinstance(found, type) else found
        if not callable(self._score):
            raise UserError(f"--model {spec} cannot be called; name a function from texts to numbers, or such a class")
        self.at_once = getattr(self._score, "at_once", 0)

    @property
    def identity(self) -> dict[str, Any]:
        """Its name, and its version where it has one."""
        version = getattr(self._score, "version", None)
        return {"scorer": self.spec} | ({} if version is None else {"version": str(version)})

    def batches(self, texts: Sequence[str], batch_size: int) -> list[list[int]]:
        """In the order of the texts."""
        return [list(range(len(texts)))[i : i + batch_size] for i in range(0, len(texts), batch_size)]

    def __call__(self, texts: Sequence[str]) -> list[float | NoScore]:
        """Ask it. Raises UserError if it does not give a number between 0 and 1 for each text."""
        with user_code(f"--model {self.spec} raised"):
            found = list(self._score(list(texts)))
        if len(found) != len(texts):
            raise UserError(f"--model {self.spec} gave {len(found)} scores for {len(texts)} texts")
        try:
            scores = [value if isinstance(value, NoScore) else float(value) for value in found]
        except (TypeError, ValueError):
            scores = [math.nan]
        if wrong := [value for value in scores if not isinstance(value, NoScore) and not 0 <= value <= 1]:
            raise UserError(f"--model {self.spec} gave a score of {wrong[0]}; give numbers between 0 and 1")
        return scores


class Classifier:
    """A sequence-classification model of transformers; see `load_scorer`."""

    at_once = 0

    def __init__(
        self, folder: Path, label: str | None, max_length: int, batch_tokens: int, dtype: str, attention: str
    ) -> None:
        self.folder, self.batch_tokens, self.dtype, self.attention = folder, batch_tokens, dtype, attention
        if not is_classifier(folder):
            raise UserError(
                f"--model {folder} is not a sequence classifier; train one with orlhf-ext deadend classifier, or give "
                "module:attribute"
            )
        self.label = toxic_label(folder, label)
        limit = text_limit(folder, self.tokenizer)
        if max_length and limit and max_length > limit:
            raise UserError(f"--max_length {max_length} is more than the {limit} tokens that {folder} reads; lower it")
        self.max_length = max_length or limit

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return text_tokenizer(self.folder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's, the label, and how it reads."""
        how = {"label": self.label, "max_length": self.max_length, "dtype": self.dtype}
        return {"scorer": identity(self.folder), **how}

    def batches(self, texts: Sequence[str], batch_size: int) -> list[list[int]]:
        """Texts of like length together, the longest first, within ``batch_tokens`` and ``batch_size``."""
        found = cut_batches([len(ids) for ids in self._encode(texts)], self.batch_tokens)
        return [batch[i : i + batch_size] for batch in found for i in range(0, len(batch), batch_size)]

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than what the model reads."""
        if not self.max_length:
            return 0
        return count_cut(self.tokenizer, texts, self.max_length - self.tokenizer.num_special_tokens_to_add())

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, at least one for each text, cut on the right."""
        if not texts:
            return []
        limit = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False, **limit)["input_ids"]  # type: ignore[arg-type, assignment]
        check_ids(self.folder, ids)
        return [row or [int(self.tokenizer.pad_token_id)] for row in ids]  # type: ignore[arg-type]

    @cached_property
    def _model(self) -> Any:
        backends.install()
        from ..models.folder import model_config
        from ..models.weights import classifier_class, load_whole

        config = model_config(self.folder, "--model")
        if (cls := classifier_class(config)) is None:
            raise UserError(f"--model {self.folder} is of type {config.model_type!r}, which has no classifier")
        model = load_whole(cls, config, self.folder, "--model", dtype=self.dtype, attention=self.attention)
        # causal models pool at the last token that is not padding, and do not know which that is without it
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model.to(torch_device()).eval()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """P(toxic) of each text, computed as one batch."""
        import torch

        padding = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        ids, mask = pad_right(self._encode(texts), padding, self._model.device)
        with torch.inference_mode():
            logits = self._model(ids, attention_mask=mask).logits.float()
        several = self._model.config.problem_type == "multi_label_classification"
        found = logits.sigmoid() if several else logits.softmax(-1)
        return [float(value) for value in found[:, self.label].tolist()]


def toxic_label(folder: Path, label: str | None = None) -> int:
    """The index of the label that means toxic, by ``config.json``.

    Raises:
        UserError: ``label`` is not among the labels; without it, no label has a telling name.
    """
    names = label_names(folder)
    known = ", ".join(f"{index} = {name}" for index, name in enumerate(names))
    if len(names) < 2:
        raise UserError(
            f"--model {folder} has a single label, so it gives no probability; give one with two labels or more"
        )
    lower = [name.lower() for name in names]
    if label is not None:
        if label.lower() in lower:
            return lower.index(label.lower())
        if label.isdecimal() and int(label) < len(names):
            return int(label)
        raise UserError(f"--label {label} is not a label of {folder}; its labels are {known}")
    for name in _TOXIC[: 4 if len(names) == 2 else 2]:
        if name in lower:
            return lower.index(name)
    raise UserError(f"--model {folder} does not say which label means toxic; give --label (its labels are {known})")


def label_names(folder: Path) -> list[str]:
    """The labels of a classifier, in the order of its outputs."""
    config = read_config(folder)
    given = config.get("id2label")
    if not isinstance(given, dict) or not given:
        count = config.get("num_labels", 2)
        return [f"LABEL_{index}" for index in range(count if isinstance(count, int) else 2)]
    return [str(given[key]) for key in sorted(given, key=int)]


def text_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A classifier's tokenizer, which needs no EOS; without a padding token, EOS pads.
    Raises UserError if it cannot be read, or has nothing to pad with."""
    tokenizer = read_tokenizer(folder, "--model")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"--model {folder} has a tokenizer without a padding token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def text_limit(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that tokenizer and model take; 0 where neither says."""
    own = tokenizer.model_max_length
    known = [limit for limit in (own if own < 10**9 else None, context_length(folder)) if limit]
    return int(min(known, default=0))
