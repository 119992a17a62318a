"""One record of value data, checked: ``{"text": str, "reward": [r]}``, r = -1 for a text that ends badly, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..cli.errors import UserError
from ..models.texts import encode as tokens
from ..models.texts import with_end


class Row(NamedTuple):
    """A text and its reward."""

    text: str
    reward: float


def parse_row(record: dict[str, Any], where: str, q_min: float = -1.0, q_max: float = 0.0) -> Row:
    """Read a record; the reward is a number, or a list of one.

    Raises:
        UserError: there is no text or no reward, or the reward is neither 0 nor -1 or beyond the bounds of Q_D; the
            record's place is named.
    """
    text, reward = record.get("text"), record.get("reward")
    if not isinstance(text, str) or not text:
        raise UserError(f"{where} has no 'text'; make value data with build_data jigsaw value, or add it")
    if isinstance(reward, list) and len(reward) == 1:
        reward = reward[0]
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise UserError(f"{where} has no 'reward' that is a number; make value data with build_data jigsaw value")
    if reward not in (0, -1):
        raise UserError(f"{where} has the reward {reward:g}; a text that ends badly has -1, any other 0")
    if not q_min <= reward <= q_max:
        raise UserError(
            f"{where} has the reward {reward:g}, which --deadend.q_min {q_min:g} and --deadend.q_max {q_max:g} leave "
            "out; let them include 0 and -1"
        )
    return Row(text, float(reward))


class Encoded(NamedTuple):
    """Texts as token ids, and how many were cut."""

    rows: list[list[int]]
    cut: int


def encode(tokenizer: Any, texts: Sequence[str], max_len: int, append_eos: bool) -> Encoded:
    """Token ids of texts, cut on the right to ``max_len``; no special tokens are added, as none are in sampling.

    With ``append_eos`` EOS ends each text that fits with it, once; one that is cut does not end where it is cut.
    """
    found = tokens(tokenizer, list(texts))
    cut = sum(len(ids) > max_len for ids in found)
    if not append_eos:
        return Encoded([ids[:max_len] for ids in found], cut)
    end = int(tokenizer.eos_token_id)
    return Encoded([with_end(ids, end) if len(ids) < max_len else ids[:max_len] for ids in found], cut)
