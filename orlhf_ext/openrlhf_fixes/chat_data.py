"""OpenRLHF's data sets: how they read chats, and what they cut and leave out.

They cut a conversation at the length of its prompt whether it begins with it or not. Their ``preprocess_data`` gives
what `chats.split_chat` finds instead, or one sentence about the record that cannot be read; `check_chats` reads the
local files of a run in this way before a model is loaded. Where a conversation begins with its prompt, nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..cli.errors import UserError
from ..extensions.inject import first_process, say
from ..models.chats import ChatError, Messages, Render, as_messages, proven, render_by, split_chat

REMEDY = "change its messages, or take a model with another chat template"
REMEDY_FLAG = "change its messages, or give another template with --data.tokenizer_chat_template"


def pair_texts(
    render: Render, record: Mapping[str, Any], prompt_key: str | None, chosen_key: str, rejected_key: str, sampled: bool
) -> tuple[str, str, str]:
    """Prompt, chosen and rejected response of a pair, as `RewardDataset` takes them.

    Without ``prompt_key`` the two are whole conversations; a reward model (not ``sampled``) reads them as they are.

    Raises:
        ChatError: as `split_chat`; something is not a list of messages, or the two sides have different prompts.
    """
    sides = [_messages(record, key) for key in (chosen_key, rejected_key)]
    if prompt_key:
        before = [_messages(record, prompt_key)] * 2
    elif sampled:
        before, sides = [side[:-1] for side in sides], [side[-1:] for side in sides]
        if before[0] != before[1]:
            raise ChatError(f" has another conversation before the answer in {chosen_key!r} than in {rejected_key!r}")
    else:
        before = [[], []]
    (prompt, chosen), (_, rejected) = (split_chat(render, *two, sampled) for two in zip(before, sides, strict=True))
    return prompt, chosen, rejected


def sft_texts(
    render: Render, record: Mapping[str, Any], input_key: str, output_key: str | None, multiturn: bool
) -> tuple[str, str]:
    """Prompt and response, as `SFTDataset` takes them.

    Raises:
        ChatError: as `split_chat`; something is neither messages nor (both) text; with ``multiturn``, a turn is
            rendered otherwise where more turns follow.
    """
    if not output_key:
        chat = _messages(record, input_key)
        before, reply = chat[:-1], chat[-1:]
    elif all(isinstance(record.get(key), str) for key in (input_key, output_key)):
        before, reply = as_messages(record[input_key], "user"), as_messages(record[output_key], "assistant")
    else:
        before, reply = _messages(record, input_key), _messages(record, output_key)
    prompt, response = split_chat(render, before, reply, sampled=True)
    if multiturn:
        _check_turns(render, [*before, *reply], prompt + response)
    return prompt, response


def _check_turns(render: Render, chat: Messages, whole: str) -> None:
    """Each answer must be in the whole conversation where it is when it is the last one."""
    for place, message in enumerate(chat):
        if message.get("role") == "assistant":
            turn = render(chat[: place + 1], False)
            if not (whole.startswith(turn) and turn.startswith(render(chat[:place], True))):
                raise ChatError(
                    f": the chat template renders message {place + 1} otherwise when more messages follow (without its "
                    "thoughts, for one), so that --data.multiturn would train on other tokens than the answers"
                )


def _messages(record: Mapping[str, Any], key: str) -> Messages:
    value = record.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ChatError(f" has no messages in {key!r}, which --data.apply_chat_template needs")
    return value


def template_of(args: SimpleNamespace, role: str = "model") -> Render:
    """The chat template that a launcher will use, proven.

    Args:
        args: the launcher's nested arguments.
        role: whose tokenizer it is, ``model`` or ``actor``.

    Raises:
        UserError: the tokenizer cannot be read, has no chat template, or one that `chats.opening` refuses.
    """
    from ..models.folder import load_tokenizer

    model, flag = getattr(args, role).model_name_or_path, f"--{role}.model_name_or_path"
    tokenizer = load_tokenizer(Path(model).expanduser(), flag)
    if template := getattr(args.data, "tokenizer_chat_template", None):
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        way_out = "" if role == "actor" else "give one with --data.tokenizer_chat_template, or "
        raise UserError(
            f"{flag} {model} has no chat template, which --data.apply_chat_template needs; {way_out}take a chat model"
        )
    return with_name(f"{flag} {model}", REMEDY if role == "actor" else REMEDY_FLAG, proven, tokenizer)


def check_chats(launcher: str, args: SimpleNamespace) -> None:
    """Render every record of a run's local files as its data set will, in one process of the run.
    Raises UserError as `template_of` does, or if a record cannot be used; file and line are named."""
    data: Any = getattr(args, "data", None)
    if not getattr(data, "apply_chat_template", False) or not first_process():
        return
    from ..files.sources import run_records

    on_ray = launcher == "train_ppo_ray"
    render = template_of(args, "actor" if on_ray else "model")
    read, remedy = _reader(launcher, args), REMEDY if on_ray else REMEDY_FLAG
    for _, line in run_records(args):
        with_name(line.where, remedy, read, render, line.record)


def _reader(launcher: str, args: SimpleNamespace) -> Callable[[Render, Mapping[str, Any]], Any]:
    """What a launcher's data set reads of a record."""
    data = args.data
    if launcher == "train_ppo_ray":
        return lambda render, record: render(as_messages(record.get(data.input_key), "user"), True)
    if launcher == "train_sft":
        return lambda render, record: sft_texts(render, record, data.input_key, data.output_key, data.multiturn)
    keys = (data.prompt_key, data.chosen_key, data.rejected_key)
    return lambda render, record: pair_texts(render, record, *keys, launcher == "train_dpo")


