"""OpenRLHF without flash-attn: ``openrlhf.models.ring_attn_utils`` imports four of its names at the top.

They are used only for packed samples and ring attention, so stand-ins exist while that one module is imported, and
not a moment longer: ``find_spec("flash_attn")`` stays honest for everybody else. Upstream could import them where they
are used; see ``patches/``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

from ..extensions.inject import during_import


def _missing(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError("flash-attn is not installed: --ds.packing_samples and ring attention need it")


def _stand_in(name: str, **names: object) -> None:
    module = ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module


@contextmanager
def _stand_ins() -> Iterator[None]:
    from einops import rearrange

    _stand_in("flash_attn", __path__=[])
    _stand_in("flash_attn.utils", __path__=[])
    _stand_in(
        "flash_attn.bert_padding",
        index_first_axis=_missing,
        pad_input=_missing,
        unpad_input=_missing,
        rearrange=rearrange,
    )
    _stand_in("flash_attn.utils.distributed", all_gather=_missing)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]


def install() -> None:
    """Register the stand-ins around the import of that one module."""
    during_import("openrlhf.models.ring_attn_utils", _stand_ins)
