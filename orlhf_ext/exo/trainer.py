"""OpenRLHF's `DPOTrainer` with groups of completions in the place of pairs; ``fit()`` stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models.loss import DPOLoss
from openrlhf.models.utils import log_probs_from_logits
from openrlhf.trainer.dpo_trainer import DPOTrainer

from ..cli.errors import UserError
from ..models.modules import scored_positions
from ..models.prompt_once import PromptOnce
from ..reports.tally import Tally, check_evaluation, log_evaluation
from . import reference_cache
from .dataset import Rows
from .losses import kwise_loss
from .metrics import group_metrics
from .settings import taking_apart

METRICS = ("loss", "ranking_acc", "margin", "log_ratio", "entropy", "response_tokens")
"""What is logged as ``kwise/NAME``: means over all ranks and all micro batches of a step, or of an evaluation.

loss: the K-wise loss. response_tokens: tokens a completion. The others: see `group_metrics`.
"""


class KwiseLoss(DPOLoss):
    """The K-wise loss in the place of DPO's, which ``fit()`` and ``evaluate()`` call.

    Args:
        exo: the flags ``--exo.*``.
        tally: of `METRICS`.
    """

    def __init__(self, exo: Any, tally: Tally) -> None:
        super().__init__(exo.beta_pi)
        self.exo, self.tally = exo, tally

    def forward(
        self, policy: torch.Tensor, rewards: torch.Tensor, reference: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Four times ``(rows,)`` in.

        Returns:
            the mean loss over groups, and ``(groups,)`` implicit rewards of the best and of the worst-labelled row.
        """
        exo = self.exo
        policy, reference, labels = (t.view(-1, exo.num_contrastive) for t in (policy, reference, rewards))
        loss = kwise_loss(policy, reference, labels, exo.loss_type, exo.beta_pi, exo.beta_r, exo.epsilon)
        ratio = (policy - reference).detach()
        implicit = exo.beta_pi * ratio
        self.tally.add("loss", loss.expand(len(labels)))
        for name, column in group_metrics(ratio, labels, exo.beta_pi).items():
            self.tally.add(name, *column)
        best, worst = labels.argmax(-1, keepdim=True), labels.argmin(-1, keepdim=True)
        return loss, implicit.gather(-1, best).squeeze(-1), implicit.gather(-1, worst).squeeze(-1)


