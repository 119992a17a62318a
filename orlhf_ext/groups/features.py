"""Hidden states of a frozen backbone: computed once for each text, kept, and read by every run on the same texts.

A sweep over k, seeds, proportions and heads then trains heads on a table. Kept is one file for each backbone and
numeric type, in which a text is found by the SHA-256 of its token ids: runs with other pairs of the same texts share
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from .. import backends
from ..files.records import atomic_write
from ..models import row_cache
from ..models.batches import cut_rows, pad_left
from ..models.folder import find_model, find_same, identity
from ..models.pool import Pool
from ..models.prompt_once import for_model
from ..models.weights import PRECISIONS, load_reward
from .dataset import GroupDataset

FORMAT = 2
"""Goes into every name: raise it when a change of ours moves the numbers."""
BATCH_TOKENS = 8192  # padded, in a batch without gradients

Key = bytes
_WHAT = "hidden states"


def attach(trainer: Any, datasets: Sequence[GroupDataset]) -> None:
    """Give every data set the hidden states of its texts, ``(rows, 2, d)`` float32; every rank must call this.

    Args:
        trainer: a `GroupTrainer` whose model has a frozen backbone.
        datasets: of training and evaluation.
    """
    strategy = trainer.strategy
    keys: list[list[tuple[Key, Key]]] = []
    texts: dict[Key, list[int]] = {}
    for dataset in datasets:
        keys.append([])
        for row in range(len(dataset)):
            pair = [text.ids for text in dataset.encode(row)]
            own = [key_of(ids) for ids in pair]
            texts.update(zip(own, pair, strict=True))
            keys[-1].append((own[0], own[1]))
    order = sorted(texts)
    place = {key: number for number, key in enumerate(order)}
    path = _path(trainer) if strategy.is_rank_0() else None
    table = _load(path, order, trainer)
    missing = table[:, 0].isinf().nonzero().flatten().tolist()
    if missing:
        table = _compute(trainer, table, [texts[order[number]] for number in missing], missing)
        if path is not None:
            store(path, order, table)
    strategy.print(f"hidden states of {len(order)} texts: {len(order) - len(missing)} read, {len(missing)} computed")
    for dataset, own_keys in zip(datasets, keys, strict=True):
        rows = torch.tensor([[place[one], place[other]] for one, other in own_keys])
        dataset.features = table[rows]


def key_of(ids: Sequence[int]) -> Key:
    """What a text is found by."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()


def _path(trainer: Any) -> Path:
    args = trainer.args
    model = find_model(args.model.model_name_or_path, "--model.model_name_or_path")
    return cache_file(args.groups.cache_features, model, args.ds.param_dtype, args.ds.attn_implementation)


def cache_file(cache: str, model: Path, dtype: str, attention: str) -> Path:
    """Where the hidden states of a backbone are kept; ``dtype`` as OpenRLHF says it, ``bf16`` or ``fp16``."""
    return row_cache.cache_path(cache, {"format": FORMAT, "model": identity(model), "numeric": [dtype, attention]})


def _load(path: Path | None, order: list[Key], trainer: Any) -> torch.Tensor:
    """What is kept of the texts, the same on every rank; -inf in the rows of the others."""
    model = trainer.strategy._unwrap_model(trainer.model)
    table = torch.full((len(order), model.config.hidden_size), -torch.inf)
    if path is not None:
        known, hidden = read(path)
        rows = {key: number for number, key in enumerate(known)}
        found = [(number, rows[key]) for number, key in enumerate(order) if key in rows]
        if found:
            here, there = (torch.tensor(column) for column in zip(*found, strict=True))
            table[here] = hidden[there]
    return trainer.strategy.all_reduce(table, op="max")


def read(path: Path) -> tuple[list[Key], torch.Tensor]:
    """The texts that are kept, and their hidden states ``(texts, d)``."""
    if not (kept := row_cache.read(path, _WHAT)):
        return [], torch.empty(0)
    return [bytes(row) for row in kept["keys"].numpy()], kept["hidden"]


