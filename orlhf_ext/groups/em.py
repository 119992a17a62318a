"""Find groups of annotators that nobody named: ``orlhf-ext groups em --model M --data PAIRS --out OUT``

Pairs carry an ``annotator_id``. Hidden states of a frozen backbone are computed once; then heads are trained on the
pairs of their annotators, and each annotator goes to the head that explains all choices of his best, in turn, until
nobody moves (hard EM, as MaxMin-RLHF, Chakraborty et al., ICML 2024, learns its groups). It starts from a random
assignment, several times; the one with the highest likelihood is kept. Written are the pairs with ``group_id`` and
``group`` (group_0 has the fewest annotators), as ``train_rm --ext.use group-rm`` takes them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import COUNT, DTYPES, LENGTH, POSITIVE, SEED, add_compute, add_workers, make_parser, whole
from ..files.outputs import add_overwrite, check_file, check_folder
from ..files.records import Line, read_records, source_entry, write_json, write_jsonl
from ..files.sidecars import sidecar_path
from ..models.head_settings import EOS, HEADS, SQUASHES, STYLES, HeadSettings
from . import DEFAULT_K
from .render import encode
from .trained_groups import id_text

if TYPE_CHECKING:
    import torch

MIN_PAIR_LOG_LIKELIHOOD = -0.65
"""A mean below this is too near to that of guessing for an assignment to mean anything."""


def log_likelihoods(margins: torch.Tensor, annotators: torch.Tensor) -> torch.Tensor:
    """Sum of ``log sigmoid(r_u(chosen) - r_u(rejected))`` over each annotator's pairs.

    Args:
        margins: ``(pairs, U)``, ``r_u(chosen) - r_u(rejected)``, not squashed.
        annotators: ``(pairs,)``, 0 to A - 1, each of them at least once.

    Returns:
        ``(A, U)`` float64
    """
    import torch.nn.functional as F

    if margins.dim() != 2 or annotators.shape != margins.shape[:1]:
        raise ValueError(
            f"margins {tuple(margins.shape)} and annotators {tuple(annotators.shape)}: not (P, U) and (P,)"
        )
    each = F.logsigmoid(margins.double())
    return each.new_zeros(int(annotators.max()) + 1, margins.shape[1]).index_add_(0, annotators, each)


def e_step(margins: torch.Tensor, annotators: torch.Tensor) -> torch.Tensor:
    """The group under which an annotator's choices are likeliest: argmax of `log_likelihoods`, the first of equals.

    Returns:
        ``(A,)`` long
    """
    return log_likelihoods(margins, annotators).argmax(1)


@dataclass(frozen=True)
class Fit:
    """One run of EM."""

    #: ``(A,)``, the group of each annotator
    assignment: torch.Tensor
    #: total log-likelihood of all choices after each round, each annotator in the group that he then had
    rounds: list[float]
    #: whether the last round moved nobody
    settled: bool

    @property
    def log_likelihood(self) -> float:
        """Of the last round."""
        return self.rounds[-1]


@dataclass(frozen=True)
class EM:
    """Hard EM over annotators.

    Args:
        settings: of the head; its names are the groups'.
        rounds: at most so many.
        epochs: of each M-step over all pairs.
        lr: of AdamW, constant.
        batch_size: pairs in a step.
    """

    settings: HeadSettings
    rounds: int = 10
    epochs: int = 2
    lr: float = 5e-4
    batch_size: int = 64

    def fit(self, hidden: torch.Tensor, annotators: torch.Tensor, seed: int) -> Fit:
        """Start from a random assignment in which every head has annotators.

        Args:
            hidden: ``(pairs, 2, d)`` float32, of chosen and rejected.
            annotators: ``(pairs,)``, 0 to A - 1.
            seed: of the assignment, the heads and the order of pairs.
        """
        import torch

        from ..models.group_heads import initialise, make_head

        generator = torch.Generator().manual_seed(seed)
        groups = self.settings.num_groups
        order = torch.randperm(int(annotators.max()) + 1, generator=generator)
        assignment = torch.empty_like(order)
        assignment[order] = torch.arange(len(order)) % groups
        head = make_head(hidden.shape[2], self.settings)
        initialise(head, generator)
        rounds: list[float] = []
        settled = False
        while len(rounds) < self.rounds and not settled:
            self._m_step(head, hidden, assignment[annotators], generator)
            with torch.no_grad():
                margins = head(hidden[:, 0]) - head(hidden[:, 1])
            likelihoods = log_likelihoods(margins, annotators)
            new = _reseed(e_step(margins, annotators), likelihoods, len(rounds) + 1)
            rounds.append(likelihoods.gather(1, new[:, None]).sum().item())
            settled = torch.equal(new, assignment)
            assignment = new
        return Fit(assignment, rounds, settled)

    def _m_step(
        self, head: torch.nn.Module, hidden: torch.Tensor, groups: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Train the heads, from the weights that they have, each on its group's pairs."""
        import torch

        from .losses import group_pair_loss

        optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr, weight_decay=0.0)
        for _ in range(self.epochs):
            for batch in torch.randperm(len(hidden), generator=generator).split(self.batch_size):
                own = groups[batch][:, None]
                chosen, rejected = (head(hidden[batch, side]).gather(1, own).squeeze(1) for side in (0, 1))
                optimizer.zero_grad()
                loss = group_pair_loss(chosen, rejected, self.settings.squash)
                if not bool(loss.isfinite()):
                    raise UserError(f"the loss of the heads is {loss.item()}, so that nothing is saved; lower --lr")
                loss.backward()
                optimizer.step()

    def best(self, hidden: torch.Tensor, annotators: torch.Tensor, seed: int, restarts: int) -> tuple[int, list[Fit]]:
        """Several fits, and which of them has the highest likelihood."""
        fits = []
        for number in range(restarts):
            fit = self.fit(hidden, annotators, seed + number)
            sizes = fit.assignment.bincount(minlength=self.settings.num_groups).tolist()
            print(
                f"start {number + 1} of {restarts}: log-likelihood {fit.log_likelihood:.2f} after {len(fit.rounds)} "
                f"rounds{'' if fit.settled else ', not settled'}; annotators {', '.join(map(str, sizes))}",
                flush=True,
            )
            fits.append(fit)
        return max(range(restarts), key=lambda number: fits[number].log_likelihood), fits


