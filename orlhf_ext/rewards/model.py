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
from ..models.batches import Row
from ..models.chats import ChatError, Messages, opening, proven, render_with, split_chat
from ..models.folder import length_limit
from ..models.reward_models import RewardModel, encode_rows
from ..models.texts import Sample, encode, encode_whole
from .base import Reward, RewardBatch, RewardContext, RewardResult, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "<orlhf-ext>"  # in place of a message, to see what a chat template puts around it


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
        if self.chat and self.no_prompt:
            raise ValueError("--model.chat reads a chat, and --model.no_prompt a response alone; leave one out")

    def setup(self, context: RewardContext) -> None:
        """Check the folder, and load model and tokenizer.
        Raises UserError if it is not a reward model with one score, or lacks a file, a tokenizer or a chat template."""
        self._model = RewardModel(self.path, "--model.path")
        self._max_len = length_limit(self._model.folder, self.max_len, "--model.max_len", "--model.path")
        self._tokenizer = self._model.tokenizer
        if self.chat:
            self._read_template(context)
        self._model.load(self.dtype, self.attn_implementation)

    def _read_template(self, context: RewardContext) -> None:
        if not self._tokenizer.chat_template:
            raise UserError(
                f"--model.path {self._model.folder} has no chat template, which --model.chat needs; take a model that "
                "was trained on chats, or leave --model.chat out"
            )
        try:
            self._render = proven(self._tokenizer)
            self._opening = opening(self._render)
        except ChatError as error:
            raise UserError(
                f"--model.path {self._model.folder}{error}; take a model with another chat template"
            ) from error
        if context.tokenizer is not None:
            check_same_template(self._tokenizer, context.tokenizer)

    def score(self, batch: RewardBatch) -> RewardResult:
        """Raw scores, and ``cut``.
        Raises UserError if a prompt alone fills ``max_len``, so that the score would not depend on the response."""
        rows, cut = self.rows(batch)
        rewards = [score for (score,) in self._model.score([row.ids for row in rows], self.batch_tokens)]
        return RewardResult(rewards, {"cut": [float(value) for value in cut]})

    def rows(self, batch: RewardBatch) -> tuple[list[Row], list[bool]]:
        """The token ids that the model reads, in the batch's order, and whether they are cut.
        Raises UserError as `score` does, or if the chat template refuses a response."""
        texts = [self._texts(rollout) for rollout in batch]
        side = self._tokenizer.truncation_side
        if self._model.is_classifier and self.chat:
            # read as the template writes it; encode_rows would cut newlines off, and add EOS
            prompts = encode(self._tokenizer, [prompt for prompt, _ in texts])
            joined = [prompt + response for prompt, response in texts]
            wholes = encode_whole(self._tokenizer, joined, self._max_len, side, end=False)
            rows = [Row(i, 0, one.ids, len(prompts[i])) for i, one in enumerate(wholes)]
            cut = [one.lost > 0 for one in wholes]
        else:
            samples = [Sample("", r.id, prompt, [text], {}) for r, (prompt, text) in zip(batch, texts, strict=True)]
            encoded = encode_rows(samples, self._tokenizer, self._max_len, no_prompt=self.no_prompt)
            rows, cut = encoded.rows, encoded.cut
        for row, rollout in zip(rows, batch, strict=True):
            if row.prompt_length >= self._max_len - 1 and side == "right":
                raise UserError(
                    f"the prompt of sample {rollout.id!r} has {row.prompt_length} tokens and fills --model.max_len "
                    f"{self._max_len}, so that nothing is seen of the response; raise it, or drop such prompts"
                )
        return [row._replace(ids=self._model.as_pooled(row.ids)) for row in rows], cut

    def _texts(self, rollout: Rollout) -> tuple[str, str]:
        """Prompt and response of a rollout as text; a chat's as its conversation has them."""
        response = rollout.response.rstrip()
        if not self.chat:
            return rollout.prompt, response
        question: Messages = [{"role": "user", "content": _MARK}]  # in place of the prompt, which is rendered already
        answer: Messages = [{"role": "assistant", "content": response}]
        try:
            text = split_chat(self._render, question, answer, sampled=False)[1]
        except ChatError as error:
            raise UserError(
                f"sample {rollout.id!r}{error}; take a reward model with another chat template, or leave --model.chat "
                "out"
            ) from error
        return rollout.prompt.removesuffix(self._opening), text


def check_same_template(own: PreTrainedTokenizerBase, policys: PreTrainedTokenizerBase) -> None:
    """Both must render a question alike. Raises UserError if they do not, or the policy has no chat template."""
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
