"""K-wise losses: the four of Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment" (ICML 2024),
and three of others.

A group is K completions of one prompt. With ``h_i = log pi(y_i|x) - log pi_ref(y_i|x)`` and ``s_i = beta_pi * h_i``,
the policy's distribution over the group is ``p = softmax(s)``; ``q`` is the target distribution. EXO minimises the
reverse KL divergence ``KL(p || q)``, DPO the cross entropy of ``q`` and ``p``, the forward one up to a constant.

- ``*-rw``: ``q = softmax(r / beta_r)`` from rewards. (``dpo-rw`` is also the InfoNCA of Chen et al.)
- ``*-pref``: the best-labelled completion has ``1 - epsilon``, the others share ``epsilon`` equally. Completions that
  tie for best share ``1 - epsilon`` equally, and if all of them tie, ``q`` is uniform. The paper defines the pair,
  K = 2 (its equation 16); more than two completions and ties are an extension of it.
- ``pl``: see `plackett_luce`; ``lipo``: see `lambda_pairs`; ``nca``: see `noise_contrast`. All learn from rewards.

For two completions ``pl`` and ``dpo-pref`` are DPO with ``beta = beta_pi``; with ``epsilon > 0`` the latter is
conservative DPO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .settings import check_epsilon, check_loss_type, default_epsilon, from_rewards


def kwise_loss(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    labels: torch.Tensor,
    loss_type: str,
    beta_pi: float,
    beta_r: float,
    epsilon: float | None = None,
) -> torch.Tensor:
    """Mean loss over groups; computed in float32 or wider.

    Args:
        policy_logps: ``(groups, K)``, K >= 2: log-probability of each whole completion under the policy, in nats.
        reference_logps: ``(groups, K)``, the same under the reference model.
        labels: ``(groups, K)``: rewards; for ``*-pref`` numbers whose largest marks the best completion.
        loss_type: one of `settings.LOSS_TYPES`.
        beta_pi: multiplies the log ratio, > 0.
        beta_r: divides the reward, > 0; has no effect on ``*-pref`` and ``pl``.
        epsilon: label smoothing of ``*-pref``; None is 1e-3 for ``exo-pref`` and 0 for ``dpo-pref``.

    Returns:
        A tensor without dimensions.

    Raises:
        ValueError: shapes differ or K < 2, no group, an unknown loss, a beta <= 0, an epsilon that the loss does not
            allow, a label that is NaN, or a reward that is not finite.
    """
    check_loss_type(loss_type)
    check_epsilon(loss_type, epsilon)
    if policy_logps.ndim != 2 or policy_logps.shape[1] < 2 or policy_logps.shape[0] < 1:
        raise ValueError(f"policy_logps has shape {tuple(policy_logps.shape)}, not (groups, K) with K >= 2")
    for name, tensor in (("reference_logps", reference_logps), ("labels", labels)):
        if tensor.shape != policy_logps.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, policy_logps {tuple(policy_logps.shape)}")
    rewarded = from_rewards(loss_type)
    if not beta_pi > 0 or (rewarded and not beta_r > 0):
        raise ValueError(f"beta_pi = {beta_pi} and beta_r = {beta_r} must be greater than 0")
    dtype = torch.promote_types(torch.promote_types(policy_logps.dtype, reference_logps.dtype), torch.float32)
    labels = labels.to(dtype)
    valid = torch.isfinite(labels) if rewarded else ~torch.isnan(labels)
    if not valid.all():
        raise ValueError(f"labels of {loss_type} have a value that is not {'finite' if rewarded else 'a number'}")

    scores = beta_pi * (policy_logps.to(dtype) - reference_logps.to(dtype))
    if loss_type == "pl":
        return plackett_luce(scores, labels).mean()
    if loss_type == "lipo":
        return lambda_pairs(scores, labels / beta_r).mean()
    if loss_type == "nca":
        return noise_contrast(scores, labels / beta_r).mean()
    log_p = F.log_softmax(scores, dim=-1)
    if rewarded:
        log_q = F.log_softmax(labels / beta_r, dim=-1)
        q = log_q.exp()
    else:
        q = preference_targets(labels, default_epsilon(loss_type) if epsilon is None else epsilon)
        log_q = q.log()
    if loss_type.startswith("exo"):
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return -(q * log_p).sum(-1).mean()


def preference_targets(labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Target distribution ``q`` of the ``*-pref`` losses: ``(groups, K)`` labels in, probabilities out."""
    best = labels == labels.amax(-1, keepdim=True)
    ties = best.sum(-1, keepdim=True).to(labels.dtype)
    others = labels.shape[-1] - ties
    smoothed = torch.where(best, (1 - epsilon) / ties, epsilon / others.clamp(min=1))
    return torch.where(others > 0, smoothed, 1 / ties)


