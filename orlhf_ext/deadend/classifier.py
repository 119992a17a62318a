"""Train a toxicity classifier: ``orlhf-ext deadend classifier --model M --data F ...``

Files have ``{"text": ..., "label": 0 or 1}`` (``python -m orlhf_ext.build_data jigsaw reward``). Any model of
transformers gets a head for as many labels as there are, and transformers' own Trainer trains it. ``--out``
appears when everything is done: model, tokenizer, ``all_results.json`` with accuracy, AUC and F1 on the validation
file. A run that was cut short goes on from its last checkpoint. Several processes: torchrun --nproc_per_node N -m ...
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, backends
from ..cli.errors import UserError, command
from ..cli.flags import COUNT, NOT_NEGATIVE, POSITIVE, SEED, make_parser, whole
from ..extensions.inject import first_process
from ..files.outputs import check_folder
from ..files.records import atomic_folder, object_or_empty, read_records, sha256_file, write_json
from ..models.folder import check_context, check_ids, find_model, identity
from ..models.reward_models import is_classifier
from ..models.texts import count_cut
from .toxicity import text_limit, text_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARK = "run.json"  # beside the checkpoints: what they were made from
#: flags that the Trainer calls the same
_SAME_NAMES = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "num_train_epochs", "lr_scheduler_type", "max_grad_norm", "bf16", "seed"),
)
_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


def read_labelled(path: str) -> tuple[list[str], list[int]]:
    """Texts and labels of a file; under ``text`` and ``label``.
    Raises UserError if there is no record; a text is not a string, or a label neither 0 nor 1; the record is named."""
    texts, labels = [], []
    for line in read_records(path):
        text, label = line.record.get("text"), line.record.get("label")
        if not isinstance(text, str):
            raise UserError(f"{line.where} has no 'text'; build the file with build_data jigsaw reward")
        if isinstance(label, bool) or not isinstance(label, int):
            raise UserError(f"{line.where} has a label {label!r}, which is not a whole number; labels are 0 or 1")
        if label not in (0, 1):
            raise UserError(f"{line.where} has the label {label}; labels are 0 or 1")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise UserError(f"{path} has no record; build the data again, or from more rows")
    return texts, labels


def accuracy(labels: NDArray[Any], found: NDArray[Any]) -> float:
    """The share of rows whose label was found; both ``(rows,)``."""
    return float((labels == found).mean())


def auc(labels: NDArray[Any], scores: NDArray[Any]) -> float | None:
    """The area under the ROC curve: how often a row of label 1 scores above one of label 0, a tie counting a half.

    Args:
        labels: ``(rows,)``, 0 or 1.
        scores: ``(rows,)``, larger where label 1 is likelier.

    Returns:
        Between 0 and 1; None where one of the labels is missing.
    """
    from scipy.stats import rankdata

    ones = labels == 1
    count = int(ones.sum())
    if not 0 < count < len(labels):
        return None
    ranks = rankdata(scores)[ones].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(labels) - count)))


def f1(labels: NDArray[Any], found: NDArray[Any]) -> float:
    """``2 TP / (2 TP + FP + FN)`` of label 1; 0 where it neither occurs nor was found."""
    hits = float(((labels == 1) & (found == 1)).sum())
    both = float((labels == 1).sum() + (found == 1).sum())
    return 2 * hits / both if both else 0.0


def metrics(labels: NDArray[Any], logits: NDArray[Any]) -> dict[str, float]:
    """``accuracy``; with two labels also ``f1`` of the second one, and ``auc`` where both labels occur.

    Args:
        labels: ``(rows,)``, indices of labels.
        logits: ``(rows, labels)``.
    """
    found = logits.argmax(-1)
    out = {"accuracy": accuracy(labels, found)}
    if logits.shape[1] == 2:
        out["f1"] = f1(labels, found)
        area = auc(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
        out |= {} if area is None else {"auc": area}
    return out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext deadend classifier", __doc__)
    add = parser.add_argument
    add("--model", "--model_name_or_path", required=True, metavar="MODEL", help="start from this folder or hub name")
    add("--data", "--train_file", required=True, metavar="FILE", help="texts with labels")
    add("--validation_file", metavar="FILE", help="held-out texts with labels, to measure on")
    add("--out", "--output_dir", required=True, metavar="DIR", help="a new folder")
    add("--max_length", type=COUNT, default=128, help="tokens of a text; the rest is cut (%(default)s)")
    add("--per_device_train_batch_size", type=COUNT, default=8, help="(%(default)s)")
    add("--per_device_eval_batch_size", type=COUNT, default=32, help="(%(default)s)")
    add("--gradient_accumulation_steps", type=COUNT, default=1, help="(%(default)s)")
    add("--learning_rate", type=POSITIVE, default=5e-5, help="(%(default)s)")
    add("--weight_decay", type=NOT_NEGATIVE, default=0.0, help="of all weights but biases and norms (%(default)s)")
    add("--num_train_epochs", type=POSITIVE, default=3, help="(%(default)s)")
    add("--max_train_steps", type=COUNT, help="optimizer steps, instead of epochs")
    add("--lr_scheduler_type", choices=_SCHEDULERS, default="linear", help="(%(default)s)")
    add("--num_warmup_steps", type=whole(), default=0, help="(%(default)s)")
    add("--max_grad_norm", type=NOT_NEGATIVE, default=0.0, help="0: gradients are not clipped (%(default)s)")
    add("--group_by_length", action="store_true", help="batch texts of similar lengths: faster, in another order")
    add("--bf16", action="store_true", help="compute in bfloat16, with weights in float32")
    add("--seed", type=SEED, default=42, help="seed of head, dropout and order (%(default)s)")
    add("--checkpointing_steps", default="1000", metavar="N|epoch", help="optimizer steps (%(default)s)")
    add("--overwrite", "--overwrite_output_dir", action="store_true", help="replace a folder that is there")
    args = parser.parse_args(argv)
    if args.checkpointing_steps != "epoch" and not (
        args.checkpointing_steps.isdecimal() and int(args.checkpointing_steps)
    ):
        raise UserError(f"--checkpointing_steps {args.checkpointing_steps} is neither a number of steps nor epoch")
    return args


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse an ``--out`` that is neither new nor empty, unless it may be replaced."""
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        raise UserError(f"--out {out} exists; give another one, or replace it with --overwrite")
    check_folder(out, new=True)


