"""Compare what Q_D predicts with what happened:
``orlhf-ext deadend calibration --q_model DIR --data val.jsonl --out FILE.json``

At each action of a text, Q_D predicts with ``-Q`` how likely the text ends badly. Actions are put into bins of equal
width by that prediction; of each bin the file has the mean prediction, the share of actions whose text has the reward
-1, its 95 % Wilson interval (as if each action were a text of its own: with ``--last 1`` it is), and how many actions
and texts there are. The expected calibration error is the mean over actions of the difference between both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .. import __version__
from ..backends.machine import torch_device
from ..cli.errors import UserError, command
from ..cli.flags import COUNT, DTYPES, LENGTH, add_compute, make_parser
from ..files.outputs import add_overwrite, check_file
from ..files.records import read_records, source_entry, write_json
from ..files.sidecars import sidecar_path
from ..models.folder import check_context, check_ids, context_length, find_model, load_tokenizer
from ..reports.statistics import wilson
from .rows import encode, parse_row
from .settings import read_settings

#: flags by their names in sidecars
_KEYS = {"q_model": "q_model_name_or_path", "data": "data_file", "out": "save_file"}


class Prediction(NamedTuple):
    """What Q_D says at one action, and what became of its text."""

    text: int
    #: ``-Q``, nominally in [0, 1]
    predicted: float
    bad: bool


class _Bin:
    """Sums over the actions of a bin."""

    def __init__(self) -> None:
        self.count = self.bad = 0
        self.predicted = 0.0
        self.texts: set[int] = set()

    def add(self, one: Prediction) -> None:
        self.count += 1
        self.bad += one.bad
        self.predicted += one.predicted
        self.texts.add(one.text)

    def means(self) -> dict[str, Any]:
        """Mean prediction, share of what happened, and its interval."""
        if not self.count:
            return {"predicted": None, "observed": None, "interval": None}
        mean, share = self.predicted / self.count, self.bad / self.count
        return {"predicted": mean, "observed": share, "interval": list(wilson(self.bad, self.count))}


def calibrate(predictions: Iterable[Prediction], bins: int = 10) -> dict[str, Any]:
    """Bins of equal width over [0, 1] and the expected calibration error.

    Predictions beyond [0, 1] count in the first or the last bin, with the value they have.

    Returns:
        ``bins``, a list of ``{low, high, count, texts, predicted, observed, interval}`` (the last three None where the
        bin is empty), ``expected_calibration_error``, ``brier_score``, ``actions``, ``predicted`` and ``observed``.

    Raises:
        ValueError: there is no prediction.
    """
    counted, whole, squares = [_Bin() for _ in range(bins)], _Bin(), 0.0
    for one in predictions:
        counted[min(max(int(one.predicted * bins), 0), bins - 1)].add(one)
        whole.add(one)
        squares += (one.predicted - one.bad) ** 2
    if not whole.count:
        raise ValueError("there is no prediction")
    rows = [
        {"low": i / bins, "high": (i + 1) / bins, "count": one.count, "texts": len(one.texts), **one.means()}
        for i, one in enumerate(counted)
    ]
    return {
        "bins": rows,
        "expected_calibration_error": sum(abs(one.predicted - one.bad) for one in counted) / whole.count,
        "brier_score": squares / whole.count,
        "actions": whole.count,
        "predicted": whole.predicted / whole.count,
        "observed": whole.bad / whole.count,
    }


def predict(
    model: Any, rows: Sequence[Sequence[int]], bad: Sequence[bool], budget: int, last: int | None = None
) -> Iterator[Prediction]:
    """What a `QModel` says at the last actions, or at every action, of texts.

    Args:
        model: in evaluation mode.
        rows: token ids of texts, two or more each.
        bad: whether each text has the reward -1.
        budget: padded tokens in a batch.
        last: how many actions of each text, counted from its end; None for all.
    """
    from tqdm import tqdm

    from .model import action_values

    with tqdm(total=len(rows), desc="Q_D", unit="text") as bar:
        for i, values in action_values(model, rows, budget):
            for value in values[-(last or len(values)) :]:
                yield Prediction(i, -value, bad[i])
            bar.update()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext deadend calibration", __doc__)
    add = parser.add_argument
    q_d = "what train_sft --ext.use dead-end wrote"
    add("--q_model", "--q_model_name_or_path", required=True, metavar="DIR", help=q_d)
    add("--data", "--data_file", required=True, metavar="FILE", help="value data: text and reward")
    add("--out", "--save_file", required=True, metavar="FILE", help="a .json file")
    add("--last", type=COUNT, metavar="K", help="look at the last K actions of each text (default: all)")
    add("--bins", type=COUNT, default=10, help="number of bins (%(default)s)")
    add("--max_len", type=LENGTH, help="tokens of a text, at most (the model's context)")
    add_compute(parser, dtypes=DTYPES[::-1])
    add_overwrite(parser)
    args = parser.parse_args(argv)
    overwrite = args.__dict__.pop("overwrite")
    check_file(args.out, command="deadend.calibration", overwrite=overwrite, ends=(".json",))
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Predict, put into bins, write."""
    args = parse(argv)
    folder = find_model(args.q_model, "--q_model")
    settings = read_settings(folder, "--q_model")
    if args.max_len is not None:
        check_context(folder, args.max_len)
    data = [parse_row(line.record, line.where, settings.q_min, settings.q_max) for line in read_records(args.data)]
    tokenizer = load_tokenizer(folder, "--q_model")
    max_len = args.max_len or context_length(folder) or 1024
    encoded, cut = encode(tokenizer, [row.text for row in data], max_len, settings.append_eos)
    kept = [(ids, row.reward < 0) for ids, row in zip(encoded, data, strict=True) if len(ids) > 1]
    if not kept:
        raise UserError(f"{args.data} has no text of two tokens or more; build it again")
    rows, bad = [ids for ids, _ in kept], [ends for _, ends in kept]
    check_ids(folder, rows, "--q_model")
    from .model import load_q_model

    model = load_q_model(folder, args.dtype, torch_device(), args.attn_implementation)
    found = calibrate(predict(model, rows, bad, args.batch_tokens, args.last), args.bins)
    meta = {
        "command": "deadend.calibration",
        "version": __version__,
        "arguments": {_KEYS.get(name, name): value for name, value in vars(args).items()},
        "data": source_entry(args.data),
        "counts": {"texts": len(rows), "left_out": len(data) - len(rows), "cut": cut},
    }
    write_json(sidecar_path(args.out), meta)  # first: it says whose the other is
    write_json(args.out, {**found, "texts": len(rows), "last": args.last, "gamma": settings.gamma})
    print(
        f"{args.out}: {found['actions']} actions of {len(rows)} texts; predicted {found['predicted']:.3f}, "
        f"observed {found['observed']:.3f}, expected calibration error {found['expected_calibration_error']:.3f}"
        + (f"; {len(data) - len(rows)} texts of one token are left out" if len(rows) < len(data) else "")
        + (f"; {cut} texts are cut at {max_len} tokens" if cut else "")
    )


if __name__ == "__main__":
    main()
