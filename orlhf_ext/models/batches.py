"""One number for each completion of a file, computed in batches that depend on the file alone.

Batches are cut from all rows of a file, sorted by length, within a budget of tokens to compute; the results of one are
kept as soon as it is done. A run that goes on after a kill therefore computes the missing batches in the very shapes
of an uninterrupted run, and its numbers are equal to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..cli.errors import UserError
from ..files.journal import Journal
from ..files.outputs import check_file
from ..files.records import Record, source_entry
from .parts import cut_parts, find_parts
from .pool import Pool, some_of
from .texts import Sample

FORMAT = 2
"""Of journals: raise it when a change of ours cuts other batches, or moves the numbers."""

# Rows in, one number for each out
Compute = Callable[[list["Row"]], list[float]]


class Row(NamedTuple):
    """One completion of one record, as token ids with the prompt's in front."""

    sample: int
    completion: int
    ids: list[int]
    #: how many of the ids are the prompt's
    prompt_length: int


def cut_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows in batches, longest rows first (so that a lack of memory shows at once).

    Rows of a batch, padded to its longest, have at most ``budget`` tokens; a longer row is a batch of its own. Equal
    lengths keep the file's order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_left(texts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[Any, Any]:
    """Token ids as OpenRLHF's reward models read them: ids and mask, ``(texts, longest)`` each, padded on the left."""
    import torch
    from openrlhf.utils.utils import zero_pad_sequences

    ids = [torch.tensor([text]) for text in texts]
    padded = zero_pad_sequences(ids, side="left", value=pad_id).to(device)
    return padded, zero_pad_sequences([torch.ones_like(row) for row in ids], side="left").to(device)


def pad_right(texts: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[Any, Any]:
    """Token ids as causal models read them: ids and mask, ``(texts, longest)`` each, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=pad_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    return ids.to(device), mask.long().to(device)


def run_batches(
    rows: Sequence[Row],
    samples: Sequence[Sample],
    load: Callable[[], Compute],
    journal: Journal,
    budget: int,
    what: str,
    pool: Pool,
) -> list[list[float]]:
    """Compute a number for each row, batch by batch, skipping batches that the journal has.

    Args:
        rows: all rows of one file.
        samples: the file's records, which `Row.sample` counts.
        load: loads the model; called only if a batch is missing, and as `Pool.run` asks for.
        journal: of this output; its fingerprint covers everything that ``compute`` depends on.
        budget: tokens to compute in a batch.
        what: "reward", for messages and the progress bar.
        pool: who computes; the numbers do not depend on it.

    Returns:
        For each record, a number for each of its completions.

    Raises:
        UserError: a number is not finite, or a batch cannot be computed; the record is named.
    """
    from tqdm import tqdm

    batches = cut_rows([row.ids for row in rows], budget)
    values: list[list[float]] = [[math.nan] * len(sample.completions) for sample in samples]
    left = [str(number) for number in range(len(batches)) if str(number) not in journal.done]

    def name(key: str) -> str:
        return some_of([samples[rows[i].sample].name for i in batches[int(key)]])

    kept = len(rows) - sum(len(batches[int(key)]) for key in left)
    with tqdm(total=len(rows), initial=kept, desc=what, unit="row") as bar:
        units = ((key, [rows[i] for i in batches[int(key)]]) for key in left)
        for key, done in pool.run(load, units, name, len(left)):
            batch = batches[int(key)]
            for i, value in zip(batch, done, strict=True):
                if not math.isfinite(value):
                    row, sample = rows[i], samples[rows[i].sample]
                    raise UserError(
                        f"{sample.name}: completion {row.completion + 1} got a {what} of {value}; "
                        "the model's weights are NaN or overflow: use an earlier checkpoint"
                    )
            journal.add(key, done)
            bar.update(len(batch))
    for number, batch in enumerate(batches):
        for i, value in zip(batch, journal.done[str(number)], strict=True):
            values[rows[i].sample][rows[i].completion] = value
    return values


def cut_rows(ids: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """`cut_batches` of token rows; those that begin alike, such as the completions of a record, stay together."""
    lengths = [len(row) for row in ids]
    parts = find_parts(ids)
    if not any(part.length for part in parts):
        return cut_batches(lengths, budget)
    return [[row for part in batch for row in part.rows] for batch in cut_parts(parts, lengths, budget)]


def with_column(samples: Sequence[Sample], key: str, values: Sequence[Sequence[float]]) -> list[Record]:
    """The records with one more column; a pair becomes a record with two completions, chosen first."""
    out = []
    for sample, column in zip(samples, values, strict=True):
        record: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "completions": sample.completions}
        others = {name: value for name, value in sample.record.items() if name not in ("chosen", "rejected", key)}
        out.append({**record, **others, "id": sample.id, key: list(column)})
    return out


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `check_files` reads."""
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="samples or pairs")
    parser.add_argument("--out", required=True, nargs="+", metavar="FILE", help="one .jsonl for each input")


def check_files(
    data: Sequence[str], out: Sequence[str], command: str | None = None, overwrite: bool = False
) -> list[tuple[Path, Path]]:
    """Inputs with their outputs, which must be as many, and all different.

    Raises:
        UserError: they are not; or an output cannot be written, or ``command`` did not make it (see `check_file`).
    """
    if len(data) != len(out):
        raise UserError(f"--data names {len(data)} files and --out {len(out)}; give one output for each input")
    pairs = [(Path(a), Path(b)) for a, b in zip(data, out, strict=True)]
    outputs = [b.resolve() for _, b in pairs]
    if len(set(outputs)) < len(outputs) or set(outputs) & {a.resolve() for a, _ in pairs}:
        raise UserError("--out names a file twice, or one of --data; give each output a name of its own")
    for _, b in pairs:
        check_file(b, command=command, overwrite=overwrite, ends=(".jsonl",))
    return pairs


@contextlib.contextmanager
def open_journal(
    command: str, data: str | Path, out: str | Path, model: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Iterator[tuple[Journal, dict[str, Any]]]:
    """The journal of an output that follows from a file, a model and arguments, and what its sidecar says of these.

    Args:
        command: as sidecars name it.
        data: the file.
        out: the output.
        model: ``folder`` as the user gave it, and ``identity``.
        arguments: those that the output depends on.
    """
    source = source_entry(data)
    mark = fingerprint(model=model["identity"], data=source["sha256"], arguments=arguments)
    with Journal(out, mark) as journal:
        meta = {"command": command, "version": __version__, "model": model, "data": source, "arguments": arguments}
        yield journal, meta


def fingerprint(**parts: Mapping[str, Any] | str) -> dict[str, Any]:
    """What a run's results depend on, as JSON gives it back (tuples become lists)."""
    import json

    return json.loads(json.dumps({"format": FORMAT, **parts}))
