"""Rectified decoding for vLLM's first model runner: a row of logits for each request, in an order that changes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..cli.errors import UserError
from .stepper import QStepper
from .vllm_shared import Rectified

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

_log = logging.getLogger(__name__)


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


class RectifiedRows(Rectified):
    """For the first runner: a row for each request, in an order that changes, and its list of tokens."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        if vllm_config.speculative_config:
            raise UserError("rectified decoding needs every token's logits one by one; leave out speculative decoding")
        super().__init__(vllm_config, device)
        self.stepper = QStepper(self._q_model)
        self._requests: dict[int, _Request] = {}
        self._logged = 0

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that came, went and moved."""
        from vllm.v1.sample.logits_processor.builtin import process_dict_updates

        process_dict_updates(self._requests, batch_update, self._new)
        if not self._requests:
            self.stepper.forget()
            if self.steps > self._logged:
                self._logged = self.steps
                _log.info("rectified %d steps, of which %d infeasible", self.steps, self.infeasible_steps)

    def _new(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Request | None:
        if (epsilon := self._epsilon(params)) is None:
            return None
        if prompt is None:
            raise UserError("rectified decoding reads token ids, and a request has prompt embeddings; send it as text")
        return _Request(prompt, output, epsilon)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Rectify ``(requests, V)``: the rows of those that want it; the others stay as they are."""
        if not self._requests:
            return logits
        places = sorted(self._requests)
        requests = [self._requests[i] for i in places]
        q_values = self.stepper.values([request.ids() for request in requests])
        epsilon = torch.tensor([request.epsilon for request in requests], device=logits.device)
        new = torch.tensor([len(request.output) > request.counted for request in requests], device=logits.device)
        for request in requests:
            request.counted = len(request.output)
        if places == list(range(len(logits))):
            return self._rectify(logits, q_values, epsilon, new)
        logits[places] = self._rectify(logits[places], q_values, epsilon, new)
        return logits
