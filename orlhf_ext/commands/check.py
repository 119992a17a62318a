"""Try a reward on sample rollouts, without Ray, vLLM or a GPU: ``orlhf-ext check reward SPEC [its flags]``.

SPEC is a ready-made reward, my_pkg.my_module:MyReward, or FILE.py:function. The sample rollouts are bundled; give
records of your own with --data (JSON Lines: prompt, completions, label). Without --tokenizer, token ids are the text's
bytes, and the reward's context has no tokenizer. Ends with exit code 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import inspect
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..cli.errors import UserError, command, suggest
from ..cli.flags import LENGTH, NOT_NEGATIVE, make_parser
from ..extensions import REWARDS, names
from ..models.texts import encode, prompt_text, read_samples, reply_text
from ..rewards import arguments, selection
from ..rewards.base import Reward, RewardBatch, RewardContext, Rollout
from ..rewards.combine import Checked, RewardSet, score_one
from ..rewards.functions import FunctionReward
from .watch import watch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUNDLED = "sample_rollouts.jsonl"
_ROWS = 12  # of the table
_SAME = {"rel_tol": 1e-4, "abs_tol": 1e-6}  # a model's rewards differ by rounding


class Finding(NamedTuple):
    """What one check found."""

    what: str
    verdict: Literal["ok", "wrong", "info"]
    said: str


def examine(
    reward: Reward, batch: RewardBatch, context: RewardContext, min_speed: float, random_ok: bool = False
) -> Iterator[Finding | Checked]:
    """Set a reward up, score ``batch`` in several ways, and report what comes out; its result is given as `Checked`.

    Args:
        reward: what to try.
        batch: two rollouts or more.
        context: what the reward is set up with.
        min_speed: rollouts a second that it should manage.
        random_ok: whether two calls may give different rewards.
    """
    rewards = RewardSet([reward])
    if (reward.needs_reference and context.score_reference is None) or reward.needs_policy:
        yield Finding("set-up", "info", "it needs a model of a run, so that nothing more can be tried here")
        return
    try:
        rewards.setup(context)
        yield Finding("set-up", "ok", "")
        first = score_one(reward, batch)
        yield Finding("values", "ok", f"a finite float for each of {len(batch)} rollouts")
        began = time.perf_counter()
        again = score_one(reward, batch)
        seconds = time.perf_counter() - began
        order = shuffled(batch)
        elsewhere = score_one(reward, batch.take(order))
        alone = [score_one(reward, batch.take([index])) for index in range(len(batch))]
    except UserError as error:
        yield Finding("score", "wrong", str(error))
        return
    finally:
        late = _teardown(rewards)
    if late:
        yield Finding("tear-down", "wrong", late)
    yield first
    yield _metrics(batch, first, [again, elsewhere, *alone])
    yield (repeats := _repeats(batch, first, again, random_ok))
    if repeats.verdict == "ok":
        yield _order(batch, first, elsewhere, order)
    apart = max(abs(a - b.rewards[0]) for a, b in zip(first.rewards, alone, strict=True))
    independent = all(math.isclose(a, b.rewards[0], **_SAME) for a, b in zip(first.rewards, alone, strict=True))
    said = "each rollout alone gets the same" if independent else f"rollouts alone get rewards up to {apart:.3g} apart"
    yield Finding("independence", "ok" if independent else "info", said)
    speed = len(batch) / max(seconds, 1e-9)
    fast = speed >= min_speed
    said = f"{speed:,.0f} rollouts/s" if speed >= 10 else f"{speed:.2g} rollouts/s"
    slow = f", less than --min_speed {min_speed:g}; score the batch at once, or use threads"
    yield Finding("speed", "ok" if fast else "wrong", said if fast else said + slow)


def _teardown(rewards: RewardSet) -> str | None:
    try:
        rewards.teardown()
    except UserError as error:
        return str(error)
    return None


def _metrics(batch: RewardBatch, first: Checked, others: Sequence[Checked]) -> Finding:
    for other in others:
        if changed := sorted(set(first.metrics) ^ set(other.metrics)):
            said = f"{', '.join(map(repr, changed))} is given for some batches and not for others"
            return Finding("metrics", "wrong", said)
    return Finding("metrics", "ok", f"the same for every batch: {', '.join(first.metrics) or 'none'}")


def _repeats(batch: RewardBatch, first: Checked, again: Checked, random_ok: bool) -> Finding:
    for rollout, a, b in zip(batch, first.rewards, again.rewards, strict=True):
        if not math.isclose(a, b, **_SAME):
            said = f"a second call gives sample {rollout.id!r} {b:.6g} instead of {a:.6g}"
            if random_ok:
                return Finding("repeatability", "info", said)
            return Finding("repeatability", "wrong", f"{said}; fix its seed, or give --random_ok if that is meant")
    return Finding("repeatability", "ok", "two calls give the same")


def shuffled(batch: RewardBatch) -> list[int]:
    """Another order of a batch, as indices: of its prompts, whose rollouts stay together, and within each of them."""
    groups = [rows[::-1] for rows in reversed(batch.groups())]
    if len(groups) > 2:
        random.Random(0).shuffle(groups)
    return [index for rows in groups for index in rows]


def _order(batch: RewardBatch, first: Checked, elsewhere: Checked, order: Sequence[int]) -> Finding:
    """Rewards go to their samples in any order of the batch; a model's differ by rounding, far less than from sample
    to sample."""
    apart = (max(first.rewards) - min(first.rewards)) / 100
    for place, index in enumerate(order):
        a, b = first.rewards[index], elsewhere.rewards[place]
        if not (math.isclose(a, b, **_SAME) or abs(a - b) <= apart):
            said = f"with the batch in another order, sample {batch[index].id!r} gets {b:.6g} instead of {a:.6g}"
            return Finding("order", "wrong", f"{said}; give one reward for each rollout, in the batch's order")
    return Finding("order", "ok", "a shuffled batch gets the same")


def load_rollouts(path: str | Path, tokenizer: PreTrainedTokenizerBase | None, limit: int) -> list[Rollout]:
    """A rollout for each completion of a file of samples, at most ``limit``; ids are ``RECORD/NUMBER``.

    Raises:
        UserError: as `orlhf_ext.models.texts.read_samples`; a chat and no tokenizer; fewer than two completions.
    """
    found: list[Rollout] = []
    for group, sample in enumerate(read_samples(path)):
        if tokenizer is not None:
            prompt = prompt_text(tokenizer, sample, chat=False)
        elif isinstance(sample.prompt, str):
            prompt = sample.prompt
        else:
            raise UserError(f"{sample.name} is a chat, which a chat template must write out; give --tokenizer MODEL")
        reasons = sample.column("finish_reasons") or ["stop"] * len(sample.completions)
        for number, (completion, reason) in enumerate(zip(sample.completions, reasons, strict=True), 1):
            response = reply_text(completion)
            truncated = reason == "length"
            head, tail = _ids(prompt, tokenizer), _ids(response, tokenizer)
            if tokenizer is not None and not truncated:
                tail = [*tail, int(tokenizer.eos_token_id)]
            found.append(
                Rollout(
                    id=f"{sample.id}/{number}",
                    prompt=prompt,
                    response=response,
                    label=sample.record.get("label", ""),
                    token_ids=head + tail,
                    action_mask=[0] * len(head) + [1] * len(tail),
                    truncated=truncated,
                    images=sample.record.get("images"),
                    group=group,
                )
            )
    if len(found) < 2:
        raise UserError(f"{path} has one completion; give two or more")
    return found[:limit]


def _ids(text: str, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    return list(text.encode()) if tokenizer is None else encode(tokenizer, [text])[0]


def show(findings: Sequence[Finding], batch: RewardBatch, result: Checked | None) -> None:
    """Print a line for each check, and the first rewards."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Words

    console = Console(highlight=False)
    for finding in findings:
        colour = {"ok": "green", "wrong": "bold red", "info": "yellow"}[finding.verdict]
        line = Words.assemble((f"{finding.verdict:<6}", colour), f"{finding.what:<14}", finding.said)
        console.print(line, soft_wrap=True)
    if result is None:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("sample", no_wrap=True)
    table.add_column("response", no_wrap=True, overflow="ellipsis", max_width=40)
    for name in ("reward", *result.metrics):
        table.add_column(name, justify="right", no_wrap=True)
    columns = [result.rewards, *result.metrics.values()]
    for index, rollout in enumerate(batch.rollouts[:_ROWS]):
        numbers = [f"{column[index]:.4g}" for column in columns]
        table.add_row(Words(rollout.id), Words(" ".join(rollout.response.split()) or "(empty)"), *numbers)
    console.print()
    console.print(table)
    if len(batch) > _ROWS:
        console.print(f"and {len(batch) - _ROWS} more")


