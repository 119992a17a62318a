"""What a model reads of a dialogue: one rendering, for data, reward training, RL and evaluation alike.

A *style* turns messages into the text of a prompt, once, when data are built; from then on a prompt is text, and
prompt, completion and end are joined in one way only, that of `encode`. The style and the policy for the end token
are kept in a reward model's config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..models.head_settings import STYLES, Eos, Style
from ..models.texts import Whole, encode_whole, with_end_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_HH = {"user": "Human", "assistant": "Assistant"}
_INDENT = "    "


def prompt_text(
    messages: Sequence[dict[str, str]], style: Style, template: Callable[[Any, bool], str] | None = None
) -> str:
    r"""The text after which the model is to answer.

    Args:
        messages: ``{"role", "content"}`` each, the last one not the assistant's.
        style: ``hh``: ``\n\nHuman: ...\n\nAssistant:``; ``legacy``: the indented tags of SharedRep's own scripts;
            ``chat``: the chat template.
        template: for ``chat``, ``(messages, add_generation_prompt) -> text``.

    Raises:
        ValueError: ``chat`` without a template, or another style than these three.
    """
    if style == "chat":
        if template is None:
            raise ValueError("style chat needs a chat template")
        return template(list(messages), True)
    if style == "legacy":
        turns = (f"{_INDENT}<|{m['role']}|>\n{_INDENT}{m['content']}</s>\n" for m in messages)
        return "".join(turns) + f"{_INDENT}<|assistant|>\n{_INDENT}"
    if style == "hh":
        return "".join(f"\n\n{_HH.get(m['role'], 'Human')}: {m['content']}" for m in messages) + "\n\nAssistant:"
    raise ValueError(f"style {style!r} is none of {', '.join(STYLES)}")


def answer_text(answer: str, style: Style) -> str:
    """An answer as it follows `prompt_text`: in ``hh`` a space comes first."""
    return f" {answer.strip()}" if style == "hh" else answer.strip()


def whole_text(prompt: str, completion: str, eos: Eos, eos_token: str) -> str:
    """Prompt, completion and end, as a reward model of groups reads them.

    White space at the end of a completion goes. Unlike `texts.whole_text`, a prompt before an empty completion keeps
    the newlines that it ends with, because its style wrote them.
    """
    text = prompt + completion.rstrip()
    return with_end_text(text, eos_token) if eos == "append" else text


def encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], eos: Eos, max_len: int) -> list[Whole]:
    """Token ids of ``(prompt, completion)`` pairs, cut on the left to ``max_len``, so that the answer survives.

    With ``append`` the last id is EOS in any case.
    """
    texts = [whole_text(prompt, completion, eos, str(tokenizer.eos_token)) for prompt, completion in pairs]
    return encode_whole(tokenizer, texts, max_len, "left", end=eos == "append")
