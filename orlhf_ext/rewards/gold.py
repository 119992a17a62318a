"""From a rollout and its gold text to the token ids whose ends are scored.

A sequence is ``prompt + z + opener + gold + closer``: the prompt and the reasoning z are the sampled ids as they are,
the three texts behind them are tokenised apart. So the scored tokens are the same for all samples of a prompt, and what
a cut takes away (the beginning of ``<answer>``) comes back with the opener.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..cli.errors import UserError
from ..files.records import load_json
from ..models.chats import ChatError, behind, render_with
from ..models.spans import Span
from ..models.texts import encode, end_of_turn, special_ids
from .base import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scored = Literal["all", "gold"]
End = Literal["none", "eot", "template"]

#: the value of a cut that takes the whole response
WHOLE = "none"


def read_gold(label: Any, where: str) -> str:
    """The gold text of a label: the text itself, or ``gold`` of a JSON object.

    Args:
        label: a record's.
        where: file and line, or the sample, for messages.

    Raises:
        UserError: there is none.
    """
    fields = label
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            fields = load_json(label)
        except ValueError:
            fields = label
    gold = fields.get("gold") if isinstance(fields, Mapping) else fields
    if not isinstance(gold, str) or not gold.strip():
        raise UserError(
            f"{where} has a label without gold text; the label is that text itself, or a JSON object with it as "
            '{"gold": "..."}'
        )
    return gold


class Reasoning(NamedTuple):
    """What a rollout wrote before its answer."""

    ids: list[int]
    #: whether the response has the marker
    marked: bool


class GoldEncoder:
    """Makes the sequences of one tokenizer.

    Args:
        tokenizer: the policy's.
        cut: the reasoning ends before the first of these in the response, behind it if it is a closing tag (``</...``);
            `WHOLE`: it is all of the response.
        opener: text behind the reasoning, not scored.
        closer: text behind the gold text.
        scored: the gold text and all that follows (``all``), or it alone.
        end: what is scored behind the closer: nothing, the token that ends a turn (``eot``), or all that the chat
            template puts behind an answer.
        context: the most tokens that the model can read; None: any number.

    Raises:
        UserError: ``end`` is ``template``, and there is no chat template, or one that changes an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        cut: str = "<answer",
        opener: str = "<answer>",
        closer: str = "</answer>",
        scored: Scored = "all",
        end: End = "none",
        context: int | None = None,
    ) -> None:
        self.tokenizer, self.context = tokenizer, context
        self._cut = cut
        self._special = special_ids(tokenizer)
        self._opener = self._encode(opener)
        self._behind = [] if scored == "gold" else self._encode(closer) + self._end(end)

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, [text])[0] if text else []

    def _end(self, how: End) -> list[int]:
        if how == "none":
            return []
        if how == "eot" and not self.tokenizer.chat_template:
            return [int(self.tokenizer.eos_token_id)]
        question, answer = {"role": "user", "content": "question"}, "answer"
        try:
            rest = behind(render_with(self.tokenizer), [question], answer)
        except ChatError as error:
            raise UserError(f"what --likelihood.end {how} asks for{error}; give none or eot") from error
        return end_of_turn(self.tokenizer, rest, whole=how == "template")

    @property
    def around(self) -> int:
        """Tokens of opener, closer and end."""
        return len(self._opener) + len(self._behind)

    def golds(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of gold texts."""
        return encode(self.tokenizer, list(texts))

    def reasoning(self, rollout: Rollout) -> Reasoning:
        """The ids of a response up to the marker, or without its end tokens where it has none.

        Text is cut, and the ids follow: all of them up to one that reaches across the cut, then the rest of the text
        in ids of its own.
        """
        ids = list(rollout.token_ids[prompt_length(rollout) :])
        while ids and ids[-1] in self._special:
            ids.pop()
        if self._cut == WHOLE:
            return Reasoning(ids, False)
        text = self._decode(ids)
        at = text.find(self._cut)
        if at < 0:
            return Reasoning(ids, False)
        return Reasoning(self._up_to(text[: at + len(self._cut) if self._cut.startswith("</") else at], ids), True)

    def _up_to(self, kept: str, ids: list[int]) -> list[int]:
        count = bisect.bisect_right(range(len(ids) + 1), len(kept), key=lambda n: len(self._decode(ids[:n]))) - 1
        while not kept.startswith(head := self._decode(ids[:count])):
            count -= 1  # a token across the cut, or the first bytes of a character
        return ids[:count] + self._encode(kept[len(head) :])

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)  # type: ignore[return-value]

    def text(self, reasoning: Reasoning) -> str:
        """The reasoning as text."""
        return self._decode(reasoning.ids)

    def span(self, rollout: Rollout, reasoning: Sequence[int], gold: Sequence[int]) -> Span:
        """The sequence of a rollout's prompt, a reasoning (empty: the baseline's) and a gold text.
        Raises UserError if the gold text has no token, or the model cannot read as many; the sample is named."""
        if not gold:
            raise UserError(f"sample {rollout.id!r} has a gold text without any token; remove the record")
        before = [*rollout.token_ids[: prompt_length(rollout)], *reasoning, *self._opener]
        span = Span([*before, *gold, *self._behind], len(before))
        if self.context is not None and len(span.ids) > self.context:
            raise UserError(
                f"sample {rollout.id!r} takes {len(span.ids)} tokens with its gold text ({len(gold)} tokens), and the "
                f"model reads {self.context}; lower --data.max_len or --rollout.max_new_tokens, or remove the record"
            )
        return span


def prompt_length(rollout: Rollout) -> int:
    """How many tokens come before the first one that the policy wrote."""
    return next((i for i, written in enumerate(rollout.action_mask) if written), len(rollout.token_ids))
