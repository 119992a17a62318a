"""Score completions with gold traits: ``orlhf-ext groups score --data A --out B --trait NAME=KIND``

Reads samples (``completions``) or pairs (``chosen``, ``rejected``) whose prompts and completions are text, and adds
``traits: {NAME: [a number for each completion]}``; traits that a record already has stay, unless they are scored again.
KIND is positiveness, conciseness, conciseness:N (1 - words / N, at least 0), or a reward model with one score (a folder
or a hub name), which reads prompt and completion, cut on the left. A run that was cut short goes on where it stopped,
and gives the numbers of an uninterrupted one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import DTYPES, add_compute, add_workers, make_parser, whole
from ..files.journal import Journal
from ..files.outputs import add_overwrite
from ..files.records import Line, Record, source_entry
from ..models.batches import add_files, check_files, fingerprint, run_batches, with_column
from ..models.head_settings import EOS
from ..models.large import Part, Source, Tally, add_part_records, run_parts
from ..models.pool import Pool
from ..models.texts import Sample, as_sample
from .traits import Traits, TraitSpec


class TraitJournal:
    """The pieces of one trait in a file's journal."""

    def __init__(self, journal: Journal, trait: str) -> None:
        self._journal, self._prefix = journal, f"{trait}/"
        start = len(self._prefix)
        self.done = {key[start:]: value for key, value in journal.done.items() if key.startswith(self._prefix)}

    def add(self, key: str, value: Any) -> None:
        """Keep one finished piece."""
        self._journal.add(self._prefix + key, value)
        self.done[key] = value


def as_text(line: Line) -> Sample:
    """A sample or pair in which everything is text.

    Raises:
        UserError: as `as_sample`; it has messages, or traits that are not an object of one number for a completion.
    """
    sample = as_sample(line)
    if not all(isinstance(text, str) for text in (sample.prompt, *sample.completions)):
        raise UserError(
            f"{sample.name} has messages, and traits are scored on text; build text prompts "
            "(build_data hh-groups, style hh, chat or legacy)"
        )
    traits = sample.record.get("traits") or {}
    if not isinstance(traits, dict) or any(
        not isinstance(values, list) or len(values) != len(sample.completions) for values in traits.values()
    ):
        raise UserError(f"{sample.name} has traits that are not one number for each completion; remove them")
    return sample


def score_trait(
    traits: Traits, spec: TraitSpec, samples: Sequence[Sample], journal: Journal, pool: Pool
) -> tuple[list[list[float]], dict[str, int]]:
    """One trait of every completion of a file, and counts for the sidecar.
    Raises UserError if a score is not finite; the record is named."""
    if spec.kind != "model":
        return [[traits.of_text(spec, str(text)) for text in sample.completions] for sample in samples], {}
    model = traits.models[spec.name]
    texts = [
        (str(sample.prompt), str(text), i, k)
        for i, sample in enumerate(samples)
        for k, text in enumerate(sample.completions)
    ]
    encoded = model.encode(texts)
    counts = {"truncated": encoded.truncated, "prompt_lost": encoded.prompt_lost}

    # run_batches uses `done` and `add` alone
    part = cast(Journal, TraitJournal(journal, spec.name))
    return run_batches(
        encoded.rows, samples, model.in_worker, part, traits.batch_tokens, f"{spec.name} score", pool
    ), counts


