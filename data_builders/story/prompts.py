"""The prompts of likelihood rewards: what the policy reads, and what the gold text is scored after.

The frozen model scores the gold text after the same conversation twice, without a plan and with one. Both are kept as
one list of messages and one *splice*: the place in one message where the plan goes, with the words around it, see
`orlhf_ext.vrcli.labels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orlhf_ext.files.built import Reject
from orlhf_ext.models.chats import is_messages
from orlhf_ext.vrcli.labels import Adapter, make_fields, make_splice, with_system

from ..common import Messages

PLAN_GENERIC = (
    "Do not answer yet. First think, step by step, about what a very good answer would contain. End with one paragraph "
    'that starts with "In summary:" and tells in detail what the answer should say.'
)
PLAN_CHAPTER = (
    "Plan the next chapter; do not write it. Work step by step: take one piece of the information above, quote or "
    "restate it inside <citation></citation> tags with the name of the section that it comes from, and then work out "
    "inside <reasoning></reasoning> tags what it means for the next chapter. Give as many such pairs as the plan "
    'needs. End with one detailed paragraph that starts with "In summary:" and tells what happens in the next chapter, '
    "in order."
)
PLAN_BOOK = (
    "Plan how the next chapter begins; do not write it. Think in a few sentences about what the characters want, and "
    "what is likely to happen next: who does what, where, and what comes of it. End with one paragraph that starts "
    'with "In summary:" and tells in detail how the next chapter begins.'
)
WRITE_CHAPTER = "Write the next chapter of the story from the information above. {start}"
WRITE_PLANNED = "Write the next chapter of the story from the information and the preliminary thoughts above. {start}"
WRITE_BOOK = "Write the beginning of the next chapter of the story, from its first sentence on."
SYSTEM = "You help a novelist to plan stories and to write them."

LEAD_GENERIC = "\n\nThoughts on what the answer should say:\n"
LEAD_CHAPTER = "\n\n### Detailed Plan for the Next Chapter: ###\n"
INSTRUCTIONS = "\n\n### Instructions: ###\n"

#: the inputs of a next chapter in their order: field, heading, and its name in the preamble
SECTIONS = (
    ("high_level_plot_summary", "Summary of the Whole Story", "a summary of the whole story"),
    ("prior_plot_summary", "Summary of the Chapters So Far", "a summary of the chapters so far"),
    ("character_sheets", "Character Sheets", "character sheets"),
    ("story_text", "Previous Chapters", "the chapters before the next one"),
    ("text_before", "The Story So Far (Its Last Part)", "the last part of the story so far"),
    ("next_chapter_synopsis", "Next Chapter Synopsis", "a synopsis of the next chapter"),
    ("next_chapter_header", "Next Chapter Header", "the header of the next chapter"),
)

NOT_CHAT = Reject("messages that are not a list of role and content texts", bad=True)
NO_GOLD = Reject("the last message is not an assistant's text", bad=True)
NO_USER = Reject("the message before the last is not the user's", bad=True)
NO_CHAPTER = Reject("next_chapter is not a text", bad=True)
NO_INPUTS = Reject("nothing that comes before the next chapter", bad=True)
NOT_TEXT = Reject("a field of the next chapter that is not text", bad=True)
LEAK = Reject("the gold text stands in the prompt", bad=True)
IMAGE = Reject("an image in the prompt, and likelihood rewards read text only", bad=True)


class Task(NamedTuple):
    """One prompt with its gold text. ``messages`` and ``plan`` are those of the label, see `orlhf_ext.vrcli.labels`."""

    adapter: Adapter
    prompt: Messages
    gold: str
    messages: Messages
    plan: dict[str, Any]

    def label(self, name: str) -> dict[str, Any]:
        """The label's fields, before they become JSON."""
        return make_fields(name, self.adapter, self.gold, self.messages, self.plan)


