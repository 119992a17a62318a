"""Judging inputs with their answers, as a model reads them: checked, and cut, with the model's own tokenizer.

OpenRLHF's `SFTDataset` tokenises an input alone and again with its answer, and trains the tokens of the second that
follow the number of the first. So the tokens of the input must begin those of both: that is checked for each row.
It appends a space and EOS unless the text ends with EOS: so an answer ends with EOS here, where no chat template ends
it, and a model learns to stop right behind the letter.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Reject
from orlhf_ext.files.records import Record
from orlhf_ext.litbench.prompts import DIRECT, LABELS, REASONED, REASONING, Label, answer, judging_input, marked
from orlhf_ext.models.chats import ChatError, Refusal, split_chat
from orlhf_ext.models.texts import with_end_text

from ..lengths import TEMPLATE, LengthFilter

T = TypeVar("T")

#: pairs that are tokenised at once
BATCH = 64
#: a story is cut to no fewer tokens
MIN_STORY_TOKENS = 32
#: `SFTDataset` leaves out inputs that leave no more tokens than this for an answer
ROOM = 2
NO_PREFIX = Reject("tokens of the input that do not begin those of input and answer", bad=True)
NO_ROOM = Reject("longer than --max_len, even with its stories cut")


class Task(NamedTuple):
    """Two stories in the order in which they are shown, and the answer."""

    prompt: str
    stories: tuple[str, str]
    label: Label
    rationale: str | None = None


class Fitted(NamedTuple):
    """The text of a task's input and of its answer; ``cut``: whether a story is not whole."""

    input: str
    completion: str
    cut: bool = False


