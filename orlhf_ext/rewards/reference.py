"""Log-probabilities under the frozen reference model, for rewards: in the very actors that compute the KL penalty."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import ray
import torch
from openrlhf.trainer.ray.launcher import ReferenceModelActor
from torch.nn.utils.rnn import pad_sequence

from ..actors import unwrap
from ..batches import cut_batches


class ScoringReference(unwrap(ReferenceModelActor)):  # type: ignore[misc]
    """OpenRLHF's reference model, which also scores any tokens, at temperature 1."""

    def score_tokens(self, sequences: torch.Tensor, action_mask: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Log-probabilities ``(B, T-1)`` of the tokens behind the first.

        Args:
            sequences: ``(B, T)`` token ids, padded on the right.
            action_mask: ``(B, T-1)``, 1 at t-1 for each token t that counts.
            attention_mask: ``(B, T)``.
        """
        kept = self.model.temperature  # the rollouts', by which OpenRLHF divides the logits
        self.model.temperature = 1.0
        try:
            return self.forward(sequences, action_mask, attention_mask)
        finally:
            self.model.temperature = kept


class GroupScorer:
    """`orlhf_ext.rewards.base.ScoreReference` on a group of reference actors.

    Args:
        group: OpenRLHF's ``RayActorGroup`` of `ScoringReference`.
        args: the launcher's nested arguments.
        pad_id: the tokenizer's.
    """

    def __init__(self, group: Any, args: SimpleNamespace, pad_id: int) -> None:
        self._group, self._args, self._pad_id = group, args, pad_id
        self._copies = args.ds.ring_attn_size * args.ds.tensor_parallel_size
        self._ranks = len(group._actor_handlers) // self._copies

    def __call__(self, token_ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probabilities of the tokens whose mask is 1, in order.

        Raises:
            ValueError: a mask is not as long as its sequence, or counts the first token, which nothing predicts.
        """
        for ids, mask in zip(token_ids, masks, strict=True):
            if len(ids) != len(mask) or len(ids) < 2 or mask[0]:
                raise ValueError("a mask is as long as its sequence (of two tokens or more), and begins with 0")
        if not token_ids:
            return []
        batches = cut_batches([len(ids) for ids in token_ids], self._args.ext.reference_batch_tokens)
        # every rank does as many forward passes, since under ZeRO-3 all take part in each
        batches = pad_to_multiple(batches, self._ranks)
        tensors = [_tensors([token_ids[i] for i in b], [masks[i] for i in b], self._pad_id) for b in batches]
        columns = {
            name: [row[place] for row in tensors]
            for place, name in enumerate(("sequences", "action_mask", "attention_mask"))
        }
        found = ray.get(self._group.async_run_method_batch("score_tokens", **columns))
        if self._args.train.colocate_all or self._args.train.colocate_actor_ref:
            ray.get(self._group.async_run_method("empty_cache"))
        values: list[list[float]] = [[] for _ in token_ids]
        results = itertools.chain.from_iterable(found[:: self._copies])
        for batch, (_, action_mask, _), result in zip(batches, tensors, results, strict=True):
            for row, index in enumerate(batch):
                values[index] = result[row][action_mask[row].bool()].double().tolist()
        return values


def pad_to_multiple(batches: list[list[int]], ranks: int) -> list[list[int]]:
    """As many batches for each rank: the last one again, as often as it takes."""
    return [*batches, *itertools.repeat(batches[-1], -len(batches) % ranks)]


def _tensors(
    ids: Iterable[Sequence[int]], masks: Iterable[Sequence[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(list(row)) for row in ids]
    sequences = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    counted = pad_sequence([torch.tensor(list(mask)) for mask in masks], batch_first=True)
    attention = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return sequences, counted[:, 1:].float(), attention
