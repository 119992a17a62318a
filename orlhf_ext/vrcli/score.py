"""Score sampled plans: ``orlhf-ext vrcli score --model DIR --data D.jsonl --samples S.jsonl --out R.jsonl``.

``--data`` are records with their baselines (``orlhf-ext vrcli baseline``), ``--model`` is the frozen model that
computed these, and ``--samples`` is what a policy wrote for their prompts (``orlhf-ext generate``), joined by id. One
JSON record comes out for each sample: its plan, reward, improvement in percent, likelihoods, and plan length. A run
that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import add_compute, make_parser
from ..files.journal import Journal
from ..files.outputs import add_overwrite, check_file
from ..files.records import Record, sha256_file
from ..models.batches import fingerprint as as_json
from ..models.folder import context_length, find_model, load_tokenizer
from ..models.texts import Sample, read_samples, reply_text
from .fingerprint import check_fingerprint, digest, make_fingerprint
from .labels import Label, read_labelled
from .plans import Noise, measure_noise, result_rows, score_plans
from .sequences import Encoder
from .settings import Settings, add_flags

if TYPE_CHECKING:
    from ..models.likelihood import Scorer

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


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
    """The command line."""
    parser = make_parser("orlhf-ext vrcli score", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the frozen model, as in orlhf_ext.vrcli.baseline")
    add("--data", required=True, metavar="FILE", help="records with baselines")
    add("--samples", required=True, metavar="FILE", help="what the policy wrote: {id, prompt, completions}")
    add("--out", required=True, metavar="FILE", help="a .jsonl file")
    add_compute(parser)
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
    folder = find_model(args.model)
    tokenizer = load_tokenizer(folder)
    parts = make_fingerprint(folder, tokenizer, args.dtype, args.attn_implementation, args.system, args.tail)
    check_fingerprint(args.data, parts)
    encoder = Encoder(tokenizer, args.system, args.tail, context_length(folder))

    @cache
    def load() -> Scorer:
        from ..models.likelihood import make_scorer
        from ..models.logprobs import load_model

        model = load_model(folder, args.dtype, args.attn_implementation)
        return make_scorer(model, int(tokenizer.pad_token_id), args.batch_tokens)  # type: ignore[arg-type]

    def flat(some: Sequence[tuple[Label, list[str]]]) -> tuple[list[str], list[Label]]:
        return [text for _, texts in some for text in texts], [label for label, texts in some for _ in texts]

    def score_some(some: Sequence[tuple[Label, list[str]]]) -> list[Record]:
        responses, labels = flat(some)
        places = [place for _, texts in some for place in range(len(texts))]
        scores = score_plans(responses, labels, encoder, load(), settings, digest(parts))
        return list(result_rows(labels, places, scores))

    how = {key: value for key, value in vars(args).items() if key not in ("model", "data", "samples", "out")}
    sources = {name: sha256_file(getattr(args, name)) for name in ("data", "samples")}
    rows: list[Record] = []
    with Journal(args.out, as_json(fingerprint=parts, sources=sources, arguments=how)) as journal:
        if "noise" not in journal.done:
            first = flat(prompts[:PROMPTS_AT_ONCE])
            journal.add("noise", measure_noise(*first, encoder, load(), settings.markers))
        for start in tqdm(range(0, len(prompts), PROMPTS_AT_ONCE), desc="plans", unit="piece"):
            if str(start) not in journal.done:
                journal.add(str(start), score_some(prompts[start : start + PROMPTS_AT_ONCE]))
            rows += journal.done[str(start)]
        meta: dict[str, Any] = {"command": "vrcli.score", "version": __version__, "fingerprint": parts}
        meta |= {"sources": {name: {"path": getattr(args, name), "sha256": sha} for name, sha in sources.items()}}
        meta |= {"arguments": how, "counts": {"prompts": len(samples), "samples": len(rows)}}
        noise = Noise(*journal.done["noise"]) if journal.done["noise"] else None
        meta["noise"] = noise and noise._asdict()
        journal.finish(args.out, rows, meta)
    if noise is not None:
        print(noise.describe(settings), flush=True)
    gain, reward = (sum(row[key] for row in rows) / len(rows) for key in ("pct_improvement", "reward"))
    print(f"{args.out}: mean improvement {gain:+.3f} %, mean reward {reward:.3f} over {len(rows)} plans", flush=True)


if __name__ == "__main__":
    main()
