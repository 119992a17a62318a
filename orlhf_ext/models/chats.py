"""Chats as models read them: what a chat template renders, and where in it the response begins.

A template renders a question with a *generation prompt*, behind which a policy answers, and a whole *conversation*, by
which models are trained. `split_chat` is the one rule that says where the response begins, for every reader:

- the conversation begins with the generation prompt, as with most templates: the response is the rest. This is how
  OpenRLHF's data sets read all chats, without looking.
- the generation prompt goes on where the answer would begin in a conversation, as that of DeepSeek-R1, which opens a
  thought (``<think>``): then a policy's response (``sampled``) follows the generation prompt, as it does when it is
  drawn, and a reward model reads the conversation, as it was rendered in its training.
- anything else is refused: nothing says where the response begins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..cli.errors import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
#: messages, and whether a generation prompt comes last, to text
Render = Callable[[Messages, bool], str]

_QUESTION, _ANSWER = "orlhf-ext-question", "orlhf-ext-answer"  # in place of contents, to see what is put around them


class ChatError(ValueError):
    """What a chat template cannot do with a chat; the text goes on from the name of a record: ``f"{name}{error}"``."""


class Refusal(ChatError):
    """A chat template refuses the messages."""


def render_with(tokenizer: PreTrainedTokenizerBase) -> Render:
    """The tokenizer's chat template as a function.

    It raises `ChatError` where there is no template, or where the template refuses the messages.
    """
    return lambda messages, generation: render_by(tokenizer.apply_chat_template, messages, generation)


def render_by(apply_chat_template: Callable[..., Any], messages: Messages, generation: bool) -> str:
    """What a tokenizer's ``apply_chat_template`` makes of messages.
    Raises ChatError if there is no template, or it refuses the messages."""
    tokenizer = getattr(apply_chat_template, "__self__", None)
    if tokenizer is not None and not tokenizer.chat_template:
        raise ChatError(" is a chat, and the model's tokenizer has no chat template")
    try:
        return str(apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # a template is a program: it can raise anything
        raise refusal(error) from error


def refusal(error: Exception) -> Refusal:
    """The sentence for what a template raised."""
    return Refusal(f" is refused by the model's chat template ({brief(error)})")


def split_chat(render: Render, before: Messages, reply: Messages, sampled: bool) -> tuple[str, str]:
    """A conversation as the text before its response, and the response with what the template puts behind it.

    Args:
        render: the chat template.
        before: the messages up to the response; none where a model reads responses alone.
        reply: the response's message, or several.
        sampled: the text before the response is the generation prompt in any case, as for a policy; otherwise it is
            the conversation's, as for a reward model.

    Raises:
        ChatError: the template refuses the messages, or does not say where the response begins; no answer comes last.
    """
    if reply[-1].get("role") == "user":
        raise ChatError(" is a chat that ends with the user's message, not with an answer")
    prompt = render(before, True) if before else ""
    whole = render([*before, *reply], False)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    header, found, end = render([*before, {**reply[0], "content": _ANSWER}, *reply[1:]], False).partition(_ANSWER)
    question, answer = before[-1].get("content"), reply[0].get("content")
    if (
        not (isinstance(question, str) and isinstance(answer, str) and found)
        or question.strip() not in header
        or not (prompt.startswith(header) and whole.startswith(header))
        or (sampled and len(reply) > 1)
    ):
        raise ChatError(
            ": the chat template begins the conversation with another text than the prompt, so that nothing says where "
            "the response begins"
        )
    if not sampled:
        return header, whole[len(header) :]
    opening = prompt[len(header) :]
    for written in (opening, opening.strip()):  # a thought that opens in the answer, too, opens once
        if written and answer.startswith(written):
            return prompt, answer[len(written) :] + end
    return prompt, answer + end


def behind(render: Render, before: Messages, answer: str) -> str | None:
    """What a template puts behind an assistant's message; None where it does not render the text as it stands there
    (with a part for thoughts before it, for one).

    Args:
        render: the chat template.
        before: the messages before it.
        answer: its text.

    Raises:
        ChatError: the template refuses the messages.
    """
    prompt = render(before, True)
    whole = render([*before, {"role": "assistant", "content": answer}], False)
    for text in (answer, answer.strip()):  # some templates strip what they are given
        if whole.startswith(prompt + text):
            return whole[len(prompt + text) :]
    return None


def opening(render: Render) -> str:
    """What the generation prompt opens that conversations lack, such as ``<think>``; empty for most templates.

    This is also the proof that a template writes an answer once, behind its question.

    Raises:
        ChatError: it does not, refuses the two, or does not say where the response begins.
    """
    chat = [{"role": "user", "content": _QUESTION}], [{"role": "assistant", "content": _ANSWER}]
    (prompt, response), (header, _) = split_chat(render, *chat, sampled=True), split_chat(render, *chat, sampled=False)
    if prompt.count(_QUESTION) != 1 or response.count(_ANSWER) != 1:
        raise ChatError(": the chat template does not write an answer once, behind its question")
    return prompt[len(header) :]


def proven(tokenizer: PreTrainedTokenizerBase) -> Render:
    """`render_with`, after the proof of `opening`, which is made once for a template.
    Raises ChatError as `opening` does."""
    if tokenizer.chat_template:  # chats without one have an error of their own, which names them
        _prove(tokenizer, repr(tokenizer.chat_template))
    return render_with(tokenizer)


@lru_cache(maxsize=4)
def _prove(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    return opening(render_with(tokenizer))


def as_messages(text: Any, role: str) -> Messages:
    """A string as one message; messages as they are."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def is_messages(value: Any) -> bool:
    """Whether a value is a chat: a list that is not empty of ``role`` and ``content`` texts."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )
