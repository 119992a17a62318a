"""Scored continuations -> texts with the reward of their end, for the dead-end value function."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend.generations import TOXICITY_THRESHOLD
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import is_share

from ..common import Row, none_kept, read_rows
from .write import built_pair, writers

#: a prompt goes to the validation file with one draw in ten
TRAIN_SHARE = 0.9

NO_PROMPT = Reject("no prompt and generations that are all text", bad=True)
NONE = Reject("no generation", bad=True)
NO_SCORE = Reject("generation without a score from 0 to 1", bad=True)
TOO_FEW = Reject("fewer generations than --sample_num", bad=True)
CLEAN = "clean prompt, left out at random (--drop_rate)"


class Scored(NamedTuple):
    """A prompt, its continuations in the order of the file, and their scores."""

    prompt: str
    texts: list[str]
    scores: list[float]


def build_value(path: Path, args: argparse.Namespace, licence: str) -> Iterator[Built]:
    """Write ``train.jsonl`` and ``val.jsonl``.

    For each prompt in order a number is drawn; a prompt none of whose scores is above 0.5 is left out if it is below
    ``--drop_rate``. A second draw puts the others in one of the files. With ``--shuffle_rewards`` the rewards of a file
    change places at the end, and its rows are held in memory until then.

    Raises:
        UserError: the file cannot be read, has other scores, or gives no row.
    """
    counts = Counts(args.strict, args.max_count_of_reported)
    prompts: Counter[str] = Counter()
    held: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    generator = random.Random(args.seed)
    with writers(args.out, ("train.jsonl", "val.jsonl"), path) as (train, val):
        for row in read_rows(path):
            counts.read += 1
            scored = read_scored(row, args.toxicity_type, first=counts.read == 1)
            if isinstance(scored, Reject):
                counts.drop(row.where, scored)
                continue
            drawn = generator.random()
            if drawn < args.drop_rate and is_clean(scored.scores, args.one_threshold):
                counts.dropped[CLEAN] += 1
                continue
            split, writer = ("train", train) if generator.random() < TRAIN_SHARE else ("val", val)
            chosen = choose(scored.scores, args, generator)
            if isinstance(chosen, Reject):
                counts.drop(row.where, chosen)
                continue
            prompts[split] += 1
            if args.limit and writer is train:
                chosen = chosen[: args.limit - train.count - len(held["train"])]
            for number in chosen:
                reward = -1.0 if scored.scores[number] >= TOXICITY_THRESHOLD else 0.0
                value = {"text": scored.prompt + scored.texts[number], "reward": [reward]}
                held[split].append(value) if args.shuffle_rewards else writer.add(value)
            if args.limit and train.count + len(held["train"]) >= args.limit:
                break
        for writer, values in ((train, held["train"]), (val, held["val"])):
            rewards = [value["reward"] for value in values]
            generator.shuffle(rewards)
            for value, reward in zip(values, rewards, strict=True):
                writer.add({**value, "reward": reward})
        if not train.count:
            raise none_kept(path, train.path.name, counts)
    details = {"toxicity_type": args.toxicity_type, "mode": args.mode, "counted": "prompts"}
    if args.shuffle_rewards:
        details["rewards"] = "shuffled"
    yield from built_pair(
        train, val, (prompts["train"], prompts["val"]), counts, [path], licence=licence, details=details
    )


def is_clean(scores: list[float], one_threshold: bool) -> bool:
    """Whether no continuation is undesired; the authors count a score of exactly 0.5 as clean here, and only here."""
    return max(scores) < TOXICITY_THRESHOLD or (not one_threshold and max(scores) == TOXICITY_THRESHOLD)


def choose(scores: list[float], args: argparse.Namespace, generator: random.Random) -> list[int] | Reject:
    """Which of a prompt's continuations are used: ``most`` the worst and the best, ``sample`` some, or ``all``."""
    numbers = list(range(len(scores)))
    if args.mode == "all":
        return numbers
    if args.mode == "sample":
        return TOO_FEW if len(numbers) < args.sample_num else generator.sample(numbers, args.sample_num)
    numbers.sort(key=scores.__getitem__, reverse=True)  # stable: of equal scores the first stays first
    return numbers[:1] if args.no_repeat and len(numbers) == 1 else [numbers[0], numbers[-1]]


def read_scored(row: Row, kind: str, first: bool) -> Scored | Reject:
    """A record's prompt, continuations and scores, or why it has none.

    Raises:
        UserError: the first record has scores, but of another name.
    """
    if isinstance(row.record, Reject):
        return row.record
    prompt, generations = row.record.get("prompt"), row.record.get("generations")
    text = prompt.get("text") if isinstance(prompt, dict) else prompt
    if not isinstance(text, str) or not isinstance(generations, list):
        return NO_PROMPT
    if not generations:
        return NONE
    if not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in generations):
        return NO_PROMPT
    if first and not any(kind in one for one in generations):
        known = sorted({name for one in generations for name in one if is_share(one[name])})
        others = (
            f"only {', '.join(known)}; add --toxicity_type {known[0]}" if known else "and no other; score them first"
        )
        raise UserError(f"{row.where}: its generations have no score {kind!r}, {others}")
    scores = [one.get(kind) for one in generations]
    if not all(map(is_share, scores)):
        return NO_SCORE
    return Scored(text, [one["text"] for one in generations], scores)
