"""Advantages with which OpenRLHF's own policy loss has exactly the gradient of a K-wise loss.

With ``s_i`` the log-probability of a sample, a K-wise loss ``L``, a mean over groups, depends on the policy through
``s_1 ... s_K`` alone, so that its gradient is ``sum_i (dL/ds_i) grad s_i``, a policy gradient. `PolicyLoss`, at the
policy that the advantages were computed with, has the gradient ``-sum_it A_it c_it grad log pi_it``, where its
aggregation makes ``c_it`` one over all tokens of the step (``token-mean``), or one over the step's samples times the
sample's tokens (``seq-mean-token-mean``). Hence ``A_it = -(dL/ds_i) / c_it``. That holds for the first optimizer step
on a batch, so that there must be no second one. GroupDPO (arXiv 2604.15602) decouples its loss in the same way.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from openrlhf.trainer.ppo_utils import experience_maker

from ..cli.errors import UserError
from .losses import kwise_loss
from .metrics import group_metrics
from .online import unit

if TYPE_CHECKING:
    from openrlhf.trainer.ppo_utils.experience import Experience


class KwiseExperience(experience_maker.RemoteExperienceMaker):
    """Stands where `RemoteExperienceMaker` stands; only its advantages are others."""

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Advantages ``(B, A)`` from rewards and log ratios to the reference model, and ``kwise/*`` to be logged.

        Raises:
            UserError: the samples do not make equally many micro batches for each training process.
        """
        own, size = self.args.kwise, self.args.kwise.num_contrastive or self.args.rollout.n_samples_per_prompt
        for experience in experiences:
            experience.rewards = experience.rewards.to(torch.promote_types(experience.rewards.dtype, torch.float32))
        experience_maker.apply_length_penalties(experiences, self.args)  # by the module's name, which has fixes
        place = torch.tensor(list(itertools.chain.from_iterable(experience.index for experience in experiences)))
        if len(place) % (multiple := unit(self.args)):
            raise UserError(
                f"the last batch of an episode has {len(place)} samples, which are no multiple of {multiple} and so no "
                "equal micro batches for each training process; give --data.max_samples a multiple of "
                "--rollout.batch_size"
            )
        tokens = torch.cat([experience.action_mask.sum(-1) for experience in experiences]).double()
        # OpenRLHF keeps the mean over tokens of log pi - log pi_ref, where KL is no loss of its own.
        means = torch.cat([experience.info["logprobs_diff"] for experience in experiences]).double()
        ratios = torch.where(tokens > 0, means * tokens, 0)  # the mean of none is NaN
        rewards = torch.cat([experience.rewards for experience in experiences]).double()
        ratios, labels = (torch.empty_like(t).index_copy_(0, place, t).view(-1, size) for t in (ratios, rewards))
        gradient, metrics = kwise_gradient(ratios, labels, own)
        per_token = self.args.actor.loss_agg_mode == "token-mean"
        scales = tokens.sum() if per_token else tokens * (tokens > 0).sum()
        whole = (-gradient.view(-1)[place] * scales).float()
        parts = whole.split([len(experience.index) for experience in experiences])
        for experience, part in zip(experiences, parts, strict=True):
            experience.advantages = part[:, None] * experience.action_mask
            experience.returns = experience.advantages.clone()  # of which nothing is made without a critic
            experience.kl = None
            experience.info |= {f"kwise/{name}": torch.full_like(part, value) for name, value in metrics.items()}
        return experiences


def kwise_gradient(ratios: torch.Tensor, labels: torch.Tensor, own: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """How the loss changes with the log-probability of each sample, and what is logged.

    Args:
        ratios: ``(groups, K)`` float64, log pi - log pi_ref of whole samples, in nats.
        labels: ``(groups, K)`` rewards.
        own: the flags ``--kwise.*``.

    Returns:
        ``(groups, K)``, the gradient of the mean loss over groups; and metrics by name: those of `group_metrics`, loss,
        decided (the share of groups with a best sample), and, for ``*-rw``, target_entropy (of ``q``, in nats).
        ranking_acc and margin are left out where no group has a best sample.

    Raises:
        ValueError: as `kwise_loss`.
    """
    with torch.enable_grad():
        leaf = ratios.detach().clone().requires_grad_()
        loss = kwise_loss(leaf, torch.zeros_like(leaf), labels, own.loss_type, own.beta_pi, own.beta_r, own.epsilon)
        (gradient,) = torch.autograd.grad(loss, leaf)
    columns = group_metrics(ratios, labels, own.beta_pi)
    metrics = {name: values[where].double().mean().item() for name, (values, where) in columns.items() if where.any()}
    metrics |= {"loss": loss.item(), "decided": columns["margin"].where.double().mean().item()}
    if own.loss_type.endswith("-rw"):
        log_q = F.log_softmax(labels / own.beta_r, dim=-1)
        metrics["target_entropy"] = -(log_q.exp() * log_q).sum(-1).mean().item()
    return gradient, metrics
