"""Rectified decoding in Hugging Face's ``generate``: ``generate(..., logits_processor=[RectifiedLogitsProcessor(q)])``.

Custom processors run after ``min_new_tokens`` and before temperature, top-k and top-p. Beams work, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from ..cli.errors import UserError
from .decoding import P_MIN, TOP_K, Infeasible, align_vocabulary, rectify_counted
from .settings import QSettings
from .stepper import QStepper


class RectifiedLogitsProcessor(LogitsProcessor):
    """Caps the probability of every next token by what Q_D knows of it.

    One object serves any number of ``generate`` calls, one after the other. Rows that have ended are left alone.

    Args:
        q_model: what `load_q_model` gives, on the language model's device.
        epsilon, passes, p_min, infeasible, top_k: as in `rectify`.
        pad_token_id: pads prompts on the left; each row's leading pads are not text. Without it, nothing is padding.
        eos_token_id: what ends a row; one id, or several. Without it, ended rows go on being computed.
        vocab_size: tokens that the language model's tokenizer has, where its logits are padded to more.

    Attributes:
        steps: next tokens that were rectified.
        infeasible_steps: those of them where the caps of all tokens summed to less than 1.
    """

    def __init__(
        self,
        q_model: Any,
        epsilon: float = 0.0,
        *,
        passes: int | None = 2,
        p_min: float = P_MIN,
        infeasible: Infeasible = "normalize",
        top_k: int = TOP_K,
        pad_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.stepper = QStepper(q_model)
        self.settings: QSettings = q_model.settings
        self.epsilon = epsilon
        self.options: dict[str, Any] = {"passes": passes, "p_min": p_min, "infeasible": infeasible, "top_k": top_k}
        self.pad_token_id = pad_token_id
        self.ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
        self.vocab_size = vocab_size
        self.steps = self.infeasible_steps = 0
        self._coming: list[list[int]] | None = None
        self._mask: list[list[int]] | None = None
        self._start = 0  # width of the prompts
        self._before: set[tuple[int, ...]] = set()

    def for_batch(self, attention_mask: torch.Tensor) -> RectifiedLogitsProcessor:
        """Tell the coming ``generate`` call's mask ``(B, T)``; needed only where the padding token is also text.

        Returns:
            itself.
        """
        self._coming = attention_mask.tolist()
        self._before = set()
        return self

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rectify ``scores`` ``(rows, V)``, the logits behind ``input_ids`` ``(rows, T)``.
        Raises UserError if the language model has tokens that Q_D does not know."""
        if (self.vocab_size or scores.shape[-1]) > self.settings.vocab_size:
            raise UserError(
                f"the value function knows {self.settings.vocab_size} tokens and the language model has "
                f"{self.vocab_size or scores.shape[-1]}; take two models with one tokenizer, or say with vocab_size "
                "how many tokens there are without padding"
            )
        rows = [tuple(ids) for ids in input_ids.tolist()]
        self._notice_start(rows)
        live = [i for i, ids in enumerate(rows) if not self.ends.intersection(ids[self._start :])]
        if not live:
            return scores
        q_values = self.stepper.values([rows[i][self._padding(rows, i) :] for i in live])
        logits = scores if len(live) == len(rows) else scores[live]
        q_values = align_vocabulary(q_values.to(scores.device), scores.shape[-1])
        self.steps += len(live)
        logits, infeasible = rectify_counted(logits, q_values, self.epsilon, **self.options)
        logits = logits.to(scores.dtype)
        self.infeasible_steps += int(infeasible.sum())
        if len(live) == len(rows):
            return logits
        out = scores.clone()
        out[live] = logits
        return out

    def _notice_start(self, rows: list[tuple[int, ...]]) -> None:
        """A step goes on from rows of the last one; whatever does not begins another ``generate``."""
        if not self._before or any(ids[:-1] not in self._before for ids in rows):
            self._start = len(rows[0])
            self._mask, self._coming = self._coming, None
            if self._mask and (len(self._mask[0]) != self._start or len(rows) % len(self._mask)):
                shape = (len(self._mask), len(self._mask[0]))
                raise ValueError(f"for_batch was given a mask {shape} for prompts {(len(rows), self._start)}")
        self._before = set(rows)

    def _padding(self, rows: list[tuple[int, ...]], i: int) -> int:
        """How many leading tokens of row i are padding; at least one token is left."""
        if self._mask:
            return self._mask[i * len(self._mask) // len(rows)].index(1)
        count = 0
        while count < self._start - 1 and rows[i][count] == self.pad_token_id:
            count += 1
        return count
