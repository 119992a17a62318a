"""Baselines of records: ``orlhf-ext vrcli baseline --model DIR --data train.jsonl --out OUT/train.jsonl``.

Each record comes out as it went in, with the mean negative log-likelihood of its gold text without a plan in its label
(``base``: ``nll`` in nats a token, ``n`` scored tokens, ``fp`` fingerprint), and beside it as ``nll``, ``tokens`` and
``ppl``. Where an empty plan changes the conversation, ``empty_plan_pct`` is what it improves by itself, in percent.

The fingerprint (model, chat template, dtype, attention, libraries, ...) is in the sidecar; training refuses
baselines of another one. A run that was cut short goes on where it stopped, a finished one is not done again.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import LENGTH, add_compute, add_workers, make_parser, whole
from ..files.journal import Journal
from ..files.outputs import add_overwrite
from ..files.records import Record, object_or_empty, sha256_file
from ..files.sidecars import sidecar_path
from ..models.batches import Row, check_files, run_batches
from ..models.batches import fingerprint as as_json
from ..models.folder import check_context, check_ids, context_length, find_model, identity, load_tokenizer
from ..models.pool import Pool
from ..models.texts import Sample
from .fingerprint import digest, make_fingerprint
from .improvement import improvement
from .labels import Baseline, Label, Labelled, read_labelled
from .sequences import Encoder
from .settings import SCORING, add_flags
from .workers import load_baseline

#: where build_data story writes what
STORIES, SPLITS = Path("data/story"), ("train", "val", "test")
_SUFFIX = re.compile(r"\.(jsonl|json|ndjson|parquet)(\.gz)?$")


def make_rows(labels: Sequence[Label], encoder: Encoder, plan_tokens: int = 0) -> list[Row]:
    """The sequences of each record: the baseline's, and that of an empty plan where it is another.

    Args:
        labels: of all records.
        encoder: of the model.
        plan_tokens: room that a plan must have in the model's context.

    Raises:
        UserError: as `Encoder.encode`; a plan has no room; the record is named.
    """
    rows = [Row(i, 0, *span) for i, span in enumerate(encoder.encode(labels, [None] * len(labels)))]
    changed = [i for i, label in enumerate(labels) if label.messages("") != label.messages()]
    empty = encoder.encode([labels[i] for i in changed], [""] * len(changed))
    rows += [Row(i, 1, *span) for i, span in zip(changed, empty, strict=True)]
    if plan_tokens:
        encoder.check_room(labels, [plan_tokens] * len(labels), "--plan_tokens")
    return rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext vrcli baseline", __doc__)
    add = parser.add_argument
    add(
        "--model",
        "--model_name",
        required=True,
        metavar="DIR",
        help="the model that training starts from: a Hugging Face folder or a hub name",
    )
    add("--data", nargs="+", metavar="FILE", help=f"records that build_data story wrote (those in {STORIES})")
    add("--out", nargs="+", metavar="FILE", help="one .jsonl for each input")
    add(
        "--nice_model_name",
        metavar="NAME",
        help="instead of --out: the file X.jsonl becomes X_with_baseline_ppl_NAME.jsonl beside it",
    )
    add("--max_len", type=LENGTH, metavar="N", help="refuse longer sequences (as many as the model reads)")
    add(
        "--plan_tokens",
        type=whole(),
        default=0,
        metavar="N",
        help="refuse records whose plan would not have room for N tokens; give training's --rollout.max_new_tokens (0)",
    )
    add_compute(parser, choice="as in training")
    add_workers(parser)
    add_flags(parser, SCORING)
    add_overwrite(parser)
    args = parser.parse_args(argv)
    if not args.data:
        args.data = [str(path) for split in SPLITS if (path := STORIES / f"{split}.jsonl").is_file()]
        if not args.data:
            raise UserError(f"--data is not given, and {STORIES} has no train.jsonl; name the records as --data FILE")
    if (args.out is None) == (args.nice_model_name is None):
        what = "both given" if args.out else "both missing"
        raise UserError(f"--out and --nice_model_name are {what}; give one of them, which names the outputs")
    if args.nice_model_name:
        if not re.fullmatch(r"\w[\w.-]*", args.nice_model_name):
            raise UserError(f"--nice_model_name {args.nice_model_name} cannot be part of a file's name; use letters")
        args.out = [_SUFFIX.sub("", path) + f"_with_baseline_ppl_{args.nice_model_name}.jsonl" for path in args.data]
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Do each file; the model is loaded once, and only if something is left to do."""
    args = parse(argv)
    pairs = check_files(args.data, args.out, "vrcli.baseline", args.__dict__.pop("overwrite"))
    labelled = {data: read_labelled(data) for data, _ in pairs}
    folder = find_model(args.model)
    if args.max_len:
        check_context(folder, args.max_len)
    tokenizer = load_tokenizer(folder)
    parts = make_fingerprint(folder, tokenizer, args.dtype, args.attn_implementation, args.system, args.tail)
    encoder = Encoder(tokenizer, args.system, args.tail, args.max_len or context_length(folder))
    how = (args.dtype, args.attn_implementation, args.batch_tokens)
    load = partial(load_baseline, args.model, identity(folder, times=False), *how)
    model = {"folder": args.model, "identity": parts["model"]}
    with Pool(args.workers) as pool:
        for data, out in pairs:
            settings = {"batch_tokens": args.batch_tokens, "plan_tokens": args.plan_tokens, "max_len": encoder.context}
            origin = as_json(fingerprint=parts, data=sha256_file(data), arguments=settings)
            if _is_done(out, origin):
                print(f"{out}: done before, with the same data, model and settings", flush=True)
                continue
            with Journal(out, origin) as journal:
                labels = [label for _, label in labelled[data]]
                rows = make_rows(labels, encoder, args.plan_tokens)
                check_ids(folder, (row.ids for row in rows))
                values = _compute(rows, labelled[data], load, journal, args.batch_tokens, pool)
                records = list(_outputs(labelled[data], rows, values, digest(parts)))
                meta: dict[str, Any] = {"command": "vrcli.baseline", "version": __version__, "model": model}
                meta |= {"data": {"path": str(data), "sha256": origin["data"]}, "fingerprint": parts, "origin": origin}
                meta |= summary(records)
                journal.finish(out, records, meta)
            print(f"{out}: {summarise(meta)}", flush=True)


