"""Lengths in tokens, counted with the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Reject
from orlhf_ext.files.records import read_object
from orlhf_ext.models.chats import refusal

from .common import Messages, fetch, looks_like_hub_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
#: OpenRLHF ends a text with a space and the end token
END_TOKENS = 2
TEMPLATE = Reject("refused by the chat template")
#: parts of a row, as a sidecar's counts name them
PROMPT_CUT, RESPONSES_CUT = "prompts", "responses"


def read_tokenizer(spec: str, files: Sequence[str] = FILES) -> tuple[Tokenizer, Path]:
    """A tokenizer and its file, without truncation and padding.

    Args:
        spec: a folder with a ``tokenizer.json``, that file, or a hub name.
        files: what to fetch from the hub.

    Raises:
        UserError: no tokenizer there, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = Path(spec)
    if not path.exists() and looks_like_hub_name(spec):
        path = fetch(spec, files, "model")
    file = path / FILES[0] if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"--tokenizer: {file} does not exist; give a folder with a {FILES[0]}, that file, or a hub name"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"--tokenizer: {file} is not a {FILES[0]} that can be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, file


class LengthFilter:
    """Rejects pairs that are too long for a model, or cuts them.

    Args:
        spec: a folder with a ``tokenizer.json``, that file, or a hub name.
        max_prompt_tokens: the longest prompt that is kept; ``None`` for any.
        max_tokens: the longest prompt with its longer response, end token included; ``None`` for any.

    Raises:
        UserError: no tokenizer there, or it cannot be read.
    """

    def __init__(self, spec: str, max_prompt_tokens: int | None, max_tokens: int | None) -> None:
        self.tokenizer, file = read_tokenizer(spec)
        self.files = [path for name in FILES if (path := file.with_name(name)).is_file()]
        self.spec = spec
        self.max_prompt_tokens = max_prompt_tokens
        self.max_tokens = max_tokens

    def __call__(self, prompt: str, texts: Sequence[str]) -> Reject | None:
        """Why a prompt with its responses is too long, if it is. ``texts`` are the whole texts, prompt included."""
        return self.fault(
            self.count(prompt) if self.max_prompt_tokens else 0,
            max(map(self.count, texts)) + END_TOKENS if self.max_tokens else 0,
        )

    def fault(self, prompt: int, whole: int) -> Reject | None:
        """Why a prompt of so many tokens, or a row of so many, is too long, if it is."""
        if self.max_prompt_tokens and prompt > self.max_prompt_tokens:
            return Reject(f"prompt longer than {self.max_prompt_tokens} tokens")
        if self.max_tokens and whole > self.max_tokens:
            return Reject(f"longer than {self.max_tokens} tokens")
        return None

    def cut(self, prompt: str, responses: Sequence[str]) -> tuple[str, list[str]]:
        """A row with its prompt cut on the left, and its responses on the right, as EXO's authors cut theirs.

        A prompt may have ``max_prompt_tokens``, and a response what these leave of ``max_tokens``, its end included. A
        prompt for which there is no room comes out empty.
        """
        assert self.max_prompt_tokens is not None
        most = self.max_prompt_tokens
        if self.max_tokens is None:
            return self._cut(prompt, most, last=True), list(responses)
        room = self.max_tokens - END_TOKENS
        kept = [self._cut(text, room - most, last=False) for text in responses]
        short = self._cut(prompt, most, last=True)
        # Prompt and response joined can have a token more than they have apart.
        while short and (over := max(self.count(short + text) for text in kept) - room) > 0:
            most -= over
            short = self._cut(prompt, most, last=True)
        return short, kept

    def _cut(self, text: str, most: int, last: bool) -> str:
        """The longest end (``last``) or beginning of a text, from or to a token's border, of ``most`` tokens."""
        if most < 1:
            return ""
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        for number in range(most, 0, -1):
            if number >= len(offsets):
                return text
            part = text[offsets[-number][0] :] if last else text[: offsets[number - 1][1]]
            if self.count(part) <= most:  # a part of a character, or of a word, can have more tokens by itself
                return part
        return ""

    def count(self, text: str) -> int:
        """Tokens of a text, no special ones added."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def chat_template(self, remedy: str = "use --format hh, or another tokenizer") -> Callable[[Messages, bool], str]:
        """A function ``(messages, add_generation_prompt) -> text`` that renders the tokenizer's own chat template.

        transformers' ``apply_chat_template`` is not used because a builder loads no transformers; the sandbox and its
        options are the same.

        The function raises `Refusal` where the template refuses messages.

        Raises:
            UserError: the tokenizer has no chat template, or an invalid one.
        """
        import datetime

        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        file = next((path for path in self.files if path.name == FILES[2]), None)
        template = file.read_text(encoding="utf-8") if file else self.config.get("chat_template")
        if isinstance(template, list):  # several templates with names
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not template:
            raise UserError(f"--tokenizer: {self.spec} has no chat template; {remedy}")

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            compiled = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise UserError(f"--tokenizer: the chat template of {self.spec} is not valid ({error})") from error
        special = {name: self.special_token(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}

        def render(messages: Messages, add_generation_prompt: bool) -> str:
            try:
                return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **special)
            except Exception as error:  # a template is a program: it can raise anything
                raise refusal(error) from error

        return render

    @cached_property
    def config(self) -> dict[str, Any]:
        """The tokenizer's configuration; empty without one."""
        file = next((path for path in self.files if path.name == FILES[1]), None)
        return read_object(file, "fix it, or give another --tokenizer") if file else {}

    def special_token(self, name: str) -> str:
        """The text of a special token such as ``eos_token``; empty if the configuration has none."""
        token = self.config.get(name) or ""
        return str(token.get("content") or "") if isinstance(token, dict) else str(token)
