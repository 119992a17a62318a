"""Score continuations for toxicity: ``orlhf-ext deadend score --model DIR --data GENS``

Each object of ``generations`` gets a number between 0 and 1 under ``--toxicity_type``: of the continuation alone,
stripped, or with ``--score_input full`` of prompt and continuation. The scorer is any sequence classifier (a folder or
a hub name), ``perspective`` (Google's API) or ``module:attribute``, see ``orlhf_ext.deadend.toxicity``. Where it has
none for a text, that is null, and counted by reason. Without ``--out`` the file itself gets
the scores; it is replaced when all of them are there. What the same scorer has scored already, by the file's sidecar,
is skipped. A run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import COUNT, DTYPES, add_compute, add_workers, make_parser, whole
from ..files.journal import Journal
from ..files.outputs import add_overwrite, check_file
from ..files.records import Line, Record, is_number, object_or_empty, read_records, source_entry
from ..files.sidecars import sidecar_path
from ..models.batches import fingerprint
from ..models.folder import identity
from ..models.pool import Pool, Unit
from .generations import TOXICITY_THRESHOLD, generations_of, prompt_of

if TYPE_CHECKING:
    from .toxicity import Scorer

_AT_ONCE = 8192  # texts that are sorted by length together
_OWN = ("text", "token_ids")


class Wanted(NamedTuple):
    """What is to be scored."""

    #: of the scores
    key: str
    #: prompt and continuation, not the continuation alone
    whole: bool
    #: scores that are there are this scorer's
    known: bool

    def of(self, line: Line) -> list[tuple[Record, str]]:
        """The objects of a record that are still without a score, with the text of each."""
        before = prompt_of(line) if self.whole else ""
        pairs = [(one, (before + one["text"]).strip()) for one in generations_of(line)]
        return [(one, text) for one, text in pairs if not self.known or one.get(self.key) is None]


def chunks(path: Path, wanted: Wanted, at_once: int) -> Iterator[list[str]]:
    """The texts to score, those of so many or a few more at a time, in the file's order."""
    texts: list[str] = []
    for line in read_records(path):
        texts += [text for _, text in wanted.of(line)]
        if len(texts) >= at_once:
            yield texts
            texts = []
    if texts:
        yield texts


