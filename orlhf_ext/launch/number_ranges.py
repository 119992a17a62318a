"""The ranges of OpenRLHF's own flags, checked before anything is loaded; its parsers take any number."""

from __future__ import annotations

from types import SimpleNamespace

from ..cli.errors import UserError
from ..cli.flags import COUNT, FINITE, LENGTH, NOT_NEGATIVE, PART, POSITIVE, SEED, SHARE, Number, whole
from ..files.sources import nested

_NEVER = whole(1, also=(-1,))  # -1: never, or at the end of an epoch
_BETA = Number(float, least=0, below=1)
_FORWARD = {"aux_loss_coef": NOT_NEGATIVE, "num_gpus_per_node": COUNT, "num_nodes": COUNT}
_OPTIMIZER = {
    "adam.betas": _BETA,
    "adam.eps": POSITIVE,
    "adam.lr": NOT_NEGATIVE,
    "adam.weight_decay": NOT_NEGATIVE,
    "lr_warmup_ratio": SHARE,
    "max_norm": NOT_NEGATIVE,
    "min_lr_ratio": SHARE,
    "muon.lr": NOT_NEGATIVE,
    "muon.momentum": _BETA,
    "muon.ns_steps": COUNT,
}

#: flag without its dashes -> its range
RANGES: dict[str, Number] = {
    **_OPTIMIZER,
    **{f"{role}.{name}": one for role in ("actor", "critic") for name, one in _OPTIMIZER.items()},
    **{
        f"{role}.{name}": one
        for role in ("actor", "critic", "ref", "reward", "model")
        for name, one in _FORWARD.items()
    },
    "actor.dual_clip": Number(float, above=1),
    "actor.entropy_coef": FINITE,
    "actor.eps_clip": NOT_NEGATIVE,
    "actor.eps_clip_low_high": NOT_NEGATIVE,
    "algo.advantage.gamma": SHARE,
    "algo.advantage.is_correction_threshold": NOT_NEGATIVE,
    "algo.advantage.lambd": SHARE,
    "algo.dynamic_filtering_range": FINITE,
    "algo.kl.horizon": COUNT,
    "algo.kl.init_coef": NOT_NEGATIVE,
    "algo.kl.target": NOT_NEGATIVE,
    "batch_size": COUNT,
    "ckpt.max_mem": Number(float, above=0, also=(float("inf"),)),
    "ckpt.max_num": COUNT,
    "ckpt.save_steps": _NEVER,
    "critic.freezing_steps": whole(0, also=(-1,)),
    "critic.value_clip": NOT_NEGATIVE,
    "data.dataloader_num_workers": whole(),
    "data.max_images_per_prompt": whole(),
    "data.max_len": LENGTH,
    "data.max_samples": COUNT,
    "ds.lora.alpha": COUNT,
    "ds.lora.dropout": Number(float, least=0, below=1),
    "ds.lora.rank": whole(),
    "ds.ring_attn_head_stride": COUNT,
    "ds.ring_attn_size": COUNT,
    "ds.tensor_parallel_size": COUNT,
    "ds.zero_stage": whole(0, 3),
    "ds.zpg": COUNT,
    "eval.n_samples_per_prompt": COUNT,
    "eval.steps": _NEVER,
    "eval.temperature": NOT_NEGATIVE,
    "local_rank": whole(0, also=(-1,)),
    "logger.logging_steps": COUNT,
    "model.beta": POSITIVE,
    "model.label_smoothing": Number(float, least=0, below=0.5),
    "model.nll_loss_coef": NOT_NEGATIVE,
    "port": whole(0, 65535),
    "reward.clip_range": FINITE,
    "reward.overlong_buffer_len": NOT_NEGATIVE,
    "reward.overlong_penalty_factor": NOT_NEGATIVE,
    "reward.stop_properly_penalty_coef": FINITE,
    "rollout.batch_size": COUNT,
    "rollout.max_new_tokens": COUNT,
    "rollout.max_tokens_per_gpu": COUNT,
    "rollout.micro_batch_size": COUNT,
    "rollout.n_samples_per_prompt": COUNT,
    "rollout.temperature": NOT_NEGATIVE,
    "rollout.top_p": PART,
    "rollout.vllm_generate_batch_size": COUNT,
    "train.async_queue_size": COUNT,
    "train.batch_size": COUNT,
    "train.ema_beta": SHARE,
    "train.max_epochs": COUNT,
    "train.max_tokens_per_gpu": COUNT,
    "train.micro_batch_size": COUNT,
    "train.num_episodes": COUNT,
    "train.seed": SEED,
    "vllm.gpu_memory_utilization": PART,
    "vllm.num_engines": COUNT,
    "vllm.tensor_parallel_size": COUNT,
}


def check_numbers(args: SimpleNamespace) -> None:
    """Check the launcher's nested arguments by `RANGES`.
    Raises UserError if a number is outside of its range; its flag is named."""
    for flag, number in RANGES.items():
        value = nested(args, flag)
        for one in value if isinstance(value, list | tuple) else (value,):
            # OpenRLHF itself writes infinity for "never" into some of them
            if isinstance(one, int | float) and not isinstance(one, bool) and (fault := number.fault(one)):
                raise UserError(f"--{flag} {one:g} {fault}")
