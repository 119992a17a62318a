"""One record of a K-wise or pairwise data set, checked. Pure Python: runs before torch is imported, too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

from ..cli.errors import UserError
from ..models.chats import ChatError, Messages, Render, as_messages, split_chat
from .settings import for_pairs, from_rewards


@dataclass(frozen=True)
class Rules:
    """What a record must look like for one run."""

    loss_type: str
    num_contrastive: int
    chat: bool = False
    prompt_key: str = "prompt"
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"

    @classmethod
    def from_args(cls, args: SimpleNamespace) -> Rules:
        """From the launcher's nested arguments; OpenRLHF's ``--data.*_key`` flags are honoured where they are given."""
        data = args.data
        return cls(
            args.exo.loss_type,
            args.exo.num_contrastive,
            bool(getattr(data, "apply_chat_template", False)),
            getattr(data, "prompt_key", None) or cls.prompt_key,
            getattr(data, "chosen_key", None) or cls.chosen_key,
            getattr(data, "rejected_key", None) or cls.rejected_key,
        )


@dataclass(frozen=True)
class Kwise:
    """One prompt with its K completions; a pair is K = 2 with labels 1 and 0, chosen first."""

    prompt: str | Messages
    completions: list[str | Messages]
    rewards: list[float]
    token_ids: list[list[int]] | None = None
    finish_reasons: list[str | None] | None = None


def parse_record(record: dict[str, Any], where: str, rules: Rules) -> Kwise:
    """Read a record with ``completions`` and ``rewards``, or with a chosen and a rejected response.

    Args:
        record: columns; a column that is None counts as absent.
        where: the record's place, for the message: ``train.jsonl line 3``.
        rules: the run's loss, group size and column names.

    Raises:
        UserError: the record cannot be trained on with this loss; its place (and id) and the way out are named.
    """
    if record.get("id") is not None:
        where = f"{where} (id {record['id']!r})"

    def bad(reason: str) -> NoReturn:
        raise UserError(f"{where} {reason}")

    prompt = record.get(rules.prompt_key)
    if prompt is None:
        bad(f"has no {rules.prompt_key!r}; name its column with --data.prompt_key")
    _check_text(prompt, repr(rules.prompt_key), rules.chat, bad)
    if rules.chat and isinstance(prompt, str):
        bad("has a prompt that is text, and --data.apply_chat_template needs messages; leave the flag out")
    if record.get("completions") is not None:
        kwise = _read_kwise(record, prompt, bad)
    else:
        kwise = _read_pair(record, prompt, rules, bad)
    for number, completion in enumerate(kwise.completions, 1):
        ids = kwise.token_ids[number - 1] if kwise.token_ids else None
        _check_text(completion, f"completion {number}", rules.chat, bad, may_be_empty=ids is not None)
    _check_groups(kwise.rewards, rules, bad)
    return kwise


def chat_texts(render: Render, kwise: Kwise, where: str) -> tuple[str, list[str]]:
    """Prompt and completions as text, by the chat template; a completion follows the generation prompt.

    Raises:
        UserError: the template refuses the messages, or does not say where a completion begins; the place is named.
    """
    try:
        before: Any = kwise.prompt
        replies = [as_messages(completion, "assistant") for completion in kwise.completions]
        texts = [split_chat(render, before, reply, sampled=True)[1] for reply in replies]
        prompt = render(before, True)
    except ChatError as error:
        raise UserError(
            f"{where}{error}; change its messages, or give another template with --data.tokenizer_chat_template"
        ) from error
    return prompt, [text.rstrip("\n") for text in texts]  # templates end a turn with a newline after EOS


def _check_text(value: Any, name: str, chat: bool, bad: Callable[[str], NoReturn], may_be_empty: bool = False) -> None:
    """A string, or messages with their roles and contents; not empty."""
    if isinstance(value, str):
        if not value and not may_be_empty:
            bad(f"has an empty {name}; remove the record")
        return
    if not isinstance(value, list):
        bad(f"has a {name} that is {_kind(value)}; it must be a string, or a list of messages")
    if not chat:
        bad(f"has messages in {name}; add --data.apply_chat_template")
    if not value:
        bad(f"has an empty {name}; remove the record")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            bad(f"has a message without a role in {name}; messages are {{role, content}}")
        if message.get("content") is None or (message["content"] == "" and not may_be_empty):
            bad(f"has an empty message in {name}; remove the record")


def _read_pair(record: dict[str, Any], prompt: Any, rules: Rules, bad: Callable[[str], NoReturn]) -> Kwise:
    for key in (rules.chosen_key, rules.rejected_key):
        if record.get(key) is None:
            bad(f"has neither 'completions' nor {key!r}; give prompt, completions, rewards or prompt, chosen, rejected")
    if from_rewards(rules.loss_type):
        bad(
            f"is a preference pair without rewards, which {rules.loss_type} cannot learn from; score completions with "
            f"a reward model first, or use --exo.loss_type {for_pairs(rules.loss_type)}"
        )
    return Kwise(prompt, [record[rules.chosen_key], record[rules.rejected_key]], [1.0, 0.0])


def _read_kwise(record: dict[str, Any], prompt: Any, bad: Callable[[str], NoReturn]) -> Kwise:
    completions = record["completions"]
    if not isinstance(completions, list):
        bad(f"has 'completions' that are {_kind(completions)}, not a list")
    rewards = record.get("rewards")
    if rewards is None:
        bad("has no 'rewards'; label it first with orlhf-ext score")
    columns: dict[str, Any] = {"rewards": rewards}
    columns |= {k: record[k] for k in ("token_ids", "finish_reasons") if record.get(k) is not None}
    for name, column in columns.items():
        if not isinstance(column, list):
            bad(f"has {name!r} that are {_kind(column)}, not a list")
        if len(column) != len(completions):
            bad(f"has {len(completions)} completions but {len(column)} {name.replace('_', ' ')}; each needs one")
    for reward in rewards:
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            bad(f"has the reward {reward!r}; rewards are finite numbers")
    token_ids = columns.get("token_ids")
    for number, ids in enumerate(token_ids or [], 1):
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            bad(f"has token ids that are not a list of whole numbers for completion {number}")
        if not ids:
            bad(f"has an empty completion {number} (no token ids); remove the record")
    return Kwise(prompt, completions, [float(r) for r in rewards], token_ids, columns.get("finish_reasons"))


def _check_groups(rewards: list[float], rules: Rules, bad: Callable[[str], NoReturn]) -> None:
    """K must be a multiple of the group size, and every group of a preference loss needs a best completion."""
    size = rules.num_contrastive
    if len(rewards) < size or len(rewards) % size:
        bad(f"has {len(rewards)} completions, which do not make groups of --exo.num_contrastive {size}")
    if from_rewards(rules.loss_type):
        return
    if not set(rewards) <= {0.0, 1.0}:
        rw = rules.loss_type.replace("-pref", "-rw")
        bad(
            f"has rewards that are not labels (1 for the best completion, 0 for the others), which {rules.loss_type} "
            f"would misread; use --exo.loss_type {rw}"
        )
    for start in range(0, len(rewards), size):
        if len(set(rewards[start : start + size])) == 1:
            bad(
                f"has equal labels for completions {start + 1} to {start + size}, so {rules.loss_type} finds no "
                "preference there; remove the record or change --exo.num_contrastive"
            )


def _kind(value: Any) -> str:
    return "empty" if value is None else f"of type {type(value).__name__}"
