"""Training, validation and test pairs that have no prompt and no story in common.

The source is read several times, and only hashes of it are kept in memory beside the test pairs: first to see what each
row is (and whether it leaks from a test pair), then for the validation and the training pairs. Where rows of two parts
have the same prompt, or nearly identical stories, the test set keeps them, then the validation set; see
`data_builders.litbench.leaks`.

A validation set of N rows is drawn by prompt: prompts in the order of a hash of theirs and the seed, each with all its
rows, and one that has more rows than are still wanted is passed over. So it has exactly N rows whenever enough prompts
have one row, and no order of the file changes it. If every prompt has more than N rows, one with the fewest is drawn.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record

from ..common import as_rows, digest, draw, keep, none_kept, write_some
from .leaks import StoryIndex, prompt_key
from .sources import Pair, as_pair, check_columns, find_source, find_test, read_table

PAIR_SEEN = Reject("pair of an earlier row")
SAME_ID = Reject("id of an earlier row", bad=True)
TEST_PROMPT = Reject("prompt of a test pair")
TEST_STORY = Reject("story nearly identical to one of a test pair")
VAL_STORY = Reject("story nearly identical to one of a validation pair")

#: what becomes of a row of the source
DROPPED, TRAIN, VAL, TEST = range(4)
BY_PROMPT = (
    "by prompt, in the order of a hash of prompt and seed; a prompt with more rows than are still wanted is passed over"
)


class Found(NamedTuple):
    """A pair and where its row is."""

    where: str
    pair: Pair


#: a row's place, and its pair or why it has none
Row = tuple[str, Pair | Reject]
#: from pairs to the rows of each that is kept
Convert = Callable[[Iterator[Found], Counts], Iterator[list[Record]]]


class Splits:
    """The three parts.

    Args:
        args: the options of `sources.add_shared`, and the common ones.
        default: SOURCE where none is given.
        wanted: the number of usable rows -> that of validation rows.
        check: why a training row is of no use to the step, if it is not.
        val_of_test: draw the validation rows from the test pairs, and leave them there.

    Raises:
        UserError: no source, no test pairs, a part without a row, a broken row under ``--strict``.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        default: str,
        wanted: Callable[[int], int],
        check: Callable[[Pair], Reject | None] = lambda _: None,
        val_of_test: bool = False,
    ) -> None:
        args.source = args.source or default
        self.args = args
        self.check = check
        self.source = find_source(args.source)
        self.test_source = find_test(args, self.source)
        check_columns(self.source.files)
        self.counts, self.val_counts, self.test_counts = (
            Counts(args.strict, args.max_count_of_reported) for _ in range(3)
        )
        #: training rows with a prompt or a story of a test pair, or a story of a validation pair
        self.leaks: Counter[str] = Counter()
        self.fates = bytearray()
        self.tests = list(draw(keep(self._test_rows(), self.test_counts), args.limit_test, None, self.test_counts))
        if not self.tests:
            remedy = ", or choose a larger share" if self.test_source.held_out else ""
            raise none_kept(self.test_source.label, "test pairs", self.test_counts, remedy)
        self.drawn: set[str] = set()
        if val_of_test:
            ids = sorted((found.pair.id for found in self.tests), key=lambda name: digest(name, f"{args.seed} val"))
            self.drawn = set(ids[: wanted(len(ids))])
        self._scan((lambda _: 0) if val_of_test else wanted)

    # --- the parts ---------------------------------------------------------------------------------------------------

    def test(self) -> Iterator[Found]:
        """The test pairs in the order of their file."""
        return iter(self.tests)

    def val(self) -> Iterator[Found]:
        """The validation pairs in the order of the file that they are drawn from."""
        if self.drawn:
            return (found for found in self.tests if found.pair.id in self.drawn)
        return self._with_fate(VAL)

    def train(self) -> Iterator[Found]:
        """The training pairs in the order of the source, those that leak from a validation pair left out."""
        stories = index(self._with_fate(VAL))
        for found in self._with_fate(TRAIN):
            if stories.near(found.pair.chosen, found.pair.rejected):
                self.leaks[VAL_STORY.reason] += 1
                if not self.args.keep_leaks:
                    self.counts.drop(found.where, VAL_STORY)
                    continue
            yield found

    def build(self, split: str, target: Path, convert: Convert) -> Built:
        """Write one part; ``train`` first, since it may still be found to be empty.

        Args:
            split: ``train``, ``val`` or ``test``.
            target: the file.
            convert: makes the rows of each pair, and counts the pairs that it drops.
        """
        part, counts, limit = {
            "train": (self.train, self.counts, self.args.limit),
            "val": (self.val, self.val_counts, None),
            "test": (self.test, self.test_counts, None),
        }[split]
        counts.kept = rows = 0

        def lines() -> Iterator[Record]:
            nonlocal rows
            for some in draw(convert(part(), counts), limit, None, counts):
                rows += len(some)
                yield from some

        sources = [*self.source.files, *self.test_source.files]
        main = self.test_source.files if split == "test" and self.test_source.files else sources
        write_some(target, lines(), counts, sources, name=main[0])
        counts.not_drawn = counts.read - counts.kept - counts.dropped.total()
        details: Record = {"rows": rows, "source": self.source.label, "test_source": self.test_source.label}
        if split == "train":
            details["leaks"] = {"found": dict(self.leaks), "they_are": "kept" if self.args.keep_leaks else "dropped"}
        if split == "val":
            how = "drawn from the test pairs by a hash of id and seed; they are test pairs all the same"
            details["split"] = how if self.drawn else BY_PROMPT
        return Built(target, counts, sources, self.source.licence, details)

    # --- how they are made -------------------------------------------------------------------------------------------

    def _rows(self, files: list[Path], what: str, wanted: Iterable[bool] = repeat(True)) -> Iterator[Row]:
        """The rows of some files, only those that are wanted parsed."""
        for row, want in zip(as_rows(read_table(files), what), wanted, strict=False):
            if want:
                yield row.where, row.record if isinstance(row.record, Reject) else as_pair(row.record)

    def _held_out(self, pair: Pair) -> bool:
        """Whether a pair is held out of the training set: by a hash of its prompt, so the same in every source."""
        held_out = self.test_source.held_out
        key = digest(str(prompt_key(pair.prompt)), f"{self.args.seed} test") if held_out else 0
        return key < held_out * 2**64

    def _test_rows(self) -> Iterator[tuple[str, Found | Reject]]:
        """The rows that the test pairs are made of."""
        seen = Seen()
        for where, outcome in self._rows(self.test_source.files or self.source.files, "test"):
            if self.test_source.held_out and not (isinstance(outcome, Pair) and self._held_out(outcome)):
                continue
            if isinstance(outcome, Pair):
                outcome = seen(outcome, prompt_key(outcome.prompt))
            yield where, outcome if isinstance(outcome, Reject) else Found(where, outcome)

    def _scan(self, wanted: Callable[[int], int]) -> None:
        """Decide the fate of each row of the source."""
        seen = Seen()
        counts = self.counts
        test_prompts = {prompt_key(found.pair.prompt) for found in self.tests}
        test_stories = index(self.tests)
        rows_of: Counter[int] = Counter()  # by prompt
        prompts: list[int] = []  # of the rows that can be used
        for where, outcome in self._rows(self.source.files, "rows"):
            if isinstance(outcome, Pair) and self._held_out(outcome):
                self.fates.append(TEST)
                continue
            counts.read += 1
            if isinstance(outcome, Pair):
                prompt = prompt_key(outcome.prompt)
                outcome = self._usable(outcome, prompt, seen, test_prompts, test_stories)
            if isinstance(outcome, Reject):
                counts.drop(where, outcome)
                self.fates.append(DROPPED)
                continue
            prompts.append(prompt)
            rows_of[prompt] += 1
            self.fates.append(TRAIN)
        if not prompts:
            raise none_kept(self.source.label, "training pairs", counts)
        chosen = draw_prompts(rows_of, wanted(len(prompts)), f"{self.args.seed} val")
        keys = iter(prompts)
        for place, fate in enumerate(self.fates):
            if fate == TRAIN and next(keys) in chosen:
                self.fates[place] = VAL
        self.val_counts.read = len(self.drawn) or self.fates.count(VAL)
        counts.read -= self.fates.count(VAL)
        if not self.val_counts.read:
            raise UserError(
                f"the usable rows of {self.source.label} have one prompt, and validation needs another; give more rows"
            )

    def _usable(
        self, pair: Pair, prompt: int, seen: Seen, test_prompts: set[int], test_stories: StoryIndex
    ) -> Pair | Reject:
        """A pair that may be trained on, or why it may not."""
        args = self.args
        if fault := self.check(pair):
            return fault
        if args.min_words and min(pair.words()) < args.min_words:
            return Reject(f"story of less than {args.min_words} words")
        if args.max_words and max(pair.words()) > args.max_words:
            return Reject(f"story of more than {args.max_words} words")
        outcome = seen(pair, prompt)
        if isinstance(outcome, Reject):
            return outcome
        if prompt not in test_prompts and not test_stories.near(pair.chosen, pair.rejected):
            return pair
        leak = TEST_PROMPT if prompt in test_prompts else TEST_STORY
        self.leaks[leak.reason] += 1
        return pair if args.keep_leaks else leak

    def _with_fate(self, fate: int) -> Iterator[Found]:
        for where, outcome in self._rows(self.source.files, "pairs", (own == fate for own in self.fates)):
            if isinstance(outcome, Pair):
                yield Found(where, outcome)


