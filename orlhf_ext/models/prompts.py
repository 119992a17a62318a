"""Prompts to sample for, as token ids, and counts of what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import UserError
from ..files.records import Record
from .folder import check_ids, load_tokenizer
from .samplers import Prompt
from .texts import Sample, encode, prompt_text


def encode_prompts(samples: Sequence[Sample], folder: Path, room: int, chat: bool) -> list[Prompt]:
    """Prompts as token ids, cut on the left to ``room`` of them. Raises UserError if a prompt has no token."""
    tokenizer = load_tokenizer(folder)
    encoded = encode(tokenizer, [prompt_text(tokenizer, sample, chat) for sample in samples])
    for sample, ids in zip(samples, encoded, strict=True):
        if not ids:
            raise UserError(f"{sample.name} has a prompt without any token; remove the record")
    check_ids(folder, encoded)
    return [Prompt(sample.id, ids[-room:], len(ids) > room) for sample, ids in zip(samples, encoded, strict=True)]


def tally(done: dict[str, Record]) -> dict[str, int]:
    """Prompts, completions, tokens, and completions that ended by themselves."""
    reasons = [reason for record in done.values() for reason in record["finish_reasons"]]
    return {
        "prompts": len(done),
        "prompts_cut": sum(record["prompt_cut"] for record in done.values()),
        "completions": len(reasons),
        "tokens": sum(len(ids) for record in done.values() for ids in record["token_ids"]),
        "stop": reasons.count("stop"),
    }
