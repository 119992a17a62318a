"""What lets OpenRLHF's launchers run on a machine without CUDA, and on one without flash-attn.

Each is gated on what the machine lacks: with CUDA and flash-attn nothing changes. `install` only registers patches
that take effect when a module is imported, so it is cheap enough for every Ray worker.
"""

from __future__ import annotations

import importlib.util
import os

_installed = False

GPUS_HIDDEN = "ORLHF_EXT_GPUS_HIDDEN"
"""In Ray workers, whether the user has hidden the GPUs from the run ("1" or "0")."""


RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What ``ray job submit`` tells the driver of its job."""


def gpus_hidden() -> bool:
    """Whether the user hides the GPUs with an empty CUDA_VISIBLE_DEVICES. Ray empties it in workers that ask for no GPU
    of those that there are, so that a worker has to be told, and in the driver of a job that was submitted with
    ``--entrypoint-num-cpus``."""
    empty = os.environ.get("CUDA_VISIBLE_DEVICES") == "" and RAY_JOB not in os.environ
    return os.environ.get(GPUS_HIDDEN, str(int(empty))) == "1"


def gpu_present() -> bool:
    """Whether a CUDA device can be seen, judged without importing torch (which reads OMP_NUM_THREADS at import)."""
    if gpus_hidden():
        return False
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0") or os.path.exists("/dev/dxg")


def flash_attn_present() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def install() -> None:
    """Register the backends that this machine needs; a second call does nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    if not flash_attn_present():
        from . import no_flash_attn

        no_flash_attn.install()
    from . import cpu

    cpu.install()
