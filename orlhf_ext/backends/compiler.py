"""The CUDA compiler of a run with GPUs: DeepSpeed builds its Adam at its first use, FlashInfer the sampler of vLLM.

A machine with a toolkit that fits torch is left alone. Where there is none, the compiler that ``requirements-gpu.txt``
installs beside torch serves: pip's layout (``lib`` instead of ``lib64``, no ``libcudart.so`` without a version) is not
what they look for, so they get a folder of links to it. Where no compiler fits, torch's own AdamW and vLLM's own
sampler take their place, which need none.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..extensions.inject import on_import, say
from .machine import torch_cuda

CHOSEN = "ORLHF_EXT_COMPILER"
"""Environment of this process and those that it starts: what was chosen, `FOUND` or `NONE`, and said."""
FOUND, NONE = "found", "none"

MACHINE = Path("/usr/local/cuda")
"""Where a machine's own toolkit is, for torch and FlashInfer, too."""

Version = tuple[int, int]
_DRIVERS = [Path(folder) for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib", "/usr/lib")]


class Choice(NamedTuple):
    """What a run compiles with: a toolkit's folder (None: nothing fits), whether it is pip's, and why none fits."""

    home: Path | None
    from_pip: bool = False
    why_not: str = ""


def to_version(text: str) -> Version:
    """``"13.0"`` as numbers."""
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def compiler_version(home: Path) -> Version | None:
    """What ``bin/nvcc`` of a toolkit says; None where there is none, or it does not run, or headers are missing."""
    nvcc = home / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK) or not (home / "include" / "cuda_runtime.h").exists():
        return None
    try:
        said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def fits(compiler: Version, torch: Version) -> bool:
    """Whether DeepSpeed accepts the pair: the same version, or (CUDA 11 and 12) the same major one."""
    return compiler == torch or (compiler[0] == torch[0] and torch[0] < 13)


def pip_home(torch: Version) -> Path | None:
    """Where pip put the parts of the CUDA toolkit; None where there is no compiler among them."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (home := Path(folder) / f"cu{torch[0]}").joinpath("bin", "nvcc").exists():
            return home
    return None


def choose(torch: Version) -> Choice:
    """The toolkit to compile with: the user's ``CUDA_HOME``, the machine's, or pip's; the first that fits torch."""
    if given := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        homes = [Path(given)]
    else:
        nvcc = shutil.which("nvcc")
        homes = [Path(nvcc).resolve().parent.parent] if nvcc else []
        homes.append(MACHINE)
    from_pip = None if given else pip_home(torch)
    passed = []
    for home in [*homes, *([from_pip] if from_pip else [])]:
        version = compiler_version(home)
        if version is not None and fits(version, torch):
            return Choice(home, from_pip=home is from_pip) if host_compiler() else Choice(None, why_not=_NO_HOST)
        if version is not None:
            passed.append(f"{home} has CUDA {version[0]}.{version[1]}")
        elif given:
            passed.append(f"CUDA_HOME {home} is not a toolkit")
        elif home is from_pip:
            passed.append(f"{home} does not run")
    return Choice(None, why_not="; ".join(passed) or "none is installed")


_NO_HOST = "nvcc needs a C++ compiler (g++), and there is none"


def host_compiler() -> str | None:
    """The C++ compiler that nvcc, torch and Triton call."""
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def make_links(home: Path) -> Path:
    """A folder of links to the parts in `pip_home`, in the layout of a toolkit; made once, under ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orlhf-ext"
    folder = cache / f"cuda-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"
    (folder / "lib64").mkdir(parents=True, exist_ok=True)
    for name, target in _links(home):
        link = folder / name
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)  # of a version that pip has replaced
        if not link.is_symlink():
            try:
                link.symlink_to(target)
            except FileExistsError:  # another process makes them, too
                continue
    return folder


def _links(home: Path) -> Iterator[tuple[str, Path]]:
    for name in ("bin", "include", "nvvm"):
        yield name, home / name
    yield "lib", Path("lib64")
    for library in sorted((home / "lib").iterdir()):
        yield f"lib64/{library.name}", library
        stem, dot, _ = library.name.partition(".so.")
        if dot:
            yield f"lib64/{stem}.so", library
    for folder in _DRIVERS:  # containers get the driver's library under its full name alone
        if (driver := folder / "libcuda.so.1").exists():
            yield "lib64/libcuda.so", driver
            break


def provide() -> None:
    """Let DeepSpeed and FlashInfer find a compiler that fits, or do without one; said once, in the first process.

    Nothing is imported, so that every Ray worker can afford it.
    """
    built = torch_cuda()
    if not built:
        return
    if CHOSEN not in os.environ:
        choice = choose(to_version(built))
        os.environ[CHOSEN] = FOUND if choice.home else NONE
        if choice.home is None:
            say(
                f"no CUDA {built} compiler ({choice.why_not}): torch's AdamW instead of DeepSpeed's, and vLLM samples "
                "without FlashInfer"
            )
        elif choice.from_pip:
            os.environ["CUDA_HOME"] = str(make_links(choice.home))
            say(f"CUDA_HOME is {os.environ['CUDA_HOME']}, the compiler that pip installed beside torch")
        else:
            os.environ.setdefault("CUDA_HOME", str(choice.home))
        _let_ninja_be_found()
    if os.environ[CHOSEN] == NONE:
        from . import cpu

        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        on_import("openrlhf.utils.deepspeed.deepspeed_utils", cpu.use_torch_adam)


def _let_ninja_be_found() -> None:
    """torch and FlashInfer call ninja by name; a virtual environment that was not activated has it beside python."""
    beside = Path(sys.executable).parent
    if shutil.which("ninja") is None and (beside / "ninja").exists():
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{beside}"
