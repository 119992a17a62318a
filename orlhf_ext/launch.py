"""Run one of OpenRLHF's launchers, unmodified, with extensions injected.

``python -m orlhf_ext.launch LAUNCHER [--ext.use NAME ...] [the extensions' flags] [the launcher's flags]``
"""

from __future__ import annotations

import argparse
import os
import runpy
import socket
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

from . import backends, inject
from .errors import UserError, command, suggest
from .extensions import EXTENSIONS, Extension, extension, names
from .preflight import check_arguments
from .seams import LAUNCHERS, OPENRLHF_VERSION, RAY_LAUNCHERS, find


def _parser(extensions: list[Extension]) -> argparse.ArgumentParser:
    """Our flags: ``--ext.use``, and those of the extensions that are switched on."""
    parser = argparse.ArgumentParser(
        prog="python -m orlhf_ext.launch LAUNCHER", add_help=False, allow_abbrev=False, argument_default=None
    )
    group = parser.add_argument_group("orlhf-ext")
    group.add_argument(
        "--ext.use",
        action="append",
        default=[],
        metavar="NAME",
        help="switch an extension on, by name or as my_pkg.my_module:MyExtension; repeatable",
    )
    for item in extensions:
        before = set(parser._option_string_actions)
        section = parser.add_argument_group(f"extension {item.name} (with {', '.join(item.launchers)})")
        parser_like: Any = section
        try:
            item.add_flags(parser_like)
        except argparse.ArgumentError as error:
            raise UserError(f"extension {item.name!r} has a flag that another one has too: {error}") from error
        for flag in sorted(set(parser._option_string_actions) - before):
            if not flag.startswith(f"--{item.name}."):
                raise UserError(f"extension {item.name!r} adds the flag {flag}; its flags begin with --{item.name}.")
    return parser


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """The launcher's name and the rest; `deepspeed --module` puts ``--local_rank=N`` before everything."""
    leading = []
    while argv and argv[0].startswith("--local_rank"):
        leading.append(argv[0])
        argv = argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        return None, []
    return argv[0], argv[1:] + leading


def _uses(rest: list[str]) -> list[str]:
    """The values of every ``--ext.use`` in a command line."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--ext.use", action="append", default=[])
    return vars(finder.parse_known_args(rest)[0])["ext.use"]


def _refuse_strays(rest: list[str], parser: argparse.ArgumentParser, extensions: list[Extension]) -> None:
    """Flags of ours that nobody took: a typo, or an extension that was not switched on."""
    on = {item.name for item in extensions}
    known = names(EXTENSIONS)
    for word in rest:
        flag = word.partition("=")[0]
        prefix = flag[2:].partition(".")[0] if flag.startswith("--") and "." in flag else ""
        if prefix == "ext" or prefix in on:
            raise UserError(f"unknown flag {flag}{suggest(flag, list(parser._option_string_actions))}")
        if prefix in known:
            raise UserError(f"{flag} belongs to the extension {prefix!r}; add --ext.use {prefix}")


def _check_openrlhf() -> None:
    try:
        version = metadata.version("openrlhf")
    except metadata.PackageNotFoundError:
        raise UserError("OpenRLHF is not installed; run `bash recipes/setup.sh`, or pip install openrlhf") from None
    if version != OPENRLHF_VERSION:
        raise UserError(
            f"OpenRLHF {version} is installed, and the seams fit {OPENRLHF_VERSION} only; "
            f"pip install openrlhf=={OPENRLHF_VERSION}"
        )


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


def _machine_defaults(rest: list[str]) -> list[str]:
    """Flags and environment that follow from what this machine lacks; each is said, and a user's own choice stands."""
    if not backends.gpu_present():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
        # Threads that spin at barriers turn one busy neighbour into minutes of waiting; sleeping ones do not.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not backends.flash_attn_present() and not any(w.startswith("--ds.attn_implementation") for w in rest):
        inject.say("flash-attn is not installed: --ds.attn_implementation sdpa")
        return [*rest, "--ds.attn_implementation", "sdpa"]
    return rest


def _join_namespaces(own: dict[str, Any], extensions: list[Extension], swaps: list[inject.Swap], launcher: str) -> None:
    """Let the launcher's nested arguments hold ours too, and look at all of them before a model is loaded."""

    def patch(module: ModuleType) -> None:
        original = module.hierarchize  # type: ignore[attr-defined]

        def hierarchize(args: argparse.Namespace) -> SimpleNamespace:
            if clash := sorted(set(own) & set(vars(args))):
                raise UserError(f"the flag --{clash[0]} is {launcher}'s own; an extension may not take it")
            vars(args).update(own)
            nested = original(args)
            inject.verify(swaps, vars(sys.modules["__main__"]))
            check_arguments(launcher, nested)
            for item in extensions:
                item.check(nested)
            return nested

        hierarchize.__wrapped__ = original  # type: ignore[attr-defined]
        module.hierarchize = hierarchize  # type: ignore[attr-defined]

    inject.on_import("openrlhf.utils.config", patch)


def _help() -> None:
    parser = _parser([extension(name) for name in sorted(names(EXTENSIONS))])
    print(__doc__)
    print(f"launchers: {', '.join(LAUNCHERS)}\n")
    print(parser.format_help().partition("\n\n")[2])
    print("python -m orlhf_ext.launch LAUNCHER --help shows the launcher's flags too.")


@command
def main(argv: list[str] | None = None) -> None:
    """Take our flags out, install backends and extensions, and run the launcher as ``__main__``."""
    launcher, rest = _split(list(sys.argv[1:] if argv is None else argv))
    if launcher is None:
        _help()
        return
    _check_openrlhf()
    uses = _uses(rest)
    if duplicate := next((name for name in uses if uses.count(name) > 1), None):
        raise UserError(f"--ext.use {duplicate} is given twice; once is enough")
    extensions = [extension(name) for name in uses]
    _check_launcher(launcher, extensions)
    parser = _parser(extensions)
    own_namespace, rest = parser.parse_known_args(rest)
    own = vars(own_namespace)
    _refuse_strays(rest, parser, extensions)
    wants_help = "-h" in rest or "--help" in rest
    if wants_help:
        parser = _parser(extensions or [extension(n) for n in sorted(names(EXTENSIONS))])
        print(parser.format_help().partition("\n\n")[2] + f"\n{launcher}:", flush=True)
    swaps = inject.plan(extensions)
    rest = _machine_defaults(rest)
    backends.install()
    inject.install(swaps)
    inject.to_environment(swaps)
    _join_namespaces(own, extensions, swaps, launcher)
    if launcher not in RAY_LAUNCHERS:
        _single_process()
    sys.argv = [LAUNCHERS[launcher], *rest]
    runpy.run_module(LAUNCHERS[launcher], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
