"""An extension of the tests: float32, with the policy's log-probabilities and its engines' sleep written down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orlhf_ext.extensions import Extension


def float32(_: str) -> Any:
    """In place of OpenRLHF's names of dtypes."""
    import torch

    return torch.float32


class ExactScores(Extension):
    """Writes ``logprobs.jsonl``: token ids of each sample, and the policy's old log-probabilities of its response; and
    ``engine.txt``: when an engine fell asleep, woke up and generated. vLLM has no sleep mode on CPUs, so that engines
    only keep to its order here: asleep, or half awake, they generate nothing."""

    name = "exact-scores"
    launchers = ("train_ppo_ray",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker": "exact_scores_maker:Maker",
        "openrlhf.trainer.ray.vllm_engine:RolloutRayActor": "exact_scores_engine:Rollouts",
        "openrlhf.utils.utils:convert_to_torch_dtype": "exact_scores:float32",
    }

    def configure(self, args: SimpleNamespace) -> None:
        """No flag of OpenRLHF gives float32; DeepSpeed computes in it where it is told neither of the others."""
        args.ds.param_dtype = "fp32"
