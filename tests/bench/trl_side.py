"""TRL's DPOTrainer with ``loss_type="exo_pair"`` on the pairs of `exo_vs_trl.py`; writes losses and step times.

It gets this project's CPU backend too (allocator, bf16 kernels), so that only the trainers differ.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

from orlhf_ext import backends


def main() -> None:
    """Train one epoch over the rows in the order that OpenRLHF's sampler gives them."""
    model_path, data_path, out, micro, precompute, seed = sys.argv[1:7]
    backends.install()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in Path(data_path).read_bytes().splitlines()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(int(seed))).tolist()
    columns = ("prompt", "chosen", "rejected")
    data = Dataset.from_list([{key: rows[i][key] for key in columns} for i in order])

    class Clock(TrainerCallback):
        """When each optimizer step ended."""

        ends: list[float] = []  # noqa: RUF012

        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            self.ends.append(time.time())

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.ends.append(time.time())

    def load() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16, attn_implementation="sdpa")

    config = DPOConfig(
        output_dir=out,
        loss_type=["exo_pair"],
        beta=0.5,
        label_smoothing=1e-3,
        precompute_ref_log_probs=precompute == "1",
        per_device_train_batch_size=int(micro),
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        max_length=256,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        dataloader_drop_last=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=int(seed),
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    trainer = DPOTrainer(
        model=load(),
        ref_model=None if precompute == "1" else load(),
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    ids = [[row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")] for row in trainer.train_dataset]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    steps = [later - earlier for earlier, later in pairwise(Clock.ends)]
    Path(out, "trl.json").write_text(json.dumps({"losses": losses, "steps": steps, "ids": ids, "order": order}))


if __name__ == "__main__":
    main()