def plackett_luce(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Minus the log-likelihood of the completions' ranking by label, a loss for each group.

    Rafailov et al., "Direct Preference Optimization" (NeurIPS 2023), appendix A.3, equation 20:
    ``- sum_i log(exp s_i / sum_{j not above i} exp s_j)``. Completions that tie do not compete: the sum over ``j`` is
    over ``i`` and what has a lower label, so that a group whose labels are all equal has the loss 0.

    Args:
        scores: ``(groups, K)``, ``s = beta_pi * h``.
        labels: ``(groups, K)``; the order counts.

    Returns:
        ``(groups,)``.
    """
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    rivals = (labels[:, :, None] > labels[:, None, :]) | itself
    return (scores[:, None, :].where(rivals, -torch.inf).logsumexp(-1) - scores).sum(-1)


def lambda_pairs(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """LiPO-lambda: pairs, each with what their exchange would cost in ranking quality (DCG); a loss for each group.

    Liu et al., "LiPO: Listwise Preference Optimization through Learning-to-Rank" (2024), section 4:
    ``sum_{psi_i > psi_j} |2^psi_i - 2^psi_j| * |1/log(1 + rank_i) - 1/log(1 + rank_j)| * log(1 + exp(s_j - s_i))``.
    The paper leaves the labels psi open. Here they are win rates, from 0 to 1, so that rewards of any size will do: the
    mean probability that Bradley and Terry's model of the rewards prefers ``i`` to a completion of the group. Ranks are
    by ``s``, from 1; what ties there, as all do before the first step, is ranked by reward, and what ties in both
    shares a rank.

    Args:
        scores: ``(groups, K)``, ``s = beta_pi * h``.
        labels: ``(groups, K)``, ``r / beta_r``.

    Returns:
        ``(groups,)``.
    """
    above = labels[:, :, None] > labels[:, None, :]
    differences = scores[:, :, None] - scores[:, None, :]
    gains = torch.sigmoid(labels[:, :, None] - labels[:, None, :]).mean(-1).exp2()
    ranks = 1 + ((differences > 0) | ((differences == 0) & above)).sum(1)  # of j: those ahead of it
    discounts = 1 / torch.log1p(ranks.to(scores.dtype))
    weights = (gains[:, :, None] - gains[:, None, :]).abs() * (discounts[:, :, None] - discounts[:, None, :]).abs()
    return (weights * above * F.softplus(-differences)).sum((1, 2))


def noise_contrast(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """NCA: are completions the policy's, or noise of the reference's? A loss for each group.

    Chen et al., "Noise Contrastive Alignment of Language Models with Explicit Rewards" (NeurIPS 2024), section 4:
    ``- sum_i [q_i log sigmoid(s_i) + log sigmoid(-s_i) / K]`` with ``q = softmax(r / beta_r)``. Unlike the others it
    sees each log ratio by itself, not only their differences, so that it keeps good completions likely.

    Args:
        scores: ``(groups, K)``, ``s = beta_pi * h``.
        labels: ``(groups, K)``, ``r / beta_r``.

    Returns:
        ``(groups,)``.
    """
    q = labels.softmax(-1)
    return -(q * F.logsigmoid(scores) + F.logsigmoid(-scores) / scores.shape[-1]).sum(-1)
