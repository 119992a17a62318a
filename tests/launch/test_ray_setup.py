"""What Ray is given: the runtime environment, the user's own settings kept, and what a dead worker is told as."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import run_python

from orlhf_ext import backends
from orlhf_ext.backends import machine
from orlhf_ext.cli.errors import UserError
from orlhf_ext.extensions import inject
from orlhf_ext.launch import ray_setup

ROOT = Path(__file__).resolve().parents[2]


def job(**runtime_env: object) -> dict[str, str]:
    """The environment of a driver that was submitted with this runtime_env."""
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime_env})}


def test_workers_get_upstreams_variables_and_ours() -> None:
    found = ray_setup.runtime_environment({"NCCL_DEBUG": "INFO", "PYTHONPATH": "/there"})
    variables = found["env_vars"]
    assert variables["NCCL_DEBUG"] == "INFO"
    assert variables["TOKENIZERS_PARALLELISM"] == "true" and variables["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] == "1"
    assert variables["PYTHONPATH"].split(os.pathsep) == [os.getcwd(), "/there"]
    assert found["worker_process_setup_hook"] == ray_setup.HOOK
    assert "OMP_NUM_THREADS" not in variables and "DS_ACCELERATOR" not in variables


@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_in_a_worker_without_cuda_the_users_threads_stand(given: dict[str, str], threads: str) -> None:
    code = "import os; from orlhf_ext.launch.ray_setup import setup; setup(); print(os.environ['OMP_NUM_THREADS'])"
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment = {**others, "ORLHF_EXT_GPUS_HIDDEN": "1", "PYTHONPATH": str(ROOT), **given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{threads}\n"), done.stderr


def test_a_worker_goes_to_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variables = ray_setup.runtime_environment({})["env_vars"]
    code = "import os; from orlhf_ext.launch.ray_setup import setup; setup(); print(os.getcwd())"
    for folder, there in ((variables["ORLHF_EXT_FOLDER"], tmp_path), (str(tmp_path / "of another node"), ROOT)):
        done = run_python("-c", code, ORLHF_EXT_FOLDER=folder)
        assert Path(done.stdout.strip()) == there, done.stderr


@pytest.mark.parametrize(("given", "address"), [("local", None), ("10.0.0.1:6379",) * 2, ("ray://head:10001",) * 2])
def test_a_cluster_is_told_from_a_ray_of_our_own(
    monkeypatch: pytest.MonkeyPatch, given: str, address: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert ray_setup.cluster_address() == address


def test_variables_of_a_submitted_job_are_not_given_again() -> None:
    """Ray refuses a key that job and driver both set."""
    found = ray_setup.runtime_environment(job(env_vars={"NCCL_DEBUG": "INFO", "PYTHONPATH": "/x"}))
    assert not {"NCCL_DEBUG", "PYTHONPATH"} & set(found["env_vars"])


@pytest.mark.parametrize("env_vars", [{}, {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "mine.hook"}])
def test_a_users_hook_is_called_by_ours(env_vars: dict[str, str]) -> None:
    found = ray_setup.runtime_environment(job(worker_process_setup_hook="mine.hook", env_vars=env_vars))
    assert found["env_vars"]["ORLHF_EXT_USERS_HOOK"] == "mine.hook"
    assert found["worker_process_setup_hook"] == ray_setup.HOOK
    assert set(env_vars) <= set(found["env_vars"])  # and says the same there, where Ray compares the two


@pytest.mark.launcher
def test_the_hook_loads_nothing_heavy_and_calls_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def hook():\n    print('users hook')\n")
    swaps = [{"seam": "openrlhf.trainer.ppo_trainer:PPOTrainer", "by": "mine:hook", "owner": "x"}]
    code = (
        "import sys; from orlhf_ext.launch import ray_setup; ray_setup.setup()\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'transformers', 'openrlhf', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    environment = {inject.ENVIRONMENT: json.dumps(swaps), "ORLHF_EXT_GPUS_HIDDEN": "1"}
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    for more, said in (({}, ""), ({"ORLHF_EXT_USERS_HOOK": "mine.hook"}, "users hook\n")):
        done = subprocess.run(
            [sys.executable, "-c", code if not more else "from orlhf_ext.launch import ray_setup; ray_setup.setup()"],
            env={**os.environ, **environment, **more, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_logical_gpus_are_enough_for_every_group() -> None:
    group = SimpleNamespace(num_nodes=2, num_gpus_per_node=4)
    vllm = SimpleNamespace(num_engines=3, tensor_parallel_size=2)
    args = SimpleNamespace(actor=group, ref=group, critic=group, reward=group, vllm=vllm)
    assert ray_setup.logical_gpus(args) == 4 * 8 + 6


def test_what_is_in_a_process() -> None:
    """A patch is told as what it is, also where it bears the name of what it wraps."""
    backends.install()
    targets = ["deepspeed.comm.torch:build_shm_op", "orlhf_ext.extensions.inject:Swap", "json:gone"]
    patched, own, gone = ray_setup.objects_at(targets).values()
    if not machine.gpu_present():
        assert patched == "orlhf_ext.backends.cpu:_shared_memory_operator.<locals>.<lambda>"
    assert own == "orlhf_ext.extensions.inject:Swap" and gone.startswith("missing: ")


@pytest.mark.launcher
def test_the_doctor_looks_into_a_worker() -> None:
    done = run_python("-m", "orlhf_ext", "doctor", "--ray", "--ext.reward", "length", "--ext.use", "exo", COLUMNS="500")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    found = {seam: (driver, worker) for seam, _, driver, worker, _ in rows}
    for seam, by, owner in (
        ("openrlhf.trainer.dpo_trainer:DPOTrainer", "orlhf_ext.exo.trainer:KwiseTrainer", "exo"),
        ("openrlhf.trainer.ppo_trainer:PPOTrainer", "orlhf_ext.rewards.trainer:RewardedTrainer", "rewards"),
    ):
        assert found[seam] == (f"{by} (extension {owner})", by)
    maker = "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker"
    assert found[maker] == ("OpenRLHF's own", maker)
    group = "openrlhf.utils.distributed_util:stateless_init_process_group"
    if not machine.gpu_present():
        assert found[group][1].startswith("orlhf_ext.backends.cpu_rollouts:")
    assert "missing" not in " ".join(worker for _, worker in found.values())


def test_a_users_mistake_comes_without_rays_wrapping() -> None:
    import ray

    inner = UserError("the file is missing; give another")
    error = ray.exceptions.RayTaskError("fit", "a long traceback", ray.exceptions.RayTaskError("score", "more", inner))
    found = ray_setup.as_user_error(error)
    assert isinstance(found, UserError) and str(found) == str(inner)
    bug = ray.exceptions.RayTaskError("fit", "a long traceback", ZeroDivisionError("1/0"))
    assert ray_setup.as_user_error(bug) is bug


def test_a_dead_worker_names_the_way_out() -> None:
    import ray

    found = ray_setup.as_user_error(ray.exceptions.ActorDiedError())
    assert isinstance(found, UserError) and "--ckpt.load_enable" in str(found)
