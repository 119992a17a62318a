"""Log-probabilities of completions: ``python -m orlhf_ext.logprobs --model DIR --data A.jsonl --out A2.jsonl``.

Adds to each record, under ``--key``, the summed log-probability of each completion under the model, in nats, EOS
included where it was sampled. Token ids are those that the engine produced; a completion without them is tokenised,
apart from its prompt, by the text rule of OpenRLHF's `SFTDataset`. With ``--no_eos`` such a completion is a beginning:
nothing is put behind it, so that two of them can differ in their last token alone. A run that was cut short goes on
where it stopped, and gives the numbers of an uninterrupted one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, backends
from .batches import Compute, Row, check_files, fingerprint, run_batches, with_column
from .errors import UserError, command
from .flags import LENGTH, POSITIVE, add_compute, make_parser
from .journal import Journal
from .model_folder import check_context, check_ids, find_model, identity, load_tokenizer, read_config
from .outputs import add_overwrite
from .records import sha256_file
from .samples import Sample, encode, prompt_text, read_samples, reply_text, whole_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

_ROWS_AT_ONCE = 1024  # positions whose float32 logits are in memory together


class Encoded(NamedTuple):
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
) -> Encoded:
    """Token ids of each completion behind its prompt.

    The prompt is cut on the left: to as many ids as the sampler saw (``prompt_tokens``), and otherwise to the room that
    the completion leaves. A completion is cut on the right. ``vocabulary`` is the model's, where it is larger than
    the tokenizer's: an untrained tail of it can be sampled, too. ``no_eos``: a completion without ids gets no EOS.

    Raises:
        UserError: ``token_ids`` do not fit the completions, hold no ids of this tokenizer, or a prompt has no token.
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
    return Encoded(rows, prompts_cut, completions_cut)


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


def cut_key(key: str) -> str:
    """The column that says which completions' log-probabilities are those of a beginning."""
    return f"{key}_cut"


