"""The one table of seams: what we replace in OpenRLHF and the libraries under it, and what we rely on there.

`problems` holds a contract against what is installed, so that an upgrade fails in seconds and says where.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass

OPENRLHF_VERSION = "0.11.2"

LAUNCHERS = {
    "train_sft": "openrlhf.cli.train_sft",
    "train_rm": "openrlhf.cli.train_rm",
    "train_dpo": "openrlhf.cli.train_dpo",
    "train_ppo_ray": "openrlhf.cli.train_ppo_ray",
    "serve_rm": "openrlhf.cli.serve_rm",
    "lora_combiner": "openrlhf.cli.lora_combiner",
}
RAY_LAUNCHERS = ("train_ppo_ray",)


@dataclass(frozen=True)
class Seam:
    """One ``module:attribute`` that is replaced, with the contract that its replacement relies on."""

    target: str
    launchers: tuple[str, ...]
    #: names of its parameters, in order, separated by spaces (a class: of ``__init__`` without ``self``)
    parameters: str
    why: str
    #: attributes by name; anything else is text that must stand in its source
    relies_on: tuple[str, ...] = ()
    #: who replaces it: an extension, or a backend, or the launcher itself
    by: str = "extension"


_TRAIN = ("train_sft", "train_rm", "train_dpo", "train_ppo_ray")

SEAMS = (
    Seam(
        "openrlhf.datasets.reward_dataset:RewardDataset",
        ("train_rm", "train_dpo"),
        "dataset tokenizer max_length strategy input_template is_dpo num_processors",
        "rows of a preference data set; K-wise rows for EXO",
        ("collate_fn", "process_data", "__len__", "__getitem__"),
    ),
    Seam(
        "openrlhf.trainer.dpo_trainer:DPOTrainer",
        ("train_dpo",),
        "model ref_model strategy tokenizer optim train_dataloader eval_dataloader scheduler max_norm beta max_epochs "
        "save_hf_ckpt disable_ds_ckpt",
        "the preference trainer; EXO changes its forward pass and its loss, not its fit()",
        (
            "fit",
            "evaluate",
            "concatenated_forward",
            "_get_batch_logps",
            "save_logs_and_checkpoints",
            "self.loss_fn(",
            "self.ref_model.eval()",
            ".squeeze(1)",
        ),
    ),
    Seam(
        "openrlhf.utils.config:hierarchize",
        tuple(LAUNCHERS),
        "args",
        "where the launcher's arguments become nested: ours join them here and travel with them",
        by="launch",
    ),
    Seam(
        "openrlhf.models.ring_attn_utils:unpad_and_slice_tensor",
        _TRAIN,
        "sequences attention_mask ring_attn_group",
        "its module imports four names of flash-attn at its top, used only for packing and ring attention",
        by="no-flash-attn",
    ),
    Seam(
        "openrlhf.utils.deepspeed.deepspeed_utils:get_train_ds_config",
        _TRAIN,
        "offload adam_offload stage param_dtype max_norm zpg grad_accum_dtype overlap_comm use_ds_universal_ckpt "
        "deepcompile tensor_parallel_size optim_config",
        "torch's AdamW instead of DeepSpeed's, which compiles C++ for minutes on its first use",
        by="cpu",
    ),
    Seam(
        "deepspeed.comm.torch:build_shm_op",
        _TRAIN,
        "",
        "plain gloo instead of a shared-memory operator that compiles C++ on its first use",
        by="cpu",
    ),
    Seam(
        "torch.distributed.device_mesh:init_device_mesh",
        _TRAIN,
        "device_type mesh_shape mesh_dim_names backend_override",
        'DeepspeedStrategy.setup_distributed asks for "cuda" by name',
        by="cpu",
    ),
)


def find(target: str) -> Seam | None:
    """The seam of that ``module:attribute``, or None."""
    return next((seam for seam in SEAMS if seam.target == target), None)


def problems(seam: Seam) -> list[str]:
    """What of a seam's contract does not hold for what is installed; nothing when all is well."""
    module_name, _, attribute = seam.target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        return [f"{seam.target} is missing: {error}"]
    found = inspect.unwrap(found)
    parameters = " ".join(inspect.signature(found).parameters)
    wrong = []
    if parameters != seam.parameters:
        wrong.append(f"{seam.target} takes ({parameters}), not ({seam.parameters})")
    source = inspect.getsource(found) if seam.relies_on else ""
    for needed in seam.relies_on:
        if not (hasattr(found, needed) if needed.isidentifier() else needed in source):
            wrong.append(f"{seam.target} has no {needed!r}")
    return wrong