def _reseed(assignment: torch.Tensor, likelihoods: torch.Tensor, number: int) -> torch.Tensor:
    """A head that lost all annotators gets those that fit worst where they are; no other head loses its last one."""
    assignment = assignment.clone()
    annotators, groups = likelihoods.shape
    for empty in range(groups):
        if (assignment == empty).any():
            continue
        worst = likelihoods.gather(1, assignment[:, None]).squeeze(1).argsort().tolist()
        moved = 0
        for one in worst:
            if moved < max(1, annotators // (2 * groups)) and (assignment == assignment[one]).sum() > 1:
                assignment[one] = empty
                moved += 1
        print(f"round {number}: group {empty} lost all annotators; it goes on with the {moved} that fit worst")
    return assignment


def by_size(assignment: torch.Tensor, groups: int) -> torch.Tensor:
    """The same partition, group 0 the smallest; equal ones in the order of their first annotators."""
    import torch

    first = {group: (assignment == group).nonzero()[0].item() for group in range(groups)}
    sizes = assignment.bincount(minlength=groups).tolist()
    place = torch.empty(groups, dtype=torch.long)
    for number, group in enumerate(sorted(range(groups), key=lambda group: (sizes[group], first[group]))):
        place[group] = number
    return place[assignment]


# ---- the command


def read_pairs(path: str, style: str | None) -> tuple[list[Line], str]:
    """Pairs of text with an annotator each, and the style of their prompts.
    Raises UserError if a pair lacks something, or has another style; its line is named."""
    lines = list(read_records(path))
    if not lines:
        raise UserError(f"--data {path} is empty; give pairs with an annotator_id")
    for line in lines:
        record = line.record
        for key in ("prompt", "chosen", "rejected"):
            if not isinstance(record.get(key), str):
                raise UserError(f"{line.where} has no text as its {key}; give pairs whose prompts and answers are text")
        try:
            annotator = id_text(record.get("annotator_id"))
        except ValueError:
            annotator = None
        if annotator is None:
            raise UserError(f"{line.where} has no annotator_id; say who chose, with a text or a whole number")
        own = record.get("style")
        if own is not None:
            style = style or own
            if own != style:
                raise UserError(f"{line.where} has the style {own!r}, not {style!r}; make all pairs with one style")
    return lines, style or "hh"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext groups em", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the backbone: a folder or a hub name")
    add("--data", required=True, metavar="FILE", help="pairs with annotator_id")
    add("--out", required=True, metavar="FILE", help="the pairs with group_id and group, .jsonl")
    add("--num_groups", type=LENGTH, default=2, help="(%(default)s)")
    add("--restarts", type=COUNT, default=4, help="random starts, the likeliest of which is kept (%(default)s)")
    add("--rounds", type=COUNT, default=10, help="rounds of both steps, at most (%(default)s)")
    add("--head", choices=HEADS, default="independent", help="(%(default)s)")
    add("--k", type=COUNT, help=f"width of a shared head's layer ({DEFAULT_K})")
    add("--squash", choices=SQUASHES, default="identity", help="of scores in the M-step; the E-step has none, and so "
        "both raise one likelihood with identity (%(default)s)")  # fmt: skip
    add("--epochs", type=COUNT, default=2, help="epochs of an M-step (%(default)s)")
    add("--lr", type=POSITIVE, default=5e-4, help="(%(default)s)")
    add("--batch_size", type=COUNT, default=64, help="pairs in a step of training (%(default)s)")
    add("--seed", type=SEED, default=42, help="(%(default)s)")
    add("--style", choices=STYLES, help="how the prompts are written, if the pairs have no column 'style' (hh)")
    add("--eos", choices=EOS, default="append", help="append: a space and EOS end a text (%(default)s)")
    add(
        "--max_len",
        type=whole(2, also=(0,)),
        default=0,
        help="tokens of a text, cut on the left; 0: the model's positions",
    )
    add("--cache", metavar="DIR", help="keep hidden states, as --groups.cache_features does")
    add_compute(parser, batch_tokens=8192, dtypes=DTYPES[:2])
    add_workers(parser)
    add_overwrite(parser)
    args = parser.parse_args(argv)
    if args.k is not None and args.head == "independent":
        raise UserError("--k is the width of a shared head's layer; leave it out, or give --head shared")
    overwrite = args.__dict__.pop("overwrite")
    check_file(args.out, command="groups.em", overwrite=overwrite, ends=(".jsonl",), inputs=[args.data])
    if args.cache:
        check_folder(Path(args.cache).expanduser(), "--cache")
    return args


