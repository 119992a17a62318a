"""Reward models: what they read of texts, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import backends
from ..cli.errors import UserError
from .batches import Compute, Row, pad_left
from .folder import check_ids, find_model, find_same, load_tokenizer, read_config, weight_shapes
from .texts import Sample, Text, encode, encode_whole, whole_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardRows(NamedTuple):
    """The rows of a file, and what the length limit did to them."""

    rows: list[Row]
    #: for each row whether it was longer than the limit
    cut: list[bool]
    #: rows whose prompt alone fills the limit, so that nothing of the completion is seen
    unseen: int

    @property
    def truncated(self) -> int:
        """How many rows were cut."""
        return sum(self.cut)


def encode_rows(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    max_len: int,
    chat: bool = False,
    no_prompt: bool = False,
) -> RewardRows:
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
    side = tokenizer.truncation_side  # the tokenizer decides in training, too
    wholes = encode_whole(tokenizer, [whole for *_, whole in texts], max_len, side, end=True)
    rows = [Row(i, k, one.ids, len(ids)) for (i, k, *_), ids, one in zip(texts, prompts, wholes, strict=True)]
    cut = [one.lost > 0 for one in wholes]
    unseen = sum(row.prompt_length >= max_len - 1 for row, lost in zip(rows, cut, strict=True) if lost)
    return RewardRows(rows, cut, unseen if side == "right" else 0)


class RewardModel:
    """The folder of a reward model, as a reader of texts: token ids in, raw scores out.

    The folder is ``train_rm``'s, with one score for a text or one for each group, or what transformers saved of a
    sequence classifier with one label. Neither torch nor the weights are loaded before `load`.

    Args:
        name: folder or hub name.
        flag: how the user gave it, for messages.
        single: whether it must give one score for a text.

    Raises:
        UserError: it is not a reward model, or gives several scores where one is asked for.
    """

    def __init__(self, name: str, flag: str = "--model", single: bool = True) -> None:
        self.flag = flag
        self.folder = find_model(name, flag)
        config = read_config(self.folder)
        #: the name of its head's tensor, ``(scores, d)``
        self.head = f"{config.get('value_head_prefix', 'score')}.weight"
        # It must be among the weights: transformers would make a missing one at random.
        shape = weight_shapes(self.folder, flag).get(self.head)
        if shape is None:
            raise UserError(
                f"{flag} {self.folder} is not a reward model: its weights have no {self.head}; give a folder that "
                "train_rm wrote (with LoRA, train_rm does not save the head: train without it)"
            )
        #: how many scores it gives for a text
        self.scores = shape[0]
        if single and self.scores != 1:
            raise UserError(f"{flag} {self.folder} gives {self.scores} scores for a text; take a model with one")
        self.is_classifier = is_classifier(self.folder)
        # transformers' classifiers pool at the last token that is not this one, which may be EOS
        self._padding = config.get("pad_token_id") if self.is_classifier else None
        self._model: Any = None
        self._words: dict[str, Any] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own, by `load_tokenizer`."""
        return load_tokenizer(self.folder, self.flag)

    def as_pooled(self, ids: list[int]) -> list[int]:
        """Without the end that a transformers classifier takes for padding: a causal model's score is then the same."""
        while len(ids) > 1 and ids[-1] == self._padding:
            ids = ids[:-1]
        return ids

    def load(self, dtype: str, attention: str, make: Callable[..., Any] | None = None, budget: int = 16384) -> Compute:
        """Load the weights, at the first call.

        Args:
            dtype: ``bfloat16`` or ``float16``.
            attention: attention implementation.
            make: builds a model with a score for each group, as OpenRLHF's ``get_llm_for_sequence_regression`` does
                the models with one score; its ``forward`` takes ``all_groups``.
            budget: tokens to compute in a batch.

        Returns:
            what maps rows to the one score of each, for `run_batches`.

        Raises:
            UserError: the weights are not whole and finite.
        """
        if self._model is None:
            backends.install()
            from openrlhf.models.model import get_llm_for_sequence_regression

            from .weights import load_reward

            stock = get_llm_for_sequence_regression
            self._model = load_reward(make or stock, self.folder, self.flag, dtype, attention)
            self._words = {"all_groups": True} if make else {}

        def compute(rows: list[Row]) -> list[float]:
            return [score for (score,) in self._run([row.ids for row in rows], budget)]

        return compute

    def score(self, texts: Sequence[Sequence[int]], batch_tokens: int) -> list[list[float]]:
        """Raw scores ``(texts, scores)`` of token ids, in batches of at most ``batch_tokens`` tokens to compute; what
        several texts begin with is computed once. Raises UserError as `check_ids` does."""
        check_ids(self.folder, texts, self.flag)
        return self._run(texts, batch_tokens)

    def _run(self, texts: Sequence[Sequence[int]], budget: int) -> list[list[float]]:
        from .prompt_once import for_model

        assert self._model is not None, "load() first"

        def forward(ids: Any, mask: Any, members: list[int]) -> list[list[float]]:
            return self._model(ids, mask, **self._words).float().view(len(members), -1).tolist()

        pad_id = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        return for_model(self._model).map(texts, budget, forward, pad_left, pad_id)


def load_scorer(
    name: str, copy_of: str, dtype: str, attention: str, budget: int = 16384, flag: str = "--model"
) -> Compute:
    """`RewardModel.load` in a worker; the model as in `find_same`."""
    return RewardModel(str(find_same(name, copy_of, flag)), flag).load(dtype, attention, budget=budget)


def is_classifier(folder: Path) -> bool:
    """Whether a folder is what transformers saved of a sequence classifier, and not train_rm's."""
    names = read_config(folder).get("architectures") or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)
