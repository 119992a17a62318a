"""Run one of OpenRLHF's launchers, unmodified, with extensions injected.

``python -m orlhf_ext.launch LAUNCHER [--ext.use NAME ...] [the extensions' flags] [the launcher's flags]``
"""

from __future__ import annotations

import argparse
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from .. import backends, openrlhf_fixes
from ..backends import machine, resources
from ..cli.errors import UserError, command, suggest
from ..cli.user_code import describe, frames, place, user_code
from ..extensions import Extension, fit, inject, run
from ..extensions.releases import LAUNCHERS, RAY_LAUNCHERS
from ..extensions.seams import find
from ..openrlhf_fixes.chat_data import check_chats
from . import ray_setup
from .config import Config, given, write
from .flags import choices, flags_help, make_parser, refuse_strays, switched_on, with_needed
from .preflight import check_arguments

#: what reads the records of a run; an extension that replaces one checks them itself
_DATA_SETS = ("openrlhf.datasets.reward_dataset:RewardDataset", "openrlhf.datasets.sft_dataset:SFTDataset")
#: arguments of vLLM in a Ray run without CUDA
_CPU_VLLM = {"sync_backend": "gloo", "enforce_eager": True, "gpu_memory_utilization": 0.1}


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """The launcher's name and the rest; `deepspeed --module` puts ``--local_rank=N`` before everything."""
    leading = []
    while argv and argv[0].startswith("--local_rank"):
        leading.append(argv[0])
        argv = argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        return None, []
    return argv[0], argv[1:] + leading


def _check_launcher(launcher: str, extensions: list[Extension]) -> None:
    if launcher not in LAUNCHERS:
        raise UserError(f"unknown launcher {launcher!r}{suggest(launcher, list(LAUNCHERS))}")
    for item in extensions:
        if launcher not in item.launchers:
            raise UserError(f"extension {item.name!r} works with {', '.join(item.launchers)}, not with {launcher}")
        for target in item.replacements:
            seam = find(target)
            if seam is not None and launcher not in seam.launchers:
                raise UserError(f"extension {item.name!r} replaces {target}, which {launcher} does not use")


def _single_process() -> None:
    """The environment that torchrun or deepspeed would give; a launcher cannot start without it."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _machine_defaults(launcher: str, config: Config) -> None:
    """Flags and environment for what this machine lacks; each is printed, and a user's own choice is kept."""
    if not machine.gpu_present() and launcher not in RAY_LAUNCHERS:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
        # Threads that spin at barriers turn one busy neighbour into minutes of waiting; sleeping ones do not.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if machine.device_there() and not machine.gpu_present():
        inject.say("there is a GPU, and torch is a build without CUDA: all runs on the CPU; see `orlhf-ext doctor`")
    if not machine.flash_attn_present() and not config.gives("--ds.attn_implementation"):
        inject.say("flash-attn is not installed: --ds.attn_implementation sdpa")
        config.rest += ["--ds.attn_implementation", "sdpa"]


def _join_namespaces(
    own: dict[str, Any], extensions: list[Extension], swaps: list[inject.Swap], launcher: str, config: Config
) -> list[SimpleNamespace]:
    """Add ours to the launcher's nested arguments, and look at all of them before a model is loaded.

    Returns:
        a list that they will be put into.
    """
    arguments: list[SimpleNamespace] = []

    def patch(module: ModuleType) -> None:
        original = module.hierarchize  # type: ignore[attr-defined]

        def hierarchize(args: argparse.Namespace) -> SimpleNamespace:
            if clash := sorted(set(own) & set(vars(args))):
                raise UserError(f"the flag --{clash[0]} is {launcher}'s own; an extension may not take it")
            flags = {**vars(args), **config.own}
            vars(args).update(own)
            nested = original(args)
            on_ray = launcher in RAY_LAUNCHERS
            inject.verify(swaps, vars(sys.modules["__main__"]), load_seams=on_ray)
            check_arguments(launcher, nested)
            if not any(target in item.replacements for item in extensions for target in _DATA_SETS):
                check_chats(launcher, nested)
            parts: dict[str, Sequence[float]] = {}
            for item in extensions:
                with user_code(f"extension {item.name!r} cannot check the run:"):
                    item.check(nested)
                    parts |= item.gpu_parts(nested)
            for item in extensions:
                with user_code(f"extension {item.name!r} cannot configure the run:"):
                    item.configure(nested)
            run.arguments = nested
            if on_ray:
                _start_ray(swaps, nested, parts, config)
            if inject.first_process() and (output := flags.get("ckpt.output_dir")):
                write(output, {name: value for name, value in flags.items() if name != "local_rank"})
            arguments.append(nested)
            return nested

        hierarchize.__wrapped__ = original  # type: ignore[attr-defined]
        module.hierarchize = hierarchize  # type: ignore[attr-defined]

    inject.on_import("openrlhf.utils.config", patch)
    return arguments


