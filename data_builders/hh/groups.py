"""Scored responses -> pairs that groups of annotators with different tastes would give.

Read are records ``{"id", "prompt", "completions": [K texts], "traits": {name: [K scores]}}``. Each record goes to one
group: by its ``group_id`` (a group's place in the YAML file, or its name) or ``group`` (its name), if records have
one, else by a draw with ``--seed``, one for each line in the order of the file, so that the first group's rows at a
small ``--proportion`` are among those at a larger one. A group's score of a response is the weighted sum of its traits;
the best response is chosen, the worst of the others is rejected, and of equal ones the first counts.

Written are ``OUT/{train,test}.jsonl``, each with its sidecar, with rows

    {"id": str, "group_id": int, "group": str, "style": str, "prompt": str, "chosen": str, "rejected": str,
     "score_chosen": float, "score_rejected": float, "traits": {name: [of chosen, of rejected]}}

or, with ``--compat``, ``OUT/train.jsonl`` alone with ``{"group_id", "chosen", "rejected"}``, where chosen and rejected
begin with the prompt. It keeps equal and empty responses, as SharedRep's own script does.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NoReturn

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import INNER
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record
from orlhf_ext.groups.assign import best_and_worst, held_out, stream_groups
from orlhf_ext.groups.config import Group, group_scores, odd_weights, read_groups, trait_fault, wanted_traits
from orlhf_ext.groups.trained_groups import by_place, group_name
from orlhf_ext.models.head_settings import STYLES

from ..common import digest, draw, read_rows, write_some
from .dialogues import EMPTY, SAME
from .prompts import id_of

TEST_SIZE = 0.05
NO_TEXT = Reject("no prompt and completions that are all text", bad=True)
ONE = Reject("fewer than two completions", bad=True)
SAME_ID = Reject("id of an earlier record", bad=True)


class Builder:
    """``build_data hh-groups``."""

    name = "hh-groups"
    help = "scored responses into the pairs of groups with different tastes (group preferences)"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add this builder's own options."""
        add = parser.add_argument
        add("scored", metavar="SCORED", help="a file of samples with traits (.jsonl)")
        yaml = "groups: [{name, proportion, weights: {trait: weight}}], such as recipes/groups/hh.yaml"
        add("--groups", type=Path, required=True, metavar="FILE.yaml", help=yaml)
        add("--proportion", type=INNER, metavar="P", help="share of the first of two groups")
        add("--style", choices=STYLES, help="how prompts were rendered, unless records say it")
        add("--test_size", type=INNER, help=f"share of each group's pairs in test.jsonl ({TEST_SIZE})")
        add("--compat", action="store_true", help="SharedRep's three columns, all in train.jsonl")

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files.

        Raises:
            UserError: groups or records that make no sense, or a group without a pair.
        """
        if args.compat and args.test_size:
            raise UserError("--test_size has no effect with --compat, which writes no test file; leave one out")
        groups = read_groups(args.groups, args.proportion)
        for sentence in odd_weights(groups):
            print(f"warning: {args.groups}: {sentence}", file=sys.stderr)
        pipeline = Pipeline(groups, args)
        pipeline.scan()
        for split in ("train",) if args.compat else ("train", "test"):
            yield pipeline.build(split)


class Pipeline:
    """From scored records to pairs, one at a time; the file is read once for each file written, and once before."""

    def __init__(self, groups: list[Group], args: argparse.Namespace) -> None:
        self.groups = groups
        self.args = args
        self.names = [group.name for group in groups]
        self.path = Path(args.scored)
        self.traits = wanted_traits(groups)
        self.style: str | None = args.style
        self.own_groups: bool | None = None  # whether records name their group: the first one decides
        self.counts = Counts(args.strict, args.max_count_of_reported)
        self.records: Counter[int] = Counter()  # records of each group, those that give no pair included
        self.kept: list[int] = []  # the group of each pair, in the order of the file
        self.test: set[int] = set()  # places in it of the pairs for testing

    def scan(self) -> None:
        """Read all once: count, check that no group is left without pairs, and draw the pairs for testing."""
        args = self.args
        for where, group, outcome in self.outcomes():
            self.counts.read += 1
            if group is not None:
                self.records[group] += 1
            if isinstance(outcome, Reject):
                self.counts.drop(where, outcome)
            elif group is not None:
                self.kept.append(group)
        if not self.counts.read:
            raise UserError(f"{self.path} has no record; give a file of scored samples")
        if not self.kept:
            example = f" ({self.counts.examples[0]})" if self.counts.examples else ""
            where = f"none of the {self.counts.read} records of {self.path}"
            raise UserError(f"{where} gives a pair{example}; score them with orlhf_ext.groups.score")
        for place in range(len(self.groups)):
            if place not in self.kept:
                self.without_pairs(place)
        if args.compat:
            return
        self.test = held_out(self.kept, args.test_size or TEST_SIZE, args.seed)
        if not self.test:
            raise UserError(f"{self.path} gives one pair for each group, and none for test.jsonl; sample more prompts")

    def without_pairs(self, place: int) -> NoReturn:
        """Raise the error of a group that has no pair."""
        group = self.groups[place]
        what = f"group {group.name!r} has no pair among the {len(self.kept)} of {self.path}"
        if self.own_groups:
            raise UserError(f"{what}: add records with group_id {place}, or take it out of {self.args.groups}")
        raise UserError(
            f"{what} (proportion {group.proportion:g}, --seed {self.args.seed}); try another --seed, a larger "
            "proportion, or more prompts"
        )

    def build(self, split: str) -> Built:
        """Write one split's pairs."""
        counts = self.counts
        if split == "test":
            counts = Counts(self.args.strict, 0)
            counts.read = len(self.test)
        else:
            counts.read -= len(self.test)
        rows: Counter[int] = Counter()

        def counted() -> Iterator[Record]:
            for group, pair in self.pairs(split):
                rows[group] += 1
                yield pair

        target = self.args.out / f"{split}.jsonl"
        write_some(target, draw(counted(), None, None, counts), counts, [self.path])
        groups = {
            group.name: {
                "group_id": place,
                "proportion": group.proportion,
                "weights": group.weights,
                "records": self.records[place],
                "rows": rows[place],
            }
            for place, group in enumerate(self.groups)
        }
        drawn = "as the records say" if self.own_groups else f"drawn with seed {self.args.seed}"
        details: dict[str, Any] = {"style": self.style, "assignment": drawn, "groups": groups}
        return Built(target, counts, [self.path, self.args.groups], "that of the source", details)

    def pairs(self, split: str) -> Iterator[tuple[int, Record]]:
        """The pairs of a split, each with its group."""
        place = -1
        for _, group, outcome in self.outcomes():
            if group is None or isinstance(outcome, Reject):
                continue
            place += 1
            if (place in self.test) == (split == "test"):
                yield group, outcome

    def outcomes(self) -> Iterator[tuple[str, int | None, Record | Reject]]:
        """For each record its place, its group, and its pair or why it gives none."""
        ids: set[int] = set()
        shares = [group.proportion for group in self.groups]
        draws: Iterator[int | None] = repeat(None)
        if None not in shares:
            draws = stream_groups(shares, self.args.seed)  # type: ignore[arg-type]
        # a broken line takes its draw as well: other rows' groups must not depend on it
        for drawn, row in zip(draws, islice(read_rows(self.path), self.args.limit), strict=False):
            record = row.record
            if isinstance(record, Reject):
                yield row.where, None, record
                continue
            name = id_of(record, row.number, "line")
            where = f"{row.where} (id {name!r})"
            group = self.group_of(where, record, drawn)
            self.check_style(where, record)
            known = digest(name) in ids
            ids.add(digest(name))
            yield where, group, SAME_ID if known else self.pair(where, name, record, group)

    def group_of(self, where: str, record: Record, drawn: int | None) -> int:
        """The group of a record: all records name theirs, or it is drawn for all.

        Raises:
            UserError: it is unknown, drawn as well as named, or neither.
        """
        own = any(record.get(key) is not None for key in ("group_id", "group"))
        if self.own_groups is None:
            self.own_groups = own
        if own != self.own_groups:
            which = "has a group, but earlier ones have none" if own else "has no group_id, but earlier ones have one"
            raise UserError(f"{where} {which}; give all records a group_id, or none")
        if own and self.args.proportion is not None:
            raise UserError(
                f"--proportion draws groups at random, but the records of {self.path} name theirs; leave it out"
            )
        if own:
            nameless = {**record, "id": None}  # the id is in ``where``
            return self.names.index(group_name(nameless, self.names, by_place(self.names), where))
        if drawn is None:
            raise UserError(
                f"{self.args.groups} has no proportions, and the records of {self.path} have no group_id; give one"
            )
        return drawn

    def check_style(self, where: str, record: Record) -> None:
        """Check that all prompts are of one style, and that it is known.

        Raises:
            UserError: they are not.
        """
        style = record.get("style")
        if style is None:
            if self.style is None:
                raise UserError(f"{where} does not say how its prompt was rendered; add --style {', '.join(STYLES)}")
            return
        if style not in STYLES:
            raise UserError(f"{where} has the style {style!r}, which is none of {', '.join(STYLES)}")
        self.style = self.style or style
        if style != self.style:
            raise UserError(f"{where} has the style {style}, not {self.style}; use one style for the whole run")

    def pair(self, where: str, name: str, record: Record, group_id: int) -> Record | Reject:
        """The pair that a record's group makes of it."""
        prompt, completions, traits = (record.get(key) for key in ("prompt", "completions", "traits"))
        if not isinstance(prompt, str) or not isinstance(completions, list):
            return NO_TEXT
        if not all(isinstance(text, str) for text in completions):
            return NO_TEXT
        if len(completions) < 2:
            return ONE
        if (fault := trait_fault(traits, self.traits, len(completions))) or traits is None:
            return Reject(str(fault), bad=True)
        group = self.groups[group_id]
        scores = [score for (score,) in group_scores([group], traits, where)]
        best, worst = best_and_worst(scores)
        chosen, rejected = completions[best], completions[worst]
        if self.args.compat:
            texts = {"chosen": self.whole(prompt, chosen), "rejected": self.whole(prompt, rejected)}
            return {"group_id": group_id, **texts}
        if chosen.rstrip() == rejected.rstrip():  # what follows the last word is not read: see `render.whole_text`
            return SAME
        if not (chosen.strip() and rejected.strip()):
            return EMPTY
        return {
            "id": name,
            "group_id": group_id,
            "group": group.name,
            "style": self.style,
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "score_chosen": scores[best],
            "score_rejected": scores[worst],
            "traits": {trait: [values[best], values[worst]] for trait, values in traits.items()},
        }

    def whole(self, prompt: str, completion: str) -> str:
        """Prompt and completion as one text, as SharedRep's own script has it: decoded without special tokens."""
        text = prompt + completion
        return text.replace("</s>", "").strip() if self.style == "legacy" else text
