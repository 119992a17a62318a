"""What lets OpenRLHF's launchers run on a machine without CUDA, and on one without flash-attn.

Each is gated on what the machine lacks: with CUDA and flash-attn nothing changes. `install` only registers patches
that take effect when a module is imported, so it is cheap enough for every Ray worker.
"""

from __future__ import annotations

from . import compiler
from .machine import flash_attn_present, gpu_present

_installed = False


def needed() -> list[str]:
    """The backends that this machine needs, by the names that they have in the table of seams."""
    lacks = {"cpu": not gpu_present(), "no-flash-attn": not flash_attn_present()}
    return [name for name, so in lacks.items() if so]


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
    if gpu_present():
        compiler.provide()