def with_name(name: str, remedy: str, read: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and give what a template cannot do the name of its record.
    Raises UserError if the function raised `ChatError`."""
    try:
        return read(*args)
    except ChatError as error:
        raise UserError(f"{name}{error}; {remedy}") from error


def _name(record: Mapping[str, Any]) -> str:
    identifier = record.get("id")
    return (
        f"the record {identifier!r}" if identifier is not None else f"the record that begins {str(dict(record))[:80]}"
    )


def _report_cuts(cls: Any, texts: Callable[[Any], Iterator[str]]) -> None:
    """A data set of this class says how many records it leaves out, and how many texts it will cut."""
    original = cls.__init__

    @functools.wraps(original)
    def __init__(
        self: Any, dataset: Any, tokenizer: Any, max_length: int, strategy: Any, *args: Any, **words: Any
    ) -> None:
        original(self, dataset, tokenizer, max_length, strategy, *args, **words)
        if type(self) is cls:  # subclasses read in their own way
            report_cuts(len(dataset), len(self), tokenizer, texts(self), max_length)

    cls.__init__ = __init__


def report_cuts(records: int, kept: int, tokenizer: Any, texts: Iterable[str], max_len: int) -> None:
    """Print, in one process of the run, how many records a data set leaves out and how many texts it cuts, if any."""
    from ..models.texts import count_cut

    if not first_process():
        return
    if records > kept:
        say(
            f"{records - kept} of {records} records are left out: nothing to learn fits into --data.max_len {max_len} "
            "behind their prompt"
        )
    if cut := count_cut(tokenizer, texts, max_len):
        say(f"{cut} texts are cut at --data.max_len {max_len} tokens")


def _ended(dataset: Any, prompts: Any, responses: Any) -> Iterator[str]:
    from ..models.texts import with_end_text

    end = str(dataset.tokenizer.eos_token)
    return (with_end_text((a + b).rstrip("\n"), end) for a, b in zip(prompts, responses, strict=True))


def _texts_of_pairs(dataset: Any) -> Iterator[str]:
    for responses in (dataset.chosens, dataset.rejects):
        yield from _ended(dataset, dataset.prompts, responses)


def _texts_of_sft(dataset: Any) -> Iterator[str]:
    return iter(dataset.prompts) if dataset.pretrain_mode else _ended(dataset, dataset.prompts, dataset.responses)


def read_pairs(module: Any) -> None:
    """`RewardDataset` reads chats by `pair_texts`, and says what it cuts."""
    _report_cuts(module.RewardDataset, _texts_of_pairs)
    original = module.preprocess_data

    @functools.wraps(original)
    def preprocess_data(
        data: Any,
        input_template: str | None = None,
        prompt_key: str | None = None,
        chosen_key: str = "chosen",
        rejected_key: str = "rejected",
        apply_chat_template: Any = None,
        is_dpo: bool = False,
    ) -> tuple:
        *texts, margin = original(data, input_template, prompt_key, chosen_key, rejected_key)
        if apply_chat_template:
            render = functools.partial(render_by, apply_chat_template)
            keys = (prompt_key, chosen_key, rejected_key, is_dpo)
            texts = with_name(_name(data), REMEDY_FLAG, pair_texts, render, data, *keys)
        return *texts, margin

    module.preprocess_data = preprocess_data


def read_conversations(module: Any) -> None:
    """`SFTDataset` reads chats by `sft_texts`, and says what it cuts."""
    _report_cuts(module.SFTDataset, _texts_of_sft)
    original, process = module.preprocess_data, module.SFTDataset.process_data

    def texts(data: Any, input_key: str, output_key: str | None, apply_chat_template: Any, multiturn: bool) -> Any:
        render = functools.partial(render_by, apply_chat_template)
        return with_name(_name(data), REMEDY_FLAG, sft_texts, render, data, input_key, output_key, multiturn)

    @functools.wraps(original)
    def preprocess_data(
        data: Any,
        input_template: str | None = None,
        input_key: str = "input",
        output_key: str | None = None,
        apply_chat_template: Any = None,
    ) -> tuple:
        if not apply_chat_template:
            return original(data, input_template, input_key, output_key)
        return texts(data, input_key, output_key, apply_chat_template, False)

    @functools.wraps(process)
    def process_data(self: Any, data: Any) -> Any:
        if self.multiturn and self.apply_chat_template:
            texts(data, self.input_key, self.output_key, self.apply_chat_template, True)
        return process(self, data)

    module.preprocess_data, module.SFTDataset.process_data = preprocess_data, process_data


def read_prompts(module: Any) -> None:
    """`PromptDataset` names the record that a chat template refuses."""
    original = module.preprocess_data

    @functools.wraps(original)
    def preprocess_data(
        data: Any,
        input_template: str | None = None,
        input_key: str = "input",
        label_key: str | None = None,
        apply_chat_template: Any = None,
    ) -> Any:
        def render(chat: Messages, **_: Any) -> str:
            return render_by(apply_chat_template, chat, True)

        words = (data, input_template, input_key, label_key, render if apply_chat_template else None)
        return with_name(_name(data), REMEDY, original, *words)

    module.preprocess_data = preprocess_data
