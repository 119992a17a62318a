"""A training that is killed and resumed ends as the run that nobody killed: fixes of OpenRLHF's checkpoints.

A checkpoint has weights, optimizer and schedule. What comes here is the rest of what a run depends on: where it is in
its data, random numbers, what was measured, and gradients that no step has used yet. ``patches/`` has the diffs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..cli.errors import UserError
from .where import when_there

_FINISHED = "_iterator_finished"  # torchdata's, in the state of a data loader
_SAMPLES = "orlhf_ext_samples"
_CONFIG = "orlhf_ext_config"
_RUN = "orlhf_ext_run"
_PROMPTS = "orlhf_ext_prompts"
_KL = "orlhf_ext_kl_coef"


class StepsOfEpoch(int):
    """Optimizer steps of an epoch: rounded down, as OpenRLHF counts them, but exact where a position follows from it.

    An epoch of 5 micro batches, 2 a step, has 2.5 steps. After 3 steps of batch 4, OpenRLHF's ``3 // steps`` and
    ``12 % (steps * 4)`` find epoch 1 and 2 records of it; with 2 steps an epoch, the latter would be 4.
    """

    exact: Fraction

    def __new__(cls, exact: Fraction) -> StepsOfEpoch:
        """The steps of an epoch that is ``exact`` steps long."""
        steps = super().__new__(cls, exact)
        steps.exact = exact
        return steps

    def __rfloordiv__(self, steps: int) -> int:
        return steps // self.exact

    def __mul__(self, size: Any) -> Any:
        return self.exact * size


def _position(trainer: str) -> Callable[[Any], None]:
    """Training goes on with the next record, also where the batch does not divide the records.

    Micro batches that an epoch has left over belong to the first step of the next one. OpenRLHF counts an epoch as
    ``records // batch`` whole steps, and skips or repeats records when it goes on from a checkpoint.
    """

    def fix(module: Any) -> None:
        cls = getattr(module, trainer)
        original = cls.fit

        @functools.wraps(original)
        def fit(self: Any, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> Any:
            if num_update_steps_per_epoch:
                exact = Fraction(len(self.train_dataloader), self.strategy.accumulated_gradient)
                num_update_steps_per_epoch = StepsOfEpoch(exact)
            return original(self, args, consumed_samples, num_update_steps_per_epoch)

        cls.fit = fit

    return fix


def _strategy(module: Any) -> None:
    """What `DeepspeedStrategy` does for every launcher."""
    strategy = module.DeepspeedStrategy
    _schedule(strategy)
    _draws(strategy)
    _checkpoints(strategy)
    _boundaries(strategy)


def _schedule(strategy: Any) -> None:
    """The learning rate's schedule is as long as training.

    With ``records // batch`` steps an epoch it ends too early, and a cosine rises again behind its end.
    """
    setup, prepare = strategy.setup_dataloader, strategy._ds_init_train_model

    @functools.wraps(setup)
    def setup_dataloader(self: Any, *args: Any, **words: Any) -> Any:
        loader = setup(self, *args, **words)
        if not hasattr(self, "records"):  # the first one is the training's
            self.records, self.batches_of_epoch = len(loader.dataset), len(loader)
        return loader

    @functools.wraps(prepare)
    def _ds_init_train_model(self: Any, model: Any, cfg: dict[str, Any]) -> Any:
        if hasattr(self, "records"):  # not in train_ppo_ray, whose actors have no data loader
            steps = self.batches_of_epoch * self.args.train.max_epochs // self.accumulated_gradient
            cfg = {**cfg, "scheduler_steps": steps}
        return prepare(self, model, cfg)

    strategy.setup_dataloader = setup_dataloader
    strategy._ds_init_train_model = _ds_init_train_model


def engine_of(model: Any) -> Any:
    """DeepSpeed's engine: a reward model is one, an `Actor` has one."""
    from deepspeed import DeepSpeedEngine

    return model if isinstance(model, DeepSpeedEngine) else model.model


