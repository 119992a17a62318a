"""Evaluation metrics: OpenRLHF's pass@k and lengths, and the means of rewards and of what they log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from openrlhf.trainer.ppo_trainer import compute_eval_metrics as upstream

if TYPE_CHECKING:
    from openrlhf.trainer.ppo_utils.experience import Experience

_OWN = ("reward", "score")


def compute_eval_metrics(
    eval_dataloader: Iterable, samples_list: Sequence[Experience], n_samples_per_prompt: int
) -> dict[str, float]:
    """As OpenRLHF's, with ``eval_reward``, ``eval_score``, and ``eval_COLUMN`` for each column that rewards log
    (``eval_reward/NAME``, ``eval_NAME/METRIC``); each also by data source, ``eval_SOURCE_...``.

    Args:
        eval_dataloader: gives (data sources, prompts, labels, images).
        samples_list: one sample each, with ``info`` tensors ``(1,)``.
        n_samples_per_prompt: the number of samples of a prompt.
    """
    logs: dict[str, float] = upstream(eval_dataloader, samples_list, n_samples_per_prompt)
    source_of = {
        p: source for sources, prompts, *_ in eval_dataloader for p, source in zip(prompts, sources, strict=True)
    }
    names = [name for name in (samples_list[0].info if samples_list else {}) if name in _OWN or "/" in name]
    values: dict[str, list[float]] = {}
    for sample in samples_list:
        source = source_of.get(sample.prompts[0], "unknown")
        for name in names:
            value = float(sample.info[name].item())
            for key in (f"eval_{name}", f"eval_{source}_{name}"):
                values.setdefault(key, []).append(value)
    return logs | {key: sum(found) / len(found) for key, found in values.items()}


def eval_arguments(args: Any, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """How evaluation samples: ``--eval.*`` of OpenRLHF, ``--ext.eval_top_p`` and ``--ext.eval_top_k``."""
    return generate_kwargs | {
        "temperature": args.eval.temperature,
        "n_samples_per_prompt": args.eval.n_samples_per_prompt,
        "top_p": args.ext.eval_top_p,
        "top_k": args.ext.eval_top_k,
    }