def hidden_of_pairs(args: argparse.Namespace, lines: Sequence[Line]) -> tuple[torch.Tensor, int]:
    """``(pairs, 2, d)`` float32, and how many texts are cut."""
    from .. import backends
    from ..models.folder import check_ids, find_model, length_limit, load_tokenizer
    from ..models.pool import Pool

    folder = find_model(args.model)
    max_len = length_limit(folder, args.max_len, "--max_len")
    tokenizer = load_tokenizer(folder)
    texts = [(line.record["prompt"], line.record[side]) for line in lines for side in ("chosen", "rejected")]
    encoded = encode(tokenizer, texts, args.eos, max_len)
    for number, one in enumerate(encoded):
        if not one.ids:
            raise UserError(f"{lines[number // 2].where} has an empty text; remove it, or give --eos append")
    check_ids(folder, (one.ids for one in encoded))
    if cut := sum(one.lost > 0 for one in encoded):
        print(f"{args.data}: {cut} texts are cut on the left at {max_len} tokens")
    backends.install()
    from . import features

    ids = [one.ids for one in encoded]
    how = (args.cache, args.dtype, args.attn_implementation, args.batch_tokens)
    pad_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    with Pool(args.workers) as pool:
        hidden = features.of_texts(args.model, ids, pad_id, *how, pool)
    bad = (~hidden.isfinite()).any(1).nonzero()
    if len(bad):
        raise UserError(f"{lines[int(bad[0]) // 2].where}: the model gives hidden states that are not finite")
    return hidden.view(len(lines), 2, -1), cut


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Look at the pairs, compute, write."""
    args = parse(argv)
    lines, style = read_pairs(args.data, args.style)
    names = list(dict.fromkeys(str(id_text(line.record["annotator_id"])) for line in lines))
    if len(names) < args.num_groups:
        raise UserError(
            f"--data {args.data} has {len(names)} annotators, fewer than --num_groups {args.num_groups}; give fewer "
            "groups"
        )
    k = (args.k or DEFAULT_K) if args.head == "shared" else None
    groups = [f"group_{number}" for number in range(args.num_groups)]
    settings = HeadSettings(groups, args.head, k, args.squash, style, args.eos)
    hidden, cut = hidden_of_pairs(args, lines)

    import torch

    place = {name: number for number, name in enumerate(names)}
    annotators = torch.tensor([place[str(id_text(line.record["annotator_id"]))] for line in lines])
    em = EM(settings, args.rounds, args.epochs, args.lr, args.batch_size)
    chosen, fits = em.best(hidden, annotators, args.seed, args.restarts)
    fit = fits[chosen]
    assignment = by_size(fit.assignment, args.num_groups).tolist()
    found = [assignment[place[str(id_text(line.record["annotator_id"]))]] for line in lines]
    rows = (
        {**line.record, "style": style, "group_id": group, "group": groups[group]}
        for line, group in zip(lines, found, strict=True)
    )
    counts = {
        name: {"annotators": assignment.count(number), "pairs": found.count(number)}
        for number, name in enumerate(groups)
    }
    from ..models.folder import find_model, identity

    meta: dict[str, Any] = {
        "command": "groups.em",
        "version": __version__,
        "data": source_entry(args.data),
        "model": {"folder": args.model, "identity": identity(find_model(args.model))},
        "arguments": {
            key: value for key, value in vars(args).items() if key not in ("data", "out", "model", "workers")
        },
        "counts": {"pairs": len(lines), "texts_cut": cut, "annotators": len(names), "groups": counts},
        "settled": fit.settled,
        "log_likelihood": fit.rounds,
        "starts": [one.log_likelihood for one in fits],
        "assignment": {name: groups[assignment[place[name]]] for name in names},
    }
    write_json(sidecar_path(args.out), meta)  # first: it says whose the other is
    write_jsonl(args.out, rows)
    shown = ", ".join(f"{name} {count['annotators']} ({count['pairs']} pairs)" for name, count in counts.items())
    each = fit.log_likelihood / len(lines)
    print(f"{args.out}: annotators of {shown}; log-likelihood {fit.log_likelihood:.2f}, {each:.3f} a pair", flush=True)
    if each < MIN_PAIR_LOG_LIKELIHOOD:
        print(f"guessing gives {math.log(0.5):.3f} a pair: the heads have hardly learnt; raise --lr or --epochs")


if __name__ == "__main__":
    main()
