"""What a worker loads for baselines and for the scores of plans; the model as in `find_same`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..files.records import Record
from ..models.batches import Compute, Row
from ..models.folder import context_length, find_same, load_tokenizer
from ..models.spans import Span
from .labels import Label
from .plans import Noise, measure_noise, result_rows, score_plans
from .sequences import Encoder
from .settings import Settings

if TYPE_CHECKING:
    from ..models.likelihood import Scorer

#: of some prompts, the label and what was sampled
Plans = Sequence[tuple[Label, list[str]]]


def load_baseline(name: str, copy_of: str, dtype: str, attention: str, batch_tokens: int) -> Compute:
    """The function from rows to the mean nll of what they score."""
    scorer = _load(name, copy_of, dtype, attention, batch_tokens)

    def compute(rows: list[Row]) -> list[float]:
        return scorer([Span(row.ids, row.prompt_length) for row in rows])

    return compute


def load_plans(
    name: str, copy_of: str, dtype: str, attention: str, batch_tokens: int, settings: Settings, fingerprint: str
) -> Callable[[tuple[str, Plans]], list[Record] | Noise | None]:
    """The function from ``("noise", plans)`` to the scorer's noise, and from ``("score", plans)`` to records."""
    folder = find_same(name, copy_of)
    scorer = _load(name, copy_of, dtype, attention, batch_tokens)
    encoder = Encoder(load_tokenizer(folder), settings.system, settings.tail, context_length(folder))

    def compute(asked: tuple[str, Plans]) -> Any:
        what, some = asked
        responses = [text for _, texts in some for text in texts]
        labels = [label for label, texts in some for _ in texts]
        if what == "noise":
            return measure_noise(responses, labels, encoder, scorer, settings.markers)
        places = [place for _, texts in some for place in range(len(texts))]
        scores = score_plans(responses, labels, encoder, scorer, settings, fingerprint)
        return list(result_rows(labels, places, scores))

    return compute


def _load(name: str, copy_of: str, dtype: str, attention: str, batch_tokens: int) -> Scorer:
    from ..models.likelihood import make_scorer
    from ..models.logprobs import load_model

    folder = find_same(name, copy_of)
    pad_id = int(load_tokenizer(folder).pad_token_id)  # type: ignore[arg-type]
    return make_scorer(load_model(folder, dtype, attention), pad_id, batch_tokens)
