"""Rectified decoding for vLLM's second model runner: requests live in slots, and their tokens on the device.

The interface is that of ``vllm.v1.worker.gpu.sample.logits_processor`` (vLLM 0.31 to 0.33). A slot is used again
without a word when its request has ended; a request that was preempted enters another one with all that it had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..cli.errors import UserError
from .slots import SlotStepper
from .vllm_shared import Rectified

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class RectifiedSlots(Rectified):
    """For the second runner. Rows of logits are those of requests, and of each request's drafts."""

    def __init__(self, vllm_config: VllmConfig, req_states: Any) -> None:
        if getattr(vllm_config.model_config, "enable_prompt_embeds", False):
            raise UserError("rectified decoding reads token ids; leave out enable_prompt_embeds")
        super().__init__(vllm_config, req_states.device)
        self.stepper = SlotStepper(self._q_model)
        self._slots = req_states
        self._row = np.zeros(req_states.max_num_reqs, dtype=np.int64)  # of the stepper; 0: to be left alone
        self._wants = np.zeros(req_states.max_num_reqs, dtype=np.float32)
        self._rows: dict[int, int] = {}  # the stepper's row of every slot that ever had one
        self._unread: list[int] = []
        self._on_device: tuple[torch.Tensor, torch.Tensor] | None = None

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """A request enters a slot; returns whether its logits are to be copied. vLLM's warm-up fills slots without
        tokens, which are left alone."""
        epsilon = self._epsilon(sampling_params)
        on = epsilon is not None and int(self._slots.prefill_len.np[req_idx]) > 0
        self._row[req_idx] = self._rows.setdefault(req_idx, len(self._rows) + 1) if on else 0
        self._wants[req_idx] = epsilon or 0.0
        self._on_device = None
        if on:
            self._unread.append(req_idx)
        return on

    def apply_staged_writes(self) -> None:
        """Read what the new requests begin with, all but the last token, which comes with its logits."""
        device = self._slots.device
        if self._on_device is None:
            self._on_device = torch.tensor(self._row, device=device), torch.tensor(self._wants, device=device)
        slots = list(dict.fromkeys(slot for slot in self._unread if self._slots.prefill_len.np[slot] > 1))
        self._unread = []
        self.stepper.make_room(len(self._rows) + 1, 0)
        if slots:
            lengths = [int(self._slots.prefill_len.np[slot]) - 1 for slot in slots]
            ids = self._slots.all_token_ids.gpu[torch.tensor(slots, device=device), : max(lengths)]
            self.stepper.read(torch.tensor(self._row[slots], device=device), ids, lengths)

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Rectify ``(R, V)``: the rows of requests that want it, without asking anything of the device.

        Args:
            logits: a copy, after penalties and grammars, before temperature.
            ctx: vLLM's `LogitsContext`: the slot, position and last token of each row.
        """
        if self._on_device is None or not self._row[ctx.idx_mapping_np].any():
            return logits
        slots = ctx.expanded_idx_mapping.long()
        row_of, wants = self._on_device
        rows = row_of[slots]
        width = int(ctx.seq_lens_upper_bound_np[: len(ctx.idx_mapping_np)].max())
        positions = ctx.pos.long().clamp(0, width - 1)
        q_values = self.stepper.values(rows, ctx.input_ids, positions, width)
        on = rows > 0
        # not within a prompt that is read in parts
        sampled = on & (positions + 1 >= self._slots.prefill_len.gpu[slots])
        rectified = self._rectify(logits, q_values, wants[slots], sampled)
        return torch.where(on[:, None], rectified, logits)
