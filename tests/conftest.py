"""What all tests share. Environment variables are set before anything imports torch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import EXO_FLAGS, ROOT, free_port
from hypothesis import HealthCheck, settings
from json_server import Answer, Server

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores: several processes with two threads each are far slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Some machines' images set it, and then each of the many processes compiles all of torch again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Ignored in a background job of a script, and then in all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first example pays for imports, and the machine may be busy. tests/run.sh --slow takes --hypothesis-profile=full.
settings.register_profile("full", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("full"), max_examples=25)
settings.load_profile("quick")


def pytest_collectstart() -> None:
    """What is imported stays to the end, and the garbage collector takes a third of a second to go through it."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on the garbage collector goes through what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its byte-level tokenizer (bos <s>, eos </s>, pad <pad>)."""
    pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)
    from orlhf_ext.models.small_models import make_tiny

    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What train_rm saves: the tiny model with a head, and its prefix in the config."""
    from orlhf_ext import backends
    from orlhf_ext.models.folder import load_tokenizer

    backends.install()
    import torch
    from openrlhf.models.model import get_llm_for_sequence_regression

    folder = tmp_path_factory.mktemp("models") / "rm"
    torch.manual_seed(1)
    model = get_llm_for_sequence_regression(
        str(tiny_model), "reward", attn_implementation="sdpa", init_value_head=True, value_head_prefix="value"
    )
    model.value.weight.data.mul_(40)  # rewards that differ by more than bf16 can blur
    model.config.value_head_prefix = "value"
    model.config.mean, model.config.std = 5.0, 3.0  # which must not be applied
    model.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def strategy(tiny_model: Path) -> Iterator[Any]:
    """OpenRLHF's strategy in a world of one process, with the arguments that EXO's trainer reads."""
    from orlhf_ext import backends

    backends.install()
    import deepspeed
    import torch
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    space = SimpleNamespace
    args = space(
        local_rank=-1,
        exo=space(**EXO_FLAGS),
        model=space(label_smoothing=0.0, ipo_enable=False, aux_loss_coef=0, nll_loss_coef=0),
        ref=space(model_name_or_path=str(tiny_model)),
        ds=space(
            packing_samples=False,
            param_dtype="bf16",
            attn_implementation="sdpa",
            ring_attn_size=1,
            tensor_parallel_size=1,
        ),
        train=space(micro_batch_size=2),
        data=space(),
        logger=space(wandb=space(key=None), tensorboard_dir=None, logging_steps=1),
        eval=space(steps=100),
        ckpt=space(save_steps=100, load_enable=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
            patch.setenv(name, value)
        patch.setenv("MASTER_PORT", free_port())
        kept = dict(vars(deepspeed.utils.groups))
        strategy = DeepspeedStrategy(args=args)
        strategy.setup_distributed()
        yield strategy
        torch.distributed.destroy_process_group()
        deepspeed.comm.comm.cdb = None
        vars(deepspeed.utils.groups).update(kept)  # it keeps groups of the world that has ended


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are on a Ray of this machine, and find the project and the tests' modules."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests/support'}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    """Starts servers on this machine that answer as a function says; they end with the test."""
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the project, or a skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent, so there is no real data to test against")
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests/faults counted; a pytest-xdist controller reads no conftest below this one."""
    counts = dict.fromkeys(("told", "silent", "lost", "traceback"), 0)
    for kind in ("passed", "failed"):
        for report in terminalreporter.stats.get(kind, ()):
            if report.when == "call":
                for name, verdict in report.user_properties:
                    if name == "fault":
                        counts[verdict] += 1
    if total := sum(counts.values()):
        _, silent, lost, tracebacks = counts.values()
        terminalreporter.write_line(f"{total} faults, {silent} silent, {lost} lost, {tracebacks} tracebacks")