def store(path: Path, order: list[Key], table: torch.Tensor) -> None:
    """Add what is new to what another run may have written meanwhile."""
    with row_cache.writing(path, _WHAT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            known, hidden = read(path)
            seen = set(known)
            new = [number for number, key in enumerate(order) if key not in seen]
            rows = [*known, *(order[number] for number in new)]
            keys = torch.from_numpy(np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1).copy())
            both = torch.cat([hidden, table[new]]) if known else table[new]
            with atomic_write(path, "wb") as stream:
                stream.write(save({"keys": keys, "hidden": both.contiguous()}))


def _compute(trainer: Any, table: torch.Tensor, texts: list[list[int]], places: list[int]) -> torch.Tensor:
    """The table with the missing rows, which are those of ``texts``."""
    model = trainer.strategy._unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    batches = [[row for part in parts for row in part.rows] for parts in trainer.once.batches(texts, BATCH_TOKENS)]

    def compute(batch: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        some = [texts[number] for number in batch]
        ids, mask = pad_left(some, trainer.tokenizer.pad_token_id, next(model.parameters()).device)
        with trainer.once.over(ids, mask):
            hidden, _ = model.last_hidden(ids, mask)
        return torch.tensor([places[number] for number in batch]), hidden.float().cpu()

    table = row_cache.fill(trainer.strategy, table, batches, compute, _WHAT)
    model.train(was_training)
    return table


def of_texts(
    model: str,
    texts: Sequence[list[int]],
    pad_id: int,
    cache: str | None = None,
    dtype: str = "bfloat16",
    attention: str = "sdpa",
    budget: int = BATCH_TOKENS,
    pool: Pool | None = None,
) -> torch.Tensor:
    """Hidden states ``(texts, d)`` without a trainer; equal texts are computed once.

    Args:
        model: a backbone, or a reward model; as in `find_model`.
        texts: token ids.
        pad_id: of the padding, which nothing depends on.
        cache: where hidden states are kept, shared with trainings of the same numeric type and attention.
        dtype: ``bfloat16`` or ``float16``.
        attention: as in transformers.
        budget: tokens to compute in a batch.
        pool: who computes; the numbers do not depend on it.
    """
    folder = find_model(model)
    keys = [key_of(ids) for ids in texts]
    path = cache_file(cache, folder, PRECISIONS[dtype], attention) if cache else None
    known, hidden = read(path) if path else ([], torch.empty(0))
    states = dict(zip(known, hidden, strict=True)) if known else {}
    missing = {key: list(ids) for key, ids in zip(keys, texts, strict=True) if key not in states}
    if missing:
        order, wanted = list(missing), list(missing.values())
        batches = cut_rows(wanted, budget)
        load = partial(load_states, model, identity(folder, times=False), pad_id, dtype, attention, budget)
        units = ((str(number), [wanted[row] for row in batch]) for number, batch in enumerate(batches))
        with tqdm(total=len(wanted), desc=_WHAT.capitalize(), unit="text") as bar:
            for key, found in (pool or Pool()).run(load, units, lambda key: f"batch {key} of the texts"):
                batch = batches[int(key)]
                states.update(zip((order[row] for row in batch), torch.tensor(found), strict=True))
                bar.update(len(batch))
        if path:
            store(path, order, torch.stack([states[key] for key in order]))
    return torch.stack([states[key] for key in keys])


def load_states(
    name: str, copy_of: str, pad_id: int, dtype: str, attention: str, budget: int
) -> Callable[[list[list[int]]], np.ndarray]:
    """In a worker, what maps token ids to hidden states ``(texts, d)``; the model as in `find_same`."""
    backends.install()
    from . import model as models  # it loads DeepSpeed

    # the head, which may be new, is not used
    make = models.get_llm_for_sequence_regression
    backbone = load_reward(make, find_same(name, copy_of), "--model", dtype, attention, fresh=True)

    def forward(ids: torch.Tensor, mask: torch.Tensor, _: list[int]) -> torch.Tensor:
        return backbone.last_hidden(ids, mask)[0].float().cpu()

    return lambda texts: torch.stack(for_model(backbone).map(texts, budget, forward, pad_left, pad_id)).numpy()
