"""``deadend``: what Q_D says of a response, as a reward in ``train_ppo_ray``.

Q_D reads the policy's own token ids, so that both must have one tokenizer. Its values run from -1, the text ends badly,
to 0, it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

from ..backends.machine import torch_device
from ..cli.errors import UserError
from ..cli.flags import LENGTH, NOT_NEGATIVE
from ..models.folder import check_context, check_ids, find_model, load_tokenizer
from ..rewards import Reward, RewardBatch, RewardContext, RewardResult
from .settings import read_settings

FLAG = "--deadend.model"


@dataclass
class DeadEndValue(Reward):
    """The value that Q_D gives to a response: at its end, or at its worst token."""

    name: ClassVar[str] = "deadend"

    model: Annotated[str, "folder or hub name: what train_sft --ext.use dead-end wrote"]
    at: Annotated[Literal["last", "worst"], "last: the value of the last token; worst: the least of the response"] = (
        "last"
    )
    batch_tokens: Annotated[int, "padded tokens in a batch", LENGTH] = 16384
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], "of Q_D"] = "float32"
    attn_implementation: Annotated[str, "as in transformers"] = "sdpa"
    gpus: Annotated[float, "the part of a GPU that one copy takes, in a run with GPUs", NOT_NEGATIVE] = 0.25

    def check(self, args: SimpleNamespace) -> None:
        """Refuse a folder without Q_D, or one whose context is too short for the run."""
        folder = find_model(self.model, FLAG)
        read_settings(folder, FLAG)
        check_context(folder, args.data.max_len, "--data.max_len")

    def setup(self, context: RewardContext) -> None:
        """Load Q_D. Raises UserError if the folder has none, or its tokenizer is not the policy's."""
        self._folder = find_model(self.model, FLAG)
        settings = read_settings(self._folder, FLAG)
        tokenizer = load_tokenizer(self._folder, FLAG)
        if context.tokenizer is not None and tokenizer.get_vocab() != context.tokenizer.get_vocab():
            raise UserError(
                f"{FLAG} {self._folder} has another tokenizer than the policy, whose token ids it reads; take a value "
                "function that was trained from a model with the policy's"
            )
        #: a value that was never trained, unless texts ended with EOS in training
        self._untrained = None if settings.append_eos else tokenizer.eos_token_id
        from .model import load_q_model

        self._model: Any = load_q_model(self._folder, self.dtype, torch_device(), self.attn_implementation)

    def score(self, batch: RewardBatch) -> RewardResult:
        """Values in [-1, 0]; an empty response is worth what Q_D says of its prompt.
        Raises UserError if a rollout has no token ids, or one that Q_D does not know."""
        from .model import action_values

        rows = []
        for rollout in batch:
            ids = list(rollout.token_ids)
            if ids and ids[-1] == self._untrained and rollout.action_mask[-1]:
                ids.pop()
            if len(ids) < 2:
                raise UserError(
                    f"sample {rollout.id!r} has no token ids to read (in check reward, give --tokenizer {self._folder})"
                )
            rows.append(ids)
        check_ids(self._folder, rows, FLAG)
        last, worst = [0.0] * len(rows), [0.0] * len(rows)
        for i, values in action_values(self._model, rows, self.batch_tokens):
            written = [value for value, mine in zip(values, batch[i].action_mask[1:], strict=False) if mine]
            found = [min(max(value, -1.0), 0.0) for value in written or values[-1:]]
            last[i], worst[i] = found[-1], min(found)
        return RewardResult(last if self.at == "last" else worst, {"last": last, "worst": worst})
