"""Reference log-probabilities of a fixed data set: computed once, kept by content hash, the reference model let go.

A file's name is the SHA-256 of everything that its numbers depend on: the reference model's files, the tokenised rows,
the temperature, numeric type, attention, batch size and library versions. Only rank 0 touches the disk, so that a
cluster needs no shared one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from ..cli.errors import UserError
from ..files.records import atomic_write, sha256_file
from .dataset import KwiseDataset

FORMAT = 1
"""Goes into every hash: raise it when a change of ours moves the numbers."""

_MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json", "adapter_config.json")


def attach(trainer: Any, datasets: Iterable[KwiseDataset]) -> None:
    """Give every data set its reference log-probabilities, then free the reference model's memory.

    Args:
        trainer: a `KwiseTrainer` whose actors are ready; every rank must call this.
        datasets: their ``reference_logps`` is set, ``(rows,)`` float32.

    Raises:
        UserError: the reference model's files cannot be found.
    """
    strategy = trainer.strategy
    folder = Path(trainer.args.exo.cache_reference).expanduser()
    model_digest = digest_model(trainer.args.ref.model_name_or_path) if strategy.is_rank_0() else ""
    trainer.ref_model.eval()
    for dataset in datasets:
        facts = _facts(trainer, dataset, model_digest) if strategy.is_rank_0() else {}
        path = folder / f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.safetensors"
        rows = len(dataset.row_lengths)
        found = _load(path, rows) if strategy.is_rank_0() else None
        values = torch.full((rows,), -torch.inf) if found is None else found
        if not strategy.all_reduce(float(found is not None), op="max"):
            values = _compute(trainer, dataset)
        # The largest over ranks: each row is -inf wherever it was not computed or read.
        dataset.reference_logps = strategy.all_reduce(values, op="max")
        if strategy.is_rank_0():
            if found is None:
                _store(path, dataset.reference_logps, facts)
            else:
                print(f"reference log-probabilities of {rows} completions read from {path}")
    _free(trainer.ref_model)


def digest_model(name_or_path: str) -> str:
    """SHA-256 over the names and contents of a model's weight and config files.

    Raises:
        UserError: neither a folder nor a model in the hub's local cache.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        from transformers.utils import cached_file

        try:
            folder = Path(str(cached_file(name_or_path, "config.json"))).parent
        except OSError as error:
            raise UserError(
                f"--exo.cache_reference needs the files of the reference model {name_or_path}, which cannot be found; "
                "give a folder, or leave --exo.cache_reference out"
            ) from error
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode()).hexdigest()


def _facts(trainer: Any, dataset: KwiseDataset, model_digest: str) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    import transformers

    args = trainer.args
    numeric = (
        "param_dtype attn_implementation experts_implementation load_in_4bit packing_samples deepcompile "
        "tensor_parallel_size ring_attn_size zero_stage"
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "format": FORMAT,
        "model": model_digest,
        "rows": dataset.digest(),
        "temperature": args.exo.temperature,
        "micro_batch_size": args.train.micro_batch_size,
        **{name: getattr(args.ds, name, None) for name in numeric.split()},
        "device": device,
        "versions": [torch.__version__, transformers.__version__],
    }


def _load(path: Path, rows: int) -> torch.Tensor | None:
    """The stored values ``(rows,)``, or None; a broken file is told in one line, and computed again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            values = file.get_tensor("logps")
    except (SafetensorError, OSError) as error:
        print(f"{path} cannot be read ({error}); computing the reference log-probabilities again")
        return None
    if values.shape != (rows,) or values.dtype != torch.float32 or not torch.isfinite(values).all():
        print(f"{path} does not hold {rows} finite numbers; computing the reference log-probabilities again")
        return None
    return values


def _store(path: Path, values: torch.Tensor, facts: dict[str, Any]) -> None:
    """Write atomically; a disk that is full costs the cache, not the run."""
    try:
        with atomic_write(path, "wb") as stream:
            stream.write(save({"logps": values}, metadata={"facts": json.dumps(facts)}))
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}); the run goes on without storing it")
    else:
        print(f"reference log-probabilities of {len(values)} completions stored in {path}")


@torch.no_grad()
def _compute(trainer: Any, dataset: KwiseDataset) -> torch.Tensor:
    """This rank's share of ``(rows,)``, -inf elsewhere, in batches of records of like length."""
    group = trainer.strategy.ds_device_mesh["dp"].get_group()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    longest = np.maximum.reduceat(dataset.row_lengths, dataset.row_offsets[:-1])
    order = np.argsort(-longest, kind="stable")  # the longest first: what does not fit into memory fails at once
    micro = trainer.args.train.micro_batch_size
    batches = [order[start : start + micro] for start in range(0, len(order), micro)]
    # ZeRO-3 gathers weights in every forward pass, so every rank makes equally many; the last batch stands in.
    mine = [batches[min(at + rank, len(batches) - 1)] for at in range(0, len(batches), size)]
    values = torch.full((len(dataset.row_lengths),), -torch.inf)
    device = next(trainer.model.parameters()).device
    for batch in tqdm(mine, desc="Reference log-probabilities", disable=not trainer.strategy.is_rank_0()):
        ids, mask, rewards, _, rows = dataset.collate_fn([dataset[int(record)] for record in batch])
        ids, mask, rewards = ids.to(device), mask.to(device), rewards.squeeze(1).to(device)
        logps = trainer.concatenated_forward(trainer.ref_model, ids, mask, rewards, rewards, rows)[0]
        where = np.concatenate([np.arange(*dataset.row_offsets[record : record + 2]) for record in batch])
        values[torch.from_numpy(where)] = logps.float().cpu()
    return values


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