def kept(journal: Journal) -> dict[int, dict[int, Any]]:
    """Of each chunk: index among its different texts -> score, or reason why there is none."""
    found: dict[int, dict[int, Any]] = {}
    for key, piece in journal.done.items():
        found.setdefault(int(key.partition(".")[0]), {}).update(zip(piece["texts"], piece["scores"], strict=True))
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext deadend score", __doc__)
    add = parser.add_argument
    add(
        "--model",
        "--model_name_or_path",
        required=True,
        metavar="MODEL",
        help="classifier: folder, hub name, perspective (with PERSPECTIVE_API_KEY), or module:attribute",
    )
    add("--data", "--data_file", required=True, nargs="+", metavar="FILE", help="prompts with generations, JSON Lines")
    add("--out", "--save_file", nargs="+", metavar="FILE", help="one for each data file (the data file itself)")
    add("--toxicity_type", default="toxicity", metavar="NAME", help="the scores' key in each generation (%(default)s)")
    add("--score_input", choices=("continuation", "full"), default="continuation", help="(%(default)s)")
    add("--label", help="index or name of the toxic label (that which is called toxic, toxicity, LABEL_1 or 1)")
    add("--max_length", type=whole(), default=0, help="tokens of a text; 0: all that the model reads (%(default)s)")
    add("--batch_size", type=COUNT, default=128, help="most texts in a batch (%(default)s)")
    add("--rescore", action="store_true", help="replace scores of the same name that another scorer gave")
    add_overwrite(parser)
    add_compute(parser, dtypes=(DTYPES[2], *DTYPES[:2]))
    add_workers(parser)
    args = parser.parse_args(argv)
    if args.workers > 1 and args.model == "perspective":
        raise UserError("--workers is for models; Perspective is asked by one process alone, so leave it out")
    if args.toxicity_type in _OWN or not args.toxicity_type:
        raise UserError(f"--toxicity_type {args.toxicity_type} is a key of another kind; choose one like toxicity")
    args.out = args.out or args.data
    if len(args.out) != len(args.data):
        raise UserError(f"--data names {len(args.data)} files and --out {len(args.out)}; give as many")
    if len({Path(out).resolve() for out in args.out}) < len(args.out):
        raise UserError("--out (or --data) names a file twice; give each its own name")
    for data, out in zip(args.data, args.out, strict=True):
        own = None if Path(out).resolve() == Path(data).resolve() else "deadend.score"
        check_file(out, command=own, overwrite=args.overwrite, ends=(".jsonl", ".json"))
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score each file; a model is loaded once, and only if something is left to do."""
    from .toxicity import Classifier, load_scorer, load_worker

    args = parse(argv)
    have = [look(Path(data), args.toxicity_type) for data in args.data]
    how = (args.label, args.max_length, args.batch_tokens, args.dtype, args.attn_implementation)
    scorer = load_scorer(args.model, *how)
    by = fingerprint(scorer={**scorer.identity, "score_input": args.score_input})["scorer"]
    copy_of = identity(scorer.folder, times=False) if isinstance(scorer, Classifier) else ""
    load = partial(load_worker, args.model, copy_of, *how) if args.workers > 1 else lambda: scorer
    with Pool(args.workers) as pool:
        for data, out, (present, total) in zip(args.data, args.out, have, strict=True):
            one_file(args, scorer, by, Path(data), Path(out), present, total, partial(pool.run, load))


def one_file(
    args: argparse.Namespace,
    scorer: Scorer,
    by: dict[str, Any],
    data: Path,
    out: Path,
    present: int,
    total: int,
    run: Callable[..., Iterator[Unit]],
) -> None:
    """Score a file of which ``present`` of ``total`` generations have a score, and print how toxic it is. ``run`` is
    that of the pool. Raises UserError if these scores are not known to be this scorer's."""
    from .toxicity import Classifier

    key = args.toxicity_type
    meta = object_or_empty(sidecar_path(data))
    known = meta.get("scores", {}).get(key, {}).get("by") == by
    if present and not known and not args.rescore:
        raise UserError(
            f"{data} has scores named {key!r} that this scorer did not give; choose another --toxicity_type, or "
            "replace them with --rescore"
        )
    source = source_entry(data)
    wanted = Wanted(key, args.score_input == "full", known)
    at_once = scorer.at_once or _AT_ONCE
    how = {**wanted._asdict(), "batch_size": args.batch_size, "batch_tokens": args.batch_tokens, "at_once": at_once}
    how["kept"] = "batches"
    left = total - present if known else total
    with Journal(out, fingerprint(scorer=by, data=source["sha256"], arguments=how)) as journal:
        score_file(journal, scorer, data, wanted, args.batch_size, at_once, left, run)
        tally: dict[str, Any] = {"prompts": 0, "generations": 0, "new": left, "toxic": 0, "empty": 0, "sum": 0.0}
        if isinstance(scorer, Classifier) and (cut := sum(map(scorer.cut, chunks(data, wanted, at_once)))):
            tally["cut"] = cut
            print(f"{data}: {cut} texts are cut at {scorer.max_length} tokens")
        entry: dict[str, Any] = {"model": args.model, "by": by, "counts": tally}
        scores = {**meta.get("scores", {}), key: entry}
        made = {"command": "deadend.score", "version": __version__}
        meta = {**made, **meta, **({} if out == data else made), "scored": source, "scores": scores}
        journal.finish(out, with_scores(journal, data, wanted, at_once, tally), meta)
    share = f"{tally['toxic'] / max(1, total):.1%} at {TOXICITY_THRESHOLD} or above"
    print(
        f"{out}: {total} generations of {tally['prompts']} prompts, mean {key} {tally['mean']:.4f}, {share}, {left} new"
    )
    if without := tally.get("without_score"):
        reasons = ", ".join(f"{number} {reason}" for reason, number in without.items())
        print(f"{out}: {sum(without.values())} generations have no score ({reasons})")


