"""From a label and a plan to token ids, and to the span of them that is scored.

A sequence is ``pre + gold + tail``: ``pre`` is the conversation as the chat template renders it with a generation
prompt, ``gold`` the gold text, ``tail`` what the template puts behind an assistant's message. The three are tokenised
apart, so that the boundary is known by count and lies at the same place of the gold text whatever the plan. Nothing is
ever cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, get_args

from ..cli.errors import UserError
from ..models.chats import ChatError, Messages, behind, render_with
from ..models.spans import Span
from ..models.texts import encode, end_of_turn
from .labels import Label, with_system
from .settings import System, Tail

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: two more tokens behind a chapter are nothing, behind a punchline they would be a fifth of what is scored
_AUTO = {"ncp": "template", "generic": "eot"}


class Encoder:
    """Makes the sequences of one tokenizer.

    Args:
        tokenizer: with a chat template.
        system: system messages are kept, left out (``drop``), or put before the first user text (``merge``).
        tail: what is scored behind the gold text: all that the template puts there (``template``), that up to the
            end-of-turn token (``eot``), nothing (``none``); ``auto``: ``template`` for next chapters, which is what
            the authors score, and ``eot`` for other conversations.
        context: the most tokens that the model can read; None: any number.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: System = "keep",
        tail: Tail = "auto",
        context: int | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template, and plans are scored in a chat; give "
                "a chat model, or put a chat_template.jinja into its folder"
            )
        if system not in get_args(System) or tail not in get_args(Tail):
            raise ValueError(f"system is one of {get_args(System)}, tail of {get_args(Tail)}, not {system!r}, {tail!r}")
        self.tokenizer = tokenizer
        self.system = system
        self.tail = tail
        self.context = context
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        texts = sorted({*tokenizer.all_special_tokens, *special} - {""}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def clean(self, text: str) -> str:
        """A plan without the texts of special tokens, which could end the user's turn; also none that their removal
        would bring together."""
        count = 1
        while count:
            text, count = self._special.subn("", text)
        return text.strip()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, no special ones added."""
        return [len(ids) for ids in encode(self.tokenizer, list(texts))]

    def encode(self, labels: Sequence[Label], plans: Sequence[str | None]) -> list[Span]:
        """The sequence of each label's gold text after its conversation with a plan; ``None``: the baseline's.

        Raises:
            UserError: the template refuses a conversation, a gold text has no token, or a sequence is longer than the
                model's context; the record is named.
        """
        before = encode(
            self.tokenizer,
            [
                self._render(label, self._messages(label, plan), generation=True)
                for label, plan in zip(labels, plans, strict=True)
            ],
        )
        unique = {(label.id, label.gold): label for label in labels}  # the plans of a prompt have one gold text
        golds = encode(self.tokenizer, [label.gold for label in unique.values()])
        scored = {key: ids + self._tail(label, ids) for (key, label), ids in zip(unique.items(), golds, strict=True)}
        spans = [Span(ids + scored[label.id, label.gold], len(ids)) for label, ids in zip(labels, before, strict=True)]
        for label, plan, span in zip(labels, plans, spans, strict=True):
            self._check(label, plan, span)
        return spans

    def check_room(self, labels: Sequence[Label], plan_tokens: Sequence[int], flag: str) -> None:
        """Make sure that a plan of so many tokens has room in the sequence of each label.

        Args:
            labels: of records.
            plan_tokens: the longest plan of each.
            flag: what these follow from, for messages.

        Raises:
            UserError: as `encode`, or a plan has no room; the record is named.
        """
        if self.context is None:
            return
        spans = self.encode(labels, ["-"] * len(labels))
        for label, span, tokens in zip(labels, spans, plan_tokens, strict=True):
            if len(span.ids) - 1 + tokens > self.context:
                raise UserError(
                    f"{label.name} takes {len(span.ids) - 1} tokens without its plan, and leaves no room for {flag} "
                    f"{tokens} in the {self.context} that the model reads; lower it, or leave longer records out with "
                    f"build_data story --tokenizer DIR --max_tokens {self.context - tokens}"
                )

    def _check(self, label: Label, plan: str | None, span: Span) -> None:
        if self.context is None or len(span.ids) <= self.context:
            return
        what = f"its gold text ({span.scored} tokens) and "
        what += "its conversation" if plan is None else "its conversation with a plan"
        way_out = (
            "leave such records out with build_data story --tokenizer DIR --max_tokens N"
            if plan is None
            else "generate fewer tokens, or leave out longer records with build_data story --tokenizer DIR "
            "--max_tokens N, N by a plan's length below the context"
        )
        raise UserError(
            f"{label.name} takes {len(span.ids)} tokens with {what}, and the model reads {self.context}; {way_out}"
        )

    def _messages(self, label: Label, plan: str | None) -> Messages:
        return with_system(label.messages(plan), self.system)

    def _tail(self, label: Label, gold: list[int]) -> list[int]:
        """What is scored behind the gold text."""
        if not gold:
            raise UserError(f"{label.name} has a gold text without any token; remove the record")
        how = _AUTO[label.adapter] if self.tail == "auto" else self.tail
        if how == "none":
            return []
        rest = behind(partial(self._render, label), self._messages(label, None), label.gold)
        return end_of_turn(self.tokenizer, rest, whole=how == "template")

    def _render(self, label: Label, messages: Messages, generation: bool) -> str:
        try:
            return render_with(self.tokenizer)(messages, generation)
        except ChatError as error:
            lacks = any(message["role"] == "system" for message in messages)
            way_out = "give --vrcli.system merge or drop" if lacks else "change its messages"
            raise UserError(f"{label.name}{error}; {way_out}") from error
