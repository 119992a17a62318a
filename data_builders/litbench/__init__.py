"""LitBench -> pairs for a Bradley-Terry reward model, rationales for a generative one, and prompts, in four steps.

- ``rehydrate``: the published ids of the test set -> ``rehydrated_test_data.csv``, from Reddit or from a dump
- ``pairs``: ``pairs_train.jsonl``, ``pairs_val.jsonl``, ``pairs_test.jsonl``, rows
  ``{"id", "prompt", "chosen", "rejected", ...}``
- ``rationales``: ``rationales_train.jsonl``, ``rationales_val.jsonl``, rows
  ``{"id", "prompt", "completion", "label": "A" | "B"}``, and ``rationales_test.jsonl``: the test pairs in both orders
- ``prompts``: ``prompts_train.jsonl``, ``prompts_val.jsonl``, ``prompts_test.jsonl``, rows
  ``{"id", "prompt", "label"}``

The last three find their test pairs in the first one's file, by the rules of `data_builders.litbench.sources`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from orlhf_ext.files.built import Built

from ..common import merge_out
from . import pairs, prompts, rationales, rehydrate
from .sources import HUB_TEST

#: the steps: what they do, and what they read by default
STEPS = {
    "rehydrate": (rehydrate, "the published ids of the test set into texts, from Reddit or from dumps", HUB_TEST),
    "pairs": (pairs, "story pairs for a Bradley-Terry reward model", pairs.DEFAULT),
    "rationales": (rationales, "judging inputs and answers for a generative reward model", rationales.DEFAULT),
    "prompts": (prompts, "writing prompts for a policy whose stories are judged", prompts.DEFAULT),
}


class Builder:
    """``build_data litbench``."""

    name = "litbench"
    help = "LitBench's stories into pairs and rationales for reward models of creative writing"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the steps, each with its options."""
        steps = parser.add_subparsers(dest="step", metavar="|".join(STEPS), required=True)
        for name, (step, what, default) in STEPS.items():
            own = steps.add_parser(name, help=what, description=what, allow_abbrev=False)
            own.add_argument(
                "source",
                metavar="SOURCE",
                nargs="?",
                help="a file (.csv, .jsonl, .json, .parquet), a folder of them, a hub name, or sample or graded for "
                f"the bundled ones ({default})",
            )
            own.add_argument(
                "--output_dir", "--data_dir", dest="folder", type=Path, metavar="DIR", help="the same as --out"
            )
            step.add_arguments(own)

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files of the step.

        Raises:
            UserError: a source that cannot be used, or no row left.
        """
        args.out = merge_out(args.out, args.__dict__.pop("folder"), "--output_dir", self.name)
        yield from STEPS[args.step][0].run(args)
