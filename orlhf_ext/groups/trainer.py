"""OpenRLHF's `RewardModelTrainer` for rewards of groups; ``fit()`` stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from openrlhf.models.loss import PairWiseLoss
from openrlhf.trainer.rm_trainer import RewardModelTrainer

from ..models.head_settings import KEY, HeadSettings
from ..models.prompt_once import PromptOnce
from ..reports.tally import Tally, check_evaluation, log_evaluation
from . import features
from .dataset import GroupDataset
from .losses import balanced_weights, group_pair_loss, pair_losses

METRICS = ("loss", "acc", "pairs")
"""What is logged of each group as ``groups/NAME/METRIC``: the mean loss of its pairs (unweighted, without centering),
the share whose chosen response has the higher score, and how many pairs that is."""


class _Loader:
    """A data loader that shows the loss what the pairs of each batch are, and passes on what ``fit()`` unpacks."""

    def __init__(self, loader: Any, loss: GroupLoss) -> None:
        self._loader, self._loss = loader, loss

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[tuple]:
        for *tensors, extras in self._loader:
            self._loss.see(self._loader.dataset, extras)
            yield (*tensors, [extra["margin"] for extra in extras])


class GroupLoss(PairWiseLoss):
    """The loss of pairs by group in the place of OpenRLHF's, which ``fit()`` and ``evaluate()`` call.

    Args:
        settings: of the model's heads.
        flags: ``--groups.*``.
    """

    dataset: GroupDataset
    #: ``(B,)`` of the batch that was seen last: the group of each pair, and its row in the data set
    group: torch.Tensor
    rows: torch.Tensor

    def __init__(self, settings: HeadSettings, flags: Any) -> None:
        super().__init__()
        self.settings, self.flags = settings, flags
        self.tally = Tally([f"{name}/{metric}" for name in settings.names for metric in METRICS[:2]], "groups")

    def see(self, dataset: GroupDataset, extras: list[dict[str, Any]]) -> None:
        """Note what the pairs of the next batch are."""
        self.dataset = dataset
        self.group = torch.tensor([extra["group"] for extra in extras])
        self.rows = torch.tensor([extra["row"] for extra in extras])

    def forward(self, chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | None = None) -> torch.Tensor:
        """`group_pair_loss` of the batch that was seen last; scores ``(B,)`` in, a scalar out."""
        group = self.group.to(chosen.device)
        if margin is not None:
            margin = margin.to(chosen.dtype)
        weights = None
        if self.flags.weighting == "balanced":
            weights = balanced_weights(group, self.dataset.counts.to(chosen.device))
        squash = self.settings.squash
        losses = pair_losses(chosen.detach(), rejected.detach(), squash, margin)
        for number, name in enumerate(self.settings.names):
            self.tally.add(f"{name}/loss", losses, group == number)
            self.tally.add(f"{name}/acc", chosen > rejected, group == number)
        return group_pair_loss(chosen, rejected, squash, margin, self.flags.centering, weights)

    def means(self, strategy: Any) -> dict[str, float]:
        """Means of all groups, with the number of pairs; all ranks must call it."""
        found = {}
        for name, (total, count) in self.tally.totals(strategy).items():
            group, _, metric = name.rpartition("/")
            found[f"groups/{group}/pairs"] = count
            if count:
                found[f"groups/{group}/{metric}"] = total / count
        return found


class GroupTrainer(RewardModelTrainer):
    """Replaces `RewardModelTrainer` in ``train_rm``, with the same constructor.

    What ``fit()`` and ``evaluate()`` log as rewards and accuracy are the scores that each pair's own group gives.
    """

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self.groups = self.args.groups
        self.settings = self.strategy._unwrap_model(self.model).group_settings
        self.loss_fn = GroupLoss(self.settings, self.groups)
        self.once = PromptOnce(self.model, "auto", self.strategy.print, self._worst, True)
        self._scores: list[torch.Tensor] = []
        self.train_dataloader: Any
        self.eval_dataloader: Any
        check_evaluation(self.eval_dataloader, self.args.train.micro_batch_size)
        loaders = [loader for loader in (self.train_dataloader, self.eval_dataloader) if loader is not None]
        if self.groups.cache_features:
            features.attach(self, [loader.dataset for loader in loaders])
        self.train_dataloader = _Loader(self.train_dataloader, self.loss_fn)
        if self.eval_dataloader is not None:
            self.eval_dataloader = _Loader(self.eval_dataloader, self.loss_fn)

    def concatenated_forward(
        self, model: Any, chosen_ids: torch.Tensor, c_mask: torch.Tensor, reject_ids: torch.Tensor, r_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Scores of a batch, ids and masks ``(B, length)``.

        Returns:
            ``(B,)`` scores of the chosen and of the rejected responses, each by its own group's head, and the
            mixture-of-experts loss.
        """
        device = chosen_ids.device
        if self.loss_fn.dataset.features is not None:
            pairs = self.loss_fn.dataset.features[self.loss_fn.rows].to(device)
            scores, output = model(hidden=torch.cat([pairs[:, 0], pairs[:, 1]]), all_groups=True, return_output=True)
        else:
            ids, mask = self.concatenated_inputs(chosen_ids, c_mask, reject_ids, r_mask)
            with self.once.over(ids, mask):
                scores, output = model(ids, attention_mask=mask, all_groups=True, return_output=True)
        if not self.strategy._unwrap_model(model).training:  # the engine around it does not keep its mode
            self._scores.append(scores.detach().float())
        group = self.loss_fn.group.to(device)[:, None]
        chosen, rejected = (half.gather(1, group).squeeze(1) for half in scores.chunk(2))
        return chosen, rejected, output.aux_loss if "aux_loss" in output else []

    def _worst(self, value: float) -> float:
        return float(self.strategy.all_reduce(value, op="max"))

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """As the parent's, with the groups' metrics of the step among its logs."""
        logs = {**(logs_dict or {}), **self.loss_fn.means(self.strategy)}
        step_bar.set_postfix(logs)
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs, client_states)

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> None:
        """As the parent's; logs each group's loss and accuracy, and keeps each head's mean and deviation over all
        evaluation texts in the config."""
        self._scores = []
        super().evaluate(eval_dataloader, steps)
        means = self.loss_fn.means(self.strategy)
        mine = torch.cat(self._scores).double()
        sums = torch.stack([mine.sum(0), mine.square().sum(0), torch.full_like(mine[0], len(mine))]).cpu()
        total, squares, count = self.strategy.all_reduce(sums, op="sum")
        mean = total / count
        variance = (squares - count * mean.square()) / (count - 1).clamp(min=1)
        norm = {"mean": mean.tolist(), "std": variance.clamp(min=1e-12).sqrt().tolist()}
        model = self.strategy._unwrap_model(self.model)
        model.group_settings = self.settings = replace(self.settings, norm=norm)
        setattr(model.config, KEY, self.settings.as_config())
        words = (
            f"{name}: loss {means[f'groups/{name}/loss']:.4f}, acc {means[f'groups/{name}/acc']:.3f} of "
            f"{means[f'groups/{name}/pairs']:.0f} pairs"
            for name in self.settings.names
            if f"groups/{name}/loss" in means
        )
        self.strategy.print(f"evaluation after step {steps}: " + "; ".join(words))
        log_evaluation(self, means, steps)
