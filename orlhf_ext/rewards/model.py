"""``model``: the score of a reward model, which reads the text with its own tokenizer.

Any folder will do that ``train_rm`` wrote, or transformers (a decoder's ``...ForSequenceClassification`` with one
label). The text is the prompt as the policy read it (not with ``no_prompt``) and the response, then an end:

- by default, ``" "`` and EOS, as ``train_rm`` trains on strings;
- with ``chat``, the response and its end are what the model's own chat template writes of an assistant's message, as
  ``train_rm --data.apply_chat_template`` does, without a thought that the generation prompt opens. Policy and reward
  model must then have the same template, since the prompt has been through the policy's.

``cut``, 1 for a text that ``max_len`` cuts, is logged beside the rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from ..cli.errors import UserError
from ..cli.flags import LENGTH, NOT_NEGATIVE, whole
from ..models.batches import Compute, Row, cut_batches
from ..models.chats import ChatError, Messages, opening, proven, render_with, split_chat
from ..models.folder import check_context, check_ids, context_length, find_model, load_tokenizer
from ..models.reward_models import check_reward_model, encode_rows, is_classifier, load_scorer, pooled_away, without_end
from ..models.texts import Sample, encode
from .base import Reward, RewardBatch, RewardContext, RewardResult, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "<orlhf-ext>"  # stands for a message, to see what a chat template puts around it


@dataclass
class Model(Reward):
    """The raw score of a reward model (train_rm's, or a transformers sequence classifier with one label)."""

    path: Annotated[str, "folder or hub name"]
    max_len: Annotated[
        int, "tokens it reads, as in its training; 0: all that it has positions for", whole(2, also=(0,))
    ] = 0
    chat: Annotated[bool, "it was trained on chats, in the policy's chat template"] = False
    no_prompt: Annotated[bool, "it was trained on responses alone, such as stories"] = False
    batch_tokens: Annotated[int, "padded tokens in a batch", LENGTH] = 16384
    dtype: Annotated[Literal["bfloat16", "float16"], "bfloat16 or float16"] = "bfloat16"
    attn_implementation: Annotated[str, "as in transformers"] = "sdpa"
    gpus: Annotated[float, "the part of a GPU that one copy takes, in a run with GPUs", NOT_NEGATIVE] = 0.25

    def __post_init__(self) -> None:
        if self.max_len < 0 or self.max_len == 1 or self.batch_tokens < 2 or self.gpus < 0:
            raise ValueError("--model.max_len and --model.batch_tokens are at least 2, --model.gpus is not negative")
        if self.chat and self.no_prompt:
            raise ValueError("--model.chat reads a chat, and --model.no_prompt a response alone; leave one out")

    def setup(self, context: RewardContext) -> None:
        """Check the folder, and load model and tokenizer.

        Raises:
            UserError: it is no reward model with one score, or lacks a file, a tokenizer or a chat template.
        """
        folder = find_model(self.path, "--model.path")
        if (labels := check_reward_model(folder, "--model.path")) != 1:
            raise UserError(f"--model.path {folder} gives {labels} scores for a text; take a model with one label")
        self._folder = folder
        max_len = self.max_len or context_length(folder)
        if max_len is None:
            raise UserError(f"--model.path {folder} does not say how many positions it has; give --model.max_len")
        check_context(folder, max_len, "--model.max_len")
        self._max_len = max_len
        self._classifier = is_classifier(folder)
        self._tokenizer = load_tokenizer(folder, "--model.path")
        if self.chat:
            self._read_template(context)
        self._pooled_away = pooled_away(folder)
        self._compute: Compute = load_scorer(
            folder, int(self._tokenizer.pad_token_id), self.dtype, self.attn_implementation, "--model.path"
        )

    def _read_template(self, context: RewardContext) -> None:
        if not self._tokenizer.chat_template:
            raise UserError(
                f"--model.path {self._folder} has no chat template, which --model.chat needs; take a model that was "
                "trained on chats, or leave --model.chat out"
            )
        try:
            self._render = proven(self._tokenizer)
            self._opening = opening(self._render)
        except ChatError as error:
            raise UserError(f"--model.path {self._folder}{error}; take a model with another chat template") from error
        if context.tokenizer is not None:
            check_same_template(self._tokenizer, context.tokenizer)

    def score(self, batch: RewardBatch) -> RewardResult:
        """Raw scores, and ``cut``.

        Raises:
            UserError: a prompt alone fills ``max_len``, so that the score would not depend on the response.
        """
        rows, cut = self.rows(batch)
        check_ids(self._folder, (row.ids for row in rows), "--model.path")
        rewards = [0.0] * len(rows)
        for indices in cut_batches([len(row.ids) for row in rows], self.batch_tokens):
            for index, reward in zip(indices, self._compute([rows[i] for i in indices]), strict=True):
                rewards[index] = reward
        return RewardResult(rewards, {"cut": [float(value) for value in cut]})

    def rows(self, batch: RewardBatch) -> tuple[list[Row], list[bool]]:
        """The token ids that the model reads, in the batch's order, and whether they are cut.

        Raises:
            UserError: as `score`; the chat template refuses a response.
        """
        texts = [self._texts(rollout) for rollout in batch]
        if self._classifier and self.chat:
            # read as the template writes it; encode_rows would cut newlines off, and add EOS
            prompts = encode(self._tokenizer, [prompt for prompt, _ in texts])
            wholes = encode(self._tokenizer, [prompt + response for prompt, response in texts])
            rows = [Row(i, 0, self._cut(ids), len(prompts[i])) for i, ids in enumerate(wholes)]
            cut = [len(ids) > self._max_len for ids in wholes]
        else:
            samples = [Sample("", r.id, prompt, [text], {}) for r, (prompt, text) in zip(batch, texts, strict=True)]
            encoded = encode_rows(samples, self._tokenizer, self._max_len, no_prompt=self.no_prompt)
            rows, cut = encoded.rows, encoded.cut
        for row, rollout in zip(rows, batch, strict=True):
            if row.prompt_length >= self._max_len - 1 and self._tokenizer.truncation_side == "right":
                raise UserError(
                    f"the prompt of sample {rollout.id!r} has {row.prompt_length} tokens and fills --model.max_len "
                    f"{self._max_len}, so that nothing is seen of the response; raise it, or drop such prompts"
                )
        return [row._replace(ids=without_end(row.ids, self._pooled_away)) for row in rows], cut

    def _texts(self, rollout: Rollout) -> tuple[str, str]:
        """Prompt and response of a rollout as text; a chat's as its conversation has them."""
        response = rollout.response.rstrip()
        if not self.chat:
            return rollout.prompt, response
        question: Messages = [{"role": "user", "content": _MARK}]  # stands for what the prompt has rendered already
        answer: Messages = [{"role": "assistant", "content": response}]
        try:
            text = split_chat(self._render, question, answer, sampled=False)[1]
        except ChatError as error:
            raise UserError(
                f"sample {rollout.id!r}{error}; take a reward model with another chat template, or leave --model.chat "
                "out"
            ) from error
        return rollout.prompt.removesuffix(self._opening), text

    def _cut(self, ids: list[int]) -> list[int]:
        return ids[-self._max_len :] if self._tokenizer.truncation_side == "left" else ids[: self._max_len]


def check_same_template(own: PreTrainedTokenizerBase, policys: PreTrainedTokenizerBase) -> None:
    """Both must render a question alike.

    Raises:
        UserError: they do not, or the policy has no chat template.
    """
    chat: Messages = [{"role": "user", "content": _MARK}]
    try:
        same = render_with(own)(chat, True) == render_with(policys)(chat, True)
    except ChatError:
        same = False
    if not same:
        raise UserError(
            "--model.chat: the reward model's chat template is not the policy's, in which the prompts are written; "
            "take a reward model with the same one, or put that one into its tokenizer_config.json"
        )
