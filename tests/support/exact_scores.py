"""An extension of the tests: a run in float32, whose log-probabilities of the policy are written down."""

from __future__ import annotations

from types import SimpleNamespace

from orlhf_ext.extensions import Extension


class ExactScores(Extension):
    """Writes ``logprobs.jsonl``: token ids of each sample, and the policy's old log-probabilities of its response."""

    name = "exact-scores"
    launchers = ("train_ppo_ray",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker": "exact_scores_classes:Maker",
        "openrlhf.utils.utils:convert_to_torch_dtype": "exact_scores_classes:float32",
    }

    def configure(self, args: SimpleNamespace) -> None:
        """No flag of OpenRLHF gives float32; DeepSpeed computes in it where it is told neither of the others."""
        args.ds.param_dtype = "fp32"
