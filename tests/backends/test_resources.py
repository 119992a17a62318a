"""Rewards that hold a model on a machine whose only GPU is taken: with a real Ray, whose GPU is a number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("ray")
pytestmark = pytest.mark.launcher

SCRIPT = """
import json, os, sys
from types import SimpleNamespace as space
import ray
from ray.util.placement_group import placement_group
from orlhf_ext import backends
backends.install()
from openrlhf.trainer.ray.launcher import BaseModelActor, RayActorGroup
from orlhf_ext.backends import resources
from orlhf_ext.launch import ray_setup
from orlhf_ext.cli.errors import UserError, command
from orlhf_ext.rewards import Reward, RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.remote import in_actors

class Where(Reward):
    gpus = float(sys.argv[2])
    def score(self, batch):
        group = ray.util.get_current_placement_group()
        return [float(len(text)) + (0 if group is None else 100) for text in batch.responses]

@ray.remote(num_gpus=1)
class Policy(BaseModelActor):
    pass

@command
def main():
    shared = sys.argv[1] == "shared"
    group = lambda count: space(num_nodes=1, num_gpus_per_node=count)
    args = space(
        actor=group(1), ref=group(1), critic=group(1), reward=space(remote_url=None),
        vllm=space(num_engines=1, tensor_parallel_size=1),
        train=space(colocate_all=shared, colocate_actor_ref=True, async_enable=False, agent_func_path="x.py"),
        algo=space(kl=space(init_coef=0.1), advantage=space(estimator="group_norm")),
        ext=space(reward_actors=1, reward_timeout=None),
    )
    hook = ray_setup.runtime_environment(os.environ)
    ray.init(runtime_env=hook, num_gpus=int(sys.argv[3]), num_cpus=4, include_dashboard=False, log_to_driver=False)
    resources.check(args, {"where": [Where.gpus]}, ray.cluster_resources())
    pg = placement_group([{"GPU": 1, "CPU": 1}], strategy="PACK")
    ray.get(pg.ready())
    models = [RayActorGroup(1, 1, Policy, pg=pg, num_gpus_per_actor=0.2) for _ in range(3 if shared else 2)]
    (reward,) = in_actors([Where()], args, models[0])
    reward.setup(RewardContext(args=args))
    batch = RewardBatch([Rollout("a", "", "one"), Rollout("b", "", "three")])
    print("SCORES", json.dumps(list(reward.score(batch).rewards)))
    reward.teardown()
    while True:  # Ray ends an actor after the call that asks for it; a score may still come through
        try:
            reward.score(batch)
        except UserError as error:
            return print("LOST", error)

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placing", "part", "gpus", "scores"),
    [("shared", "0.25", "1", [103.0, 105.0]), ("shared", "0.25", "2", [3.0, 5.0]), ("apart", "1.0", "3", [3.0, 5.0])],
)
def test_a_reward_shares_the_models_gpu_if_there_is_no_other(
    tmp_path: Path, placing: str, part: str, gpus: str, scores: list[float]
) -> None:
    """Without a place in the models' group it would wait for a GPU for ever."""
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{tmp_path}"
    environment["RAY_raylet_start_wait_time_s"] = "240"  # the machine may be busy
    words = [sys.executable, "run.py", placing, part, gpus]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert f"SCORES {scores}" in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
    assert "LOST its process is lost: its process or machine died" in done.stdout
