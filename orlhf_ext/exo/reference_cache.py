"""Reference log-probabilities of a fixed data set: computed once, kept by content hash, the reference model let go.

A file's numbers depend on the reference model's files, the tokenised rows, the temperature, numeric type, attention,
batch size and library versions (see `row_cache`).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from ..cli.errors import UserError
from ..files.records import atomic_write
from ..models import row_cache
from ..models.folder import content_digest
from .dataset import KwiseDataset

FORMAT = 2
"""Goes into every hash: raise it when a change of ours moves the numbers."""
_WHAT = "reference log-probabilities"


def attach(trainer: Any, datasets: Iterable[KwiseDataset]) -> None:
    """Give every data set its reference log-probabilities, then free the reference model's memory.

    Args:
        trainer: a `KwiseTrainer` whose actors are ready; every rank must call this.
        datasets: their ``reference_logps`` is set, ``(rows,)`` float32.

    Raises:
        UserError: the reference model's files cannot be found.
    """
    strategy = trainer.strategy
    first = strategy.is_rank_0()
    model_digest = content_digest(reference_folder(trainer.args.ref.model_name_or_path)) if first else ""
    trainer.ref_model.eval()
    for dataset in datasets:
        table = torch.full((len(dataset.row_lengths),), -torch.inf)
        if first:
            facts = _facts(trainer, dataset, model_digest)
            path = row_cache.cache_path(trainer.args.exo.cache_reference, facts)
            table = _load(path, table)
        table = strategy.all_reduce(table, op="max")
        found = bool(table.isfinite().all())
        dataset.reference_logps = table if found else _compute(trainer, dataset, table)
        if first and found:
            print(f"{_WHAT} of {len(table)} completions read from {path}")
        elif first:
            _store(path, dataset.reference_logps, facts)
    _free(trainer.ref_model)


def reference_folder(name_or_path: str) -> Path:
    """Where the reference model's files are.

    Raises:
        UserError: neither a folder nor a model in the hub's local cache.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name_or_path, "config.json"))).parent
    except OSError as error:
        raise UserError(
            f"--exo.cache_reference needs the files of the reference model {name_or_path}, which cannot be found; "
            "give a folder, or leave --exo.cache_reference out"
        ) from error


def _facts(trainer: Any, dataset: KwiseDataset, model_digest: str) -> dict[str, Any]:
    """What the numbers depend on, beside device and versions."""
    args = trainer.args
    numeric = (
        "param_dtype attn_implementation experts_implementation load_in_4bit packing_samples deepcompile "
        "tensor_parallel_size ring_attn_size zero_stage"
    )
    return {
        "format": FORMAT,
        "model": model_digest,
        "rows": dataset.digest(),
        "temperature": args.exo.temperature,
        "share_prompt": args.exo.share_prompt,
        "micro_batch_size": args.train.micro_batch_size,
        **{name: getattr(args.ds, name, None) for name in numeric.split()},
    }


def _load(path: Path, unknown: torch.Tensor) -> torch.Tensor:
    """The stored values ``(rows,)``, or ``unknown`` where the file does not have them."""
    values = row_cache.read(path, _WHAT).get("logps")
    if values is None:
        return unknown
    if values.shape != unknown.shape or values.dtype != torch.float32 or not torch.isfinite(values).all():
        print(f"{path} does not have {len(unknown)} finite numbers; computing the {_WHAT} again")
        return unknown
    return values


def _store(path: Path, values: torch.Tensor, facts: dict[str, Any]) -> None:
    with row_cache.writing(path, _WHAT):
        with atomic_write(path, "wb") as stream:
            stream.write(save({"logps": values}, metadata={"facts": json.dumps(facts)}))
        print(f"{_WHAT} of {len(values)} completions stored in {path}")


def _compute(trainer: Any, dataset: KwiseDataset, table: torch.Tensor) -> torch.Tensor:
    """All values ``(rows,)``, in batches of records of like length."""
    longest = np.maximum.reduceat(dataset.row_lengths, dataset.row_offsets[:-1])
    order = np.argsort(-longest, kind="stable")  # the longest first: what does not fit into memory fails at once
    micro = trainer.args.train.micro_batch_size
    batches = [order[start : start + micro].tolist() for start in range(0, len(order), micro)]
    device = next(trainer.model.parameters()).device

    def compute(batch: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask, rewards, _, rows = dataset.collate_fn([dataset[record] for record in batch])
        ids, mask, rewards = ids.to(device), mask.to(device), rewards.squeeze(1).to(device)
        logps = trainer.concatenated_forward(trainer.ref_model, ids, mask, rewards, rewards, rows)[0]
        where = np.concatenate([np.arange(*dataset.row_offsets[record : record + 2]) for record in batch])
        return torch.from_numpy(where), logps.float().cpu()

    return row_cache.fill(trainer.strategy, table, batches, compute, _WHAT)


def _free(actor: Any) -> None:
    """Let the reference's weights go; ``fit()`` still calls ``eval()`` on the actor."""
    for parameter in actor.model.parameters():
        # DeepSpeed keeps references to parameters (and, under ZeRO-3, to their shards) of its own.
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data = parameter.ds_tensor.data.new_empty(0)
        parameter.data = parameter.data.new_empty(0)
    actor.model = torch.nn.Module()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