def seed_draws(strategy: Any, *place: int) -> None:
    """Let what is drawn next (dropout, an order) depend on the seed, the data-parallel rank and the place alone."""
    import torch

    copies = strategy.ring_attn_size * strategy.ds_tensor_parallel_size  # which compute one micro batch together
    torch.manual_seed(hash((strategy.seed, strategy.get_rank() // copies, *place)) % 2**63)


def _draws(strategy: Any) -> None:
    """Dropout is the same in a training that is resumed; checkpoints have no states of random numbers. A run that
    neither writes nor reads any draws as OpenRLHF does."""
    prepare = strategy._ds_init_train_model

    @functools.wraps(prepare)
    def _ds_init_train_model(self: Any, model: Any, cfg: dict[str, Any]) -> Any:
        made = prepare(self, model, cfg)
        if self.args.ckpt.save_steps == -1 and not self.args.ckpt.load_enable:
            return made
        engine = engine_of(made[0])
        last, count = -1, 0

        def seed(_: Any, __: Any) -> None:
            nonlocal last, count
            if engine.module.training:
                count = count + 1 if engine.global_steps == last else 0
                last = engine.global_steps
                seed_draws(self, last, count)

        engine.register_forward_pre_hook(seed)
        return made

    strategy._ds_init_train_model = _ds_init_train_model


def _checkpoints(strategy: Any) -> None:
    """A checkpoint also has what evaluations write into a model's config (the mean and deviation of rewards), and what
    its position in the data means something for: another run is refused.

    Raises:
        UserError: a checkpoint is damaged, of another model or number of processes, or of other data.
    """
    save, load = strategy.save_ckpt, strategy.load_ckpt

    @functools.wraps(save)
    def save_ckpt(
        self: Any, model: Any, save_dir: str, tag: Any = None, max_num: int = 3, max_mem: int = 1000,
        client_state: dict[str, Any] | None = None, *args: Any, **words: Any,
    ) -> None:  # fmt: skip
        state = {**(client_state or {}), _CONFIG: model.module.config.to_dict(), _RUN: _run(self)}
        save(self, model, save_dir, tag, max_num, max_mem, state, *args, **words)

    @functools.wraps(load)
    def load_ckpt(self: Any, model: Any, load_dir: str, *args: Any, **words: Any) -> tuple[Any, dict[str, Any]]:
        try:
            path, states = load(self, model, load_dir, *args, **words)
            if path is not None and model.zero_optimization():
                parts = len(list(Path(path).parent.glob("*_optim_states.pt")))
                if parts < model.loaded_checkpoint_dp_world_size:  # which DeepSpeed would begin anew
                    raise FileNotFoundError(f"{parts} of {model.loaded_checkpoint_dp_world_size} *_optim_states.pt")
        except Exception as error:
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"the newest checkpoint in {load_dir} cannot be used ({why}); write the name of an older one into "
                f"{load_dir}/latest, or give another --ckpt.path to start anew"
            ) from error
        check_run(states.pop(_RUN, {}), _run(self), load_dir)
        config = model.module.config
        own = config.to_dict()
        for name, value in states.pop(_CONFIG, {}).items():
            if name not in own or own[name] != value:
                setattr(config, name, value)
        return path, states

    strategy.save_ckpt, strategy.load_ckpt = save_ckpt, load_ckpt


def _run(strategy: Any) -> dict[str, int]:
    """What the order of records and the length of a step follow from."""
    found = {"--train.batch_size": strategy.train_batch_size, "--train.seed": strategy.seed}
    if hasattr(strategy, "records"):
        found["records"] = strategy.records
    return found


def check_run(there: Mapping[str, int], here: Mapping[str, int], folder: str) -> None:
    """Compare the run that wrote a checkpoint with the one that wants to go on from it.
    Raises UserError if they differ in something that both name."""
    for name, value in there.items():
        if here.get(name, value) != value:
            raise UserError(
                f"the checkpoint in {folder} is of another run ({name}: {value} there, {here[name]} here), and this "
                "one would skip or repeat records; go on as before, or give another --ckpt.path to start anew"
            )


def _boundaries(strategy: Any) -> None:
    """DeepSpeed takes a step where `_windows` says that the data have one."""
    original = strategy.backward

    @functools.wraps(original)
    def backward(self: Any, loss: Any, model: Any, *args: Any, **words: Any) -> None:
        if (ends := getattr(self, "ends_step", None)) is not None:
            engine_of(model).set_gradient_accumulation_boundary(ends)
        original(self, loss, model, *args, **words)

    strategy.backward = backward


def _windows(module: Any) -> None:
    """In ``train_ppo_ray`` the last rollouts of an episode, if they do not fill a batch, are a step of their own.

    OpenRLHF normalises their loss as one, but DeepSpeed would count on to a full batch: part of their gradient would
    join the next rollouts' step, and so on, and be missing from the checkpoint between the two.
    """
    original = module.iter_grad_accum_global_norm

    @functools.wraps(original)
    def iter_grad_accum_global_norm(
        data_iter: Any, strategy: Any, accumulated_gradient: int, mask_fn: Any
    ) -> Iterator[Any]:
        pairs = original(data_iter, strategy, accumulated_gradient, mask_fn)
        pair, place = next(pairs, None), 0
        while pair is not None:
            following, place = next(pairs, None), place + 1
            strategy.ends_step = following is None or place % accumulated_gradient == 0
            yield pair
            pair = following

    module.iter_grad_accum_global_norm = iter_grad_accum_global_norm


def _order(trainer: str, model: str) -> Callable[[Any], None]:
    """``train_ppo_ray`` shuffles the samples of a batch in the same order when it is resumed."""

    def fix(module: Any) -> None:
        cls = getattr(module, trainer)
        original = cls.ppo_train

        @functools.wraps(original)
        def ppo_train(self: Any, *args: Any, **words: Any) -> Any:
            seed_draws(self.strategy, engine_of(getattr(self, model)).global_steps)
            return original(self, *args, **words)

        cls.ppo_train = ppo_train

    return fix


def _samples(module: Any) -> None:
    """The state of the prompts' data loader has the samples that no step has used yet, and how many prompts there are.

    With ``--rollout.vllm_generate_batch_size`` more is sampled at once than a step takes; the rest would be lost.
    """
    from openrlhf.trainer.ppo_utils.experience import Experience

    original = module.SamplesGenerator.__init__

    @functools.wraps(original)
    def __init__(self: Any, strategy: Any, prompts_dataloader: Any, *args: Any, **words: Any) -> None:
        original(self, strategy, prompts_dataloader, *args, **words)
        save, load = prompts_dataloader.state_dict, prompts_dataloader.load_state_dict

        def state_dict() -> dict[str, Any]:
            left = [vars(sample) for sample in getattr(self, "_sample_buffer", ())]
            return {**save(), _SAMPLES: left, _PROMPTS: len(prompts_dataloader.dataset)}

        def load_state_dict(state: dict[str, Any]) -> None:
            state = dict(state)
            samples, there = state.pop(_SAMPLES, ()), state.pop(_PROMPTS, None)
            here = {"prompts": len(prompts_dataloader.dataset)}
            check_run({"prompts": there} if there else {}, here, self.args.ckpt.path)
            load(state)
            if samples:
                self._sample_buffer = [Experience(**fields) for fields in samples]
                self._dataloader_iter = None if state[_FINISHED] else iter(prompts_dataloader)

        prompts_dataloader.state_dict, prompts_dataloader.load_state_dict = state_dict, load_state_dict

    module.SamplesGenerator.__init__ = __init__


def ends_episode(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's state of the prompts' data loader has nothing left of its episode."""
    return bool(state.get(_FINISHED)) and not state.get(_SAMPLES)


def _episode(module: Any) -> None:
    """``train_ppo_ray`` goes on with the next episode from a checkpoint that ended one, instead of doing it again; an
    adaptive KL coefficient goes on from where it was."""
    cls = module.BasePPOTrainer
    save, load = cls.save_logs_and_checkpoints, cls.init_checkpoint_states

    @functools.wraps(save)
    def save_logs_and_checkpoints(
        self: Any, global_step: int, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        if client_states is not None:
            client_states[_KL] = float(self.kl_ctl.value)
        save(self, global_step, logs_dict, client_states)

    @functools.wraps(load)
    def init_checkpoint_states(self: Any) -> dict[str, Any]:
        states = load(self)
        self.kl_ctl.value = states.get(_KL, self.kl_ctl.value)
        return {**states, "episode": states["episode"] + ends_episode(states["data_loader_state_dict"])}

    cls.save_logs_and_checkpoints, cls.init_checkpoint_states = save_logs_and_checkpoints, init_checkpoint_states


@functools.cache
def install() -> None:
    """Register all; each is done when its module is imported."""
    for module, trainer in (
        ("dpo_trainer", "DPOTrainer"),
        ("rm_trainer", "RewardModelTrainer"),
        ("sft_trainer", "SFTTrainer"),
    ):
        when_there(f"openrlhf.trainer.{module}", _position(trainer))
    when_there("openrlhf.utils.deepspeed.deepspeed", _strategy)
    when_there("openrlhf.utils.loss_utils", _windows)
    when_there("openrlhf.trainer.ray.ppo_actor", _order("ActorPPOTrainer", "actor"))
    when_there("openrlhf.trainer.ray.ppo_critic", _order("CriticPPOTrainer", "critic"))
    when_there("openrlhf.trainer.ppo_utils.samples_generator", _samples)
    when_there("openrlhf.trainer.ppo_trainer", _episode)
