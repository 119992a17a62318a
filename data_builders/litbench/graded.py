"""The bundled pairs of graded difficulty (source ``graded``): ``python -m data_builders.litbench.graded`` writes them.

A careful and a hasty telling of one prompt, those of the bundled sample, are cut into `PARTS` parts each and woven into
two stories. The story with more careful parts is the better one. The difference, 1 to `PARTS` parts, is how easy the
pair is. In half of the pairs, hard and easy ones alike, the better story is the longer one: length says nothing.
No prompt, and so no sentence, is in both files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from orlhf_ext.files.records import Record, read_records

from ..common import write_bundled
from .sources import BUNDLED

PARTS = 6
#: for each prompt a pair from each of these ranges of differences
RANGES = {"train": ((1, 3), (4, 6)), "test": ((1, 2), (3, 4), (5, 6))}
TRIES = 500
_END = re.compile(r"(?<=[.!?])[\"'\u2019\u201d]?\s+")


def cut(story: str) -> list[str]:
    """A story in `PARTS` parts of whole sentences, in their order."""
    ends = [match.end() for match in _END.finditer(story)]
    sentences = [" ".join(story[a:b].split()) for a, b in pairwise([0, *ends, len(story)])]
    places = [round(i * len(sentences) / PARTS) for i in range(PARTS + 1)]
    return [" ".join(sentences[a:b]) for a, b in pairwise(places)]


def weave(rows: Sequence[Record], ranges: Sequence[tuple[int, int]], seed: int) -> Iterator[Record]:
    """For each row and range a pair with a difference in the range, as a row of LitBench's training set."""
    draw = random.Random(seed)
    for i, row in enumerate(rows):
        careful, hasty = cut(row["chosen_story"]), cut(row["rejected_story"])
        for j, (least, most) in enumerate(ranges):
            for _ in range(TRIES):  # until the better story is the longer one, or the shorter one, in turn
                more = draw.randint(least, PARTS)
                fewer = draw.randint(max(0, more - most), more - least)
                places = [set(draw.sample(range(PARTS), count)) for count in (more, fewer)]
                better, worse = (" ".join((careful if k in own else hasty)[k] for k in range(PARTS)) for own in places)
                if (len(better.split()) > len(worse.split())) == ((i + j) % 2 == 0):
                    break
            yield {"prompt": row["prompt"], "chosen_story": better, "rejected_story": worse}


def main() -> None:
    """Write both files."""
    files = {}
    for seed, (name, ranges) in enumerate(RANGES.items()):
        rows = [line.record for line in read_records(BUNDLED["sample"] / f"{name}.jsonl")]
        files[name] = weave(rows, ranges, seed)
    write_bundled(BUNDLED["graded"], files, "pairs")


if __name__ == "__main__":
    main()
