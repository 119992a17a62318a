"""What a model reads of a dialogue: one rendering, for data, reward training, RL and evaluation alike.

A *style* turns messages into the text of a prompt, once, when data are built; from then on a prompt is text, and
prompt, completion and end stand together in one way only, that of `encode`. The style and the policy for the end token
are kept in a reward model's config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..models.head_settings import STYLES, Eos, Style
from ..models.texts import encode as tokens
from ..models.texts import with_end_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_HH = {"user": "Human", "assistant": "Assistant"}
_INDENT = "    "


class Encoded(NamedTuple):
    """A prompt with its completion as token ids."""

    ids: list[int]
    #: whether it was cut, on the left
    cut: bool
    #: whether nothing of the prompt is left
    prompt_lost: bool


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
    """An answer as it stands behind `prompt_text`: in ``hh`` a space comes first."""
    return f" {answer.strip()}" if style == "hh" else answer.strip()


def whole_text(prompt: str, completion: str, eos: Eos, eos_token: str) -> str:
    """Prompt, completion and end, as a reward model reads them. White space at the end of a completion goes."""
    text = prompt + completion.rstrip()
    return with_end_text(text, eos_token) if eos == "append" else text


def encode(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    eos: Eos,
    max_len: int,
) -> list[Encoded]:
    """Token ids of ``(prompt, completion)`` pairs, cut on the left to ``max_len``, so that the answer survives.

    With ``append`` the last id is EOS in any case.
    """
    if not pairs:
        return []
    texts = [whole_text(prompt, completion, eos, str(tokenizer.eos_token)) for prompt, completion in pairs]
    found = tokens(tokenizer, texts)
    bare = tokens(tokenizer, [prompt or " " for prompt, _ in pairs])
    encoded = []
    for ids, prompt_ids in zip(found, bare, strict=True):
        cut = len(ids) - max_len
        kept = ids[-max_len:]
        if eos == "append":
            kept = [*kept[:-1], int(tokenizer.eos_token_id)]  # type: ignore[arg-type]
        encoded.append(Encoded(kept, cut > 0, cut >= len(prompt_ids)))
    return encoded
