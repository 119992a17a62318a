"""OpenRLHF's `SFTDataset` with rewarded texts."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.utils.utils import zero_pad_sequences
from torch.nn.utils.rnn import pad_sequence

from ..cli.errors import UserError
from .rows import encode, parse_row

ACTION, REWARD, MINUS = range(3)
"""The three numbers of each token where ``train_sft`` has one, its loss mask: 1 if an action is taken
there, the reward if it is the last action, and minus the reward, so that all sum to the number of actions: ``fit()``
sums the mask over an optimizer step and all ranks."""

_AT_ONCE = 1024


class QDataset(SFTDataset):
    """Texts with their rewards, tokenised as `rows.encode` has it.

    A text of fewer than two tokens takes no action and is left out; how many, and how many are cut, is printed.

    Raises:
        UserError: a record has no text or another reward than 0 and -1, or none is left.
    """

    def __init__(self, dataset: Any, tokenizer: Any, max_length: int, strategy: Any, *_: Any, **__: Any) -> None:
        own = strategy.args.deadend
        self.tokenizer, self.max_length = tokenizer, max_length
        self._ids: list[torch.Tensor] = []
        self._rewards: list[float] = []
        cut = 0
        for start in range(0, len(dataset), _AT_ONCE):
            records = dataset.select(range(start, min(start + _AT_ONCE, len(dataset)))).to_list()
            rows = [parse_row(r, f"row {start + i}", own.q_min, own.q_max) for i, r in enumerate(records, 1)]
            encoded = encode(tokenizer, [row.text for row in rows], max_length, own.append_eos)
            cut += encoded.cut
            for row, ids in zip(rows, encoded.rows, strict=True):
                if len(ids) > 1:
                    self._ids.append(torch.tensor(ids, dtype=torch.int32))
                    self._rewards.append(row.reward)
        bad, dropped = sum(reward < 0 for reward in self._rewards), len(dataset) - len(self)
        strategy.print(
            f"value data: {len(self)} texts, {bad} of them end badly; left out {dropped} of one token; {cut} are cut "
            f"at {max_length} tokens"
        )
        if not len(self):
            raise UserError("the value data have no text of two tokens or more; build them again")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids and mask ``(1, n)``, and actions and reward ``(1, n, 3)``."""
        ids = self._ids[index].long()[None]
        outcome = torch.zeros(1, ids.shape[1], 3)
        outcome[0, :-1, ACTION] = 1
        outcome[0, -2, REWARD] = self._rewards[index]
        outcome[0, -2, MINUS] = -self._rewards[index]
        return ids, torch.ones_like(ids), outcome

    def collate_fn(self, item_list: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids and masks ``(B, T)``, and actions and rewards ``(B, T, 3)``, padded on the right."""
        ids, masks, outcomes = zip(*item_list, strict=True)
        return (
            zero_pad_sequences(list(ids), "right", self.tokenizer.pad_token_id),
            zero_pad_sequences(list(masks), "right"),
            pad_sequence([outcome[0] for outcome in outcomes], batch_first=True),
        )
