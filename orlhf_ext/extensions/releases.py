"""The releases of OpenRLHF that this project fits, and their launchers."""

from __future__ import annotations

TESTED = ("0.11.2", "0.11.1", "0.11.0", "0.10.4")
"""Releases of OpenRLHF whose seams hold. The newest is first, which is the one of the lock files. This is the one place
that names them."""

OPENRLHF_VERSION = TESTED[0]

LAUNCHERS = {
    "train_sft": "openrlhf.cli.train_sft",
    "train_rm": "openrlhf.cli.train_rm",
    "train_dpo": "openrlhf.cli.train_dpo",
    "train_ppo_ray": "openrlhf.cli.train_ppo_ray",
    "serve_rm": "openrlhf.cli.serve_rm",
    "lora_combiner": "openrlhf.cli.lora_combiner",
}
RAY_LAUNCHERS = ("train_ppo_ray",)
TRAIN_LAUNCHERS = ("train_sft", "train_rm", "train_dpo", "train_ppo_ray")
