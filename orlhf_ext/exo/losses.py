"""The four K-wise losses of Ji et al., "Towards Efficient Exact Optimization of Language Model Alignment" (ICML 2024).

A group is K completions of one prompt. With ``h_i = log pi(y_i|x) - log pi_ref(y_i|x)``, the policy's distribution
over the group is ``p = softmax(beta_pi * h)``; ``q`` is the target distribution. EXO minimises the reverse KL
divergence ``KL(p || q)``, DPO the cross entropy of ``q`` and ``p``, which is the forward one up to a constant.

- ``*-rw``: ``q = softmax(r / beta_r)`` from rewards.
- ``*-pref``: the best-labelled completion has ``1 - epsilon``, the others share ``epsilon`` equally. Completions that
  tie for best share ``1 - epsilon`` equally, and if all of them tie, ``q`` is uniform. The paper defines the pair,
  K = 2 (its equation 16); more than two completions and ties are an extension of it.

For two completions ``dpo-pref`` is DPO with ``beta = beta_pi``, and conservative DPO when ``epsilon > 0``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .settings import check_epsilon, check_loss_type, default_epsilon


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
        labels: ``(groups, K)``: rewards for ``*-rw``; for ``*-pref`` numbers whose largest marks the best completion.
        loss_type: ``exo-pref``, ``exo-rw``, ``dpo-pref`` or ``dpo-rw``.
        beta_pi: multiplies the log ratio, > 0.
        beta_r: divides the reward, > 0; has no effect on ``*-pref``.
        epsilon: label smoothing of ``*-pref``; None is 1e-3 for ``exo-pref`` and 0 for ``dpo-pref``.

    Returns:
        A tensor without dimensions.

    Raises:
        ValueError: shapes differ or K < 2, no group, an unknown loss, a beta <= 0, an epsilon that the loss does not
            allow, a label that is NaN, or one that is not finite for ``*-rw``.
    """
    check_loss_type(loss_type)
    check_epsilon(loss_type, epsilon)
    if policy_logps.ndim != 2 or policy_logps.shape[1] < 2 or policy_logps.shape[0] < 1:
        raise ValueError(f"policy_logps has shape {tuple(policy_logps.shape)}, not (groups, K) with K >= 2")
    for name, tensor in (("reference_logps", reference_logps), ("labels", labels)):
        if tensor.shape != policy_logps.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, policy_logps {tuple(policy_logps.shape)}")
    rewarded = loss_type.endswith("-rw")
    if not beta_pi > 0 or (rewarded and not beta_r > 0):
        raise ValueError(f"beta_pi = {beta_pi} and beta_r = {beta_r} must be greater than 0")
    dtype = torch.promote_types(torch.promote_types(policy_logps.dtype, reference_logps.dtype), torch.float32)
    labels = labels.to(dtype)
    valid = torch.isfinite(labels) if rewarded else ~torch.isnan(labels)
    if not valid.all():
        raise ValueError(f"labels of {loss_type} have a value that is not {'finite' if rewarded else 'a number'}")

    log_p = F.log_softmax(beta_pi * (policy_logps.to(dtype) - reference_logps.to(dtype)), dim=-1)
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
