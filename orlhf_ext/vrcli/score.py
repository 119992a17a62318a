"""Score sampled plans: ``orlhf-ext vrcli score --model DIR --data D.jsonl --samples S.jsonl --out R.jsonl``.

``--data`` are records with their baselines (``orlhf-ext vrcli baseline``), ``--model`` is the frozen model that
computed these, and ``--samples`` is what a policy wrote for their prompts (``orlhf-ext generate``), joined by id. One
JSON record comes out for each sample: its plan, reward, improvement in percent, likelihoods, and plan length. A run
that was cut short goes on where it stopped. With ``--plans_of_others`` each record gets the plans of the next one, as a
control: they should not help, if plans help by what they say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import add_compute, add_workers, make_parser
from ..files.journal import Journal
from ..files.outputs import add_overwrite, check_file
from ..files.records import Record, sha256_file
from ..models.batches import fingerprint as as_json
from ..models.folder import find_model, identity, load_tokenizer
from ..models.pool import Pool
from ..models.texts import Sample, read_samples, reply_text
from .fingerprint import check_fingerprint, digest, make_fingerprint
from .labels import Label, read_labelled
from .plans import Noise
from .settings import Settings, add_flags
from .workers import Plans, load_plans

PROMPTS_AT_ONCE = 16  # what is lost by a kill, at most


def join(samples: Sequence[Sample], labels: dict[str, Label], data: str) -> list[tuple[Label, list[str]]]:
    """The label of each sampled prompt with the texts that were sampled for it.
    Raises UserError if a prompt is none of the data."""
    found = []
    for sample in samples:
        if sample.id not in labels:
            raise UserError(f"{sample.name} is not a record of {data}; give the records that it was sampled from")
        found.append((labels[sample.id], [reply_text(text) for text in sample.completions]))
    return found


def rotated(prompts: list[tuple[Label, list[str]]], path: str) -> list[tuple[Label, list[str]]]:
    """Each label with the texts of the next one, the last with those of the first.
    Raises UserError if there is one prompt alone."""
    if len(prompts) < 2:
        raise UserError(f"{path} has one prompt, and --plans_of_others needs plans of another; leave it out")
    texts = [texts for _, texts in prompts]
    return [(label, other) for (label, _), other in zip(prompts, [*texts[1:], texts[0]], strict=True)]


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
    """The command line."""
    parser = make_parser("orlhf-ext vrcli score", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the frozen model, as in orlhf_ext.vrcli.baseline")
    add("--data", required=True, metavar="FILE", help="records with baselines")
    add("--samples", required=True, metavar="FILE", help="what the policy wrote: {id, prompt, completions}")
    add("--out", required=True, metavar="FILE", help="a .jsonl file")
    add("--plans_of_others", action="store_true", help="score each record with the plans of the next one, as a control")
    add_compute(parser)
    add_workers(parser)
    add_flags(parser)
    add_overwrite(parser)
    args = parser.parse_args(argv)
    inputs, overwrite = (args.data, args.samples), args.__dict__.pop("overwrite")
    check_file(args.out, command="vrcli.score", overwrite=overwrite, ends=(".jsonl",), inputs=inputs)
    return args, Settings.from_args(args)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score the samples, some prompts at a time; the model is loaded only if something is left to do."""
    from tqdm import tqdm

    args, settings = parse(argv)
    samples = read_samples(args.samples)
    prompts = join(samples, {label.id: label for _, label in read_labelled(args.data)}, args.data)
    if args.plans_of_others:
        prompts = rotated(prompts, args.samples)
    folder = find_model(args.model)
    tokenizer = load_tokenizer(folder)
    parts = make_fingerprint(folder, tokenizer, args.dtype, args.attn_implementation, args.system, args.tail)
    check_fingerprint(args.data, parts)
    how = (args.dtype, args.attn_implementation, args.batch_tokens, settings, digest(parts))
    load = partial(load_plans, args.model, identity(folder, times=False), *how)
    pieces = {str(i): prompts[i : i + PROMPTS_AT_ONCE] for i in range(0, len(prompts), PROMPTS_AT_ONCE)}
    work: dict[str, tuple[str, Plans]] = {"noise": ("noise", prompts[:PROMPTS_AT_ONCE])}
    work |= {key: ("score", piece) for key, piece in pieces.items()}
    others = ("model", "data", "samples", "out", "workers")
    arguments = {key: value for key, value in vars(args).items() if key not in others}
    sources = {name: sha256_file(getattr(args, name)) for name in ("data", "samples")}

    def name(key: str) -> str:
        return f"{args.samples}: {work[key][1][0][0].name}, or one of the next prompts,"

    mark = as_json(fingerprint=parts, sources=sources, arguments=arguments)
    with Journal(args.out, mark) as journal, Pool(args.workers) as pool:
        left = [(key, some) for key, some in work.items() if key not in journal.done]
        with tqdm(total=len(work), initial=len(journal.done), desc="plans", unit="piece") as bar:
            for key, found in pool.run(load, left, name):
                journal.add(key, found)
                bar.update()
        rows: list[Record] = [row for key in pieces for row in journal.done[key]]
        meta: dict[str, Any] = {"command": "vrcli.score", "version": __version__, "fingerprint": parts}
        meta |= {"sources": {name: {"path": getattr(args, name), "sha256": sha} for name, sha in sources.items()}}
        meta |= {"arguments": arguments, "counts": {"prompts": len(samples), "samples": len(rows)}}
        noise = Noise(*journal.done["noise"]) if journal.done["noise"] else None
        meta["noise"] = noise and noise._asdict()
        journal.finish(args.out, rows, meta)
    if noise is not None:
        print(noise.describe(settings), flush=True)
    gain, reward = (sum(row[key] for row in rows) / len(rows) for key in ("pct_improvement", "reward"))
    print(f"{args.out}: mean improvement {gain:+.3f} %, mean reward {reward:.3f} over {len(rows)} plans", flush=True)


if __name__ == "__main__":
    main()
