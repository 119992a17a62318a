"""Rectification: the probability of each next token is capped by ``1 + Q_D(s, a) - epsilon`` (Cao et al., ICLR 2023).

``Q_D(s, a) = -P(the text ends badly | prefix s, next token a)``, so a token that surely leads to a bad end gets no
probability, and a harmless one keeps its own. All functions work row by row on ``(B, V)``.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from ..cli.errors import UserError

Infeasible = Literal["normalize", "fallback"]
P_MIN = 1e-7
TOP_K = 50


def rectify(
    logits: torch.Tensor,
    q_values: torch.Tensor,
    epsilon: float | torch.Tensor = 0.0,
    passes: int | None = 2,
    p_min: float = P_MIN,
    infeasible: Infeasible = "normalize",
    top_k: int = TOP_K,
) -> torch.Tensor:
    """Logits whose softmax keeps (nearly) to the caps ``c = clip(1 + q - epsilon, p_min, 1)``.

    A pass is ``z <- min(z, log c + logsumexp(z))``. The authors' code makes two; a token may then still exceed its cap
    a little. The limit of many passes is ``p = min(c, k * softmax(logits))`` with the k that makes it sum to 1.

    Args:
        logits: ``(B, V)`` of the language model, finite or ``-inf``; not changed.
        q_values: ``(B, V)``, nominally in [-1, 0].
        epsilon: how far below ``1 + q`` the caps are, one for all rows or ``(B,)``.
        passes: how many, or None for the limit itself.
        p_min: the smallest cap.
        infeasible: what to do where all caps of a row sum to less than 1, so that nothing can keep to them:
            "normalize" goes on as elsewhere (the limit is ``c / sum(c)``: uniform, where every token looks dead);
            "fallback" keeps the language model's own distribution on the ``top_k`` tokens with the largest caps.
        top_k: see ``infeasible``; among equal caps the likelier tokens are kept.

    Returns:
        ``(B, V)`` in the wider of both types, at least float32; what was ``-inf`` is ``-inf``.

    Raises:
        ValueError: shapes differ, or an argument makes no sense.
    """
    return rectify_counted(logits, q_values, epsilon, passes, p_min, infeasible, top_k)[0]


def rectify_counted(
    logits: torch.Tensor,
    q_values: torch.Tensor,
    epsilon: float | torch.Tensor = 0.0,
    passes: int | None = 2,
    p_min: float = P_MIN,
    infeasible: Infeasible = "normalize",
    top_k: int = TOP_K,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rectify`, and ``(B,)`` that is true where the caps of all tokens that the language model allows sum to less than
    1."""
    if logits.shape != q_values.shape or logits.ndim != 2:
        raise ValueError(f"logits are {tuple(logits.shape)} and q_values {tuple(q_values.shape)}: both must be (B, V)")
    if infeasible not in ("normalize", "fallback"):
        raise ValueError(f"infeasible is {infeasible!r}; it must be 'normalize' or 'fallback'")
    if (passes is not None and passes < 1) or not 0 < p_min <= 1 or top_k < 1:
        raise ValueError(f"passes {passes} and top_k {top_k} must be at least 1, and p_min {p_min} in (0, 1]")
    z, c = logits.to(_wider(logits, q_values)), caps(q_values.to(_wider(logits, q_values)), epsilon, p_min)
    few = c.masked_fill(z == -torch.inf, 0).sum(-1) < 1
    log_c = c.log()
    if passes is None:
        out = _limit(z, log_c)
    else:
        out = z
        for _ in range(passes):
            out = torch.minimum(out, log_c + out.logsumexp(-1, keepdim=True))
    if infeasible == "fallback":
        rows = few.nonzero()[:, 0]
        if len(rows):
            out[rows] = _largest_caps(z[rows], c[rows], top_k)
    return out, few


def caps(q_values: torch.Tensor, epsilon: float | torch.Tensor = 0.0, p_min: float = P_MIN) -> torch.Tensor:
    """``clip(1 + q - epsilon, p_min, 1)``, ``(B, V)`` in at least float32; epsilon is one number or ``(B,)``."""
    q = q_values.to(_wider(q_values))
    if isinstance(epsilon, torch.Tensor):
        epsilon = epsilon.to(q)[:, None] if epsilon.ndim else epsilon.to(q)
    return (q + (1 - epsilon)).clamp_(p_min, 1)


def align_vocabulary(q_values: torch.Tensor, size: int) -> torch.Tensor:
    """Values for ``size`` tokens: further ones are cut off; those that Q_D does not know (padding) get the cap 1."""
    known = q_values.shape[-1]
    if known >= size:
        return q_values[:, :size]
    return torch.nn.functional.pad(q_values, (0, size - known), value=2.0)  # 1 + 2 - epsilon is clipped to 1


def check_vocabulary(known: int, q_model: str, size: int, model: str, tokenizer: str) -> None:
    """A value function must know every token that the language model's tokenizer has; logits beyond are padding.

    Args:
        known: tokens that Q_D has values for.
        q_model: its folder.
        size: of the language model's logits.
        model: its folder or name.
        tokenizer: its tokenizer's folder or name; read only if ``size`` is larger than ``known``.

    Raises:
        UserError: it does not; both sizes are named.
    """
    if known >= size:
        return
    from transformers import AutoTokenizer

    with contextlib.suppress(OSError, ValueError, KeyError):
        size = min(size, len(AutoTokenizer.from_pretrained(tokenizer)))
    if known < size:
        raise UserError(
            f"the value function {q_model} knows {known} tokens and the language model {model} has {size}; take two "
            "models with one tokenizer"
        )


def _wider(*tensors: torch.Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _limit(z: torch.Tensor, log_c: torch.Tensor) -> torch.Tensor:
    """``log min(c, k p)``, p = softmax(z), with the k that makes it sum to 1; ``log c`` where the caps sum to less.

    Token a is capped as soon as k reaches ``c_a / p_a``. In the order of these ratios, the sum at each is known from
    two running sums, and the first that reaches 1 tells which tokens are capped; k follows from the rest.
    """
    log_p, log_c = z.double().log_softmax(-1), log_c.double()
    ratio, order = (log_c - log_p).sort(-1)  # logarithms; infinite where p is 0: these come last and take nothing
    within = ratio.isfinite()
    c = log_c.gather(-1, order).exp() * within
    capped = c.cumsum(-1) - c  # the sum of the caps before this one
    free = log_p.gather(-1, order).flip(-1).logcumsumexp(-1).flip(-1)  # probability of this token and those behind it
    reached = within & (capped + (ratio + free).exp() >= 1)
    first = reached.int().argmax(-1, keepdim=True)
    rest = (1 - capped.gather(-1, first)).clamp_min(torch.finfo(torch.float64).tiny)
    log_k = torch.where(reached.any(-1, keepdim=True), rest.log() - free.gather(-1, first), torch.inf)
    return torch.minimum(log_p + log_k, log_c).masked_fill(z == -torch.inf, -torch.inf).to(z.dtype)


def _largest_caps(z: torch.Tensor, c: torch.Tensor, top_k: int) -> torch.Tensor:
    """``z`` on the ``top_k`` tokens with the largest caps, the likelier ones first among equals; else ``-inf``."""
    order = z.argsort(-1, descending=True)
    allowed = c.masked_fill(z == -torch.inf, -1).gather(-1, order)
    kept = order.gather(-1, allowed.argsort(stable=True, dim=-1, descending=True)[:, :top_k])
    return torch.full_like(z, -torch.inf).scatter(-1, kept, z.gather(-1, kept))
