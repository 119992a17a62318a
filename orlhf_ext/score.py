"""Score completions with a reward model: ``python -m orlhf_ext.score --model RM --data A.jsonl --out A2.jsonl``.

Takes any reward model folder that OpenRLHF's ``train_rm`` wrote, and reads samples (``completions``) or pairs
(``chosen``, ``rejected``). Text, EOS and truncation are those of its training. Rewards are the head's raw output: the
mean and deviation that ``train_rm`` may have put into the config are not applied. A run that was cut short goes on
where it stopped, and gives the numbers of an uninterrupted one.

With ``--no_prompt`` the model reads the completion alone, as ``train_rm`` trains without ``--data.prompt_key``, and a
record needs no prompt: ``{"completions": ["Once upon a time ..."]}`` is a story to score.

``python -m orlhf_ext.launch serve_rm --reward.model_name_or_path RM --data.max_len N --host 127.0.0.1 --port P`` serves
the same numbers: ``POST /get_reward {"query": [TEXT, ...]}`` answers ``{"rewards": [...]}``. A query is read as it is:
it must end in one space and the EOS token, and fit into N tokens, since a longer one is cut and loses its EOS. (Without
``--host``, other machines can ask, too.)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, backends
from .batches import Compute, Row, check_files, fingerprint, pad_left, run_batches, with_column
from .errors import UserError, command
from .flags import DTYPES, LENGTH, add_compute, make_parser
from .journal import Journal
from .model_folder import check_context, check_ids, find_model, identity, load_tokenizer, read_config, weight_shapes
from .outputs import add_overwrite
from .records import sha256_file
from .samples import Sample, Text, encode, read_samples, whole_text

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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext score", __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="reward model folder, as train_rm writes it")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="samples or pairs")
    parser.add_argument("--out", required=True, nargs="+", metavar="FILE", help="one .jsonl for each input")
    parser.add_argument("--max_len", type=LENGTH, required=True, help="tokens; the same as in the model's training")
    parser.add_argument("--apply_chat_template", action="store_true", help="strings, too, go through the chat template")
    parser.add_argument("--no_prompt", action="store_true", help="the model was trained on completions alone")
    add_compute(parser, dtypes=DTYPES[:2])
    add_overwrite(parser)
    args = parser.parse_args(argv)
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score each file; the model is loaded once, and only if something is left to do."""
    args = parse(argv)
    pairs = check_files(args.data, args.out, "score", args.__dict__.pop("overwrite"))
    samples = {data: read_samples(data, args.no_prompt) for data, _ in pairs}
    folder = find_model(args.model)
    check_reward_model(folder)
    check_context(folder, args.max_len)
    tokenizer = load_tokenizer(folder)
    names = ("max_len", "apply_chat_template", "no_prompt", "batch_tokens", "dtype", "attn_implementation")
    settings = {name: getattr(args, name) for name in names}
    model = {"folder": args.model, "identity": identity(folder)}

    @cache
    def load() -> Compute:
        return load_scorer(folder, int(tokenizer.pad_token_id), args.dtype, args.attn_implementation)

    for data, out in pairs:
        source = {"path": str(data), "sha256": sha256_file(data)}
        with Journal(out, fingerprint(model=model["identity"], data=source["sha256"], arguments=settings)) as journal:
            encoded = encode_rows(samples[data], tokenizer, args.max_len, args.apply_chat_template, args.no_prompt)
            check_ids(folder, (row.ids for row in encoded.rows))
            if encoded.truncated:
                print(
                    f"{data}: {encoded.truncated} of {len(encoded.rows)} completions are cut at {args.max_len} tokens"
                )
            if encoded.unseen:
                print(
                    f"{data}: {encoded.unseen} of them have a prompt that fills --max_len {args.max_len}, so that the "
                    "reward says nothing about them; raise it, or drop such prompts"
                )
            rewards = run_batches(encoded.rows, samples[data], load, journal, args.batch_tokens, "reward")
            counts = {
                "records": len(samples[data]),
                "completions": len(encoded.rows),
                "truncated": encoded.truncated,
                "unseen": encoded.unseen,
            }
            meta: dict[str, Any] = {"command": "score", "version": __version__, "model": model, "data": source}
            meta |= {"arguments": settings, "counts": counts, **summary(samples[data], rewards)}
            journal.finish(out, with_column(samples[data], "rewards", rewards), meta)
        ranked = f", chosen above rejected in {meta['accuracy']:.1%} of pairs" if "accuracy" in meta else ""
        print(f"{out}: mean reward {meta['mean_reward']:.4f} over {len(samples[data])} prompts{ranked}", flush=True)


def summary(samples: Sequence[Sample], rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean over prompts of the mean reward; for pairs, also how often chosen is above rejected (a tie is not)."""
    out = {"mean_reward": sum(sum(values) / len(values) for values in rewards) / len(rewards)}
    if all("completions" not in sample.record for sample in samples):
        out["accuracy"] = sum(chosen > rejected for chosen, rejected in rewards) / len(rewards)
    return out


if __name__ == "__main__":
    main()
