"""How likely continuations are under another language model, given their prompts.

The perplexity of a continuation y of a prompt x is ``exp(-1/|y| sum_t log p(y_t | x, y_<t))``. Prompt and continuation
are tokenised apart, by the tokenizer of that model; a continuation without any token has no perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..cli.errors import UserError
from ..files.journal import Journal
from ..models.folder import check_ids, context_length, find_model, identity, load_tokenizer
from ..models.spans import Span
from ..models.texts import count_cut, encode

_AT_ONCE = 4096  # texts of one piece of the journal

#: of a continuation: its summed negative log-likelihood in nats, and its number of tokens
Likelihood = tuple[float, int]


class LanguageModel:
    """The model that continuations are likely, or not, under; its weights are loaded when the first one is asked for.

    Args:
        name: a folder or a hub name.
        batch_tokens: padded tokens in a batch.
        dtype: of the weights.
        attention: as in transformers.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, name: str, batch_tokens: int, dtype: str, attention: str) -> None:
        self.folder = find_model(name, "--perplexity_model")
        self.batch_tokens, self.dtype, self.attention = batch_tokens, dtype, attention
        self.identity = {"model": identity(self.folder), "dtype": dtype, "batch_tokens": batch_tokens}
        self.tokenizer = load_tokenizer(self.folder, "--perplexity_model")

    @cached_property
    def _model(self) -> Any:
        from ..models.logprobs import load_model

        return load_model(self.folder, self.dtype, self.attention, "--perplexity_model")

    def cut(self, texts: Sequence[tuple[str, str]]) -> int:
        """How many continuations, or their prompts, `spans` cuts."""
        limit = context_length(self.folder)
        return count_cut(self.tokenizer, (prompt + end for prompt, end in texts), limit) if limit else 0

    def spans(self, texts: Sequence[tuple[str, str]]) -> list[Span]:
        """Token ids of prompts and continuations; the prompt is cut on the left where both do not fit."""
        prompts, ends = (encode(self.tokenizer, [pair[side] for pair in texts]) for side in (0, 1))
        start = self.tokenizer.bos_token_id
        start = int(self.tokenizer.eos_token_id if start is None else start)  # type: ignore[arg-type]
        limit = context_length(self.folder) or 10**9
        found = []
        for prompt, end in zip(prompts, ends, strict=True):
            end = end[: limit - 1]
            prompt = (prompt or [start])[-(limit - len(end)) :]
            found.append(Span(prompt + end, len(prompt)))
        check_ids(self.folder, (span.ids for span in found), "--perplexity_model")
        return found

    def likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Sum of nats and number of tokens of each continuation; ``(0.0, 0)`` where it has no token."""
        from ..models.likelihood import span_logprobs

        spans = self.spans(texts)
        real = [span for span in spans if span.scored]
        pad = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        values = iter(span_logprobs(self._model, real, batch_tokens=self.batch_tokens, pad_id=pad))
        return [(-float(next(values).double().sum()), span.scored) if span.scored else (0.0, 0) for span in spans]


def measure(model: LanguageModel, name: str, texts: Sequence[tuple[str, str]], journal: Journal) -> list[Likelihood]:
    """The likelihood of each continuation of a file, piece by piece; what the journal has is not computed again.
    Raises UserError if one is not finite."""
    from tqdm import tqdm

    found: list[Likelihood] = []
    with tqdm(total=len(texts), desc=f"perplexity of {name}", unit="text") as bar:
        for number, start in enumerate(range(0, len(texts), _AT_ONCE)):
            key, part = f"{name}/{number}", texts[start : start + _AT_ONCE]
            if key not in journal.done:
                values = model.likelihoods(part)
                if not all(math.isfinite(nats) for nats, _ in values):
                    raise UserError(f"--perplexity_model {model.folder} gave no finite likelihood; use another --dtype")
                journal.add(key, values)
            found += [(nats, tokens) for nats, tokens in journal.done[key]]
            bar.update(len(part))
    return found
