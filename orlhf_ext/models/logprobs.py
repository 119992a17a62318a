"""Log-probabilities of completions under a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import backends
from ..backends.machine import torch_device
from ..cli.errors import UserError
from .batches import Compute, Row
from .folder import find_same, load_tokenizer
from .modules import scored_positions
from .texts import Sample, encode, prompt_text, reply_text, whole_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_ROWS_AT_ONCE = 1024  # positions whose float32 logits are in memory together


class LogprobRows(NamedTuple):
    """The rows of a file, and what the length limit did to them."""

    rows: list[Row]
    #: rows whose prompt has more tokens than are left of it (and than the sampler saw, where the file says so)
    prompts_cut: int
    #: for each record and completion, whether its end is cut off, so that its log-probability is that of a beginning
    completions_cut: list[list[bool]]


def encode_rows(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    max_len: int,
    chat: bool = False,
    vocabulary: int = 0,
    no_eos: bool = False,
) -> LogprobRows:
    """Token ids of each completion behind its prompt.

    The prompt is cut on the left: to as many ids as the sampler saw (``prompt_tokens``), and otherwise to the room that
    the completion leaves. A completion is cut on the right. ``vocabulary`` is the model's, where it is larger than
    the tokenizer's: an untrained tail of it can be sampled, too. ``no_eos``: a completion without ids gets no EOS.

    Raises:
        UserError: ``token_ids`` do not fit the completions, are not ids of this tokenizer, or a prompt has no token.
    """
    prompts = encode(tokenizer, [prompt_text(tokenizer, sample, chat) for sample in samples])
    rows: list[Row] = []
    prompts_cut = 0
    completions_cut: list[list[bool]] = []
    for i, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
        if not prompt:
            raise UserError(f"{sample.name} has a prompt without any token; remove the record")
        context = _sampled_prompt(sample, prompt)
        completions_cut.append([])
        for k, response in enumerate(_responses(sample, tokenizer, chat, max(len(tokenizer), vocabulary), no_eos)):
            kept = response[: max_len - 1]
            start = context[-(max_len - len(kept)) :]
            rows.append(Row(i, k, start + kept, len(start)))
            prompts_cut += len(start) < len(context)
            completions_cut[-1].append(len(kept) < len(response))
    return LogprobRows(rows, prompts_cut, completions_cut)


def _sampled_prompt(sample: Sample, prompt: list[int]) -> list[int]:
    count = sample.record.get("prompt_tokens")
    if count is None:
        return prompt
    if not isinstance(count, int) or not 0 < count <= len(prompt):
        raise UserError(
            f"{sample.name} was sampled with {count} prompt tokens, and has {len(prompt)} here; "
            "use the tokenizer (and --apply_chat_template) that it was sampled with"
        )
    return prompt[-count:]


def _responses(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, chat: bool, size: int, no_eos: bool
) -> list[list[int]]:
    stored = sample.column("token_ids")
    if stored is None and no_eos:
        return encode(tokenizer, [reply_text(completion).rstrip() for completion in sample.completions])
    if stored is None:
        texts = [whole_text(tokenizer, sample, completion, chat, sampled=True) for completion in sample.completions]
        return encode(tokenizer, [whole[len(prompt) :] for prompt, whole in texts])
    for ids in stored:
        if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < size for i in ids):
            raise UserError(
                f"{sample.name} has token_ids that are not ids of this tokenizer; give the model's own samples"
            )
    return stored


def response_logprobs(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, prompt_lengths: Tensor, temperature: float = 1.0
) -> Tensor:
    """Sum over the response's tokens t of ``log softmax(z[t-1] / temperature)[y[t]]``, in float32.

    Args:
        model: a causal language model.
        ids: ``(rows, length)``, padded on the right.
        mask: ``(rows, length)``, 1 where ``ids`` is not padding.
        prompt_lengths: ``(rows,)``, at least 1.
        temperature: divides the logits.

    Returns:
        ``(rows,)``, in nats; 0 for a row without a response.
    """
    import torch

    values, rows = token_logprobs(model, ids, mask, prompt_lengths, temperature)
    return torch.zeros(len(ids), dtype=torch.float32, device=ids.device).index_add_(0, rows, values)


def token_logprobs(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    prompt_lengths: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``log softmax(z[t-1] / temperature)[y[t]]`` of every token t of the responses, in float32.

    Only the positions that predict a response token reach the output layer.

    Args:
        model, ids, mask, prompt_lengths, temperature: as in `response_logprobs`.

    Returns:
        ``(tokens,)`` in nats, row by row, and ``(tokens,)``, the row of each.
    """
    import torch

    place = torch.arange(ids.shape[1], device=ids.device)
    targets = (place >= prompt_lengths[:, None]) & mask.bool()
    predicts = torch.zeros_like(targets)
    predicts[:, :-1] = targets[:, 1:]
    rows = predicts.nonzero()[:, 0]
    values = torch.zeros(len(rows), dtype=torch.float32, device=ids.device)
    if not len(rows):
        return values, rows
    with scored_positions(model.get_output_embeddings(), predicts):
        logits = model(ids, attention_mask=mask, use_cache=False).logits[0]
    labels = ids[targets]
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        scaled = logits[part].float()
        if temperature != 1.0:
            scaled /= temperature
        values[part] = scaled.gather(-1, labels[part, None])[:, 0] - scaled.logsumexp(-1)
    return values, rows


def load_model(folder: Path, dtype: str, attention: str, flag: str = "--model") -> PreTrainedModel:
    """A causal language model in evaluation mode, on the GPU if there is one.
    Raises UserError if the folder has another kind of model, or one whose weights are not whole and finite."""
    backends.install()
    from .weights import check_causal, load_whole

    model = load_whole(*check_causal(folder, flag), folder, flag, dtype=dtype, attention=attention)
    return model.to(torch_device())


def make_compute(model: PreTrainedModel, pad_id: int, temperature: float = 1.0, budget: int = 8192) -> Compute:
    """The function that maps rows to summed log-probabilities, in batches of at most ``budget`` tokens."""
    import torch

    from .prompt_once import for_model

    def compute(rows: list[Row]) -> list[float]:
        starts = [row.prompt_length for row in rows]

        def forward(ids: Tensor, mask: Tensor, members: list[int]) -> list[float]:
            prompts = torch.tensor([starts[row] for row in members], device=ids.device)
            return response_logprobs(model, ids, mask, prompts, temperature).tolist()

        return for_model(model).map([row.ids for row in rows], budget, forward, pad_id=pad_id)

    return compute


def load_compute(
    name: str, copy_of: str, dtype: str, attention: str, temperature: float = 1.0, budget: int = 8192
) -> Compute:
    """`make_compute` in a worker; the model as in `find_same`."""
    folder = find_same(name, copy_of)
    pad_id = int(load_tokenizer(folder).pad_token_id)  # type: ignore[arg-type]
    return make_compute(load_model(folder, dtype, attention), pad_id, temperature, budget)
