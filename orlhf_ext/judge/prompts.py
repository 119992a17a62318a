"""A prompt as it was asked, out of the text that the policy read."""

from __future__ import annotations

from collections.abc import Callable

from ..rewards.base import RewardContext


def prompt_reader(context: RewardContext) -> Callable[[str], str]:
    """What makes of a prompt, as the policy read it, the text that the judge is shown: without what the policy's chat
    template or ``--data.input_template`` puts around a question and, of other chats, without special tokens."""
    tokenizer = context.tokenizer
    around: list[tuple[str, str]] = []
    template = getattr(getattr(context.args, "data", None), "input_template", None)
    if template and "{}" in template:
        before, _, after = template.partition("{}")
        around.append((before, after))
    if tokenizer is not None and tokenizer.chat_template:
        from ..models.chats import ChatError, render_with

        mark = "orlhf-ext-question"
        try:
            before, found, after = render_with(tokenizer)([{"role": "user", "content": mark}], True).partition(mark)
            around += [(before, after)] if found else []
        except ChatError:
            pass  # prompts that it refuses never get here
    special = [] if tokenizer is None else tokenizer.all_special_tokens

    def read(prompt: str) -> str:
        for before, after in around:
            if prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after):
                inner = prompt[len(before) : len(prompt) - len(after)]
                if not any(token in inner for token in special):
                    return inner.strip()
        for token in special:
            prompt = prompt.replace(token, "")
        return prompt.strip()

    return read