class Fitter:
    """Renders tasks in a style, and makes them fit.

    Args:
        args: the options of `rationales.add_arguments`.

    Raises:
        UserError: the tokenizer cannot be read, has no end token, or (in chat style) no chat template, or it joins
            input and answer.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.lengths = LengthFilter(args.tokenizer, None, None) if args.tokenizer else None
        self.render = self.lengths.chat_template() if self.lengths and args.style == "chat" else None
        self.eos = self._eos() if self.lengths else ""
        #: what is between the marker and the answer: in the input, in the completion
        self.gap = ("", "") if args.style == "chat" else ("\n", "")
        self.block = REASONED if args.use_cot else DIRECT
        if self.lengths and args.style == "marker":
            self.gap = self._find_gap()

    def __call__(self, groups: Iterable[tuple[T, list[Task]]]) -> Iterator[tuple[T, list[Task], list[Fitted] | Reject]]:
        """For each group of tasks (the orders of one pair) their texts, cut alike, or why they cannot be used."""
        groups = iter(groups)
        while batch := list(islice(groups, BATCH)):
            texts = [[self.text(task) for task in tasks] for _, tasks in batch]
            over = iter(self.measure([text for some in texts for text in some]))
            for (key, tasks), some in zip(batch, texts, strict=True):
                yield key, tasks, self._fit(tasks, some, [next(over) for _ in some])

    def text(self, task: Task, stories: Sequence[str] | None = None) -> Fitted:
        """The texts of a task; ``stories`` replace its own ones, where these are cut."""
        first, second = stories or task.stories
        shown = task.prompt if self.args.show_prompt else None
        text = judging_input(first, second, shown, self.args.use_cot, self.args.template)
        if self.args.style == "marker":
            text = marked(text) + self.gap[0]
        return Fitted(text, self.completion(task.label, task.rationale), stories is not None)

    def completion(self, label: Label, rationale: str | None = None) -> str:
        """The text of an answer; in marker style with the end token, if there is a tokenizer."""
        end = self.eos if self.args.style == "marker" else ""
        return self.gap[1] + answer(label, rationale) + end

    def measure(self, texts: Sequence[Fitted]) -> list[int | Reject]:
        """How many tokens each is too long (0 or less if it fits), or why it cannot be used."""
        if not self.lengths:
            return [0] * len(texts)
        rendered = [self._as_trained(one) for one in texts]
        found = [pair if isinstance(pair, Reject) else self._over(*pair) for pair in rendered]
        unsure = [place for place, number in enumerate(found) if isinstance(number, int) and number > 0]
        wholes = [pair[0] for place in unsure if not isinstance(pair := rendered[place], Reject)]
        for place, text, encoded in zip(unsure, wholes, self._encode(wholes), strict=True):
            found[place] += len(encoded) - len(text.encode())  # type: ignore[operator]
        return found

    def _over(self, before: str, both: str) -> int | Reject:
        """How much an input and its answer are too long if each byte of the input is a token, and there are no more.

        Tokens are compared from the format block on: in front of it the two texts are the same, and no token there
        depends on what comes after the block.
        """
        if not both.startswith(before):
            return NO_PREFIX
        start = max(0, before.rfind(self.block))
        first, second = self._encode([before[start:], both[start:]])
        if second[: len(first)] != first or len(second) == len(first):
            return NO_PREFIX
        room = max(len(second) - len(first), ROOM + 1, self.args.answer_tokens or 0)
        return len(before.encode()) + room - self.args.max_len if self.args.max_len else 0

    def _encode(self, texts: list[str]) -> list[list[int]]:
        assert self.lengths
        return [one.ids for one in self.lengths.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def details(self) -> Record:
        """What a sidecar says about the texts."""
        args = self.args
        said: Record = {"style": args.style, "use_cot": args.use_cot, "template": args.template}
        said["answer_ends_with"] = "what SFTDataset appends: a space and the end token"
        if not self.lengths:
            return said
        if args.style == "marker":
            said["answer_ends_with"] = self.eos
            said["marker_line_break"] = "in the input" if self.gap[0] else "in the answer"
        else:
            rendered = self._rendered(Fitted("-", "-"))
            if not isinstance(rendered, Reject) and rendered[1].rstrip("\n").endswith(self.eos):
                said["answer_ends_with"] = f"{self.eos}, of the chat template"
        return said

    def _fit(self, tasks: list[Task], texts: list[Fitted], over: list[int | Reject]) -> list[Fitted] | Reject:
        """The texts, with stories cut until all fit.

        Both stories are cut to the same number of tokens; what a shorter one does not need the other may have.
        """
        stories = [story.strip() for story in tasks[0].stories]
        ends: list[list[int]] = []
        budget = 0
        while True:
            for fault in over:
                if isinstance(fault, Reject):
                    return fault
            too_many = max(number for number in over if isinstance(number, int))
            if too_many <= 0 or not self.lengths:
                return texts
            if not ends:
                ends = [
                    [end for _, end in self.lengths.tokenizer.encode(story, add_special_tokens=False).offsets]
                    for story in stories
                ]
                budget = sum(map(len, ends))
            budget -= too_many
            shorter = min(map(len, ends))
            most = max(budget // 2, budget - shorter)
            if most < MIN_STORY_TOKENS:
                return NO_ROOM
            short = [cut(story, places, most) for story, places in zip(stories, ends, strict=True)]
            # the other orders have the same two stories
            by_story = dict(zip(tasks[0].stories, short, strict=True))
            texts = [self.text(task, [by_story[story] for story in task.stories]) for task in tasks]
            over = self.measure(texts)

    def _as_trained(self, text: Fitted) -> tuple[str, str] | Reject:
        """Input and whole text as `SFTDataset` makes them."""
        before, both = text.input, text.input + text.completion
        if self.args.style == "chat":
            rendered = self._rendered(text)
            if isinstance(rendered, Reject):
                return rendered
            before, both = rendered
        return before, with_end_text(both.rstrip("\n"), self.eos)

    def _rendered(self, text: Fitted) -> tuple[str, str] | Reject:
        """Input, and input with answer, by the chat template, as a judge is trained and prompted."""
        turns = [{"role": "user", "content": text.input}, {"role": "assistant", "content": text.completion}]
        assert self.render
        try:
            before, reply = split_chat(self.render, turns[:1], turns[1:], sampled=True)
        except Refusal:
            return TEMPLATE
        except ChatError:
            return NO_PREFIX
        return before, before + reply

    def _eos(self) -> str:
        """The tokenizer's end token."""
        assert self.lengths
        if token := self.lengths.special_token("eos_token"):
            return token
        raise UserError(
            f"--tokenizer: {self.lengths.spec} has no tokenizer_config.json with an eos_token; name a model folder"
        )

    def _find_gap(self) -> tuple[str, str]:
        """Where the line break behind the marker goes so that no token reaches over the end of the input.

        Raises:
            UserError: neither place will do.
        """
        starts = [answer(label) for label in LABELS] + [REASONING + "It"]
        for self.gap in (("\n", ""), ("", "\n")):
            before = marked(self.block) + self.gap[0]
            over = self.measure([Fitted(before, self.gap[1] + start + self.eos) for start in starts])
            if NO_PREFIX not in over:
                return self.gap
        raise UserError(
            f"--tokenizer: {self.args.tokenizer} makes one token of an input's end and its answer's beginning; "
            "use --style chat, or another tokenizer"
        )


def cut(story: str, ends: Sequence[int], most: int) -> str:
    """The first ``most`` tokens of a story, less a word that would be halved.

    Args:
        story: the text.
        ends: where each of its tokens ends.
        most: at least 1.
    """
    if len(ends) <= most:
        return story
    end = ends[most - 1]
    piece = story[:end]
    if not story[end : end + 1].isspace() and len(words := piece.rsplit(None, 1)) > 1:
        piece = words[0]
    return piece.rstrip()