def _start_ray(
    swaps: list[inject.Swap], args: SimpleNamespace, parts: Mapping[str, Sequence[float]], config: Config
) -> None:
    """Connect to Ray, and make sure that it has what the run will ask for."""
    import ray

    more = resources.whole_gpus([part for of_one in parts.values() for part in of_one])
    cuda = ray_setup.start(swaps, ray_setup.logical_gpus(args) + more)
    try:
        resources.check(args, parts, ray.cluster_resources())
    except UserError:
        ray.shutdown()
        raise
    if not cuda:
        _without_cuda(args, config)


def _kept(args: SimpleNamespace) -> str:
    """What a run that is interrupted leaves to go on with."""
    folder = getattr(getattr(args, "ckpt", None), "path", None)
    if folder and os.path.isdir(folder) and os.listdir(folder):
        return f"the checkpoints in {folder} are kept: add --ckpt.load_enable to go on from the last one"
    return "no checkpoint was saved yet (--ckpt.save_steps)"


def _without_cuda(args: SimpleNamespace, config: Config) -> None:
    """What vLLM needs in Ray without CUDA; only Ray knows whether a cluster has it. A user's own choice is kept."""
    for name, value in _CPU_VLLM.items():
        if not config.gives(flag := f"--vllm.{name}"):
            inject.say(f"no CUDA device: {flag} {value}")
            setattr(args.vllm, name, value)


def _help() -> None:
    print(__doc__)
    print(f"launchers: {', '.join(LAUNCHERS)}\n")
    print(flags_help([]))
    print("python -m orlhf_ext.launch LAUNCHER --help shows the launcher's flags too.")


@command
def main(argv: list[str] | None = None) -> None:
    """Take our flags out, install backends and extensions, and run the launcher as ``__main__``."""
    launcher, rest = _split(list(sys.argv[1:] if argv is None else argv))
    if launcher is None:
        _help()
        return
    fit.installed()
    config = Config(rest)
    extensions = switched_on(config.words(choices()))
    _check_launcher(launcher, extensions)
    parser = make_parser(extensions)
    words = config.words(parser)
    with user_code("a flag of an extension cannot be read:"):
        own_namespace, config.rest = parser.parse_known_args(words)
    own = vars(own_namespace)
    refuse_strays(config.rest, parser, extensions)
    config.own = given(parser, words)
    if "-h" in config.rest or "--help" in config.rest:
        print(f"{flags_help(extensions)}\n{launcher}:", flush=True)
    else:
        extensions = with_needed(extensions, own)
        _check_launcher(launcher, extensions)
    swaps = inject.plan(extensions)
    fit.check(launcher, extensions, backends.needed(), inject.say)
    _machine_defaults(launcher, config)
    backends.install()
    openrlhf_fixes.install()
    inject.install(swaps)
    inject.to_environment(swaps)
    arguments = _join_namespaces(own, extensions, swaps, launcher, config)
    if launcher not in RAY_LAUNCHERS:
        _single_process()
    sys.argv = [LAUNCHERS[launcher], *config.rest]
    try:
        with config.for_launcher():
            runpy.run_module(LAUNCHERS[launcher], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt as stop:
        for nested in arguments:
            stop.add_note(_kept(nested))
        raise
    except SystemExit as stop:
        if not frames(stop):  # argparse's
            raise
        raise UserError(f"{launcher} was ended before its time by {describe(stop)}{place(stop)}") from stop
    except Exception as error:
        if (cause := ray_setup.as_user_error(error)) is error:
            raise
        raise cause from error


if __name__ == "__main__":
    main()
