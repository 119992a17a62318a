"""Rectified decoding in vLLM: a V1 logits processor that reads Q_D beside the language model.

    LLM(MODEL, logits_processors=["orlhf_ext.deadend.vllm:RectifiedDecoding"],
        additional_config={"deadend": {"model": Q_D_FOLDER, "epsilon": 0.1}})

``deadend`` takes ``model`` and, if wanted, ``epsilon`` (0.0), ``passes`` (2, or null for the limit), ``p_min`` (1e-7),
``infeasible`` ("normalize" or "fallback"), ``top_k`` (50, of "fallback") and ``dtype`` (float32, of Q_D). A request may
ask for another epsilon, or for none: ``SamplingParams(extra_args={"deadend_epsilon": 0.3})``, or ``"off"``.

The processor runs after ``min_tokens`` and before temperature, top-k and top-p. Q_D is on the engine's device, in
the memory that ``gpu_memory_utilization`` leaves free, which vLLM does not measure; a line says where that may be too
little for ``max_num_seqs`` sequences of ``max_model_len`` tokens. vLLM takes no processors together with speculative
decoding.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from ..backends.kernels import allow_amx
from ..cli.errors import UserError
from ..cli.flags import DTYPES
from ..files.records import is_number, is_share
from ..models.folder import context_length
from .decoding import P_MIN, TOP_K, Infeasible, align_vocabulary, check_vocabulary, rectify_counted
from .memory import free_part, needed_bytes, say_room
from .settings import read_settings
from .stepper import QStepper

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

KEY = "deadend"
EPSILON = "deadend_epsilon"
OFF = "off"

_log = logging.getLogger(__name__)
_live: weakref.WeakSet[RectifiedDecoding] = weakref.WeakSet()


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


@dataclass(eq=False)
class _Request:
    prompt: list[int]
    output: list[int]  # vLLM's own list, which grows
    epsilon: float
    counted: int = -1  # tokens of output when its last step was counted

    def ids(self) -> tuple[int, ...]:
        if self.output and self.output[-1] < 0:
            raise UserError(
                "vLLM hands the logits processor placeholders instead of the last tokens; start the engine with "
                "async_scheduling=False"
            )
        return (*self.prompt, *self.output)


class RectifiedDecoding(LogitsProcessor):
    """See the module's text.

    Attributes:
        steps: next tokens that were rectified; a prompt that is read in several parts counts once.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Load Q_D.

        Raises:
            UserError: the settings or the folder are wrong; Q_D knows fewer tokens than the language model, or reads
                shorter texts.
        """
        if device.type == "cpu":
            allow_amx()
        config = vllm_config.additional_config
        self.settings = Settings.read(config.get(KEY) if isinstance(config, dict) else None)
        folder = Path(self.settings.model)
        if vllm_config.speculative_config:
            raise UserError("rectified decoding needs every token's logits one by one; leave out speculative decoding")
        model_config = vllm_config.model_config
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

        self.stepper = QStepper(load_q_model(folder, self.settings.dtype, str(device)))
        self.steps = 0
        self._infeasible = torch.zeros((), dtype=torch.long, device=device)
        self._requests: dict[int, _Request] = {}
        self._logged = 0
        _live.add(self)

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
        """Refuse a request that asks for nonsense.

        Raises:
            ValueError: ``deadend_epsilon`` is neither a number in [0, 1] nor "off", or another key begins with
                ``deadend_``.
        """
        asked = sampling_params.extra_args or {}
        for key in asked:
            if key.startswith(f"{KEY}_") and key != EPSILON:
                raise ValueError(f"extra_args has an unknown key {key!r}; the only one is {EPSILON!r}")
        epsilon = asked.get(EPSILON)
        if epsilon is not None and epsilon != OFF and not is_share(epsilon):
            raise ValueError(f"extra_args has {EPSILON} {epsilon!r}; give a number from 0 to 1, or {OFF!r}")

    @property
    def infeasible_steps(self) -> int:
        """Those of ``steps`` where the caps of all tokens summed to less than 1."""
        return int(self._infeasible)

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that came, went and moved."""
        process_dict_updates(self._requests, batch_update, self._new)
        if not self._requests:
            self.stepper.forget()
            if self.steps > self._logged:
                self._logged = self.steps
                _log.info("rectified %d steps, of which %d infeasible", self.steps, self.infeasible_steps)

    def _new(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Request | None:
        epsilon = (params.extra_args or {}).get(EPSILON)
        if epsilon == OFF:
            return None
        if prompt is None:
            raise UserError("rectified decoding reads token ids, and a request has prompt embeddings; send it as text")
        return _Request(prompt, output, self.settings.epsilon if epsilon is None else float(epsilon))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Rectify ``(requests, V)``: the rows of those that want it; the others stay as they are."""
        if not self._requests:
            return logits
        settings, places = self.settings, sorted(self._requests)
        requests = [self._requests[i] for i in places]
        q_values = align_vocabulary(self.stepper.values([request.ids() for request in requests]), logits.shape[-1])
        every = places == list(range(len(logits)))
        rows = logits if every else logits[places]
        epsilon = torch.tensor([request.epsilon for request in requests], device=logits.device)
        new = [len(request.output) > request.counted for request in requests]
        for request in requests:
            request.counted = len(request.output)
        self.steps += sum(new)
        how = (settings.passes, settings.p_min, settings.infeasible, settings.top_k)
        rows, infeasible = rectify_counted(rows, q_values, epsilon, *how)
        rows = rows.to(logits.dtype)
        self._infeasible += (infeasible & torch.tensor(new, device=infeasible.device)).sum()
        if every:
            return rows
        logits[places] = rows
        return logits


def counts() -> dict[str, int]:
    """``steps`` and ``infeasible_steps`` of the engines in this process (not of those in processes of their own)."""
    return {
        "steps": sum(processor.steps for processor in _live),
        "infeasible_steps": sum(processor.infeasible_steps for processor in _live),
    }
