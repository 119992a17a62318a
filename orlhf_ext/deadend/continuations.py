"""Continuations of value prompts: ``orlhf-ext deadend continuations --model DIR --data prompts.jsonl
--out prompts_and_gens.jsonl --num_returns 25``

A prompt is the record's ``prompt``, text or ``{"text": ...}``; the record is written back with ``"generations":
[{"text", "token_ids"}]``. Tokens are drawn from the 50 likeliest (``--top_k 0``: from all). A run that was cut short
goes on where it stopped; every completion has a seed of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cli.errors import command
from ..cli.flags import make_parser, whole
from .sampling import Plain, add_flags, check_flags, print_counts, sample_file


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Sample continuations of each prompt."""
    parser = make_parser("orlhf-ext deadend continuations", __doc__)
    add_flags(parser, num_returns=10, batch_size=32, min_new_tokens=0)
    parser.add_argument(
        "--sample_size", type=whole(1, also=(-1,)), default=-1, help="number of prompts to draw; -1: all (%(default)s)"
    )
    args = parser.parse_args(argv)
    check_flags(args, "deadend.continuations")
    print_counts(args.out, sample_file(args, "deadend.continuations", args.sample_size, Plain()))


if __name__ == "__main__":
    main()
