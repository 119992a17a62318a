"""How the tests run ``train_ppo_ray`` on the tiny model: flags, and what is read back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]

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


class Leaves(Reward):
    def score(self, batch):
        raise SystemExit


class Constant(Reward):
    """Odd prompts get one reward for all samples, and are filtered out."""

    def score(self, batch):
        return [0.5 if int(one.label) % 2 else 0.2 + sum(one.response_ids) % 997 / 2000 for one in batch]


class Likely(Reward):
    """The mean log-probability of a response's tokens under the frozen reference model."""

    needs_reference = True

    def setup(self, context):
        self.logprobs = context.score_reference

    def score(self, batch):
        return [sum(found) / len(found) for found in self.logprobs(batch.token_ids, batch.action_masks)]
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


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}", "RAY_DEDUP_LOGS": "0", **more}


def run(
    folder: Path, *words: str, python: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``."""
    return subprocess.run(
        [str(python), *words],
        cwd=folder,
        env=_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )


def launch(
    folder: Path, *words: str, fails: bool = False, python: str | Path = sys.executable, **environment: str
) -> str:
    """Run the launcher in ``folder``; what it printed comes back."""
    done = run(folder, "-m", "orlhf_ext.launch", "train_ppo_ray", *words, python=python, **environment)
    assert bool(done.returncode) == fails, done.stdout[-6000:]
    return done.stdout


class Running:
    """The launcher on its way, in a process group of its own; nothing of it is left when the block ends."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._log = folder / "log.txt"
        with self._log.open("w") as stream:
            self._driver = psutil.Popen(
                [sys.executable, "-m", "orlhf_ext.launch", "train_ppo_ray", *words],
                cwd=folder,
                env=_environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in [*self.left(0), self._driver]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._driver.wait()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    @property
    def steps(self) -> list[int]:
        """The numbers of the global steps that it has done."""
        return [int(number) for number in re.findall(r"Global step (\d+):", self.output)]

    def until(self, so: Callable[[], bool]) -> None:
        """Wait until something is so, for five minutes at most."""
        end = time.monotonic() + 300
        while not so():
            assert self._driver.poll() is None and time.monotonic() < end, self.output[-6000:]
            time.sleep(0.1)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self._look()
        return self._driver.wait(300)

    def kill_worker(self, name: str) -> None:
        """SIGKILL for the first Ray worker of that name."""
        self._look()
        next(one for one in self._seen if " ".join(one.cmdline()).startswith(f"ray::{name}")).kill()

    def kill(self) -> None:
        """SIGKILL for the process group of the driver."""
        self._look()
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()

    def left(self, seconds: float) -> list[psutil.Process]:
        """What still runs of all that it had started, after a while of waiting."""
        if self._driver.poll() is None:
            self._look()
        return psutil.wait_procs(self._seen, seconds)[1]

    def _look(self) -> None:
        self._seen.update(self._driver.children(recursive=True))


def judge(model: Path) -> Callable[[Sequence[int], Sequence[int]], float]:
    """The mean nll, in nats, of the tokens whose mask is 1, by transformers alone: one sequence, its whole logits.

    Other rows in a batch change bf16 numbers a little: means over 60 tokens by up to 8e-5, over 4 by up to 5e-4.
    """
    from orlhf_ext import backends

    backends.install()  # matrices are multiplied as in the run
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def nll(ids: Sequence[int], mask: Sequence[int]) -> float:
        labels = [token if counts else -100 for token, counts in zip(ids, mask, strict=True)]
        with torch.inference_mode():
            return loaded(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()

    return nll


def rollouts(folder: Path, what: str = "train") -> list[list[dict[str, Any]]]:
    """The kept rollouts, batch by batch."""
    files = sorted((folder / "out/rollouts").glob(f"{what}-*.jsonl"))
    return [[json.loads(line) for line in path.read_bytes().splitlines()] for path in files]


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