def _compute(
    rows: list[Row], labelled: Sequence[Labelled], load: Any, journal: Journal, budget: int, pool: Pool
) -> list[list[float]]:
    """The nll of the baseline and, if it is another, of an empty plan, for each record."""
    sequences = [1] * len(labelled)
    for row in rows:
        sequences[row.sample] = max(sequences[row.sample], row.completion + 1)
    samples = [
        Sample(label.where, label.id, "", [label.gold] * count, record)
        for count, (record, label) in zip(sequences, labelled, strict=True)
    ]
    return run_batches(rows, samples, load, journal, budget, "baseline", pool)


def _outputs(
    labelled: Sequence[Labelled], rows: Sequence[Row], values: Sequence[Sequence[float]], fingerprint: str
) -> Iterator[Record]:
    tokens = {row.sample: len(row.ids) - row.prompt_length for row in rows}
    for i, ((record, label), (nll, *empty)) in enumerate(zip(labelled, values, strict=True)):
        base = Baseline(nll, tokens[i], fingerprint)
        new: Record = {"nll": nll, "tokens": base.tokens, "ppl": math.exp(nll)}
        if empty:
            new["empty_plan_pct"] = improvement(nll, empty[0])
        kept = {key: value for key, value in record.items() if key != "empty_plan_pct"}
        yield {**kept, "id": label.id, "label": label.with_base(base), **new}


def _is_done(out: Path, origin: Mapping[str, Any]) -> bool:
    """Whether the output of just this run is there, and whole."""
    return object_or_empty(sidecar_path(out)).get("origin") == origin and out.is_file()


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts and means over records, for the sidecar."""
    empty = [record["empty_plan_pct"] for record in records if "empty_plan_pct" in record]
    out: dict[str, Any] = {
        "counts": {"records": len(records), "tokens": sum(record["tokens"] for record in records)},
        "nll_mean": sum(record["nll"] for record in records) / len(records),
    }
    if empty:
        out["empty_plan"] = {"records": len(empty), "pct_improvement_mean": sum(empty) / len(empty)}
    return out


def summarise(meta: Mapping[str, Any]) -> str:
    """`summary` as a line for the terminal."""
    text = f"mean baseline {meta['nll_mean']:.4f} nats a token over {meta['counts']['records']} records"
    if "empty_plan" in meta:
        text += f"; an empty plan improves it by {meta['empty_plan']['pct_improvement_mean']:+.3f} %"
    return text


if __name__ == "__main__":
    main()
