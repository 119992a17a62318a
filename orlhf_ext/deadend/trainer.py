"""OpenRLHF's `SFTTrainer` for Q_D; ``fit()`` stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models.loss import SFTLoss
from openrlhf.trainer.sft_trainer import SFTTrainer

from ..cli.errors import UserError
from ..reports.tally import Tally, log_evaluation
from .dataset import ACTION, REWARD
from .loss import action_mask, polyak_update, sarsa_loss, sarsa_targets
from .model import gathered

METRICS = ("q", "target", "td_error", "square", "rows")
"""What is tallied over all actions. Logged as ``deadend/NAME``, of a step or of an evaluation, over all ranks: the
means of Q of the actions taken, of their targets and of the absolute difference, and ``loss``, the sum of squares over
what ``--deadend.loss_norm`` counts."""


class SarsaLoss(SFTLoss):
    """The loss of Q_D in the place of a language model's, which ``fit()`` and ``evaluate()`` call.

    Args:
        settings: the flags ``--deadend.*``.
    """

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.tally = Tally(METRICS, "deadend")

    def forward(
        self,
        values: tuple[torch.Tensor, torch.Tensor],
        outcome: torch.Tensor,
        dp_size: int = 1,
        batch_num_tokens: torch.Tensor | None = None,
        global_batch_size: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A part of a step's loss.

        Args:
            values: ``(B, T-1)`` of the online head and of the target head.
            outcome: ``(B, T-1, 3)``, see `dataset`.
            dp_size: number of ranks, over which DeepSpeed averages gradients.
            batch_num_tokens: actions of the whole optimizer step on all ranks, divided by its number of micro batches,
                over which DeepSpeed averages, too.
            global_batch_size: texts, likewise.

        Returns:
            this micro batch's share of the step's `sarsa_loss`; without the last two, its own `sarsa_loss`.
        """
        q, target_q = values
        own = self.settings
        lengths = outcome[..., ACTION].sum(-1).long() + 1
        targets = sarsa_targets(target_q, outcome[..., REWARD].sum(-1), lengths, own.gamma, own.q_min, own.q_max)
        self._count(q.detach(), targets, lengths)
        if batch_num_tokens is None or global_batch_size is None:
            return sarsa_loss(q, targets, lengths, own.loss_norm)
        # every text has one token more than actions
        total = batch_num_tokens + global_batch_size if own.loss_norm == "tokens" else batch_num_tokens
        return sarsa_loss(q, targets, lengths, total=total) * dp_size

    def _count(self, q: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor) -> None:
        taken = action_mask(lengths, q.shape[1])
        difference = q - targets
        for name, found in (("q", q), ("target", targets), ("td_error", difference.abs()), ("square", difference**2)):
            self.tally.add(name, found, taken)
        self.tally.add("rows", lengths)

    def means(self, strategy: Any) -> dict[str, float]:
        """Means over all ranks, and a new start; all ranks must call it."""
        totals = self.tally.totals(strategy)
        square, actions = totals.pop("square")
        _, rows = totals.pop("rows")
        if not actions:
            return {}
        loss = square / (actions + rows if self.settings.loss_norm == "tokens" else actions)
        return {"deadend/loss": loss, **{f"deadend/{name}": total / n for name, (total, n) in totals.items()}}


class QTrainer(SFTTrainer):
    """Replaces `SFTTrainer` in ``train_sft``, with the same constructor.

    ``fit()`` and ``evaluate()`` hand over, as log-probabilities, the values of both heads, and, as a loss mask, where
    actions are and what they earn (see `dataset`).
    """

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self.deadend = self.args.deadend
        self.loss_fn = SarsaLoss(self.deadend)

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """As the parent's, with an evaluation before the first step."""
        if len(self.train_dataloader) * self.epochs < self.strategy.accumulated_gradient:
            raise UserError(
                f"--data.dataset {args.data.dataset} does not fill one batch of {args.train.batch_size} texts; lower "
                "--train.batch_size"
            )
        if not consumed_samples and self.eval_dataloader is not None and len(self.eval_dataloader):
            self.evaluate(self.eval_dataloader, 0)
        super().fit(args, consumed_samples, num_update_steps_per_epoch)

    @torch.no_grad()
    def _follow(self) -> None:
        """The target head follows the online head, unless the step was left out because fp16 overflowed."""
        if not self.model.model.was_step_applied():
            return
        model = self.strategy._unwrap_model(self.model)
        with gathered(model.q_head):
            polyak_update(model.target_head.buffers(), model.q_head.parameters(), self.deadend.polyak)

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """As the parent's, which ``fit()`` calls after each optimizer step; before, the target head follows."""
        self._follow()
        logs = {**(logs_dict or {}), **self.loss_fn.means(self.strategy)}
        step_bar.set_postfix(logs)
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs, client_states)

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> None:
        """As the parent's, with the means over the whole evaluation, printed and logged."""
        with self.loss_fn.tally.apart():
            super().evaluate(eval_dataloader, steps)
            means = self.loss_fn.means(self.strategy)
        line = ", ".join(f"{name.partition('/')[2]} {value:.6f}" for name, value in means.items())
        self.strategy.print(f"evaluation at step {steps}: {line}")
        log_evaluation(self, means, steps)
