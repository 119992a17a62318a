"""Functions that several test files use; pyproject.toml puts this folder on pytest's path."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: the ``--exo.*`` flags of the tests that run in process
EXO_FLAGS: dict[str, Any] = {
    "share_prompt": "auto",
    "loss_type": "exo-rw",
    "num_contrastive": 2,
    "beta_pi": 0.5,
    "beta_r": 0.5,
    "epsilon": None,
    "temperature": 0.8,
    "max_completion_len": 0,
    "cache_reference": None,
}

LIGHT = """
import contextlib, io, json, sys
from orlhf_ext.build_data import main
found = []
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main(line)
        except SystemExit as end:
            assert not end.code, end.code
    found.append(printed.getvalue())
heavy = {"torch", "transformers", "ray", "vllm", "deepspeed", "openrlhf", "datasets"} & set(sys.modules)
assert not heavy, heavy
print(json.dumps(found))
"""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def meta(path: Path) -> dict[str, Any]:
    """A file's sidecar."""
    return json.loads(path.with_name(path.stem + ".meta.json").read_text(encoding="utf-8"))


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def failing(capsys: pytest.CaptureFixture, main: Callable[[list[str]], None], *words: object) -> str:
    """What a command that is given a mistake says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def run_python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's folder, as on a wide terminal."""
    env = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False
    )


def build_light(*lines: list[str]) -> list[str]:
    """What ``build_data`` prints for each command line; it must load nothing heavy."""
    done = run_python("-c", LIGHT, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def launch(
    out: Path,
    model: Path,
    data: Path,
    *flags: str,
    processes: int = 1,
    use: str = "exo",
    status: int = 0,
    python: str | Path = sys.executable,
) -> str:
    """``train_dpo`` with EXO, four records a step; returns everything that it printed."""
    command = [str(python), "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command += ["orlhf_ext.launch", "train_dpo", "--ext.use", use]
    command += ["--model.model_name_or_path", str(model), "--ref.model_name_or_path", str(model)]
    command += ["--data.dataset", str(data), "--data.max_len", "128", "--train.batch_size", "4"]
    command += ["--train.micro_batch_size", "2", "--adam.lr", "1e-3", "--lr_warmup_ratio", "0"]
    command += ["--ckpt.output_dir", str(out / "model"), "--ckpt.path", str(out / "ckpt"), *flags]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"HF_DATASETS_CACHE": str(out / "datasets"), "PYTHONPATH": f"{ROOT}{os.pathsep}{out}"}
    done = subprocess.run(
        command, env=env, cwd=out, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


def scalars(out: Path) -> dict[str, list[float]]:
    """What a run gave TensorBoard, by name, in the order of steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tb" / "run"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def openrlhf_rewards(
    folder: Path, pairs: list[dict], max_len: int, chat: bool = False, prompt_key: str | None = "prompt"
) -> tuple[list, list]:
    """Ids of pairs by OpenRLHF's data set, and rewards of each row alone by its model."""
    import torch
    from datasets import Dataset
    from openrlhf.datasets import RewardDataset
    from openrlhf.models.model import get_llm_for_sequence_regression

    from orlhf_ext.models.folder import load_tokenizer

    keys = {"prompt_key": prompt_key, "chosen_key": "chosen", "rejected_key": "rejected"}
    strategy: Any = SimpleNamespace(args=SimpleNamespace(data=SimpleNamespace(**keys, apply_chat_template=chat)))
    rows = RewardDataset(Dataset.from_list(pairs), load_tokenizer(folder), max_len, strategy, num_processors=None)
    model = get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="sdpa").eval()
    ids, rewards = [], []
    with torch.inference_mode():
        for i in range(len(rows)):
            chosen, chosen_mask, rejected, rejected_mask, _ = rows.collate_fn([rows[i]])
            ids += [chosen[0].tolist(), rejected[0].tolist()]
            rewards.append([model(chosen, chosen_mask).item(), model(rejected, rejected_mask).item()])
    return ids, rewards


def free_port() -> str:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@contextmanager
def serving(server: HTTPServer) -> Iterator[None]:
    """A server that answers in a thread of its own until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def draw_groups(count: int, proportions: list[float], seed: int) -> Any:
    """``(count,)`` ids of groups by one draw of numpy's legacy generator, as in SharedRep's own scripts."""
    import numpy as np

    uniform = np.random.RandomState(seed).random_sample(count)
    return np.minimum(np.searchsorted(np.cumsum(proportions), uniform, side="right"), len(proportions) - 1)