class KwiseTrainer(DPOTrainer):
    """Replaces `DPOTrainer` in ``train_dpo``, with the same constructor.

    ``fit()`` and ``evaluate()`` pass their four tensors through: chosen ids are the ids of all rows, the chosen mask is
    their mask, and the two of the rejected are both the rewards. What they log as chosen and rejected rewards are the
    implicit rewards of the best- and the worst-labelled completion of each group.

    Raises:
        UserError: the data have token ids that the model does not have, or the evaluation has no batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `DPOTrainer`."""
        super().__init__(*args, **kwargs)
        exo = self.args.exo
        self.exo = exo
        self.model.temperature = self.ref_model.temperature = exo.temperature
        actors = (self.model, self.ref_model)
        words = (self._share_mode(), self.strategy.print, self._worst, True)
        self._once = [PromptOnce(actor, *words) for actor in actors]
        self.tally = Tally(METRICS, "kwise")
        self.loss_fn = KwiseLoss(exo, self.tally)
        check_evaluation(self.eval_dataloader, self.args.train.micro_batch_size)
        self._check_vocabulary()
        if exo.cache_reference:
            loaders = [self.train_dataloader, self.eval_dataloader]
            reference_cache.attach(self, [loader.dataset for loader in loaders if loader is not None])

    def concatenated_forward(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, rewards: torch.Tensor, _: torch.Tensor, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor | float]:
        """Log-probabilities of all rows of a batch.

        Args:
            model: policy or reference `Actor`.
            ids: ``(rows, length)``, padded on the right.
            mask: ``(rows, length)``, 1 on tokens.
            rewards: ``(rows,)``.
            rows: where prompts end, and cached reference values.

        Returns:
            summed log-probabilities ``(rows,)`` in nats at the temperature, ``rewards``, the mixture-of-experts loss,
            and the negative log-likelihood of the best rows, a mean over tokens and then over rows.
        """
        if model is self.ref_model and rows.reference is not None:
            return rows.reference.to(ids.device), rewards, 0, 0.0
        with self._once[model is self.ref_model].over(ids, mask):
            sums, output = self._row_logps(model, ids, mask, rows.prompt_lengths)
        tokens = mask.sum(-1) - mask.new_tensor(rows.prompt_lengths)
        groups = rewards.view(-1, self.exo.num_contrastive)
        best = groups.argmax(-1, keepdim=True)
        if model is self.model:
            self.tally.add("response_tokens", tokens)
        aux_loss = output.aux_loss if "aux_loss" in output else []
        return sums, rewards, aux_loss, -(sums / tokens).view_as(groups).gather(-1, best).mean()

    def _share_mode(self) -> str:
        """``--exo.share_prompt``; off where sequences are packed, or spread over processes."""
        apart = taking_apart(self.args.ds)
        if apart and self.exo.share_prompt != "off":
            self.strategy.print(f"prompts are computed anew for each completion: {apart} is given")
        return "off" if apart else self.exo.share_prompt

    def _worst(self, value: float) -> float:
        return float(self.strategy.all_reduce(value, op="max"))

    def _row_logps(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, prompt_lengths: list[int]
    ) -> tuple[torch.Tensor, Any]:
        """Summed log-probability of each row's response ``(rows,)``, and the model's output.

        Only the positions that predict a response token reach the output layer, which saves most of the largest
        tensors of the step.
        """
        head = None if self.packing_samples else _output_layer(self.strategy._unwrap_model(model))
        if head is None:
            per_token, output = model(
                ids,
                attention_mask=mask,
                return_output=True,
                return_logprobs=True,
                ring_attn_group=self.strategy.ring_attn_group,
            )
            return self._get_batch_logps(per_token, mask, prompt_lengths)[0], output
        place = torch.arange(ids.shape[1], device=ids.device)
        targets = (place >= mask.new_tensor(prompt_lengths)[:, None]) & mask.bool()
        predicts = targets.roll(-1, dims=1)  # nothing wraps: the first column is prompt in every row
        # some releases divide the logits in the pass, others behind it
        kept, model.temperature = model.temperature, 1.0
        try:
            with scored_positions(head, predicts):
                output = model(ids, attention_mask=mask, return_output=True)
        finally:
            model.temperature = kept
        logps = log_probs_from_logits(output["logits"], ids[targets][None], kept)[0]
        # Summed from a table: index_add would add in another order at every call on a GPU.
        return logps.new_zeros(ids.shape).masked_scatter(targets, logps).sum(-1), output

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """As the parent's, with the K-wise metrics of the step among its logs."""
        logs = {**(logs_dict or {}), **self.tally.means(self.strategy)}
        step_bar.set_postfix(logs)
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs, client_states)

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> None:
        """As the parent's, with the K-wise metrics of the whole evaluation, printed and logged."""
        with self.tally.apart():
            super().evaluate(eval_dataloader, steps)
            means = self.tally.means(self.strategy)
        line = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.strategy.print(f"evaluation at step {steps}: {line}")
        log_evaluation(self, means, steps)

    def _check_vocabulary(self) -> None:
        """Token ids of an engine with another tokenizer would end in an index error on a device."""
        config: Any = self.strategy._unwrap_model(self.model).config
        size = getattr(config.get_text_config(), "vocab_size", None)
        for loader in (self.train_dataloader, self.eval_dataloader):
            if loader is not None and size is not None and loader.dataset.largest_id >= size:
                raise UserError(
                    f"the data have token id {loader.dataset.largest_id}, but the model has {size} tokens, so their "
                    "token_ids come from another tokenizer; sample again with this model, or drop that column"
                )


def _output_layer(model: Any) -> torch.nn.Module | None:
    """The layer that makes logits of hidden states; None where a model does not say."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return found if isinstance(found, torch.nn.Module) else None
