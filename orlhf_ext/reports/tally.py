"""Means of a trainer's metrics over all ranks, and over all micro batches of a step or of an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..cli.errors import UserError


class Tally:
    """Sums and counts of metrics; they stay on the device until the means are asked for.

    Args:
        names: of all metrics, the same on every rank.
        prefix: of what is logged, ``PREFIX/NAME``.
    """

    def __init__(self, names: Sequence[str], prefix: str) -> None:
        self.names, self.prefix = list(names), prefix
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, values: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """Add the elements of ``values`` to the metric ``name``; only those that ``where``, of its shape, marks."""
        values = values.detach().double()
        where = torch.ones_like(values, dtype=torch.bool) if where is None else where
        pair = torch.stack([values.where(where, 0).sum(), where.sum().double()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What is added in the block, as by an evaluation, is counted by itself."""
        kept, self._sums = self._sums, {}
        try:
            yield
        finally:
            self._sums = kept

    def totals(self, strategy: Any) -> dict[str, tuple[float, float]]:
        """Sum and count over all ranks; every rank must call it."""
        rows = [self._sums.get(name, torch.zeros(2)).double().cpu() for name in self.names]
        found = strategy.all_reduce(torch.stack(rows), op="sum").tolist()
        self._sums = {}
        return {name: (s, n) for name, (s, n) in zip(self.names, found, strict=True)}

    def means(self, strategy: Any) -> dict[str, float]:
        """Means over all ranks, as ``PREFIX/NAME``, and a new start; every rank must call it. Metrics without any value
        are left out."""
        return {f"{self.prefix}/{name}": s / n for name, (s, n) in self.totals(strategy).items() if n}


def log_evaluation(trainer: Any, values: Mapping[str, float], step: int) -> None:
    """Log ``eval/NAME`` where OpenRLHF's trainer logs: to W&B, or else to TensorBoard, from rank 0."""
    if not trainer.strategy.is_rank_0():
        return
    if trainer._wandb is not None:
        trainer._wandb.log({f"eval/{name}": value for name, value in {**values, "global_step": step}.items()})
    elif trainer._tensorboard is not None:
        for name, value in values.items():
            trainer._tensorboard.add_scalar(f"eval/{name}", value, step)


def check_evaluation(loader: Any, micro_batch: int) -> None:
    """Refuse an evaluation without a batch before training: OpenRLHF up to 0.11.1 leaves a last part of one out, and
    would divide by the number of batches at the end.

    Args:
        loader: of the evaluation's batches; None: there is none.
        micro_batch: ``--train.micro_batch_size``, which is that of evaluations, too.

    Raises:
        UserError: it has no batch.
    """
    if loader is not None and not len(loader):
        raise UserError(
            f"--eval.dataset has {len(loader.dataset)} records, of which this OpenRLHF makes no batch of "
            f"--train.micro_batch_size {micro_batch} for each process; give more records, or smaller micro batches"
        )
