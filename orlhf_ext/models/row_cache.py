"""Numbers of fixed rows under a frozen model: computed once, each rank a share of them, and kept in a file.

A file's name is the SHA-256 of everything that its numbers depend on. Only rank 0 touches the disk, so that a cluster
needs no shared one. What is not known yet is -inf, so that the largest over ranks is what any of them knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm


def cache_path(folder: str, facts: dict[str, Any]) -> Path:
    """The file for ``facts``, for this kind of device, and for these versions of torch and transformers."""
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    facts = {**facts, "device": device, "versions": [torch.__version__, transformers.__version__]}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(folder).expanduser() / f"{name}.safetensors"


def read(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a file; none where there is no file, or a broken one, which one line says."""
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        print(f"{path} cannot be read ({error}); computing the {what} again")
        return {}


@contextlib.contextmanager
def writing(path: Path, what: str) -> Iterator[None]:
    """A disk that is full, or cannot be written, costs the cache and not the run."""
    try:
        yield
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}); the run goes on without keeping the {what}")


@torch.no_grad()
def fill(
    strategy: Any,
    table: torch.Tensor,
    batches: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
    what: str,
) -> torch.Tensor:
    """Compute batches, each rank its share of them; every rank must call this.

    Args:
        strategy: OpenRLHF's.
        table: ``(rows, ...)``, -inf in rows that are not known; it is written to.
        batches: what ``compute`` takes, the same on every rank, at least one.
        compute: makes of a batch the numbers of its rows in the table, and their values.
        what: "reference log-probabilities", for the progress bar.

    Returns:
        the table, the same on every rank.
    """
    group = strategy.ds_device_mesh["dp"].get_group()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    # ZeRO-3 gathers weights in every forward pass, so every rank makes equally many; the last batch is repeated.
    mine = [batches[min(at + rank, len(batches) - 1)] for at in range(0, len(batches), size)]
    for batch in tqdm(mine, desc=what.capitalize(), disable=not strategy.is_rank_0()):
        rows, values = compute(batch)
        table[rows] = values
    return strategy.all_reduce(table, op="max")