def parse(argv: Sequence[str], cls: type[Reward] | None) -> argparse.Namespace:
    """The command line; with a reward's class, its flags too."""
    known = ", ".join(sorted(names(REWARDS)))
    parser = make_parser("orlhf-ext check reward", __doc__, allow_abbrev=False)
    add = parser.add_argument
    add("spec", metavar="SPEC", help=f"{known}, or my_pkg.my_module:MyReward; SPEC --help shows its flags")
    add("--data", metavar="FILE", help="records with prompt, completions and label (default: bundled ones)")
    add("--limit", type=LENGTH, default=64, metavar="N", help="at most N rollouts (%(default)s)")
    add("--tokenizer", metavar="MODEL", help="the policy's folder or hub name, for token ids and chats")
    add("--min_speed", type=NOT_NEGATIVE, default=10.0, metavar="N", help="rollouts a second, at least (%(default)s)")
    add("--random_ok", action="store_true", help="accept that two calls give different rewards")
    add("--watch", action="store_true", help="check again whenever its file, one beside it, or --data changes")
    add("--ext.reward_args", metavar="JSON", help='the reward\'s arguments, as in a run: \'{"NAME": {"ARG": 1}}\'')
    if cls is not None:
        described = (inspect.getdoc(cls) or "").partition("\n")[0].replace("%", "%%")
        group: Any = parser.add_argument_group(f"reward {cls.name}", described)
        arguments.add_flags(group, cls)
    args, strays = parser.parse_known_args(argv)
    if strays:
        raise UserError(f"unknown: {strays[0]}{suggest(strays[0], list(parser._option_string_actions))}")
    return args


