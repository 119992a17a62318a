"""Values of the next token for sequences that grow, with the keys and values of what was already read.

A caller gives whole sequences, in any order, and gets ``Q_D(s, .)`` of each. What is new follows from the contents: a
sequence seen in the last call gives the same values again, one that extends a sequence of the last call by one token
costs one step of the trunk, every other is read from its beginning. So rows may come, go, change places and fork (as
beams do), and equal sequences (several completions of one prompt) are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicLayer

from ..cli.errors import UserError
from ..models.batches import cut_batches

PREFILL_TOKENS = 16384  # padded tokens that are read at once
_MIN_GROWTH = 16  # columns, of a full layer


class _Layer(DynamicLayer):
    """Keys and values ``(rows, heads, width, head_dim)`` with room at their end, so that a step copies none of them.

    They are right-aligned: what is left of a short sequence is padding.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self._stores: list[torch.Tensor] = []

    @classmethod
    def of(cls, groups: Sequence[_Layer], rows: list[torch.Tensor], width: int) -> _Layer:
        """Some rows of each of several layers, cut or padded on the left to ``width``."""
        layer = cls()
        first = groups[0]
        layer.lazy_initialization(first.keys, first.values)
        for name in ("keys", "values"):
            parts = [getattr(group, name)[index, :, -width:] for group, index in zip(groups, rows, strict=True)]
            layer._stores.append(_with_room(parts, width))
        layer._show(width)
        return layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new columns; gives all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width = self.get_seq_length()
        end = width + key_states.shape[2]
        for i, (old, new) in enumerate(((self.keys, key_states), (self.values, value_states))):
            if width == 0:
                self._stores.append(_with_room([new], end))
            elif self._stores[i].shape[2] < end:
                self._stores[i] = _with_room([old], width, end)
            self._stores[i][:, :, width:end] = new
        self._show(end)
        return self.keys, self.values

    def _show(self, width: int) -> None:
        self.keys, self.values = (store[:, :, :width] for store in self._stores)


def columns(width: int) -> int:
    """How many columns a store has that is made for ``width`` of them."""
    return width + max(_MIN_GROWTH, width // 4)


def _with_room(parts: list[torch.Tensor], width: int, needed: int = 0) -> torch.Tensor:
    """All rows of all parts in one tensor, ending in column ``width``, with free columns behind it."""
    first, rows = parts[0], sum(map(len, parts))
    store = first.new_zeros(rows, first.shape[1], columns(max(width, needed)), first.shape[3])
    start = 0
    for part in parts:
        store[start : start + len(part), :, width - part.shape[2] : width] = part
        start += len(part)
    return store


class _Rows(NamedTuple):
    """Some sequences, their last hidden states ``(rows, d)``, and what the trunk's layers keep of them."""

    ids: list[tuple[int, ...]]
    hidden: torch.Tensor
    layers: list[Any]  # _Layer


class QStepper:
    """Computes ``Q_D(s, .)`` step by step.

    Args:
        q_model: what `load_q_model` gives.
    """

    def __init__(self, q_model: Any) -> None:
        self.model = q_model
        self._rows: _Rows | None = None

    @torch.inference_mode()
    def values(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Values of the token after each sequence.

        Args:
            sequences: token ids; each has at least one. Ids that Q_D does not know (a language model may be padded
                to more) are read as its last.

        Returns:
            ``(len(sequences), V)``, at least float32.

        Raises:
            UserError: a sequence is longer than Q_D's context.
        """
        wanted = [tuple(ids) for ids in sequences]
        distinct = list(dict.fromkeys(wanted))
        self._rows = self._advance(distinct)
        place = {ids: i for i, ids in enumerate(self._rows.ids)}
        values = self.model.q_head(self._rows.hidden)
        rows = [place[ids] for ids in wanted]
        return values if rows == list(range(len(place))) else values[rows]

    def forget(self) -> None:
        """Free the memory of what was read."""
        self._rows = None

    def _advance(self, sequences: list[tuple[int, ...]]) -> _Rows:
        before, self._rows = self._rows, None  # should this fail, nothing half-done is left
        known = {ids: i for i, ids in enumerate(before.ids)} if before else {}
        still = [ids for ids in sequences if ids in known]
        longer = [ids for ids in sequences if ids not in known and ids[:-1] in known]
        fresh = [ids for ids in sequences if ids not in known and ids[:-1] not in known]
        self._check(longer + fresh)
        groups = []
        if before and longer:
            parents = [known[ids[:-1]] for ids in longer]
            if still or parents != list(range(len(before.ids))):
                groups.append(self._read(_join([before], [parents]), longer))
            else:
                groups.append(self._read(before, longer))
        which = [list(range(len(longer)))] if groups else []
        if before and still:
            groups.append(before)
            which.append([known[ids] for ids in still])
        del before
        for batch in cut_batches([len(ids) for ids in fresh], PREFILL_TOKENS):
            groups.append(self._read(None, [fresh[i] for i in batch]))
            which.append(list(range(len(batch))))
        if len(groups) == 1 and which[0] == list(range(len(groups[0].ids))):
            return groups[0]
        return _join(groups, which)

    def _check(self, sequences: list[tuple[int, ...]]) -> None:
        context = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, sequences), default=0)
        if context is not None and longest > context:
            raise UserError(
                f"a text of {longest} tokens is longer than the {context} positions that the value function reads; "
                "ask for less, or train one with a longer context"
            )

    def _read(self, parents: _Rows | None, sequences: list[tuple[int, ...]]) -> _Rows:
        """Read what is new of each sequence, behind its row of ``parents`` or from the beginning."""
        device = self.model.q_head.inner.weight.device
        lengths = torch.tensor([len(ids) for ids in sequences])
        width = int(lengths.max())
        new = 1 if parents else width
        tokens = torch.tensor([(*[0] * (width - len(ids)), *ids)[-new:] for ids in sequences])
        tokens = tokens.clamp(max=self.model.config.vocab_size - 1)
        place = torch.arange(width) - (width - lengths)[:, None]  # in the sequence; below 0 in the padding
        out = self.model.base_model(
            input_ids=tokens.to(device),
            attention_mask=(place >= 0).long().to(device),
            position_ids=place[:, -new:].clamp(0).to(device),
            past_key_values=Cache(layers=parents.layers) if parents else Cache(layer_class_to_replicate=_Layer),
            use_cache=True,
        )
        return _Rows(sequences, out.last_hidden_state[:, -1], out.past_key_values.layers)


def _join(groups: list[_Rows], which: list[list[int]]) -> _Rows:
    """Some rows of each group, without the padding that none of them needs."""
    ids = [group.ids[i] for group, rows in zip(groups, which, strict=True) for i in rows]
    index = [torch.tensor(rows, device=group.hidden.device) for group, rows in zip(groups, which, strict=True)]
    hidden = torch.cat([group.hidden[rows] for group, rows in zip(groups, index, strict=True)])
    width = max(map(len, ids))
    layers = zip(*(group.layers for group in groups), strict=True)
    return _Rows(ids, hidden, [_Layer.of(layer, index, width) for layer in layers])
