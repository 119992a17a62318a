"""Mistakes in a launcher's arguments that would end in a traceback minutes later, reported before a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from ..backends import machine
from ..cli.errors import UserError, suggest
from ..files.outputs import check_folder
from ..files.sources import _no_record, count_rows, read_source
from .models import check_models
from .number_ranges import check_numbers

#: what OpenRLHF loads as a single file
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


def _get(args: SimpleNamespace, flag: str) -> object:
    value: object = args
    for part in flag.split("."):
        value = getattr(value, part, None)
    return value


def _check_split(flag: str, sources: str, split_flag: str, split: object) -> None:
    """A file has one split, which `datasets` calls ``train``.

    Raises:
        UserError: another one is asked of a local file.
    """
    for source in sources.split(","):
        path = source.strip().partition("@")[0]
        if split not in (None, "train") and Path(path).suffix in _FILES and os.path.isfile(path):
            raise UserError(
                f"{split_flag} {split}: {flag} {path} is a file, which has the split 'train' only; add {split_flag} "
                "train"
            )


def _pair_keys(launcher: str, args: SimpleNamespace) -> dict[str, str]:
    """The columns that OpenRLHF reads from pairs; EXO reads other records, too, and looks at them itself."""
    if launcher not in ("train_rm", "train_dpo") or hasattr(args, "exo"):
        return {}
    names = ("prompt_key", "chosen_key", "rejected_key")
    return {key: f"--data.{name}" for name in names if (key := getattr(args.data, name, None))}


def _count_prompts(flag: str, source: str, data: SimpleNamespace) -> int | None:
    """`count_rows`, with a look at the columns that ``train_ppo_ray`` reads.

    Raises:
        UserError: as `count_rows`; a record has no prompt, or a chat and no template; no record has the label.
    """
    records = read_source(flag, source)
    if records is None:
        return None
    count, found = 0, set[str]()
    for line in records:
        count += 1
        prompt = line.record.get(data.input_key)
        if prompt is None:
            known = suggest(data.input_key, list(line.record))
            raise UserError(f"{line.where} has no {data.input_key!r}, which --data.input_key names{known}")
        if not isinstance(prompt, str) and not data.apply_chat_template:
            raise UserError(f"{line.where} has a prompt that is not text; for chats add --data.apply_chat_template")
        found.update(line.record)
    if not count:
        raise _no_record(flag, source)
    if data.label_key is not None and data.label_key not in found:
        known = suggest(data.label_key, list(found))
        raise UserError(f"{flag} {source.strip()} has no {data.label_key!r}, which --data.label_key names{known}")
    return count


def _check_prompts(args: SimpleNamespace) -> None:
    """The data of ``train_ppo_ray``: all of it is readable, and makes a step."""
    if not args.data.prompt_dataset:
        raise UserError("train_ppo_ray needs --data.prompt_dataset")
    sources = args.data.prompt_dataset.split(",")
    counts = [_count_prompts("--data.prompt_dataset", source, args.data) for source in sources]
    for source in args.eval.dataset.split(",") if args.eval.dataset else ():
        _count_prompts("--eval.dataset", source, args.data)
    if (new := args.rollout.max_new_tokens) is not None and not 0 < new < args.data.max_len:
        raise UserError(
            f"--rollout.max_new_tokens {new} leaves no room for a prompt in --data.max_len {args.data.max_len}; "
            "change one"
        )
    rows, size = min(sum(count or 0 for count in counts), args.data.max_samples), args.rollout.n_samples_per_prompt
    if None not in counts and rows * size < args.train.batch_size:
        raise UserError(
            f"--data.prompt_dataset {args.data.prompt_dataset} holds {rows} prompts, which make {rows * size} samples, "
            f"fewer than --train.batch_size {args.train.batch_size}; lower the latter"
        )


def _check_wandb(key: object) -> None:
    """W&B keeps a run's arguments in its files and shows them, so that no key may be among them.

    Raises:
        UserError: a key is given, or none is in the environment.
    """
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
    if launcher.startswith("train_") and not _get(args, required):
        raise UserError(f"{launcher} needs --{required}")
    for flag in ("ckpt.output_dir", "ckpt.path", "logger.tensorboard_dir"):
        if launcher.startswith("train_") and (folder := _get(args, flag)):
            check_folder(str(folder), f"--{flag}")
    check_models(launcher, args)
    if _get(args, "ds.packing_samples") and not machine.flash_attn_present():
        raise UserError("--ds.packing_samples needs flash-attn, which is not installed; leave the flag out")
    _check_wandb(_get(args, "logger.wandb.key"))
    for flag, split in (
        ("data.dataset", "data.dataset_split"),
        ("data.prompt_dataset", "data.prompt_split"),
        ("eval.dataset", "eval.split"),
    ):
        if sources := _get(args, flag):
            _check_split(f"--{flag}", str(sources), f"--{split}", _get(args, split))
    if launcher == "train_ppo_ray":
        _check_prompts(args)
        if _get(args, "train.enable_ema") and _get(args, "ckpt.load_enable"):
            raise UserError(
                "--train.enable_ema with --ckpt.load_enable would save another average: OpenRLHF's checkpoints do not "
                "have the moving average; leave one of the two out"
            )
    if launcher not in ("train_sft", "train_rm", "train_dpo"):
        return
    if not (dataset := _get(args, "data.dataset")):
        raise UserError(f"{launcher} needs --data.dataset")
    keys = _pair_keys(launcher, args)
    counts = [count_rows("--data.dataset", source, keys) for source in str(dataset).split(",")]
    if evaluation := _get(args, "eval.dataset"):
        for source in str(evaluation).split(","):
            count_rows("--eval.dataset", source, keys)
    rows = sum(count or 0 for count in counts)
    batch, micro, processes = args.train.batch_size, args.train.micro_batch_size, int(os.environ.get("WORLD_SIZE", "1"))
    shards = processes // (args.ds.ring_attn_size * args.ds.tensor_parallel_size) or 1
    if batch % (micro * shards):
        raise UserError(
            f"--train.batch_size {batch} is not a multiple of --train.micro_batch_size {micro} times "
            f"{shards} data-parallel process(es); change one"
        )
    if launcher != "train_sft" and None not in counts and min(rows, args.data.max_samples) < batch:
        raise UserError(
            f"--data.dataset {dataset} holds {rows} records, fewer than --train.batch_size {batch}; lower the latter"
        )
    if launcher == "train_rm" and not evaluation and None not in counts and rows < 100:
        raise UserError("train_rm evaluates on 1 % of its data, which is none below 100 records; give --eval.dataset")