def response_logprobs(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, prompt_lengths: Tensor, temperature: float = 1.0
) -> Tensor:
    """Sum over the response's tokens t of ``log softmax(z[t-1] / temperature)[y[t]]``, in float32.

    Args:
        model: a causal language model.
        ids: ``(rows, length)``, padded on the right.
        mask: ``(rows, length)``, 1 where ``ids`` is no padding.
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
    prefix: Cache | None = None,
) -> tuple[Tensor, Tensor]:
    """``log softmax(z[t-1] / temperature)[y[t]]`` of every token t of the responses, in float32.

    Only the positions that predict a response token reach the output layer: a hook hands it those hidden states alone,
    so that whatever a model does to its logits afterwards (scaling, soft caps) stays its own.

    Args:
        model, ids, mask, prompt_lengths, temperature: as in `response_logprobs`.
        prefix: keys and values of tokens that every row begins with; no other argument counts these tokens.

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
    cache: dict[str, Any] = {"use_cache": False}
    if prefix is not None:
        mask = torch.cat([mask.new_ones(len(mask), prefix.get_seq_length()), mask], dim=1)
        cache = {"use_cache": True, "past_key_values": prefix}
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][predicts][None],))
    try:
        logits = model(ids, attention_mask=mask, **cache).logits[0]
    finally:
        hook.remove()
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

    Raises:
        UserError: the folder holds another kind of model, or one whose weights are not whole and finite.
    """
    backends.install()
    import torch

    from .weights import check_causal, load_whole

    model = load_whole(*check_causal(folder, flag), folder, flag, dtype=dtype, attention=attention)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def make_compute(model: PreTrainedModel, pad_id: int, temperature: float = 1.0) -> Compute:
    """The function that maps rows to summed log-probabilities."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    @torch.inference_mode()
    def compute(rows: list[Row]) -> list[float]:
        sequences = [torch.tensor(row.ids) for row in rows]
        ids = pad_sequence(sequences, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(row.ids) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        prompts = torch.tensor([row.prompt_length for row in rows])
        device = model.device
        return response_logprobs(model, ids.to(device), mask.to(device), prompts.to(device), temperature).tolist()

    return compute


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext logprobs", __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="policy: a Hugging Face folder, or a hub name")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="samples or pairs")
    parser.add_argument("--out", required=True, nargs="+", metavar="FILE", help="one .jsonl for each input")
    parser.add_argument("--max_len", type=LENGTH, required=True, help="tokens of prompt and completion together")
    parser.add_argument("--key", default="logprobs", help="name of the new column (%(default)s)")
    parser.add_argument("--temperature", type=POSITIVE, default=1.0, help="divides the logits (%(default)s)")
    parser.add_argument("--apply_chat_template", action="store_true", help="strings, too, go through the chat template")
    parser.add_argument("--no_eos", action="store_true", help="completions are beginnings, with no EOS behind them")
    add_compute(parser, batch_tokens=8192)
    add_overwrite(parser)
    args = parser.parse_args(argv)
    if args.key in ("id", "prompt", "completions", "token_ids", "finish_reasons", "prompt_tokens", "rewards"):
        raise UserError(f"--key {args.key} is the name of another column; choose one like logprobs_sft")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Do each file; the model is loaded once, and only if something is left to do."""
    args = parse(argv)
    pairs = check_files(args.data, args.out, "logprobs", args.__dict__.pop("overwrite"))
    samples = {data: read_samples(data) for data, _ in pairs}
    folder = find_model(args.model)
    check_context(folder, args.max_len)
    tokenizer = load_tokenizer(folder)
    vocabulary = int(read_config(folder).get("vocab_size") or 0)
    names = ("max_len", "key", "temperature", "apply_chat_template", "no_eos", "batch_tokens", "dtype")
    settings = {name: getattr(args, name) for name in (*names, "attn_implementation")}
    model = {"folder": args.model, "identity": identity(folder)}

    @cache
    def load() -> Compute:
        policy = load_model(folder, args.dtype, args.attn_implementation)
        return make_compute(policy, int(tokenizer.pad_token_id), args.temperature)

    for data, out in pairs:
        source = {"path": str(data), "sha256": sha256_file(data)}
        with Journal(out, fingerprint(model=model["identity"], data=source["sha256"], arguments=settings)) as journal:
            rows, prompts_cut, completions_cut = encode_rows(
                samples[data], tokenizer, args.max_len, args.apply_chat_template, vocabulary, args.no_eos
            )
            cut = sum(map(sum, completions_cut))
            check_ids(folder, (row.ids for row in rows))
            values = run_batches(rows, samples[data], load, journal, args.batch_tokens, "log-probability")
            counts = {"records": len(samples[data]), "completions": len(rows)}
            counts["tokens"] = sum(len(row.ids) - row.prompt_length for row in rows)
            counts |= {"prompts_cut": prompts_cut, "completions_cut": cut}
            meta: dict[str, Any] = {"command": "logprobs", "version": __version__, "model": model, "data": source}
            records = with_column(samples[data], args.key, values)
            for record, flags in zip(records, completions_cut, strict=True):
                record.pop(cut_key(args.key), None)
                if any(flags):
                    record[cut_key(args.key)] = flags
            journal.finish(out, records, {**meta, "arguments": settings, "counts": counts})
        if prompts_cut or cut:
            told = f"{prompts_cut} of {len(rows)} prompts are cut on the left"
            if cut:
                told = (
                    f"{cut} of {len(rows)} completions are cut on the right, so that {args.key} are those of their "
                    f"beginnings, and {prompts_cut} prompts on the left"
                )
            print(f"{data}: at --max_len {args.max_len}, {told}; raise it")
        mean = sum(sum(column) / len(column) for column in values) / len(values)
        print(f"{out}: mean {args.key} {mean:.3f} nats over {len(values)} prompts", flush=True)


if __name__ == "__main__":
    main()
