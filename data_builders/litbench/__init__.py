"""LitBench -> pairs for a Bradley-Terry reward model, and rationales for a generative one, in three steps.

- ``rehydrate``: the published ids of the test set -> ``rehydrated_test_data.csv``, from Reddit or from a dump
- ``pairs``: ``pairs_train.jsonl``, ``pairs_val.jsonl``, ``pairs_test.jsonl``, rows
  ``{"id", "prompt", "chosen", "rejected", ...}``
- ``rationales``: ``rationales_train.jsonl``, ``rationales_val.jsonl``, rows
  ``{"id", "prompt", "completion", "label": "A" | "B"}``, and ``rationales_test.jsonl``: the test pairs in both orders

The last two find their test pairs in the first one's file, by the rules of `data_builders.litbench.sources`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import Parser
from orlhf_ext.files.built import Built

from . import pairs, rationales, rehydrate, sources

#: what adds the options of each step
OPTIONS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], ...]] = {
    "rehydrate": (rehydrate.add_arguments,),
    "pairs": (sources.add_arguments, pairs.add_arguments),
    "rationales": (sources.add_arguments, rationales.add_arguments),
}
RUN: dict[str, Callable[[argparse.Namespace], Iterator[Built]]] = {
    "rehydrate": rehydrate.run,
    "pairs": pairs.run,
    "rationales": rationales.run,
}


class Builder:
    """``build_data litbench``."""

    name = "litbench"
    help = "LitBench's stories into pairs and rationales for reward models of creative writing"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of all steps; `settle` refuses those of another step."""
        parser.add_argument("step", metavar="|".join(OPTIONS), choices=tuple(OPTIONS), help="what to make")
        parser.add_argument(
            "source",
            metavar="SOURCE",
            nargs="?",
            help="the step's source: a file (.csv, .jsonl, .json, .parquet), a hub name, or sample for the bundled one "
            "(by default SAA-Lab's LitBench-Test, LitBench-Train or LitBench-Rationales)",
        )
        parser.add_argument(
            "--output_dir", "--data_dir", dest="folder", type=Path, metavar="DIR", help="the same as --out"
        )
        for add_options in dict.fromkeys(add for adders in OPTIONS.values() for add in adders):
            add_options(parser)

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files of the step.

        Raises:
            UserError: options of another step, a source that cannot be used, or no row left.
        """
        settle(args)
        yield from RUN[args.step](args)


def settle(args: argparse.Namespace) -> None:
    """Refuse options that the step does not have, and take them out; give ``--out`` its value.

    Raises:
        UserError: an option without effect, or two for the same thing.
    """
    own = flags(args.step)
    for step in OPTIONS:
        for name, (flag, default) in flags(step).items():
            if name in own or not hasattr(args, name):
                continue
            if getattr(args, name) != default:
                raise UserError(f"{flag} has no effect for the step {args.step}, only for {step}; leave it out")
            delattr(args, name)
    folder = args.__dict__.pop("folder")
    if folder:
        if args.out != Path("data") / Builder.name:
            raise UserError(f"--output_dir {folder} and --out {args.out} are both given; leave one out")
        args.out = folder


def flags(step: str) -> dict[str, tuple[str, object]]:
    """The options of a step: their names in the arguments, with their flags and defaults."""
    parser = Parser(add_help=False)
    for add_options in OPTIONS[step]:
        add_options(parser)
    return {action.dest: (action.option_strings[0], action.default) for action in parser._actions}