def label_map(train: Sequence[int], valid: Sequence[int], args: argparse.Namespace) -> dict[int, int]:
    """Label -> index, in the order of the labels.
    Raises UserError if there is one label only, or validation has others."""
    values = sorted(set(train))
    if len(values) < 2:
        raise UserError(f"{args.data} has the label {values[0]} only, so that there is nothing to tell apart")
    if other := sorted(set(valid) - set(values)):
        raise UserError(f"{args.validation_file} has the label {other[0]}, which {args.data} does not have")
    return {value: index for index, value in enumerate(values)}


def find_checkpoint(folder: Path, mark: dict[str, Any]) -> str | None:
    """The last checkpoint of the same run; those of another run are removed."""
    import json

    from transformers.trainer_utils import get_last_checkpoint

    if not folder.is_dir():
        return None
    last = get_last_checkpoint(str(folder))
    if object_or_empty(folder / _MARK) == json.loads(json.dumps(mark)):
        return last
    if last:
        print(f"{folder}: checkpoints of another run are discarded", flush=True)
    shutil.rmtree(folder)
    return None


def encode(tokenizer: Any, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[dict[str, Any]]:
    """Rows as the Trainer takes them, each with at least one token."""
    ids = tokenizer(list(texts), truncation=True, max_length=max_length, verbose=False)["input_ids"]
    return [
        {"input_ids": row or [tokenizer.pad_token_id], "attention_mask": [1] * max(1, len(row)), "labels": label}
        for row, label in zip(ids, labels, strict=True)
    ]


def load_model(folder: Path, names: Sequence[str], pad_id: int, seed: int) -> Any:
    """The model in float32, with a head for the labels; a new one is made from the seed.
    Raises UserError if it cannot be a classifier, or is one for other labels."""
    from transformers import set_seed

    from ..models.folder import model_config
    from ..models.weights import classifier_class, load_whole

    flag = "--model"
    config = model_config(folder, flag)
    if (cls := classifier_class(config)) is None:
        raise UserError(f"{flag} {folder} is of type {config.model_type!r}, which has no classifier")
    # a model of another kind gets a new head; a classifier keeps its own
    heads = () if is_classifier(folder) else (rf"^(?!{cls.base_model_prefix}\.)", r"\.pooler\.")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    set_seed(seed)
    model = load_whole(cls, config, folder, flag, dtype="float32", new=heads, spare=heads)
    model.config.pad_token_id = pad_id  # causal models pool at the last token that is not padding
    return model


def training_arguments(args: argparse.Namespace, folder: Path) -> Any:
    """The Trainer's words for our flags."""
    import torch
    from transformers import TrainingArguments

    steps = args.checkpointing_steps
    saving = {"save_strategy": "epoch"} if steps == "epoch" else {"save_strategy": "steps", "save_steps": int(steps)}
    return TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(args, name) for name in _SAME_NAMES},
        max_steps=args.max_train_steps or -1,
        warmup_steps=args.num_warmup_steps,
        train_sampling_strategy="group_by_length" if args.group_by_length else "random",
        save_total_limit=1,
        eval_strategy="epoch" if args.validation_file else "no",
        logging_steps=50,
        report_to="wandb" if os.environ.get("WANDB_API_KEY") else "none",
        run_name="classifier",
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **saving,
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, save."""
    args = parse(argv)
    backends.install()
    out = Path(args.out).absolute()
    check_output(out, args.overwrite)
    train_texts, train_labels = read_labelled(args.data)
    valid_texts, valid_labels = read_labelled(args.validation_file) if args.validation_file else ([], [])
    places = label_map(train_labels, valid_labels, args)
    folder = find_model(args.model)
    tokenizer = text_tokenizer(folder)
    check_context(folder, args.max_length, "--max_length")
    if (limit := text_limit(folder, tokenizer)) and args.max_length > limit:
        raise UserError(f"--max_length {args.max_length} is more than the {limit} tokens that {folder} reads; lower it")
    rows = [
        encode(tokenizer, texts, [places[label] for label in labels], args.max_length) if texts else []
        for texts, labels in ((train_texts, train_labels), (valid_texts, valid_labels))
    ]
    room = args.max_length - tokenizer.num_special_tokens_to_add()
    cut = count_cut(tokenizer, [*train_texts, *valid_texts], room)
    if cut and first_process():
        print(f"{cut} of {len(train_texts) + len(valid_texts)} texts are cut at --max_length {args.max_length} tokens")
    check_ids(folder, (row["input_ids"] for part in rows for row in part))

    files = {"train_file": args.data, "validation_file": args.validation_file}
    source = {name: sha256_file(path) for name, path in files.items() if path}
    free = ("out", "overwrite", "data", "validation_file", "model")
    settings = {key: value for key, value in vars(args).items() if key not in free}
    processes = int(os.environ.get("WORLD_SIZE", 1))
    mark = {
        "model": identity(folder),
        "sha256": source,
        **settings,
        "texts_cut": cut,
        "processes": processes,
        "version": __version__,
    }
    model = load_model(folder, [str(value) for value in places], int(tokenizer.pad_token_id), args.seed)
    result = fit(args, out, mark, model, tokenizer, *rows)
    if result is not None:
        measured = ", ".join(
            f"{key.removeprefix('eval_')} {result[key]:.4f}" for key in list(result)[:3] if key.startswith("eval_")
        )
        print(f"{out}: {measured or 'no validation file'}; {len(train_labels)} texts trained on", flush=True)


def fit(
    args: argparse.Namespace, out: Path, mark: dict[str, Any], model: Any, tokenizer: Any, train: Any, valid: Any
) -> dict[str, Any] | None:
    """Train from the last checkpoint, if there is one; write the folder; None on other ranks than the first."""
    from transformers import DataCollatorWithPadding, Trainer

    from ..models.weights import check_finite

    class FiniteTrainer(Trainer):
        """transformers' own leaves a loss that is not finite out of its logs, and goes on."""

        def training_step(self, *words: Any, **named: Any) -> Any:
            loss = super().training_step(*words, **named)
            if not bool(loss.isfinite().all()):
                raise UserError(
                    f"the loss is {loss.item()} after {self.state.global_step} steps, so that nothing is saved; lower "
                    "--learning_rate, or look at the data"
                )
            return loss

    checkpoints = out.with_name(f".{out.name}.checkpoints")
    trainer = FiniteTrainer(
        model=model,
        args=training_arguments(args, checkpoints),
        train_dataset=train,
        eval_dataset=valid or None,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if args.bf16 else None),
        compute_metrics=lambda found: metrics(np.asarray(found.label_ids), np.asarray(found.predictions)),
    )
    with trainer.args.main_process_first(desc="looking for checkpoints"):
        last = find_checkpoint(checkpoints, mark)
        if trainer.is_world_process_zero():
            write_json(checkpoints / _MARK, mark)
    if last and trainer.is_world_process_zero():
        print(f"{out}: goes on from {Path(last).name}", flush=True)
    trainer.train(resume_from_checkpoint=last)
    found = next((row for row in reversed(trainer.state.log_history) if "eval_accuracy" in row), {})
    if valid and found.get("step") != trainer.state.global_step:
        found = trainer.evaluate()
    if not trainer.is_world_process_zero():
        return None
    wanted = ("eval_accuracy", "eval_auc", "eval_f1", "eval_loss")
    result: dict[str, Any] = {key: found[key] for key in wanted if key in found}
    result |= {"train_rows": len(train), "validation_rows": len(valid), "steps": trainer.state.global_step}
    check_finite(model.named_parameters(), f"{out} is not written: the trained model")
    if args.overwrite and out.is_dir():
        shutil.rmtree(out)
    with atomic_folder(out) as folder:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "all_results.json", {**result, "run": {**vars(args), **mark}})
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


if __name__ == "__main__":
    main()
