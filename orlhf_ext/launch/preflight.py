"""Mistakes in a launcher's arguments that would end in a traceback minutes later, reported before a model is loaded."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from ..backends import machine
from ..cli.errors import UserError, suggest
from ..files.outputs import check_folder
from ..files.records import Line
from ..files.sources import count_rows, nested, sources_of
from .models import check_models
from .number_ranges import check_numbers

#: what OpenRLHF loads as a single file
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


def _check_split(args: SimpleNamespace, flag: str, split_flag: str) -> None:
    """A file has one split, which `datasets` calls ``train``.
    Raises UserError if another one is asked of a local file."""
    split = nested(args, split_flag)
    for source in sources_of(args, flag):
        path = source.strip().partition("@")[0]
        if split not in (None, "train") and Path(path).suffix in _FILES and os.path.isfile(path):
            raise UserError(
                f"--{split_flag} {split}: --{flag} {path} is a file, which has the split 'train' only; add "
                f"--{split_flag} train"
            )


def check_pair(launcher: str, args: SimpleNamespace, line: Line) -> None:
    """A record has the columns that OpenRLHF reads from pairs; EXO reads other records, too, and checks them itself.
    Raises UserError if one is missing, or neither text nor messages."""
    if launcher not in ("train_rm", "train_dpo") or hasattr(args, "exo"):
        return
    for name in ("prompt_key", "chosen_key", "rejected_key"):
        key = getattr(args.data, name, None)
        if key and not isinstance(value := line.record.get(key), str | list):
            what = f"no {key!r}" if value is None else f"a {key!r} that is neither text nor messages"
            known = suggest(key, list(line.record)) if value is None else ""
            raise UserError(f"{line.where} has {what}, which --data.{name} names{known}")


def _count_prompts(flag: str, source: str, data: SimpleNamespace) -> int | None:
    """`count_rows`, with a look at the columns that ``train_ppo_ray`` reads.

    Raises:
        UserError: as `count_rows`; a record has no prompt, or a chat and no template; no record has the label.
    """
    columns = set[str]()

    def look(line: Line) -> None:
        prompt = line.record.get(data.input_key)
        if prompt is None:
            known = suggest(data.input_key, list(line.record))
            raise UserError(f"{line.where} has no {data.input_key!r}, which --data.input_key names{known}")
        if not isinstance(prompt, str) and not data.apply_chat_template:
            raise UserError(f"{line.where} has a prompt that is not text; for chats add --data.apply_chat_template")
        columns.update(line.record)

    count = count_rows(flag, source, look)
    if count is not None and data.label_key is not None and data.label_key not in columns:
        known = suggest(data.label_key, list(columns))
        raise UserError(f"{flag} {source.strip()} has no {data.label_key!r}, which --data.label_key names{known}")
    return count


def _check_prompts(args: SimpleNamespace) -> None:
    """The data of ``train_ppo_ray``: all of it is readable, and makes a step."""
    if not args.data.prompt_dataset:
        raise UserError("train_ppo_ray needs --data.prompt_dataset")
    counts, _ = (
        [_count_prompts(f"--{flag}", source, args.data) for source in sources_of(args, flag)]
        for flag in ("data.prompt_dataset", "eval.dataset")
    )
    if (new := args.rollout.max_new_tokens) is not None and not 0 < new < args.data.max_len:
        raise UserError(
            f"--rollout.max_new_tokens {new} leaves no room for a prompt in --data.max_len {args.data.max_len}; "
            "change one"
        )
    rows, size = min(sum(count or 0 for count in counts), args.data.max_samples), args.rollout.n_samples_per_prompt
    if None not in counts and rows * size < args.train.batch_size:
        raise UserError(
            f"--data.prompt_dataset {args.data.prompt_dataset} has {rows} prompts, which make {rows * size} samples, "
            f"fewer than --train.batch_size {args.train.batch_size}; lower the latter"
        )


def _check_wandb(key: object) -> None:
    """W&B keeps a run's arguments in its files and shows them, so that no key may be among them.
    Raises UserError if a key is given, or none is in the environment."""
    if not key:
        return
    if key != "env":
        raise UserError(
            "--logger.wandb.key takes no key, which W&B would show among the run's arguments; put it into the "
            "environment as WANDB_API_KEY, and give --logger.wandb.key env"
        )
    if os.environ.get("WANDB_API_KEY"):
        return
    import wandb

    if not wandb.api.api_key:
        raise UserError(
            "--logger.wandb.key env needs a key: set WANDB_API_KEY in the environment, or run `wandb login`"
        )


def check_arguments(launcher: str, args: SimpleNamespace) -> None:
    """Look at the launcher's nested arguments.

    Raises:
        UserError: a model or data path that cannot work, a record without what the launcher reads, packing without
            flash-attn, fewer rows than one batch, no room to generate.
    """
    check_numbers(args)
    required = {"train_ppo_ray": "actor.model_name_or_path"}.get(launcher, "model.model_name_or_path")
    if launcher.startswith("train_") and not nested(args, required):
        raise UserError(f"{launcher} needs --{required}")
    for flag in ("ckpt.output_dir", "ckpt.path", "logger.tensorboard_dir"):
        if launcher.startswith("train_") and (folder := nested(args, flag)):
            check_folder(str(folder), f"--{flag}")
    check_models(launcher, args)
    if nested(args, "ds.packing_samples") and not machine.flash_attn_present():
        raise UserError("--ds.packing_samples needs flash-attn, which is not installed; leave the flag out")
    if nested(args, "train.dynamic_batch_enable") and not machine.flash_attn_present():
        raise UserError(
            "--train.dynamic_batch_enable packs samples, so it needs flash-attn, which is missing; leave the flag out"
        )
    _check_wandb(nested(args, "logger.wandb.key"))
    for flag, split in (
        ("data.dataset", "data.dataset_split"),
        ("data.prompt_dataset", "data.prompt_split"),
        ("eval.dataset", "eval.split"),
    ):
        _check_split(args, flag, split)
    if launcher == "train_ppo_ray":
        _check_prompts(args)
        if nested(args, "train.enable_ema") and nested(args, "ckpt.load_enable"):
            raise UserError(
                "--train.enable_ema with --ckpt.load_enable would save another average: OpenRLHF's checkpoints do not "
                "have the moving average; leave one of the two out"
            )
    if launcher not in ("train_sft", "train_rm", "train_dpo"):
        return
    if not (dataset := nested(args, "data.dataset")):
        raise UserError(f"{launcher} needs --data.dataset")
    look = partial(check_pair, launcher, args)
    counts, evaluation = (
        [count_rows(f"--{flag}", source, look) for source in sources_of(args, flag)]
        for flag in ("data.dataset", "eval.dataset")
    )
    rows = sum(count or 0 for count in counts)
    batch, micro, processes = args.train.batch_size, args.train.micro_batch_size, int(os.environ.get("WORLD_SIZE", "1"))
    shards = processes // (args.ds.ring_attn_size * args.ds.tensor_parallel_size) or 1
    if batch % (micro * shards):
        raise UserError(
            f"--train.batch_size {batch} is not a multiple of --train.micro_batch_size {micro} times "
            f"{shards} data-parallel process(es); change one"
        )
    whole = launcher != "train_sft" or hasattr(args, "deadend")  # texts of a language model may be packed
    if whole and None not in counts and min(rows, args.data.max_samples) < batch:
        raise UserError(
            f"--data.dataset {dataset} has {rows} records, fewer than --train.batch_size {batch}; lower the latter"
        )
    if launcher == "train_rm" and not evaluation and None not in counts and rows < 100:
        raise UserError("train_rm evaluates on 1 % of its data, which is none below 100 records; give --eval.dataset")
