"""What this machine has: GPUs, the CUDA that torch was built with, flash-attn. Nothing heavy is imported,
but by `torch_device`."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import re
from importlib.util import find_spec
from pathlib import Path


@functools.cache
def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built with, as ``"13.0"``; ``""`` for a build without CUDA, None
    where there is no torch. Read from its files: torch is not imported."""
    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    return parse_torch_cuda(text)


def parse_torch_cuda(version_py: str) -> str:
    """`torch_cuda`, from the text of ``torch/version.py``."""
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", version_py, re.MULTILINE)
    return found[1] if found else ""


GPUS_HIDDEN = "ORLHF_EXT_GPUS_HIDDEN"
"""In Ray workers, whether the user has hidden the GPUs from the run ("1" or "0")."""


RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the driver of a ``ray job submit``, the job's configuration."""


def gpus_hidden() -> bool:
    """Whether the user hides the GPUs: CUDA_VISIBLE_DEVICES is empty or begins with -1, at which CUDA ends the list.

    Ray empties it in workers that ask for no GPU of those that there are, so that workers get `GPUS_HIDDEN`, and in the
    driver of a job that was submitted with ``--entrypoint-num-cpus``."""
    visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    by_ray = os.environ.get("CUDA_VISIBLE_DEVICES") == "" and RAY_JOB in os.environ
    return os.environ.get(GPUS_HIDDEN, str(int(visible == [] and not by_ray))) == "1"


def visible_devices(given: str | None) -> list[str] | None:
    """The devices that a CUDA_VISIBLE_DEVICES names, up to the first that is none, as CUDA reads it; None: all."""
    if given is None:
        return None
    names = [name.strip() for name in given.split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))


def device_there() -> bool:
    """Whether this machine has an NVIDIA GPU that the user does not hide."""
    if gpus_hidden():
        return False
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0") or os.path.exists("/dev/dxg")


def gpu_present() -> bool:
    """Whether a run uses a CUDA device: there is one, and the installed torch is not a build without CUDA. Judged
    without importing torch (which reads OMP_NUM_THREADS at import)."""
    return device_there() and torch_cuda() != ""


def torch_device() -> str:
    """``cuda`` where torch has a GPU, else ``cpu``; imports torch."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def flash_attn_present() -> bool:
    """Whether flash-attn 2 is installed: later ones leave a folder of the same name without its modules."""
    spec = importlib.util.find_spec("flash_attn")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return any(Path(folder, "bert_padding.py").exists() for folder in folders)
