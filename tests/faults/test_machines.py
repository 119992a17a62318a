"""Machines that lack something for GPUs, and runs that ask Ray for more than there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.backends import compiler, machine, resources
from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import doctor
from orlhf_ext.launch import ray_setup


def told(lacks: list[str]) -> None:
    """What `doctor` prints, as what ends a command."""
    if lacks:
        raise UserError("; ".join(lacks))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"driver": "570.124.06"}, "driver of version 580 or newer: torch with CUDA 13.0 finds no GPU with 570.124.06"),
        ({"driver": "535.54"}, "driver of version 580"),
        ({"driver": "520.1", "torch_cuda": "12.8"}, "driver of version 525"),
        ({"torch_cuda": ""}, "CUDA in torch: there is a GPU, and torch is a build for CPUs"),
        ({"compiler": compiler.Choice(None, why_not="none is installed")}, "CUDA 13.0 compiler .none is installed."),
        ({"compiler": compiler.Choice(None, why_not="/x has CUDA 13.5")}, "has CUDA 13.5.: torch's AdamW replaces"),
        ({"flash_attn": False}, "flash-attn: attention runs as sdpa"),
        ({"device": False}, "a CUDA device: launchers run through the CPU backend"),
    ],
)
def test_doctor_says_what_is_missing(fault: Any, changes: dict[str, Any], says: str) -> None:
    whole: dict[str, Any] = {"device": True, "driver": "580.65.06", "torch_cuda": "13.0", "flash_attn": True}
    machine = doctor.Machine(**{**whole, "compiler": compiler.Choice(Path("/cuda")), **changes})
    fault.call(lambda: told(doctor.lacks_for_gpus(machine)), says=says)


def run(**changes: Any) -> SimpleNamespace:
    """The arguments of a run of two actors and two engines, as the launcher nests them."""
    given = {"actor": 2, "engines": 2, "tp": 1, "estimator": "group_norm", "kl": 0.1, "copies": 1, **changes}
    space = SimpleNamespace

    def group(count: int) -> SimpleNamespace:
        return space(num_nodes=1, num_gpus_per_node=count)

    return space(
        actor=group(given["actor"]),
        ref=group(given["actor"]),
        critic=group(given["actor"]),
        reward=space(num_nodes=1, num_gpus_per_node=8, remote_url=None),
        vllm=space(num_engines=given["engines"], tensor_parallel_size=given["tp"]),
        train=space(
            colocate_all=given.get("all", False),
            colocate_actor_ref=given.get("actor_ref", True),
            colocate_critic_reward=False,
            async_enable=given.get("async_", False),
            agent_func_path=given.get("agent", "x.py"),
        ),
        algo=space(kl=space(init_coef=given["kl"]), advantage=space(estimator=given["estimator"])),
        ext=space(reward_actors=given["copies"]),
    )


MODEL = {"model": [0.25]}


@pytest.mark.parametrize(
    ("changes", "parts", "gpus", "says"),
    [
        ({}, {}, 3, "models ask for 4 GPUs, and Ray has 3"),
        ({"actor_ref": False}, {}, 5, "models ask for 6 GPUs, and Ray has 5"),
        ({"estimator": "gae"}, {}, 5, "models ask for 6 GPUs"),
        ({"agent": None}, {}, 8, "models ask for 12 GPUs"),
        ({"tp": 2}, {}, 4, "models ask for 6 GPUs"),
        ({"all": True, "async_": True}, {}, 3, "models ask for 4 GPUs"),
        ({}, {}, 0, "models ask for 4 GPUs, and Ray has 0"),
        (
            {},
            MODEL,
            4,
            "reward 'model' asks for 1 GPU.* the 4 .*Ray has 4; leave a GPU free, lower --model.gpus",
        ),
        ({}, {"model": [1.0, 1.0]}, 5, "reward 'model' asks for 2 GPU"),
        ({}, {"model": [0.6, 0.6]}, 5, "reward 'model' asks for 2 GPU"),
        ({}, {"model": [0.25], "mine": [1.0]}, 5, "reward 'model' and 'mine' asks for 2 GPU"),
        ({"all": True}, {"model": [0.5]}, 2, "Ray has 2, and 0.4 of each is left to share; .*lower --model.gpus"),
        ({"all": True, "estimator": "gae"}, MODEL, 2, "0.2 of each is left to share"),
        ({"all": True}, {"model": [0.25] * 3}, 2, "0.4 of each is left to share"),
        ({"all": True, "agent": None, "estimator": "gae"}, MODEL, 2, "reward 'model' asks for"),
    ],
)
def test_gpus_that_ray_does_not_have(
    fault: Any, changes: dict[str, Any], parts: dict[str, list[float]], gpus: int, says: str
) -> None:
    fault.call(resources.check, run(**changes), parts, {"GPU": gpus, "CPU": 64}, says=says)


@pytest.mark.parametrize(("cpus", "parts"), [(4, {}), (5, {"model": [1.0]}), (1, {})])
def test_cpus_that_ray_does_not_have(fault: Any, cpus: int, parts: dict[str, list[float]]) -> None:
    says = f"a CPU beside each of its 4 GPUs and one more, and Ray has {cpus}; .*--num-cpus"
    fault.call(resources.check, run(), parts, {"GPU": 8, "CPU": cpus}, says=says)


@pytest.mark.parametrize(
    ("changes", "parts", "gpus"),
    [
        ({}, {}, 4),
        ({}, MODEL, 5),
        ({}, {"model": [0.5, 0.5]}, 5),
        ({"all": True}, MODEL, 2),
        ({"all": True}, {"model": [0.2, 0.2], "mine": [0.2, 0.2]}, 2),
        ({"all": True, "kl": 0.0}, {"model": [0.6]}, 2),
        ({"all": True, "actor": 1, "engines": 1}, {"groups": [0.25]}, 1),
    ],
)
def test_what_fits_is_let_through(changes: dict[str, Any], parts: dict[str, list[float]], gpus: int) -> None:
    resources.check(run(**changes), parts, {"GPU": gpus, "CPU": 64})


@pytest.mark.parametrize("given", ["", "-1", "-1,0"])
def test_gpus_hidden_from_a_build_for_cuda(fault: Any, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vLLM has nothing to sample on."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.delenv(machine.GPUS_HIDDEN, raising=False)
    monkeypatch.delenv(machine.RAY_JOB, raising=False)
    monkeypatch.setattr(machine, "torch_cuda", lambda: "13.0")
    fault.call(ray_setup.count_no_devices, says="CUDA_VISIBLE_DEVICES hides all GPUs, and this environment's vLLM")


@pytest.mark.parametrize("parts", [1.5, 2.25])
def test_a_reward_that_asks_for_one_and_a_half_gpus(fault: Any, parts: float, tmp_path: Path) -> None:
    call: Callable[..., Any] = resources.check_part
    fault.call(call, "mine", parts, says=f"reward 'mine' asks for {parts} GPUs, and Ray gives a part of one, or whole")
