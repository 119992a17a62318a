"""Fixes of bugs in OpenRLHF and in libraries under it that would spoil a run without a word.

`install` registers all of them, for every launcher; each takes effect when the module that it fixes is imported, where
the bug is there (see `where`), and changes nothing for runs that do not meet it. ``patches/`` has those of OpenRLHF as
diffs. In `chat_data` are the fixes of its data sets, in `resuming` those of its checkpoints.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from ..cli.errors import UserError
from ..files import columns
from . import chat_data, resuming
from .where import when_there


def _reward_statistics(module: Any) -> None:
    """The buffers ``mean`` and ``std`` of a reward model are filled from its config.

    They are not part of the saved weights, and transformers 5 leaves such buffers uninitialised, so that
    ``--reward.normalize_enable`` would divide by whatever was in memory.
    """
    original = module.get_llm_for_sequence_regression

    @functools.wraps(original)
    def get_llm_for_sequence_regression(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        for name, default in (("mean", 0.0), ("std", 1.0)):
            if (buffer := getattr(model, name, None)) is not None:
                buffer.fill_(float(getattr(model.config, name, default)))
        return model

    module.get_llm_for_sequence_regression = get_llm_for_sequence_regression


def _constant_groups(module: Any) -> None:
    """With ``group_norm``, samples of a prompt that all have the same reward get the advantage 0.

    The mean of n equal float32 numbers can differ from them by a rounding error, which the normalisation divides by
    itself: eight rewards of 0.9 get an advantage of about 0.9 each. Normalising takes no notice of what is the same
    for a group, so that such a group's rewards may as well be 0, of which all is exact.
    """
    original = module.apply_length_penalties

    @functools.wraps(original)
    def apply_length_penalties(experiences: list, args: Any) -> Any:
        result = original(experiences, args)
        if args.algo.advantage.estimator == "group_norm":
            zero_constant_groups(experiences, args.rollout.n_samples_per_prompt)
        return result

    module.apply_length_penalties = apply_length_penalties


def zero_constant_groups(experiences: list, size: int) -> None:
    """Set the rewards of groups to 0 in which all are equal.

    Args:
        experiences: with ``rewards`` ``(B,)`` and ``index``, the place of each sample when the prompts were sampled.
        size: samples of a prompt; ``index`` counts them one prompt after the other.
    """
    import torch

    index = torch.tensor(list(itertools.chain.from_iterable(experience.index for experience in experiences)))
    rewards = torch.cat([experience.rewards for experience in experiences])
    groups = torch.empty_like(rewards)
    groups[index] = rewards
    groups = groups.reshape(-1, size)
    groups[groups.amax(1) == groups.amin(1)] = 0
    parts = groups.reshape(-1)[index].split([len(experience.index) for experience in experiences])
    for experience, part in zip(experiences, parts, strict=True):
        experience.rewards = part


def _rotary_frequencies(module: Any) -> None:
    """What transformers computes from a float ``arange`` stays float32 while ZeRO-3 makes a model, as everywhere.

    DeepSpeed rounds all that is made there to the model's dtype. transformers 5 computes the frequencies of rotary
    embeddings from such numbers, and with those in bf16 a model reads other positions, the more so the longer a text
    is: others than vLLM reads, and than itself when it is loaded again.
    """
    wrappers = module.InsertPostInitMethodToModuleSubClasses
    original = wrappers._add_tensor_creation_wrappers

    @functools.wraps(original)
    def _add_tensor_creation_wrappers(self: Any) -> None:
        import torch

        original(self)
        device = self.local_device if module.DeepSpeedTensorOverride.device in self.tensor_overrides else None
        torch.arange = module.zero_wrapper_for_fp_tensor_constructor(module._orig_torch_arange, None, device)

    wrappers._add_tensor_creation_wrappers = _add_tensor_creation_wrappers


def _finite_training(module: Any) -> None:
    """A training whose loss, gradients or weights are not finite stops at once, and saves nothing.

    DeepSpeed silently leaves out every step whose gradients have NaN, so that such a training goes on to its end
    and saves the weights that it began with.
    """
    strategy = module.DeepspeedStrategy
    backward, optimizer_step = strategy.backward, strategy.optimizer_step
    save_model, save_ckpt = strategy.save_model, strategy.save_ckpt

    def engine_of(model: Any) -> Any:
        return model.model if isinstance(model, module.Actor) else model

    @functools.wraps(backward)
    def checked_backward(self: Any, loss: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not bool(loss.isfinite().all()):
            _stop(f"the loss is {loss.float().sum().item()}", engine_of(model))
        return backward(self, loss, model, *args, **kwargs)

    @functools.wraps(optimizer_step)
    def checked_step(self: Any, optimizer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = optimizer_step(self, optimizer, model, *args, **kwargs)
        if self.param_dtype != "fp16":  # where such gradients are met by another scale of the loss
            engine = engine_of(model)
            if getattr(getattr(engine, "optimizer", None), "overflow", False):
                _stop("gradients have NaN or infinite numbers", engine)
        return result

    @functools.wraps(save_model)
    def checked_save_model(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        _check_weights(self._unwrap_model(model))
        return save_model(self, model, *args, **kwargs)

    @functools.wraps(save_ckpt)
    def checked_save_ckpt(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        _check_weights(self._unwrap_model(model))
        return save_ckpt(self, model, *args, **kwargs)

    strategy.backward, strategy.optimizer_step = checked_backward, checked_step
    strategy.save_model, strategy.save_ckpt = checked_save_model, checked_save_ckpt


def _stop(what: str, engine: Any) -> None:
    step = getattr(engine, "global_steps", None)
    raise UserError(
        f"{what}{'' if step is None else f' in step {step + 1}'}, so that training stops and saves nothing more; lower "
        "the learning rate, look at the data and the starting weights, or go on from a checkpoint with "
        "--ckpt.load_enable"
    )


def _check_weights(model: Any) -> None:
    """Of this rank: with ZeRO-3, its part of each weight."""
    from ..models.weights import is_finite

    for name, weight in model.named_parameters():
        if not is_finite(getattr(weight, "ds_tensor", weight)):
            raise UserError(
                f"{name} has NaN or infinite numbers, so that the model is not saved; lower the learning rate, or go "
                "on from a checkpoint with --ckpt.load_enable"
            )


def install() -> None:
    """Register all; each is done when its module is imported."""
    when_there("deepspeed.runtime.zero.partition_parameters", _rotary_frequencies)
    when_there("openrlhf.datasets.prompts_dataset", chat_data.read_prompts)
    when_there("openrlhf.datasets.reward_dataset", chat_data.read_pairs)
    when_there("openrlhf.datasets.sft_dataset", chat_data.read_conversations)
    when_there("openrlhf.models.model", _reward_statistics)
    when_there("openrlhf.utils.deepspeed.deepspeed", _finite_training)
    when_there("openrlhf.trainer.ppo_utils.experience_maker", _constant_groups)
    when_there("openrlhf.datasets.utils", columns.use)
    resuming.install()