def with_traits(samples: Sequence[Sample], found: dict[str, list[list[float]]]) -> list[Record]:
    """The records with ``traits``; a pair becomes a record with two completions, chosen first."""
    records = with_column(samples, "traits", [[] for _ in samples])
    for i, (sample, record) in enumerate(zip(samples, records, strict=True)):
        new = {name: values[i] for name, values in found.items()}
        record["traits"] = {**(sample.record.get("traits") or {}), **new}
    return records


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Traits]:
    """The command line."""
    parser = make_parser("orlhf-ext groups score", __doc__)
    add = parser.add_argument
    add_files(parser)
    add("--trait", required=True, action="append", metavar="NAME=KIND", help="repeatable")
    add(
        "--max_len",
        type=whole(2, also=(0,)),
        default=0,
        help="tokens that a model reads; 0: all that it has positions for",
    )
    add("--eos", choices=EOS, default="none", help="append: texts end with a space and EOS for a model (%(default)s)")
    add_compute(parser, dtypes=DTYPES[:2])
    add_workers(parser)
    add_part_records(parser)
    add_overwrite(parser)
    args = parser.parse_args(argv)
    how = (args.max_len, args.eos, args.batch_tokens, args.dtype, args.attn_implementation)
    return args, Traits(args.trait, *how)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score each file; models are loaded once, and only if something is left to do."""
    args, traits = parse(argv)
    pairs = check_files(args.data, args.out, "groups.score", args.__dict__.pop("overwrite"))
    sources = {data: Source(data, as_text, args.part_records) for data, _ in pairs}
    traits.check()
    settings = {key: getattr(args, key) for key in ("max_len", "eos", "batch_tokens", "dtype", "attn_implementation")}
    kinds: dict[str, Any] = {spec.name: _kind(traits, spec) for spec in traits.parsed}
    names = list(kinds)

    def work(part: Part, journal: Journal) -> tuple[list[Record], Tally]:
        found: dict[str, list[list[float]]] = {}
        tally: dict[str, float] = {"records": len(part.samples)}
        tally["completions"] = sum(len(sample.completions) for sample in part.samples)
        for spec in traits.parsed:
            found[spec.name], cut = score_trait(traits, spec, part.samples, journal, pool)
            _report_cut(part.name, spec, cut, args.max_len)
            tally |= {f"{key} {spec.name}": count for key, count in cut.items()}
            tally[f"sum {spec.name}"] = sum(sum(row) for row in found[spec.name])
        return with_traits(part.samples, found), tally

    def summary(tally: Tally) -> Record:
        cuts = {
            name: {key: tally[f"{key} {name}"] for key in ("truncated", "prompt_lost") if f"{key} {name}" in tally}
            for name in names
        }
        counts = {"records": tally["records"], "completions": tally["completions"], "cut": cuts}
        return {"means": {name: tally[f"sum {name}"] / tally["completions"] for name in names}, "counts": counts}

    with Pool(args.workers) as pool:
        for data, out in pairs:
            source = source_entry(data)
            meta: dict[str, Any] = {"command": "groups.score", "version": __version__}
            meta |= {"traits": {spec.name: {"spec": str(spec), **kinds[spec.name]} for spec in traits.parsed}}
            meta |= {"data": source, "arguments": settings}
            with Journal(out, fingerprint(traits=kinds, data=source["sha256"], arguments=settings)) as journal:
                found = summary(run_parts(sources[data], out, journal, meta, work, summary))
            shown = ", ".join(f"{name} {mean:.4f}" for name, mean in found["means"].items())
            print(f"{out}: mean {shown} over {found['counts']['completions']} completions", flush=True)


def _kind(traits: Traits, spec: TraitSpec) -> dict[str, Any]:
    """What a trait's numbers depend on."""
    if spec.kind == "model":
        return {"kind": "model", "identity": traits.models[spec.name].identity}
    if spec.kind == "positiveness":
        return {"kind": "positiveness", "vaderSentiment": version("vaderSentiment")}
    return {"kind": "conciseness", "words": spec.words}


def _report_cut(data: str, spec: TraitSpec, counts: dict[str, int], max_len: int) -> None:
    if counts.get("truncated"):
        where = f"at {max_len} tokens" if max_len else "at the model's positions"
        print(
            f"{data}: {spec.name}: {counts['truncated']} texts are cut on the left {where}, "
            f"{counts['prompt_lost']} of them with nothing left of the prompt"
        )


if __name__ == "__main__":
    main()
