#!/usr/bin/env python3
"""Share a machine's GPUs out to the processes of a recipe so that its batches fit.

``fit.py LIMIT NAME=BATCH:MICRO...`` prints ``PROCESSES MICRO...`` for a training that may have LIMIT processes;
``fit.py --rl GPUS ...`` prints ``PROCESSES ENGINES TP COLOCATE MICRO...`` for one that samples with vLLM, too. A second
line, if there is one, says in words what differs from what was asked for.

OpenRLHF accumulates ``BATCH / (MICRO * PROCESSES)`` micro-batches in an optimizer step, which must be a whole number.
A batch is part of what is trained and keeps its size: fewer processes, or smaller micro-batches, make it fit.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

#: what is assumed of a cluster, whose GPUs are not counted
CLUSTER = 8


class Misfit(Exception):
    """Numbers of a user's that cannot go together, in one sentence."""


class Batch(NamedTuple):
    """An optimizer step's records, and the most that one forward pass of one process may have."""

    name: str
    size: int
    micro: int


class Fit(NamedTuple):
    """Processes of a training, and the micro-batch of each of its batches."""

    processes: int
    micros: list[int]


class Shares(NamedTuple):
    """Who trains and who samples. ``colocate``: the same GPUs do both in turn."""

    fit: Fit
    engines: int
    tp: int
    colocate: bool
    #: processes that could train if every number fitted
    limit: int


def fit(batches: list[Batch], limit: int, nodes: int = 1, exact: bool = False) -> Fit:
    """The most processes, at most ``limit`` on each node, whose number divides every batch.

    Each micro-batch is the largest divisor of a process's share that is not above the wanted one, so that
    ``batch.size % (micro * processes * nodes) == 0``.

    Args:
        exact: take ``limit`` itself or nothing: a user asked for it.

    Raises:
        Misfit: no such number.
    """
    for processes in [limit] if exact else range(limit, 0, -1):
        ranks = processes * nodes
        if all(batch.size % ranks == 0 for batch in batches):
            return Fit(processes, [largest_divisor(batch.size // ranks, batch.micro) for batch in batches])
    ranks = (limit if exact else 1) * nodes
    batch = next(batch for batch in batches if batch.size % ranks)
    given = (f"NPROC={limit}" if exact else "") + (f"{' and ' if exact else ''}NUM_NODES={nodes}" if nodes > 1 else "")
    raise Misfit(f"{batch.name}={batch.size} is no multiple of the {ranks} training processes of {given}; change one")


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is not above ``most``."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def share(
    batches: list[Batch],
    gpus: int,
    nodes: int = 1,
    processes: int | None = None,
    engines: int | None = None,
    tp: int | None = None,
) -> Shares:
    """Half of the GPUs train and half sample; a single one does both in turn.

    GPUs that cannot train, because their number does not divide the batch, sample. What is given is taken.

    Args:
        gpus: how many there are to use; 0 where they are not counted, on a cluster or without any.

    Raises:
        Misfit: as `fit`, or there are too few GPUs.
    """
    total = gpus or CLUSTER
    tp = tp or (1 if total < 4 or 0 < gpus <= 2 * (engines or 1) else 2)
    wanted = engines or max(1, total // 2 // tp)
    limit = processes or max(1, total - wanted * tp)
    found = fit(batches, limit, nodes, exact=processes is not None)
    if engines is None:
        engines = wanted if processes else max(wanted, (total - found.processes) // tp)
    need = found.processes + engines * tp
    if not gpus or need <= gpus:
        return Shares(found, engines, tp, False, limit)
    if found.processes == engines * tp <= gpus:
        return Shares(found, engines, tp, True, limit)
    raise Misfit(
        f"NPROC={found.processes} and ENGINES={engines} x TP={tp} need {need} GPUs, and there are {gpus}; lower them"
    )


def describe(batches: list[Batch], found: Fit, limit: int, nodes: int = 1) -> str:
    """What differs from the wanted numbers, in one line; nothing if all fitted."""
    ranks, words = found.processes * nodes, []
    if found.processes < limit:
        words.append(f"{found.processes} of {limit} possible processes train, so that batches keep their sizes")
    for place, batch in enumerate(batches):
        micro, rest = found.micros[place], batch.size // ranks
        if micro < min(batch.micro, rest):
            words.append(
                f"{batch.name}={batch.size} is {ranks} x {micro} (not {batch.micro}) x {rest // micro} accumulated"
            )
    return "; ".join(words)


def read_batch(text: str) -> Batch:
    """``NAME=BATCH:MICRO``."""
    name, _, numbers = text.partition("=")
    size, _, micro = numbers.partition(":")
    return Batch(name, int(size), int(micro))


def main(argv: list[str] | None = None) -> None:
    """Print the numbers, or one sentence on the error stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("limit", type=int, help="processes of a training; with --rl GPUs, 0 for uncounted")
    parser.add_argument("batches", type=read_batch, nargs="+", metavar="NAME=BATCH:MICRO")
    parser.add_argument("--rl", action="store_true", help="vLLM engines sample beside the training")
    parser.add_argument("--nodes", type=int, default=1)
    for name in ("processes", "engines", "tp"):
        parser.add_argument(f"--{name}", type=int, help="given by the user")
    args = parser.parse_args(argv)
    try:
        if args.rl:
            shares = share(args.batches, args.limit, args.nodes, args.processes, args.engines, args.tp)
            found, first = shares.fit, [shares.fit.processes, shares.engines, shares.tp, int(shares.colocate)]
            limit = shares.limit
        else:
            limit = args.processes or args.limit
            found = fit(args.batches, limit, args.nodes, exact=args.processes is not None)
            first = [found.processes]
    except Misfit as error:
        print(f"recipe: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(*first, *found.micros)
    if said := describe(args.batches, found, limit, args.nodes):
        print(f"# {said}")


if __name__ == "__main__":
    main()
