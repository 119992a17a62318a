"""An extension of the tests: after each weight sync, vLLM's weights are compared with the policy's, byte by byte."""

from __future__ import annotations

from orlhf_ext.extensions import Extension


class Probe(Extension):
    """Prints ``weights: EQUAL of ALL equal`` after each sync; with ORLHF_TEST_NO_SYNC=1 no sync is made."""

    name = "probe"
    launchers = ("train_ppo_ray",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.ray.vllm_engine:RolloutRayActor": "ray_probe_classes:Rollouts",
        "openrlhf.trainer.ray.ppo_actor:PolicyModelActor": "ray_probe_classes:Policy",
    }
