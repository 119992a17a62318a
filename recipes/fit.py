"""The arithmetic of recipes: batches, lengths and GPUs that fit together, and how often a training saves.

OpenRLHF accumulates ``BATCH / (MICRO * PROCESSES)`` micro-batches in an optimizer step, which must be a whole number.
A batch is part of what is trained and keeps its size: fewer processes, or smaller micro-batches, make it fit.
Everything here runs before any package is installed, on Python 3.9 and newer.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

#: GPUs that are assumed of a cluster, whose GPUs are not counted
CLUSTER = 8


class Misfit(Exception):
    """A user's numbers that cannot go together, in one sentence."""


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


def count_gpus(present: bool, environ: Mapping[str, str]) -> int:
    """NVIDIA GPUs that a recipe may use: those of ``CUDA_VISIBLE_DEVICES``, else all that ``nvidia-smi`` lists."""
    if not present:
        return 0
    if visible := environ.get("CUDA_VISIBLE_DEVICES"):
        return len(visible.split(",-1")[0].split(","))
    if not shutil.which("nvidia-smi"):
        return 1
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return max(1, len(listed.stdout.splitlines()))


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
    raise Misfit(
        f"{batch.name}={batch.size} is not a multiple of the {ranks} training processes of {given}; change one"
    )


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


def check_room(max_len: int, new_tokens: int) -> None:
    """Raises `Misfit` if new tokens leave no room for a prompt."""
    if new_tokens >= max_len:
        raise Misfit(f"MAX_NEW_TOKENS={new_tokens} leaves no room for a prompt in MAX_LEN={max_len}")


def check_rollouts(prompts: int, samples: int, batch: int) -> None:
    """Raises `Misfit` if a rollout is not a whole number of optimizer steps, or its samples cannot be compared."""
    if samples < 2:
        raise Misfit(f"SAMPLES={samples} leaves nothing to compare a sample with; give at least 2")
    if prompts * samples % batch:
        raise Misfit(
            f"ROLLOUT_BATCH={prompts} times SAMPLES={samples} is not a multiple of BATCH_SIZE={batch}; change one"
        )


def checkpoints(records: int, batch: int, most: int) -> tuple[list[int], int]:
    """The steps of at most ``most`` checkpoints (the last is the final model), and the distance between them."""
    steps = max(1, records // batch)
    every = -(-steps // most)
    return [*range(every, steps, every), steps], every


def next_batch(target: int, micro: int, processes: int) -> int:
    """The smallest multiple of ``micro * processes`` that is at least ``target``."""
    at_once = micro * processes
    return -(-target // at_once) * at_once


def save_every(steps: int, epochs: int, most: int) -> int:
    """A checkpoint every ``most`` steps, and at least twice in a run."""
    return min(most, max(1, steps * epochs // 2))


def warmup_ratio(records: int, batch: int, epochs: int, warmup: int = 500) -> float:
    """The share of ``warmup`` steps in a training, at most half, rounded down to millionths."""
    return warmup * 1_000_000 // max(2 * warmup, records // batch * epochs) / 1_000_000
