"""Values of the next token for texts in numbered rows: keys and values of what was read stay on the device, a row of
them for each text, a column for each position.

A caller reads the beginning of a text into a row once, and then gives the newest token of each row with its position.
Nothing is asked of the device, so that no step waits for it. A position that is given again is overwritten, and what
lies behind it is not seen: tokens that a speculator drafted, and that were rejected, need no undoing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicLayer

from .stepper import PREFILL_TOKENS

_MIN_GROWTH = 16  # columns


class _Layer(DynamicLayer):
    """Keys and values ``(rows, heads, columns, head_dim)`` of one layer; ``update`` puts new ones where `SlotStepper`
    says, and gives those of the rows that are asked for."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, owner: SlotStepper) -> None:
        super().__init__()
        self._owner = owner

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put ``(R, heads, 1, head_dim)``; gives ``(R, heads, width, head_dim)``."""
        self.fit(key_states, value_states)
        rows, columns, width = self._owner.place
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        return self.keys[rows, :, :width], self.values[rows, :, :width]

    def put(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put whole beginnings ``(R, heads, T, head_dim)``."""
        self.fit(keys, values)
        self.keys[rows, :, : keys.shape[2]] = keys
        self.values[rows, :, : values.shape[2]] = values

    def fit(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Grow to the size that the owner needs."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, columns = self._owner.size
        for name, like in (("keys", keys), ("values", values)):
            held = getattr(self, name)
            if held.ndim == 4 and (len(held), held.shape[2]) == (rows, columns):
                continue
            grown = like.new_zeros(rows, like.shape[1], columns, like.shape[3])
            if held.ndim == 4:
                grown[: len(held), :, : held.shape[2]] = held
            setattr(self, name, grown)


class SlotStepper:
    """Computes ``Q_D(s, .)`` step by step. Row 0 is nobody's, and takes what is to be thrown away.

    Args:
        q_model: what `load_q_model` gives.
    """

    def __init__(self, q_model: Any) -> None:
        self._model = q_model
        config = q_model.config.get_text_config()
        self._window: int | None = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds and "sliding_attention" not in kinds:
            self._window = None
        self._by_layer = len(kinds) > 1
        self.size = (1, 0)  # rows, columns
        self.place: tuple[torch.Tensor, torch.Tensor, int]
        self._layers: list[Any] = [_Layer(self) for _ in range(config.num_hidden_layers)]

    def make_room(self, rows: int, columns: int) -> None:
        """Let there be so many of each, at least; a quarter more, so that not every step copies."""
        have_rows, have_columns = self.size
        if rows > have_rows or columns > have_columns:
            self.size = (
                have_rows if rows <= have_rows else rows + rows // 4,
                have_columns if columns <= have_columns else columns + max(_MIN_GROWTH, columns // 4),
            )

    @torch.inference_mode()
    def read(self, rows: torch.Tensor, ids: torch.Tensor, lengths: list[int]) -> None:
        """Read beginnings.

        Args:
            rows: ``(R,)``, each once.
            ids: ``(R, T)``, padded on the right.
            lengths: tokens of each.
        """
        self.make_room(0, ids.shape[1])
        step = max(1, PREFILL_TOKENS // ids.shape[1])
        for start in range(0, len(lengths), step):
            part = slice(start, start + step)
            width = max(lengths[part])
            counts = torch.tensor(lengths[part], device=ids.device)
            mask = (torch.arange(width, device=ids.device) < counts[:, None]).long()
            cache: Any = Cache(layer_class_to_replicate=DynamicLayer)
            self._model.base_model(
                input_ids=self._known(ids[part, :width]),
                attention_mask=mask,
                position_ids=torch.arange(width, device=ids.device).expand_as(mask),
                past_key_values=cache,
                use_cache=True,
            )
            for layer, new in zip(self._layers, cache.layers, strict=True):
                layer.put(rows[part], new.keys, new.values)

    @torch.inference_mode()
    def values(self, rows: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
        """Values of what follows tokens.

        Args:
            rows: ``(R,)``; two may be equal, with tokens of one text at two positions.
            tokens, positions: ``(R,)``; what comes before them was read, or is among them.
            width: more than any position, known without asking the device.

        Returns:
            ``(R, V)``, at least float32.
        """
        self.make_room(0, width)
        self.place = (rows, positions, width)
        out = self._model.base_model(
            input_ids=self._known(tokens)[:, None],
            attention_mask=self._seen(positions, width),
            position_ids=positions[:, None],
            past_key_values=Cache(layers=self._layers),
            use_cache=True,
        )
        return self._model.q_head(out.last_hidden_state[:, -1])

    def _seen(self, positions: torch.Tensor, width: int) -> Any:
        """Which columns each row sees, ``(R, 1, 1, width)``; by their kind, where a model's layers differ."""
        columns = torch.arange(width, device=positions.device)
        whole = (columns <= positions[:, None])[:, None, None]
        if self._window is None:
            return whole
        near = whole & (columns > positions[:, None] - self._window)[:, None, None]
        return {"full_attention": whole, "sliding_attention": near} if self._by_layer else near

    def _known(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids that Q_D lacks (a language model may be padded to more), and placeholders of -1, are read as others."""
        return ids.long().clamp(0, self._model.config.vocab_size - 1)
