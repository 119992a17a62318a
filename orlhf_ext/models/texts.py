"""Records with prompts and completions: reading them, and the text that a model sees of them.

A prompt or a completion is a string, or a list of messages ``{"role", "content"}``. The text rule is the one by which
OpenRLHF's `SFTDataset` and `RewardDataset` train: prompt and response joined, trailing newlines cut, and ``" "`` with
the EOS token appended unless it is there. Trailing white space of a completion is cut before that, because a model
that was trained by this rule ends what it samples with the space before EOS. Data that are trained on as token ids end
with the id of EOS instead (`with_end`): there is no text to put a space behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..cli.errors import UserError
from ..files.records import Line, Record, is_number, read_records
from .chats import ChatError, Messages, as_messages, proven, render_with, split_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = str | Messages

_AT_ONCE = 1024  # texts that are tokenised at a time


@dataclass(frozen=True)
class Sample:
    """One record: its place and id, its prompt, and its completions (none where only a prompt is asked for)."""

    where: str
    id: str
    prompt: Text
    completions: list[Text]
    record: Record

    @property
    def name(self) -> str:
        """Place and id, for messages."""
        return f"{self.where} (id {self.id!r})"

    def column(self, key: str) -> list[Any] | None:
        """A value for each completion, or None where the record has no such key.
        Raises UserError if there are more or fewer values than completions."""
        values = self.record.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != len(self.completions):
            count = len(values) if isinstance(values, list) else "no list of"
            raise UserError(f"{self.name} has {count} {key} for {len(self.completions)} completions; make them equal")
        return values


def read_prompts(path: str | Path, limit: int | None = None) -> list[Sample]:
    """The prompts of a file, for sampling; a record without an id gets one from its line: ``line-000012``.

    Raises:
        UserError: as `read_records`; no record at all; a prompt is missing or empty; an id is there twice.
    """
    return collect(path, map(as_prompt, read_records(path)), limit)


def read_samples(path: str | Path, no_prompt: bool = False) -> list[Sample]:
    """Samples ``{id, prompt, completions}``, or pairs ``{id, prompt, chosen, rejected}`` (K = 2, chosen first).

    With ``no_prompt``, a prompt may be empty or missing.

    Raises:
        UserError: as `read_prompts`; a record has no completions, or one of a wrong kind.
    """
    return collect(path, (as_sample(line, no_prompt) for line in read_records(path)))


def collect(path: str | Path, samples: Iterator[Sample], limit: int | None = None) -> list[Sample]:
    """The samples of a file, at most ``limit``. Raises UserError if there is none, or two have one id."""
    found: dict[str, Sample] = {}
    for sample in samples:
        if limit is not None and len(found) >= limit:
            break
        if sample.id in found:
            raise UserError(f"{sample.where} has the id {sample.id!r} of {found[sample.id].where}; give each its own")
        found[sample.id] = sample
    if not found:
        raise UserError(f"{path} has no record; build the data again")
    return list(found.values())


def as_prompt(line: Line) -> Sample:
    """A record of `read_prompts`."""
    return _sample(line, [])


def as_sample(line: Line, no_prompt: bool = False) -> Sample:
    """A record of `read_samples`."""
    return _sample(line, _completions(line), no_prompt)


def _sample(line: Line, completions: list[Text], no_prompt: bool = False) -> Sample:
    given = line.record.get("prompt")
    if no_prompt and not given:
        given = ""
    elif given is None:
        _bad(line, "has no 'prompt'; give prompt, or build the data with build_data")
    prompt = _text(line, given, "prompt", may_be_empty=no_prompt)
    return Sample(line.where, id_of(line), prompt, completions, line.record)


def id_of(line: Line) -> str:
    """A record's id; without one, its line: ``line-000012``.
    Raises UserError if it is neither text nor a whole number."""
    identifier = line.record.get("id")
    if identifier is None:
        return f"line-{line.number:06d}"
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        _bad(line, "has an id that is neither text nor a whole number")
    return str(identifier)


def _completions(line: Line) -> list[Text]:
    completions = line.record.get("completions")
    if completions is None:
        if line.record.get("chosen") is None or line.record.get("rejected") is None:
            _bad(line, "has neither 'completions' nor 'chosen' and 'rejected'")
        return [_text(line, line.record[key], key, may_be_empty=False) for key in ("chosen", "rejected")]
    if not isinstance(completions, list) or not completions:
        _bad(line, "has 'completions' that are not a list, or an empty one")
    return [_text(line, text, f"completion {i}", may_be_empty=True) for i, text in enumerate(completions, 1)]


def _text(line: Line, value: Any, name: str, may_be_empty: bool) -> Text:
    if isinstance(value, str):
        if not value.strip() and not may_be_empty:
            _bad(line, f"has an empty {name}; remove the record")
        return value
    if not isinstance(value, list) or not value:
        _bad(line, f"has a {name} that is neither text nor a list of messages")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            _bad(line, f"has a message in its {name} without a role or a content that is text")
    return value


def _bad(line: Line, reason: str) -> NoReturn:
    raise UserError(f"{line.where} {reason}")


def reply_text(completion: Text) -> str:
    """What a completion says: the string, or the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_text(tokenizer: PreTrainedTokenizerBase, sample: Sample, chat: bool) -> str:
    """The prompt as the model reads it; messages (and, with ``chat``, strings) go through the chat template.

    An empty prompt is none: there is no turn before the completion's.

    Raises:
        UserError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not sample.prompt:
        return ""
    if isinstance(sample.prompt, str) and not chat:
        return sample.prompt
    try:
        return render_with(tokenizer)(as_messages(sample.prompt, "user"), True)
    except ChatError as error:
        raise _refused(sample, error) from error


def whole_text(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, completion: Text, chat: bool, sampled: bool = False
) -> tuple[str, str]:
    """The text before the response, and that text and the response by the text rule of training, EOS included.

    With ``sampled`` a chat's response follows `prompt_text`, as for a policy; otherwise it is taken from the
    rendered conversation, as for a reward model (see `chats`).

    Raises:
        UserError: as `prompt_text`; a list of messages answers a string, or the other way round; the chat template does
            not say where the response begins.
    """
    if isinstance(sample.prompt, str) != isinstance(completion, str):
        raise UserError(f"{sample.name} mixes text and messages in prompt and completions; use one of them")
    if isinstance(completion, str) and not chat:
        prompt, response = prompt_text(tokenizer, sample, chat), completion.rstrip()
    else:
        reply = as_messages(completion, "assistant")
        reply = [*reply[:-1], {**reply[-1], "content": reply[-1]["content"].rstrip()}]
        before = as_messages(sample.prompt, "user") if sample.prompt else []
        try:
            prompt, response = split_chat(proven(tokenizer), before, reply, sampled)
        except ChatError as error:
            raise _refused(sample, error) from error
    return prompt, with_end_text((prompt + response).rstrip("\n"), str(tokenizer.eos_token))


def _refused(sample: Sample, error: ChatError) -> UserError:
    return UserError(f"{sample.name}{error}; change its messages, or give the model another chat template")


def with_end_text(text: str, end: str) -> str:
    """A text with a space and the end token behind it, unless it ends with that token: OpenRLHF's rule."""
    return text if text.endswith(end) else f"{text} {end}"


