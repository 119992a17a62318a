"""Hold prompts out: ``orlhf-ext deadend hold_out --data prompts.jsonl --num 64 --out DIR``

Draws prompts for evaluation, which value data then never sees: ``DIR/held_out.jsonl`` gets them, ``DIR/prompts.jsonl``
the others, both in the file's order. Prompts with the same text stay on one side; among the held-out ones a text occurs
once.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import COUNT, SEED, make_parser
from ..files.outputs import add_overwrite, check_file, check_folder
from ..files.records import read_records, source_entry, write_json, write_jsonl
from ..files.sidecars import sidecar_path
from .generations import prompt_of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext deadend hold_out", __doc__)
    add = parser.add_argument
    add("--data", "--data_file", required=True, metavar="FILE", help="prompts, JSON Lines")
    add("--num", type=COUNT, required=True, help="how many to hold out")
    add("--out", "--save_dir", required=True, metavar="DIR", help="the folder of both files")
    add("--seed", type=SEED, default=0, help="seed of the draw (%(default)s)")
    add_overwrite(parser)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and write two files."""
    args = parse(argv)
    data, folder = Path(args.data), Path(args.out)
    if folder.resolve() == data.parent.resolve():
        raise UserError(f"--out {folder} is the folder of --data; give another one")
    check_folder(folder)
    for name in ("held_out", "prompts"):
        check_file(folder / f"{name}.jsonl", command="deadend.hold_out", overwrite=args.overwrite)
    texts = list(dict.fromkeys(prompt_of(line) for line in read_records(data)))
    if len(texts) <= args.num:
        raise UserError(
            f"{data} has {len(texts)} different prompts, so that --num {args.num} leaves none to train on; lower it"
        )
    held = set(random.Random(args.seed).sample(texts, args.num))
    ours = {prompt_of(line): line.record for line in read_records(data) if prompt_of(line) in held}
    rest = [line.record for line in read_records(data) if prompt_of(line) not in held]
    meta = {"command": "deadend.hold_out", "version": __version__, "seed": args.seed, "data": source_entry(data)}
    for name, records in (("held_out", list(ours.values())), ("prompts", rest)):
        path = folder / f"{name}.jsonl"
        # first: it says whose the other is
        write_json(sidecar_path(path), {**meta, "counts": {"prompts": len(records)}})
        write_jsonl(path, records)
    print(f"{folder}: {len(ours)} prompts held out, {len(rest)} others")


if __name__ == "__main__":
    main()
