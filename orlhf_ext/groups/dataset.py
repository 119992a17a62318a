"""OpenRLHF's `RewardDataset`, whose pairs know their group."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.datasets.reward_dataset import RewardDataset

from ..models.texts import Whole
from ..openrlhf_fixes.chat_data import report_cuts
from . import trained_groups
from .render import encode, whole_text


class GroupDataset(RewardDataset):
    """Pairs with groups. A text is cut on its left, so that the answer survives; EOS as the settings have it.

    The last of the five items of a batch is, for each pair, ``{"margin", "group", "row"}``.
    """

    prompts: list[str]
    chosens: list[str]
    rejects: list[str]
    extras: list[dict[str, Any]]

    def __init__(self, dataset: Any, tokenizer: Any, max_length: int, strategy: Any, *args: Any, **words: Any) -> None:
        found = trained_groups.from_args(strategy.args)
        assert found is not None  # `GroupRM.configure` wrote it
        self.training = found
        if self.training.only is not None:
            dataset = dataset.filter(self._is_trained)
        super().__init__(dataset, tokenizer, max_length, strategy, *args, **words)
        # lists: a column of `datasets` takes milliseconds for every item
        self.prompts, self.chosens, self.rejects = list(self.prompts), list(self.chosens), list(self.rejects)
        self.extras = list(self.extras)
        #: ``(rows,)``, the group of each pair
        self.groups = torch.tensor([extra["group"] for extra in self.extras], dtype=torch.long)
        #: ``(rows, 2, d)`` hidden states of chosen and rejected, set by `features.attach`
        self.features: torch.Tensor | None = None
        #: a mean over pairs of ``N / (U N_g)`` times a loss is the mean of the groups' means
        self.counts = self.groups.bincount(minlength=self.training.settings.num_groups)
        names = zip(self.training.settings.names, self.counts.tolist(), strict=True)
        eos, end = self.training.settings.eos, str(tokenizer.eos_token)
        pairs = zip(self.prompts * 2, self.chosens + self.rejects, strict=True)
        texts = (whole_text(prompt, text, eos, end) for prompt, text in pairs)  # type: ignore[arg-type]
        report_cuts(len(dataset), len(self), tokenizer, texts, max_length)
        strategy.print("pairs of groups: " + ", ".join(f"{name} {count}" for name, count in names))

    def _is_trained(self, record: Any) -> bool:
        return self.training.group_of(record) is not None

    def process_data(self, data: Any) -> dict[str, Any]:
        """As OpenRLHF's, with margin and group as ``extra``."""
        found = super().process_data(data)
        found["extra"] = {"margin": float(found["extra"]), "group": self.training.group_of(data)}
        return found

    def encode(self, index: int) -> list[Whole]:
        """The ids of a pair: chosen, rejected."""
        prompt = self.prompts[index]
        texts = [(prompt, self.chosens[index]), (prompt, self.rejects[index])]
        return encode(self.tokenizer, texts, self.training.settings.eos, self.max_length)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict]:
        """Ids and mask, ``(1, length)`` each, of chosen and rejected, and what the pair is."""
        tensors = []
        for text in self.encode(index) if self.features is None else [Whole([0], 0)] * 2:
            ids = torch.tensor([text.ids])  # with hidden states at hand nobody reads them
            tensors += [ids, torch.ones_like(ids)]
        chosen, chosen_mask, rejected, rejected_mask = tensors
        return chosen, chosen_mask, rejected, rejected_mask, {**self.extras[index], "row": index}
