"""Reward models as ``train_rm`` writes them: what they read, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import backends
from ..cli.errors import UserError
from .batches import Compute, Row, pad_left
from .folder import read_config, weight_shapes
from .texts import Sample, Text, encode, whole_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """The rows of a file, and what the length limit did to them."""

    rows: list[Row]
    #: for each row whether it was longer than the limit
    cut: list[bool]
    #: rows whose prompt alone fills the limit, so that nothing of the completion is seen
    unseen: int

    @property
    def truncated(self) -> int:
        """How many rows were."""
        return sum(self.cut)


def encode_rows(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    max_len: int,
    chat: bool = False,
    no_prompt: bool = False,
) -> Encoded:
    """Token ids as OpenRLHF's `RewardDataset` makes them: text rule, truncation, and EOS as the last id in any case.

    With ``no_prompt``, of the completions alone.
    """

    def read(sample: Sample, completion: Text) -> Sample:
        return replace(sample, prompt="" if isinstance(completion, str) else []) if no_prompt else sample

    texts = [
        (i, k, *whole_text(tokenizer, read(sample, completion), completion, chat))
        for i, sample in enumerate(samples)
        for k, completion in enumerate(sample.completions)
    ]
    prompts = encode(tokenizer, [prompt for _, _, prompt, _ in texts])
    wholes = encode(tokenizer, [whole for *_, whole in texts])
    rows: list[Row] = []
    cut: list[bool] = []
    unseen = 0
    keep_right = tokenizer.truncation_side == "left"  # the tokenizer decides in training, too
    for (i, k, *_), prompt, ids in zip(texts, prompts, wholes, strict=True):
        cut.append(len(ids) > max_len)
        if cut[-1]:
            unseen += len(prompt) >= max_len - 1 and not keep_right
            ids = ids[-max_len:] if keep_right else ids[:max_len]
        rows.append(Row(i, k, [*ids[:-1], int(tokenizer.eos_token_id)], len(prompt)))
    return Encoded(rows, cut, unseen)


def check_reward_model(folder: Path, flag: str = "--model") -> int:
    """How many scores the value head gives.

    It must be among the weights: transformers would make a missing one at random.

    Raises:
        UserError: it is not there.
    """
    head = str(read_config(folder).get("value_head_prefix", "score"))
    shape = weight_shapes(folder, flag).get(f"{head}.weight")
    if shape is None:
        raise UserError(
            f"{flag} {folder} is no reward model: its weights have no {head}.weight; give a folder that train_rm wrote "
            "(with LoRA, train_rm does not save the head: train without it)"
        )
    return shape[0]


def is_classifier(folder: Path) -> bool:
    """Whether a folder is what transformers saved of a sequence classifier, and not train_rm's."""
    names = read_config(folder).get("architectures") or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def pooled_away(folder: Path) -> int | None:
    """transformers' classifiers pool at the last token that is not this one, which may be EOS."""
    return read_config(folder).get("pad_token_id") if is_classifier(folder) else None


def without_end(ids: list[int], end: int | None) -> list[int]:
    """Without the end that a transformers classifier takes for padding: a causal model's score is then the same."""
    while len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    return ids


def load_scorer(folder: Path, pad_id: int, dtype: str, attention: str, flag: str = "--model") -> Compute:
    """Load a reward model through OpenRLHF; the function that comes back maps rows to raw rewards.

    Raises:
        UserError: its weights are not whole and finite.
    """
    backends.install()
    import torch
    from openrlhf.models.model import get_llm_for_sequence_regression

    from .weights import load_reward

    model = load_reward(get_llm_for_sequence_regression, folder, flag, dtype, attention, normalize_reward=False)

    @torch.inference_mode()
    def score(rows: list[Row]) -> list[float]:
        return model(*pad_left([row.ids for row in rows], pad_id, model.device)).float().tolist()

    return score
