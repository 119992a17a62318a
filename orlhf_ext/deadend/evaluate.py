"""Compare decodings: ``orlhf-ext deadend evaluate plain=A.jsonl eps0.3=B.jsonl --out eval.json``

Every file has the same prompts with scored ``generations`` (``orlhf-ext deadend score``). With m the largest score of
a prompt's generations (a missing one counts 0): expected maximum toxicity is the mean of m, with its population
deviation; toxicity probability the share of prompts with m of 0.5 or more. dist-n is the number of different n-grams of
all generations of a prompt over the number of their words, split at single spaces; n-grams do not cross generations.
Perplexity (``--perplexity_model``) is that of a continuation given its prompt, as a mean over continuations, and over
the whole corpus. Intervals are 95 % bootstrap intervals over prompts, differences to the first file are paired.

The table is written beside --out O.json, as O.md and O.csv, and a record for each prompt, with the most toxic
continuation of each file, as O.records.jsonl. ``--samples N`` prints N prompts with the first
continuation of each file. Continuations of 0.5 or more are masked there, and prompts, unless they came with a
``toxicity`` of their own that is less; with ``--show`` nothing is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.errors import UserError, command
from ..cli.flags import DTYPES, add_compute, make_parser, named_paths, whole
from ..files.journal import Journal
from ..files.records import sha256_file
from ..models.batches import fingerprint
from ..reports import summaries
from ..reports.summaries import write_summary
from . import report
from .generations import Generated, in_order, read_generated
from .metrics import compare

if TYPE_CHECKING:
    from .perplexity import Likelihood


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext deadend evaluate", __doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="NAME=FILE", help="scored generations; differences are to the first file")
    add("--controls", nargs="+", default=[], metavar="NAME", help="which of them are controls, apart in the report")
    add("--toxicity_type", default="toxicity", metavar="NAME", help="the scores' key (%(default)s)")
    add("--perplexity_model", metavar="MODEL", help="a causal language model: folder or hub name")
    add(
        "--perplexity_num",
        type=whole(),
        default=0,
        metavar="N",
        help="measure the first N generations of each prompt; 0: all",
    )
    add("--samples", type=whole(), default=0, metavar="N", help="print N prompts with continuations")
    add("--show", action="store_true", help="do not mask toxic text in --samples")
    add_compute(parser, batch_tokens=2048, dtypes=(DTYPES[2], *DTYPES[:2]))
    summaries.add_flags(parser, "--save_file")
    args = parser.parse_args(argv)
    summaries.check_flags(args, "deadend.evaluate")
    return args


def all_likelihoods(
    args: argparse.Namespace, files: Mapping[str, Generated]
) -> dict[str, list[list[Likelihood]]] | None:
    """The likelihoods of every file, None without a model. They stay beside ``--out``, in a hidden file, so
    that the same files are not read again by the model for another look."""
    if args.perplexity_model is None:
        return None
    from . import perplexity

    model = perplexity.LanguageModel(args.perplexity_model, args.batch_tokens, args.dtype, args.attn_implementation)
    sources = {name: sha256_file(one.path) for name, one in files.items()}
    found: dict[str, list[list[Likelihood]]] = {}
    with Journal(
        Path(args.out).with_suffix(".perplexity"),
        fingerprint(model={**model.identity, "num": args.perplexity_num}, data=sources),
    ) as journal:
        for name, one in files.items():
            if cut := model.cut(one.pairs(args.perplexity_num)):
                print(
                    f"{one.path}: {cut} texts with their prompts are longer than --perplexity_model reads, and are cut"
                )
            values = iter(perplexity.measure(model, name, one.pairs(args.perplexity_num), journal))
            found[name] = [[next(values) for _ in row[: args.perplexity_num or None]] for row in one.texts]
    return found


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, compare, write, print."""
    args = parse(argv)
    paths = named_paths(args.files)
    if unknown := [name for name in args.controls if name not in paths]:
        raise UserError(f"--controls {unknown[0]} is not one of {', '.join(paths)}; give names of the files")
    files = {name: read_generated(path, args.toxicity_type) for name, path in paths.items()}
    first = next(iter(files.values()))
    files = {name: in_order(one, first) for name, one in files.items()}
    found = compare(files, all_likelihoods(args, files), args.seed)
    about = {
        "toxicity_type": args.toxicity_type,
        "perplexity_model": args.perplexity_model,
        "perplexity_num": args.perplexity_num,
        "baseline": next(iter(files)),
        "controls": args.controls,
    }
    summary = {**args.run, "command": "deadend.evaluate", **about, "prompts": len(first.prompts), "metrics": found}
    table = report.table_of(found)
    write_summary(args.out, summary, table.markdown(), table.csv(), report.prompt_records(files))
    report.print_samples(args.samples, files, args.show)
    report.print_table(found, args.perplexity_model)


if __name__ == "__main__":
    main()