def bundled() -> Path:
    """The bundled sample rollouts."""
    return Path(__file__).with_name(BUNDLED)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Try one reward; exit code 1 if something is wrong with it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("orlhf-ext check reward SPEC ...   a reward on sample rollouts, without Ray or a GPU")
        return
    kind, *argv = argv
    if kind != "reward":
        raise UserError(f"nothing to check is called {kind!r}{suggest(kind, ['reward'])}")
    if "--watch" in argv and not {"-h", "--help"} & set(argv):
        return watch(argv)
    spec = argv[0] if argv and not argv[0].startswith("-") else None
    if spec is None:
        parse(argv, None)  # help, or what is missing
        raise UserError("the first word is the reward: a name, or my_pkg.my_module:MyReward")
    try:
        cls = selection.find(spec)
    except selection.NoReward as error:
        show([Finding("class", "wrong", str(error))], RewardBatch([]), None)
        raise SystemExit(1) from error
    args = parse(argv, cls)
    form = f", a function in {cls.form}'s form" if issubclass(cls, FunctionReward) else ""
    findings = [Finding("class", "ok", f"{cls.__module__}:{cls.__qualname__}, named {cls.name!r}{form}")]
    reward = arguments.make(
        cls, vars(args), arguments.parse_json(vars(args)["ext.reward_args"], [cls]).get(cls.name, {})
    )
    tokenizer = None
    if not args.tokenizer:
        findings.append(Finding("tokens", "info", "the text's bytes; give the policy as --tokenizer for its own"))
    else:
        from ..models.folder import find_model, load_tokenizer

        tokenizer = load_tokenizer(find_model(args.tokenizer, "--tokenizer"), "--tokenizer")
    batch = RewardBatch(load_rollouts(args.data or bundled(), tokenizer, args.limit))
    context = RewardContext(tokenizer=tokenizer, device="cpu")
    result = None
    for found in examine(reward, batch, context, args.min_speed, args.random_ok):
        if isinstance(found, Finding):
            findings.append(found)
        else:
            result = found
    show(findings, batch, result)
    if wrong := sum(finding.verdict == "wrong" for finding in findings):
        print(f"\n{wrong} of {len(findings)} checks failed")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