def from_messages(record: Mapping[str, Any], system: str, instruction: str | None) -> Task | Reject:
    """The task of a conversation whose last message is the gold text (``generic``).

    The policy reads the conversation without its last message, with ``instruction`` at the end of the user's message.
    """
    messages = record["messages"]
    if record.get("images") or record.get("image") or _has_image(messages):
        return IMAGE
    if not is_messages(messages):
        return NOT_CHAT
    *before, last = ({"role": message["role"], "content": message["content"]} for message in messages)
    if last["role"] != "assistant" or not last["content"].strip():
        return NO_GOLD
    before = with_system(before, system)
    if not before or before[-1]["role"] != "user":
        return NO_USER
    *first, user = before
    content = user["content"]
    prompt = [*first, {"role": "user", "content": f"{content}\n\n{instruction or PLAN_GENERIC}"}]
    splice = make_splice(before, len(content), len(content), LEAD_GENERIC)
    return _checked(Task("generic", prompt, last["content"], before, splice))


def from_chapter(
    record: Mapping[str, Any], system: str, instruction: str | None, same: bool = False, book: bool = False
) -> Task | Reject:
    """The task of a next chapter (``ncp``), from the fields of ``SECTIONS`` that are there, and ``next_chapter``.

    Args:
        record: the fields.
        system: what to do with the system message, see `with_system`.
        instruction: what asks the policy for a plan, instead of the usual words.
        same: the words that ask for the chapter are the same without a plan and with one, so that no plan means no
            change at all (the authors' differ).
        book: the gold text is the beginning of a chapter, without its heading.
    """
    gold = record["next_chapter"]
    if not isinstance(gold, str) or not gold.strip():
        return NO_CHAPTER
    inputs = _inputs(record)
    if isinstance(inputs, Reject):
        return inputs
    head = f"Here is a story in the making. You are given {_listed([phrase for _, phrase, _ in inputs])}."
    head += "".join(f"\n\n### {heading}: ###\n{text}" for heading, _, text in inputs)
    start = "Start with its header." if any(name == SECTIONS[-1][1] for name, *_ in inputs) else "Start with its text."
    ask = INSTRUCTIONS + (WRITE_BOOK if book else WRITE_CHAPTER.format(start=start))
    planned = INSTRUCTIONS + WRITE_PLANNED.format(start=start)
    wanted = INSTRUCTIONS + (instruction or (PLAN_BOOK if book else PLAN_CHAPTER))

    def conversation(content: str) -> Messages:
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        return with_system(chat, system)

    messages = conversation(head + ask)
    place = len(messages[-1]["content"]) - len(ask)
    if same or book:
        splice = make_splice(messages, place, place, LEAD_CHAPTER)
    else:
        splice = make_splice(messages, place, place + len(ask), LEAD_CHAPTER, planned, planned)
    return _checked(Task("ncp", conversation(head + wanted), gold, messages, splice))


def _inputs(record: Mapping[str, Any]) -> list[tuple[str, str, str]] | Reject:
    """Heading, name and text of each input that is there. The header alone is none."""
    found = []
    for field, heading, phrase in SECTIONS:
        value = record.get(field)
        if field == "character_sheets" and isinstance(value, Mapping):
            if not all(isinstance(sheet, str | None) for sheet in value.values()):
                return NOT_TEXT
            # a column of structs has every name of the data set, the absent ones without a text
            value = "\n\n".join(f"{name}:\n{sheet.strip()}" for name, sheet in value.items() if (sheet or "").strip())
        if not isinstance(value, str | None):
            return NOT_TEXT
        if value and value.strip():
            found.append((heading, phrase, value.strip()))
    return found if any(heading != SECTIONS[-1][1] for heading, *_ in found) else NO_INPUTS


def _listed(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def _checked(task: Task) -> Task | Reject:
    """The task, unless its prompt gives the gold text away or asks for an image."""
    texts = [message["content"] for message in (*task.prompt, *task.messages)]
    if any("<image>" in text for text in texts):
        return IMAGE
    gold = " ".join(task.gold.split())
    return LEAK if any(gold in " ".join(text.split()) for text in texts) else task


def _has_image(messages: Any) -> bool:
    if not isinstance(messages, list):
        return False
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and str(part.get("type", "")).startswith("image") for part in parts)