def index(pairs: Iterable[Found]) -> StoryIndex:
    """An index of both stories of each pair."""
    return StoryIndex(story for _, pair in pairs for story in (pair.chosen, pair.rejected))


class Seen:
    """Rejects pairs that came before, in either order, and ids that did."""

    def __init__(self) -> None:
        self._pairs: set[tuple[int, int, int]] = set()
        self._ids: set[int] = set()

    def __call__(self, pair: Pair, prompt: int) -> Pair | Reject:
        """The pair, if it is new; ``prompt`` is its `prompt_key`."""
        low, high = sorted(digest(story) for story in (pair.chosen, pair.rejected))
        key, name = (prompt, low, high), digest(pair.id)
        if key in self._pairs:
            return PAIR_SEEN
        if name in self._ids:
            return SAME_ID
        self._pairs.add(key)
        self._ids.add(name)
        return pair


def draw_prompts(rows_of: dict[int, int], wanted: int, seed: str) -> set[int]:
    """Prompts that have ``wanted`` rows together, or as many fewer as whole prompts allow.

    At least one prompt is left and, if there are two, at least one is drawn.

    Args:
        rows_of: the rows of each prompt.
        wanted: how many rows.
        seed: of the order, which depends on nothing else.
    """
    chosen: set[int] = set()
    order = sorted(rows_of, key=lambda key: digest(str(key), seed))
    room = wanted
    for prompt in order:
        if rows_of[prompt] <= room and len(chosen) < len(order) - 1:
            chosen.add(prompt)
            room -= rows_of[prompt]
    if wanted and not chosen and len(order) > 1:
        chosen.add(min(order, key=lambda prompt: rows_of[prompt]))
    return chosen