def with_end(ids: list[int], end: int) -> list[int]:
    """Token ids with the end token's behind them, unless they end with it."""
    return ids if ids and ids[-1] == end else [*ids, end]


def count_cut(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_len: int) -> int:
    """How many texts have more than ``max_len`` tokens; short ones, of half as many bytes, are not tokenised."""
    texts = iter(texts)
    cut = 0
    while some := list(islice(texts, _AT_ONCE)):
        cut += sum(len(ids) > max_len for ids in encode(tokenizer, [t for t in some if 2 * len(t.encode()) > max_len]))
    return cut


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens and without a cut.

    A text that is there several times, such as the prompt of several completions, is tokenised once.
    """
    if not texts:
        return []
    distinct = list(dict.fromkeys(texts))
    ids: Any = tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
    found = dict(zip(distinct, ids, strict=True))
    return [list(found[text]) for text in texts]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of special tokens, those that were added to the tokenizer among them."""
    return {*tokenizer.all_special_ids, *(i for i, one in tokenizer.added_tokens_decoder.items() if one.special)}


def end_of_turn(tokenizer: PreTrainedTokenizerBase, behind: str | None, whole: bool) -> list[int]:
    """Token ids that end an answer: of all that the chat template puts behind it, or up to the first special token.

    Args:
        tokenizer: the model's.
        behind: what the template puts there; None, or nothing that ends a turn: EOS.
        whole: all of it.
    """
    if behind is None:
        return [int(tokenizer.eos_token_id)]  # type: ignore[arg-type]
    ids = encode(tokenizer, [behind])[0]
    if whole:
        return ids
    special = special_ids(tokenizer)
    end = next((place for place, i in enumerate(ids, 1) if i in special), None)
    return ids[:end] if end else [int(tokenizer.eos_token_id)]  # type: ignore[arg-type]


class Whole(NamedTuple):
    """The token ids of a text, and how many the length limit took away."""

    ids: list[int]
    lost: int


def encode_whole(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_len: int, side: str, end: bool
) -> list[Whole]:
    """Token ids of prompt and response together, at most ``max_len``, as reward models read them.

    Args:
        tokenizer: the model's.
        texts: prompt, response and, with ``end``, EOS (see `with_end_text`).
        max_len: tokens.
        side: the side of a longer text that is cut off, ``left`` or ``right``.
        end: the last id is EOS in any case, as in OpenRLHF's `RewardDataset`.
    """
    found = []
    for ids in encode(tokenizer, texts):
        kept = ids[-max_len:] if side == "left" else ids[:max_len]
        if end:
            kept = [*kept[:-1], int(tokenizer.eos_token_id)]  # type: ignore[arg-type]
        found.append(Whole(kept, max(0, len(ids) - max_len)))
    return found


def numbers(sample: Sample, key: str) -> list[float]:
    """A column of finite numbers, one for each completion; none without the column.

    Raises:
        UserError: there is another number of them, one is not finite, or they are log-probabilities of completions that
            were cut; the record is named.
    """
    values = sample.column(key) or []
    if any(sample.column(cut_key(key)) or ()):
        raise UserError(
            f"{sample.name} has {key} of a completion that was cut, which are those of its beginning and compare with "
            "nothing; run orlhf-ext logprobs again with a larger --max_len"
        )
    for value in values:
        if not is_number(value):
            raise UserError(f"{sample.name} has {value!r} among its {key}; score the file again")
    return [float(value) for value in values]


def cut_key(key: str) -> str:
    """The column that says which completions' log-probabilities are those of a beginning."""
    return f"{key}_cut"