def look(data: Path, key: str) -> tuple[int, int]:
    """How many generations of a file have a score, and how many there are.
    Raises UserError if a record is wrong, or there is no generation."""
    present = total = 0
    for line in read_records(data):
        for one in generations_of(line):
            value = one.get(key)
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise UserError(
                    f"{line.where} has {value!r} under {key!r}, which is not a score from 0 to 1; choose another "
                    "--toxicity_type"
                )
            present += value is not None
            total += 1
    if not total:
        raise UserError(f"{data} has no generation; sample them first, with orlhf-ext deadend continuations")
    return present, total


def score_file(
    journal: Journal,
    scorer: Scorer,
    data: Path,
    wanted: Wanted,
    batch_size: int,
    at_once: int,
    total: int,
    run: Callable[..., Iterator[Unit]],
) -> None:
    """Fill the journal, batch by batch: which of a chunk's different texts, and a score, or a reason, for each.
    Raises UserError if a score is not finite."""
    from tqdm import tqdm

    held: dict[str, tuple[list[int], int]] = {}  # batches in hand, and how many of the file's texts they are

    def units() -> Iterator[Unit]:
        done = kept(journal)
        for number, texts in enumerate(chunks(data, wanted, at_once)):
            counts = Counter(texts)
            unique = list(counts)
            if len(done.get(number, ())) == len(unique):
                bar.update(len(texts))
                continue
            for place, batch in enumerate(scorer.batches(unique, batch_size)):
                own, key = [unique[i] for i in batch], f"{number}.{place}"
                held[key] = (batch, sum(counts[text] for text in own))
                if key in journal.done:
                    bar.update(held.pop(key)[1])
                else:
                    yield key, own

    with tqdm(total=total, desc=wanted.key, unit="text") as bar:
        for key, found in run(units(), lambda key: f"one of {len(held[key][0])} texts of {data}"):
            for value in found:
                if not isinstance(value, str) and not 0 <= value <= 1:
                    raise UserError(
                        f"the scorer gave {value} for a text; its weights contain NaN or overflow: use another dtype"
                    )
            batch, count = held.pop(key)
            journal.add(key, {"texts": batch, "scores": found})
            bar.update(count)


def scores_of(journal: Journal, data: Path, wanted: Wanted, at_once: int) -> Iterator[Any]:
    """The journal's scores, or reasons, in the order of the file's texts."""
    found = kept(journal)
    for number, texts in enumerate(chunks(data, wanted, at_once)):
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        yield from (found[number][place[text]] for text in texts)


def with_scores(journal: Journal, data: Path, wanted: Wanted, at_once: int, tally: dict[str, Any]) -> Iterator[Record]:
    """The records with the journal's scores, in the file's order; ``tally`` is full at the end."""
    scores = scores_of(journal, data, wanted, at_once)
    without: Counter[str] = Counter()
    for line in read_records(data):
        for one, _ in wanted.of(line):
            score = next(scores)
            one[wanted.key] = None if isinstance(score, str) else score
            without.update([score] if isinstance(score, str) else [])
        found = generations_of(line)
        known = [one[wanted.key] for one in found if one[wanted.key] is not None]
        tally["prompts"] += 1
        tally["generations"] += len(found)
        tally["toxic"] += sum(score >= TOXICITY_THRESHOLD for score in known)
        tally["empty"] += sum(not one["text"].strip() for one in found)
        tally["sum"] += sum(known)
        yield line.record
    if without:
        tally["without_score"] = dict(without.most_common())
    tally["mean"] = tally.pop("sum") / max(1, tally["generations"] - without.total())


if __name__ == "__main__":
    main()
