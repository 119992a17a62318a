"""How the tests run ``train_ppo_ray`` on the tiny model: flags, and what is read back."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

REWARDS = '''
from dataclasses import dataclass

from orlhf_ext.rewards import Reward, RewardResult


class Letters(Reward):
    """The share of small letters in a response: easy to raise."""

    def score(self, batch):
        return RewardResult(
            [sum("a" <= c <= "z" for c in text) / max(1, len(text)) for text in batch.responses],
            metrics={"characters": [float(len(text)) for text in batch.responses]},
        )


@dataclass
class Brevity(Reward):
    words: int = 50

    def score(self, batch):
        return [min(1.0, self.words / max(1, len(text.split()))) for text in batch.responses]


class Breaks(Reward):
    def score(self, batch):
        return [float("nan") if "/3" in rollout.id else 1.0 for rollout in batch]


class Constant(Reward):
    """Half of the prompts get one reward for all samples, and are filtered out."""

    def score(self, batch):
        odd = [int(rollout.label) % 2 for rollout in batch]
        return [0.5 if one else 0.4 + 0.01 * len(r.response_ids) for one, r in zip(odd, batch)]
'''


def write_inputs(folder: Path, prompts: int = 64) -> None:
    """Rewards as a user would write them, and prompts for the tiny model."""
    (folder / "my_rewards.py").write_text(REWARDS)
    with (folder / "prompts.jsonl").open("w") as stream:
        for i in range(prompts):
            stream.write(json.dumps({"prompt": f"\n\nHuman: say {i}\n\nAssistant:", "label": str(i)}) + "\n")


def flags(model: Path, **changes: Any) -> list[str]:
    """The launcher's flags; ``__`` in a name stands for a dot, True for a flag without a value, None for none."""
    given: dict[str, Any] = {
        "actor.model_name_or_path": model,
        "actor.num_nodes": 1,
        "actor.num_gpus_per_node": 1,
        "ref.num_nodes": 1,
        "ref.num_gpus_per_node": 1,
        "vllm.num_engines": 1,
        "vllm.tensor_parallel_size": 1,
        "train.colocate_actor_ref": True,
        "algo.advantage.estimator": "group_norm",
        "algo.kl.init_coef": 0.001,
        "algo.kl.use_loss": True,
        "algo.kl.estimator": "k3",
        "ds.zero_stage": 2,
        "data.prompt_dataset": "prompts.jsonl",
        "data.input_key": "prompt",
        "data.label_key": "label",
        "data.max_len": 64,
        "rollout.max_new_tokens": 16,
        "rollout.batch_size": 8,
        "rollout.n_samples_per_prompt": 4,
        "rollout.micro_batch_size": 8,
        "train.batch_size": 32,
        "train.micro_batch_size": 8,
        "train.num_episodes": 1,
        "actor.adam.lr": 1e-3,
        "ckpt.output_dir": "out/model",
        "ckpt.path": "out/checkpoints",
        "ext.rollouts_dir": "out/rollouts",
        "logger.tensorboard_dir": "out/tb",
    }
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    words = []
    for name, value in given.items():
        if value is not None:
            words += (
                [f"--{name}"]
                if value is True
                else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
            )
    return words


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "RAY_DEDUP_LOGS": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )


def launch(folder: Path, *words: str, fails: bool = False, **environment: str) -> str:
    """Run the launcher in ``folder``; what it printed comes back."""
    done = run(folder, "-m", "orlhf_ext.launch", "train_ppo_ray", *words, **environment)
    assert bool(done.returncode) == fails, done.stdout[-6000:]
    return done.stdout


def rollouts(folder: Path, what: str = "train") -> list[list[dict[str, Any]]]:
    """The kept rollouts, batch by batch."""
    files = sorted((folder / "out/rollouts").glob(f"{what}-*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]


def mean_reward(batches: list[list[dict[str, Any]]]) -> float:
    return statistics.mean(row["reward"] for batch in batches for row in batch)


def scalars(folder: Path) -> dict[str, list[float]]:
    """TensorBoard's scalars by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[float]] = {}
    for path in (folder / "out/tb").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path.parent))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [event.value for event in events.Scalars(tag)]
    return found


def synced(output: str) -> list[tuple[int, int]]:
    """What `ray_probe` printed: equal and all tensors, after each sync."""
    return [(int(a), int(b)) for a, b in re.findall(r"weights: (\d+) of (\d+) equal", output)]
