"""What a baseline depends on: two likelihoods are comparable only where all of it is the same.

The first tier of the reward, 0.05 %, is 0.0005 nats a token, less than what another dtype or attention changes. A
reward is the difference from a baseline in the same batch (`plans.score_plans`); a stored one gives its level.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.machine import gpu_present
from ..cli.errors import UserError
from ..files.records import object_or_empty
from ..files.sidecars import sidecar_path
from ..models.folder import identity
from .labels import COMPUTE_BASELINE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # OpenRLHF's names
_LIBRARIES = ("torch", "transformers", "tokenizers")


def make_fingerprint(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    attention: str,
    system: str = "keep",
    tail: str = "auto",
    device: str | None = None,
) -> dict[str, str]:
    """Everything that the numbers depend on, by name.

    Args:
        folder: of the model that scores.
        tokenizer: its tokenizer.
        dtype: of its weights, by torch's name or OpenRLHF's.
        attention: as in transformers.
        system: see `sequences.Encoder`.
        tail: see `sequences.Encoder`.
        device: ``cuda`` or ``cpu``; None: what this machine has (also where Ray hides it from a worker).
    """
    from ..models.likelihood import VERSION

    if device is None:
        import torch

        device = "cuda" if gpu_present() and torch.version.cuda else "cpu"
    libraries = [*_LIBRARIES, *(["flash_attn"] if attention.startswith("flash") else [])]
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    return {
        "model": identity(folder),
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "dtype": _DTYPES.get(dtype, dtype),
        "attention": attention,
        "system": system,
        "tail": tail,
        "device": device,
        "scoring": str(VERSION),
        **{name: _version(name) for name in libraries},
    }


def digest(fingerprint: Mapping[str, str]) -> str:
    """One hash of all of it, as labels have it."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """What two fingerprints differ in, for a message: ``dtype (bfloat16 there, float32 here)``."""
    names = [name for name in [*wanted, *(found.keys() - wanted.keys())] if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} ({_short(found.get(name))} there, {_short(wanted.get(name))} here)" for name in names)


def read_fingerprint(path: str | Path) -> dict[str, str]:
    """What a file's baselines depend on, from its sidecar. Raises UserError if there are none."""
    sidecar = sidecar_path(path)
    found = object_or_empty(sidecar).get("fingerprint")
    if not isinstance(found, dict):
        raise UserError(f"{path} has no baselines ({sidecar} has no fingerprint); {COMPUTE_BASELINE}")
    return found


def check_fingerprint(path: str | Path, fingerprint: Mapping[str, str]) -> None:
    """Compare a file's sidecar with the run that wants to use its baselines.
    Raises UserError if they were computed with something else, which is named, or if there are none."""
    found = read_fingerprint(path)
    if found != dict(fingerprint):
        raise UserError(
            f"{path} has baselines with another {differences(found, fingerprint)}; {COMPUTE_BASELINE} again"
        )


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:12] if len(value) == 64 else value  # a hash


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
