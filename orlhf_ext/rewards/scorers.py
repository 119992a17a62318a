"""Log-probabilities under models of a run, for rewards: in the very actors that compute the KL penalty and train."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import ray
import torch
from torch.nn.utils.rnn import pad_sequence

from ..backends.machine import torch_device
from ..models.batches import cut_batches
from ..models.likelihood import span_logprobs
from ..models.logprobs import token_logprobs
from ..models.parts import find_parts
from ..models.spans import Span

_IN_TURN = threading.Lock()  # passes of two threads would meet in one collective, or on one GPU in any order


class Scoring:
    """What an actor of OpenRLHF's has beside its own methods: it scores any tokens, at temperature 1.

    Its model is in evaluation mode meanwhile, and afterwards in the mode and at the temperature that it had.
    """

    strategy: Any

    @property
    def scored(self) -> Any:
        """OpenRLHF's ``Actor`` with the model, in DeepSpeed's engine."""
        raise NotImplementedError

    def device_type(self) -> str:
        """Where this process computes."""
        return torch_device()

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[Any]:
        actor = self.scored
        training, temperature = actor.training, actor.temperature  # the rollouts', by which OpenRLHF divides logits
        actor.eval()
        actor.temperature = 1.0
        try:
            yield actor.model
        finally:
            actor.temperature = temperature
            actor.train(training)

    def score_spans(self, spans: list[Span]) -> list[list[float]]:
        """Log-probabilities of the scored tokens of each span, where this process has all weights: what several spans
        begin with is computed once."""
        with self._evaluating() as engine:  # whose module is transformers' own, or peft's around it
            found = span_logprobs(engine.module, spans, self.strategy.args.ext.reference_batch_tokens)
        return [values.tolist() for values in found]

    def score_tokens(self, sequences: torch.Tensor, action_mask: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Log-probabilities ``(B, T-1)`` of the tokens behind the first, on the CPU; every rank takes part in the pass.

        The output layer sees the positions that count alone; where sequences are packed, or the layer is spread over
        processes, it is OpenRLHF's own forward pass, which computes the logits of all.

        Args:
            sequences: ``(B, T)`` token ids, padded on the right.
            action_mask: ``(B, T-1)``, 1 at t-1 for each token t that counts: all from a row's first such to its end.
            attention_mask: ``(B, T)``.
        """
        ds = self.strategy.args.ds
        with self._evaluating() as engine:
            if ds.packing_samples or ds.tensor_parallel_size > 1:
                return self.forward(sequences, action_mask, attention_mask)  # type: ignore[attr-defined]
            device = torch.cuda.current_device()
            starts = action_mask.argmax(1) + 1
            with torch.no_grad():  # DeepSpeed gathers the weights of ZeRO-3 as they are needed
                values, _ = token_logprobs(engine, sequences.to(device), attention_mask.to(device), starts.to(device))
        return torch.zeros_like(action_mask).masked_scatter(action_mask.bool(), values.cpu())


class GroupScorer:
    """`orlhf_ext.rewards.base.ScoreTokens` on a group of actors.

    Args:
        group: OpenRLHF's ``RayActorGroup`` of `Scoring` actors.
        args: the launcher's nested arguments.
        pad_id: the tokenizer's.
    """

    def __init__(self, group: Any, args: SimpleNamespace, pad_id: int) -> None:
        self._group, self._args, self._pad_id = group, args, pad_id
        self._copies = args.ds.ring_attn_size * args.ds.tensor_parallel_size
        self._ranks = len(group._actor_handlers) // self._copies
        #: where weights or sequences are spread over processes, all of them take part in each of OpenRLHF's passes
        self.spread = args.ds.zero_stage == 3 or self._copies > 1 or args.ds.packing_samples

    @functools.cached_property
    def device(self) -> str:
        """Where the actors compute; the controller, in which this is, may run where there is no GPU."""
        return ray.get(self._group._actor_handlers[0].device_type.remote())

    def __call__(
        self,
        token_ids: Sequence[Sequence[int]],
        masks: Sequence[Sequence[int]],
    ) -> list[list[float]]:
        """Natural log-probabilities of the tokens whose mask is 1, in order.

        Raises:
            ValueError: a mask is not as long as its sequence, counts the first token, which nothing predicts, or none.
        """
        spans = [to_span(ids, mask) for ids, mask in zip(token_ids, masks, strict=True)]
        if not spans:
            return []
        with _IN_TURN:
            found = self._in_step(spans) if self.spread else self._apart(spans)
            if self._args.train.colocate_all or self._args.train.colocate_actor_ref:
                ray.get(self._group.async_run_method("empty_cache"))
        return [
            list(itertools.compress(values, mask[span.start :]))
            for values, span, mask in zip(found, spans, masks, strict=True)
        ]

    def _apart(self, spans: list[Span]) -> list[list[float]]:
        """Each rank has spans of its own, and as many forward passes as they take."""
        shares = share_out(spans, self._ranks)
        work = [[spans[i] for i in rows] for rows in shares]
        found = ray.get(self._group.async_run_method_batch("score_spans", spans=work))
        values: list[list[float]] = [[]] * len(spans)
        for rows, result in zip(shares, itertools.chain.from_iterable(found), strict=True):
            for row, value in zip(rows, result, strict=True):
                values[row] = value
        return values

    def _in_step(self, spans: list[Span]) -> list[list[float]]:
        """Every rank does as many forward passes."""
        batches = cut_batches([len(span.ids) for span in spans], self._args.ext.reference_batch_tokens)
        batches = pad_to_multiple(batches, self._ranks)
        tensors = [_tensors([spans[i] for i in batch], self._pad_id) for batch in batches]
        columns = {name: [row[name] for row in tensors] for name in tensors[0]}
        found = ray.get(self._group.async_run_method_batch("score_tokens", **columns))
        values: list[list[float]] = [[]] * len(spans)
        results = itertools.chain.from_iterable(found[:: self._copies])
        for batch, columns_of, result in zip(batches, tensors, results, strict=True):
            for row, index in enumerate(batch):
                values[index] = result[row][columns_of["action_mask"][row].bool()].tolist()
        return values


def to_span(ids: Sequence[int], mask: Sequence[int]) -> Span:
    """From the first token that counts to the last one. Raises ValueError as `GroupScorer` does."""
    if len(ids) != len(mask) or 1 not in mask or mask[0]:
        raise ValueError("a mask is as long as its sequence, begins with 0, and has a 1 for each token that counts")
    end = len(mask) - list(reversed(mask)).index(1)
    return Span(list(ids[:end]), list(mask).index(1))


def share_out(spans: Sequence[Span], ranks: int) -> list[list[int]]:
    """The rows of each rank: those that begin alike stay together, and the tokens to compute are spread evenly, most
    tokens first."""
    lengths = [len(span.ids) for span in spans]
    parts = find_parts([span.ids for span in spans])
    costs = [(part.tokens(lengths), part.rows) for part in parts]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for cost, rows in sorted(costs, reverse=True):
        least = loads.index(min(loads))
        loads[least] += cost
        shares[least] += rows
    return shares


def pad_to_multiple(batches: list[list[int]], ranks: int) -> list[list[int]]:
    """As many batches for each rank: the last one again, as often as it takes."""
    return [*batches, *itertools.repeat(batches[-1], -len(batches) % ranks)]


def _tensors(spans: Sequence[Span], pad_id: int) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(span.ids) for span in spans]
    counted = [torch.tensor([0] * span.start + [1] * span.scored) for span in spans]
    return {
        "sequences": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "action_mask": pad_sequence(counted, batch_first=True)[:, 1:].float(),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
