"""What the logits processors for both of vLLM's model runners share: settings, requests' wishes, and the caps."""

from __future__ import annotations

import contextlib
import importlib
import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..backends.kernels import allow_amx
from ..cli.errors import UserError
from ..cli.flags import DTYPES
from ..files.records import is_number, is_share
from ..models.folder import context_length
from .decoding import P_MIN, TOP_K, Infeasible, align_vocabulary, check_vocabulary, rectify_counted
from .memory import free_part, needed_bytes, say_room
from .settings import read_settings

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

KEY = "deadend"
EPSILON = "deadend_epsilon"
OFF = "off"

_log = logging.getLogger(__name__)
#: of the engines in this process
live: weakref.WeakSet[Rectified] = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``additional_config["deadend"]``."""

    model: str
    epsilon: float = 0.0
    passes: int | None = 2
    p_min: float = P_MIN
    infeasible: Infeasible = "normalize"
    top_k: int = TOP_K
    dtype: str = "float32"

    @classmethod
    def read(cls, value: Any) -> Settings:
        """Check what a user has written.
        Raises UserError if it is missing, or a key is unknown, missing or wrong; the key is named."""
        where = f"additional_config[{KEY!r}]"
        known = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or "model" not in value:
            raise UserError(f'{where} must be an object with the folder of a value function: {{"model": DIR}}')
        if unknown := sorted(set(value) - set(known)):
            raise UserError(f"{where} has an unknown key {unknown[0]!r}; known: {', '.join(known)}")
        settings = cls(**value)
        wrong = {
            "model": not isinstance(settings.model, str | Path),
            "epsilon": not is_share(settings.epsilon),
            "passes": settings.passes is not None and not (isinstance(settings.passes, int) and settings.passes > 0),
            "p_min": not is_number(settings.p_min) or not 0 < settings.p_min <= 1,
            "infeasible": settings.infeasible not in ("normalize", "fallback"),
            "top_k": not isinstance(settings.top_k, int) or settings.top_k < 1,
            "dtype": settings.dtype not in DTYPES,
        }
        for name in known:
            if wrong[name]:
                raise UserError(f"{where} has {name} {getattr(settings, name)!r}, which makes no sense")
        return settings


def _interfaces() -> tuple[type, ...]:
    """The abstract classes that this vLLM's runners ask for: each looks for its own among a processor's bases."""
    found = []
    for module in ("vllm.v1.sample.logits_processor", "vllm.v1.worker.gpu.sample.logits_processor"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(module).LogitsProcessor)
    return tuple(found)


INTERFACES = _interfaces()


class Rectified(*INTERFACES):  # type: ignore[misc]
    """What both runners' processors share.

    Attributes:
        settings: those of the engine.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        """Load Q_D.

        Raises:
            UserError: the settings or the folder are wrong; Q_D knows fewer tokens than the language model, or reads
                shorter texts.
        """
        if device.type == "cpu":
            allow_amx()
        config = vllm_config.additional_config
        self.settings = Settings.read(config.get(KEY) if isinstance(config, dict) else None)
        folder, model_config = Path(self.settings.model), vllm_config.model_config
        known = read_settings(folder, f"additional_config[{KEY!r}] model").vocab_size
        check_vocabulary(known, str(folder), model_config.get_vocab_size(), model_config.model, model_config.tokenizer)
        context = context_length(folder)
        if context is not None and context < model_config.max_model_len:
            raise UserError(
                f"the value function {folder} reads {context} tokens, and vLLM's max_model_len is "
                f"{model_config.max_model_len}; lower max_model_len"
            )
        self._check_room(vllm_config, folder, device)
        from .model import load_q_model

        self._q_model = load_q_model(folder, self.settings.dtype, str(device))
        self._counts = torch.zeros(2, dtype=torch.long, device=device)  # rectified, infeasible
        live.add(self)

    def _check_room(self, vllm_config: VllmConfig, folder: Path, device: torch.device) -> None:
        """Say where Q_D may find too little memory: vLLM takes its share before Q_D works."""
        if device.type != "cuda":
            return
        rows, length = vllm_config.scheduler_config.max_num_seqs, vllm_config.model_config.max_model_len
        needed = needed_bytes(folder, rows, length, self.settings.dtype)
        total = torch.cuda.get_device_properties(device).total_memory
        asked = vllm_config.cache_config.gpu_memory_utilization
        if free_part(needed, total) < asked:
            said = say_room(asked, asked, needed, total, rows)
            _log.warning("%s, and gpu_memory_utilization %g leaves less; lower it, or max_num_seqs", said, asked)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that asks for nonsense, or that would not be rectified.

        Raises:
            ValueError: ``deadend_epsilon`` is neither a number in [0, 1] nor "off", or another key begins with
                ``deadend_``; the second runner is forced on a vLLM where it knows no processors.
        """
        from vllm import envs

        if envs.VLLM_USE_V2_MODEL_RUNNER and len(INTERFACES) < 2:
            raise ValueError(
                "this vLLM's second model runner ignores logits processors, so that nothing would be rectified; unset "
                "VLLM_USE_V2_MODEL_RUNNER, or take vLLM 0.31 or newer"
            )
        asked = sampling_params.extra_args or {}
        for key in asked:
            if key.startswith(f"{KEY}_") and key != EPSILON:
                raise ValueError(f"extra_args has an unknown key {key!r}; the only one is {EPSILON!r}")
        epsilon = asked.get(EPSILON)
        if epsilon is not None and epsilon != OFF and not is_share(epsilon):
            raise ValueError(f"extra_args has {EPSILON} {epsilon!r}; give a number from 0 to 1, or {OFF!r}")

    @property
    def steps(self) -> int:
        """Next tokens that were rectified. A prompt that is read in several parts counts once, each draft by itself."""
        return int(self._counts[0])

    @property
    def infeasible_steps(self) -> int:
        """Those of ``steps`` where the caps of all tokens summed to less than 1."""
        return int(self._counts[1])

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Of the first runner; the second one's slots need none."""

    def _epsilon(self, params: SamplingParams) -> float | None:
        """What a request asks for; None: to be left alone."""
        asked = (params.extra_args or {}).get(EPSILON)
        if asked == OFF:
            return None
        return self.settings.epsilon if asked is None else float(asked)

    def _rectify(
        self, logits: torch.Tensor, q_values: torch.Tensor, epsilon: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        """Rectified rows ``(R, V)`` of logits; those of ``counted``, ``(R,)``, are counted."""
        how = (self.settings.passes, self.settings.p_min, self.settings.infeasible, self.settings.top_k)
        rows, infeasible = rectify_counted(logits, align_vocabulary(q_values, logits.shape[-1]), epsilon, *how)
        self._counts += torch.stack([counted.sum(), (infeasible & counted).sum()])
        return rows.to(logits.dtype)
