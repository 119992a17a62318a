"""Ray: a run's extensions and backends in every one of its worker processes.

`start` connects to Ray before the launcher does, with a setup hook; Ray calls that hook, `setup`, first thing in each
worker. The hook only registers what will happen when a module is imported, because idle workers pay for it, too.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from .. import backends, openrlhf_fixes
from ..backends import machine
from ..backends.resources import cluster_address, knock
from ..cli.errors import UserError, as_os_error
from ..extensions import inject
from ..extensions.ray_classes import unwrap

HOOK = "orlhf_ext.launch.ray_setup.setup"
_USERS_HOOK = "ORLHF_EXT_USERS_HOOK"
_FOLDER = "ORLHF_EXT_FOLDER"  # that the run was started in
_RAYS_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"  # where Ray keeps the hook of a submitted job
_TRAINER = "openrlhf.trainer.ppo_trainer"

#: environment of a worker without CUDA, where the user sets nothing else
_CPU = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",  # of several processes on few cores, each with threads of its own, all wait for each other
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCH_COMPILE_DISABLE": "1",  # vLLM's CPU sampler would be compiled at its first call, for nothing
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def setup() -> None:
    """What each worker does first: register backends and swaps, then call the user's own hook, if there is one.

    A worker of a Ray that ran before goes to the folder of the run, where there is such a folder, so that relative
    paths mean the same in all processes.
    """
    if os.path.isdir(folder := os.environ.get(_FOLDER, "")):
        os.chdir(folder)
    backends.install()
    openrlhf_fixes.install()
    if not machine.gpu_present():
        for name, value in _CPU.items():
            os.environ.setdefault(name, value)
        from ..backends import cpu_rollouts

        cpu_rollouts.install()
    swaps = inject.from_environment()
    inject.install(swaps)
    inject.on_import(_TRAINER, lambda _: inject.verify_loaded(swaps))
    if hook := os.environ.get(_USERS_HOOK):
        from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook

        if failure := load_and_execute_setup_hook(hook):
            raise RuntimeError(failure)


def runtime_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What ``ray.init`` is given as ``runtime_env``: OpenRLHF's own variables, ours, and our hook.

    Variables that the job sets (``ray job submit --runtime-env-json``) or the user has in the environment are kept,
    and the job's own hook is called by ours.
    """
    upstream = {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
    wanted = {name: environ.get(name, value) for name, value in upstream.items()}
    path = [os.getcwd(), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    wanted["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    job = json.loads(environ.get(machine.RAY_JOB) or "{}").get("runtime_env") or {}
    theirs = job.get("env_vars") or {}
    variables = {name: value for name, value in wanted.items() if name not in theirs}
    variables[_FOLDER] = os.getcwd()
    variables[inject.ENVIRONMENT] = environ.get(inject.ENVIRONMENT, "[]")
    variables[machine.GPUS_HIDDEN] = str(int(machine.gpus_hidden()))
    if hook := theirs.get(_RAYS_HOOK) or job.get("worker_process_setup_hook"):
        variables[_USERS_HOOK] = hook
    if _RAYS_HOOK in theirs:
        variables[_RAYS_HOOK] = HOOK
    return {"env_vars": variables, "worker_process_setup_hook": HOOK}


def logical_gpus(args: SimpleNamespace) -> int:
    """How many GPUs the launcher's placement groups can ask for at most; on a CPU they are only numbers to Ray."""
    groups = [args.actor, args.ref, args.critic, args.reward]
    return sum(group.num_nodes * group.num_gpus_per_node for group in groups) + (
        (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size
    )


def count_no_devices() -> None:
    """Let Ray count GPUs that are only numbers, where CUDA_VISIBLE_DEVICES hides the real ones: it refuses more than
    that names.

    Raises:
        UserError: the GPUs are hidden from a build for CUDA, whose vLLM cannot sample without one.
    """
    if machine.gpus_hidden() and machine.torch_cuda():
        raise UserError(
            "CUDA_VISIBLE_DEVICES hides all GPUs, and this environment's vLLM samples on GPUs alone; unset it, or use "
            "an environment of requirements-cpu.txt"
        )
    os.environ[machine.GPUS_HIDDEN] = str(int(machine.gpus_hidden()))
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def start(swaps: list[inject.Swap], gpus: int) -> bool:
    """Connect to Ray (``RAY_ADDRESS``, the cluster of a submitted job, or a Ray of our own), with our hook.

    Args:
        swaps: which must be registered in every worker.
        gpus: as many as the run can ask for, where there is none.

    Returns:
        whether the run has CUDA devices; of a cluster, the driver's own machine need have none.

    Raises:
        UserError: no Ray listens, it counts no GPU, it runs already without our hook, or a worker lacks the swaps.
    """
    import ray

    if ray.is_initialized():
        raise UserError(
            "Ray was started before the launcher, so that its workers lack this run's extensions; do not call ray.init"
        )
    environment = runtime_environment(os.environ)
    if _USERS_HOOK in environment["env_vars"]:
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # both are called, so that this is no conflict
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of what it will change
    settings: dict[str, Any] = {}
    if address := cluster_address():
        if "://" not in address:
            knock(address)
    elif not machine.gpu_present():
        count_no_devices()
        settings = {"num_gpus": gpus, "num_cpus": gpus + 4, "include_dashboard": False}
        inject.say(
            f"no CUDA device: Ray is told of {gpus} GPUs, as many as the launcher may ask for; all run on the CPU"
        )
    ray.init(runtime_env=environment, **settings)
    there = ray.get(ray.remote(num_cpus=0)(inject.from_environment).remote())
    if there != swaps:
        ray.shutdown()
        raise UserError(
            "Ray's workers do not have this run's extensions: their setup hook was replaced; "
            "leave worker_process_setup_hook out of RAY_RUNTIME_ENV_HOOK"
        )
    if machine.gpu_present() or address is None:
        return machine.gpu_present()
    if ray.cluster_resources().get("GPU", 0) < 1:
        ray.shutdown()
        raise UserError(
            "this Ray counts no GPU, and the launcher asks for some; give it some with ray start --num-gpus N (without "
            "CUDA they are only numbers)"
        )
    return ray.get(ray.remote(num_cpus=0, num_gpus=0.01)(machine.gpu_present).remote())


def objects_at(targets: list[str]) -> dict[str, str]:
    """The object at each ``module:attribute`` in this process, as the ``module:attribute`` that defines it."""
    found = {}
    for target in targets:
        module, _, attribute = target.partition(":")
        try:
            there = unwrap(operator.attrgetter(attribute)(importlib.import_module(module)))
            if code := getattr(there, "__code__", None):  # a patch bears the name of the function that it wraps
                found[target] = f"{there.__globals__['__name__']}:{code.co_qualname}"
            else:
                found[target] = f"{there.__module__}:{there.__qualname__}"
        except (ImportError, AttributeError, UserError) as error:
            found[target] = f"missing: {error}"
    return found


def as_user_error(error: Exception) -> Exception:
    """What to raise for an error that a launcher ended with: Ray's wrapping is taken off a user's mistake, and a worker
    that died gets one sentence."""
    cause: Any = error
    while (inner := getattr(cause, "cause", None)) is not None:
        cause = inner
    if isinstance(cause, UserError):
        return UserError(str(cause))
    if cause is not error and (system := as_os_error(cause)):
        return system
    if type(error).__module__.startswith("ray.exceptions"):
        import ray

        if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
            return UserError(
                f"a Ray worker died ({' '.join(str(error).split())[:300]}); see its log above, and go on from the last "
                "checkpoint with --ckpt.load_enable"
            )
    return error
