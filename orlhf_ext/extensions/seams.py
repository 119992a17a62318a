"""The one table of seams: what we replace in OpenRLHF and the libraries under it, and what we rely on there.

`problems` compares a contract with what is installed, so that an upgrade fails in seconds and says where.
"""

from __future__ import annotations

import importlib
import inspect
import operator
from dataclasses import dataclass

from .ray_classes import unwrap

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
    #: attributes by name; anything else is text that must be in its source
    relies_on: tuple[str, ...] = ()
    #: who replaces it: an extension, a backend, the launcher itself, or a fix (`orlhf_ext.openrlhf_fixes`)
    by: str = "extension"


_RAYS_OWN = "_ray_trace_ctx"  # a parameter that Ray adds to an actor's methods
_RAY = RAY_LAUNCHERS
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
        "openrlhf.trainer.rm_trainer:RewardModelTrainer",
        ("train_rm",),
        "model strategy optim train_dataloader eval_dataloader scheduler tokenizer max_norm max_epochs loss "
        "disable_ds_ckpt save_hf_ckpt",
        "the reward model's trainer; groups change its forward pass, its loss and what it logs, not its fit()",
        (
            "fit",
            "evaluate",
            "concatenated_forward",
            "concatenated_inputs",
            "save_logs_and_checkpoints",
            "chosen_ids, c_mask, reject_ids, r_mask, margin = data",
            "self.loss_fn(chosen_reward, reject_reward, margin)",
        ),
    ),
    Seam(
        "openrlhf.models.actor:Actor",
        ("train_sft", "train_dpo", "train_ppo_ray"),
        "pretrain_or_model attn_implementation param_dtype load_in_4bit lora_rank lora_alpha lora_dropout "
        "target_modules ds_config device_map packing_samples temperature use_liger_kernel freeze_visual_encoder "
        "experts_implementation kwargs",
        "the model that is trained, as the strategy knows it; dead-end makes it a value function",
        ("forward", "gradient_checkpointing_enable", "self.model = pretrain_or_model"),
    ),
    Seam(
        "openrlhf.datasets.sft_dataset:SFTDataset",
        ("train_sft",),
        "dataset tokenizer max_length strategy input_template pretrain_mode num_processors multiturn",
        "rows of a data set of texts; dead-end gives each a reward",
        ("collate_fn", "__len__", "__getitem__", "return input_ids, attention_masks, loss_masks"),
    ),
    Seam(
        "openrlhf.trainer.sft_trainer:SFTTrainer",
        ("train_sft",),
        "model strategy optim train_dataloader eval_dataloader scheduler max_norm pretrain_mode batch_size max_epochs "
        "tokenizer save_hf_ckpt disable_ds_ckpt",
        "the trainer on texts; dead-end changes its loss and what happens after a step, not its fit()",
        (
            "fit",
            "evaluate",
            "save_logs_and_checkpoints",
            "batch[2].squeeze(1)[:, :-1]",
            "in iter_grad_accum_global_norm(",
            "per_token_log_probs, output = self.model(",
            "gpt_loss = self.loss_fn(",
            "shifted_loss_mask,\n                        **loss_batch_info",
            "loss = self.loss_fn(per_token_log_probs, loss_mask[:, :-1])",
            "# Every emitted window is one complete optimizer update.",
            "self.save_logs_and_checkpoints(args, engine.global_steps, step_bar, logs_dict, client_states)",
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
    Seam(
        "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator",
        _RAY,
        "strategy prompts_dataloader eval_dataloader tokenizer vllm_engines",
        "samples prompts; rewards fill in what they are worth before anything else sees them",
        (
            "generate_samples",
            "generate_eval_samples",
            "self, dataloader_iter, num_prompts: int, dynamic_filtering, **generate_kwargs",
            "dataloader_iter=self._eval_dataloader_iter",
            'batch_vllm_engine_call(self.vllm_engines, "wake_up")',
            "self._sample_buffer = self._sample_buffer[chunk_size:]",
            "self._dataloader_iter = None",
        ),
    ),
    Seam(
        "openrlhf.trainer.ppo_trainer:PPOTrainer",
        _RAY,
        "pretrain strategy actor_model_group critic_model_group reward_model_group reference_model_group vllm_engines "
        "generate_kwargs",
        "the controller; rewards need its reference model, and evaluation sampling settings of its own",
        (
            "get_max_steps",
            "fit",
            "evaluate",
            "init_checkpoint_states",
            "_detect_eval_metric_key",
            "self.samples_generator = SamplesGenerator(",
            "self.evaluate(global_step, **eval_generate_kwargs)",
        ),
    ),
    Seam(
        "openrlhf.trainer.ppo_trainer:compute_eval_metrics",
        _RAY,
        "eval_dataloader samples_list n_samples_per_prompt",
        "evaluation metrics; rewards add the means of what they log, by data source",
    ),
    Seam(
        "openrlhf.trainer.ray.launcher:ReferenceModelActor",
        _RAY,
        "world_size rank master_addr master_port",
        "the frozen reference model; rewards may score any tokens with it",
        ("init_model_from_pretrained", "forward", "temperature=strategy.args.rollout.temperature", "self.model("),
    ),
    Seam(
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker",
        _RAY,
        "actor_model_group critic_model_group reward_model_group initial_model_group kl_controller strategy tokenizer "
        "kwargs",
        "from samples to advantages; for rewards that shape a whole batch, and for EXO's advantages",
        (
            "make_experience_batch",
            "make_experience",
            "compute_advantages_and_returns",
            "split_rollout_samples",
            'samples.info["logprobs_diff"] = logprobs_diff_mean',
            "logprobs_diff = action_log_probs.float() - base_action_log_probs.float()",
            "apply_length_penalties(experiences, args)",
        ),
    ),
    Seam(
        "openrlhf.trainer.ray.ppo_actor:PolicyModelActor",
        _RAY,
        "world_size rank master_addr master_port",
        "the policy's actors; for losses and metrics of one's own",
        ("init_model_from_pretrained", "fit", "broadcast_to_vllm", "self.trainer = ActorPPOTrainer("),
    ),
    Seam(
        "openrlhf.models.model:get_llm_for_sequence_regression",
        tuple(LAUNCHERS),
        "model_name_or_path model_type param_dtype load_in_4bit lora_rank lora_alpha target_modules lora_dropout "
        "normalize_reward attn_implementation ds_config init_value_head value_head_prefix device_map packing_samples "
        "experts_implementation kwargs",
        "the buffers mean and std of a reward model come up uninitialised with transformers 5",
        by="fix",
    ),
    *(
        Seam(
            f"openrlhf.datasets.{function}",
            launchers,
            parameters,
            "cuts a chat at the length of its prompt, or does not name the record that a chat template refuses",
            by="fix",
        )
        for function, launchers, parameters in (
            (
                "reward_dataset:preprocess_data",
                ("train_rm", "train_dpo"),
                "data input_template prompt_key chosen_key rejected_key apply_chat_template is_dpo",
            ),
            (
                "sft_dataset:preprocess_data",
                ("train_sft",),
                "data input_template input_key output_key apply_chat_template",
            ),
            ("sft_dataset:SFTDataset.process_data", ("train_sft",), "self data"),
            ("prompts_dataset:preprocess_data", _RAY, "data input_template input_key label_key apply_chat_template"),
        )
    ),
    *(
        Seam(
            f"openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.{method}",
            _TRAIN,
            parameters,
            "a training whose loss, gradients or weights are not finite goes on to its end, and saves",
            by="fix",
        )
        for method, parameters in (
            ("backward", "self loss model _optimizer kwargs"),
            ("optimizer_step", "self _optimizer model _scheduler name kwargs"),
            ("save_model", "self model tokenizer output_dir kwargs"),
            ("save_ckpt", "self model save_dir tag max_num max_mem client_state save_latest metric_value metric_key"),
        )
    ),
    Seam(
        "openrlhf.trainer.ppo_utils.experience_maker:apply_length_penalties",
        _RAY,
        "experiences args",
        "the step before group normalisation, which turns the rounding error of equal rewards into advantages",
        by="fix",
    ),
    Seam(
        "deepspeed.runtime.zero.partition_parameters:InsertPostInitMethodToModuleSubClasses._add_tensor_creation_wrappers",
        _TRAIN,
        "self",
        "ZeRO-3 rounds what a model is made from, and with it the frequencies of transformers 5's rotary embeddings",
        (
            "torch.arange = zero_wrapper_for_fp_tensor_constructor(_orig_torch_arange",
            "DeepSpeedTensorOverride.device in self.",
        ),
        by="fix",
    ),
    *(
        Seam(
            f"openrlhf.trainer.{module}",
            (launcher,),
            "self args consumed_samples num_update_steps_per_epoch",
            "counts an epoch as whole steps when it goes on from a checkpoint",
            (
                "start_epoch = consumed_samples // args.train.batch_size // num_update_steps_per_epoch",
                "consumed_samples = consumed_samples % (num_update_steps_per_epoch * args.train.batch_size)",
            ),
            by="fix",
        )
        for module, launcher in (
            ("dpo_trainer:DPOTrainer.fit", "train_dpo"),
            ("rm_trainer:RewardModelTrainer.fit", "train_rm"),
        )
    ),
    *(
        Seam(f"openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.{name}", _TRAIN, parameters, why, needed, "fix")
        for name, parameters, why, needed in (
            (
                "setup_dataloader",
                "self replay_buffer batch_size pin_memory shuffle collate_fn drop_last sampler consumed_samples "
                "num_workers",
                "counts the batches of an epoch, for the schedule of the learning rate",
                (),
            ),
            (
                "_ds_init_train_model",
                "self model cfg",
                "its schedule may be shorter than training, and dropout depends on what was drawn before",
                ('scheduler_steps = cfg["scheduler_steps"]', "return model, optim, scheduler"),
            ),
            (
                "save_ckpt",
                "self model save_dir tag max_num max_mem client_state save_latest metric_value metric_key",
                "leaves out what evaluations write into a model's config",
                (),
            ),
            (
                "load_ckpt",
                "self model load_dir tag load_module_strict load_optimizer_states load_lr_scheduler_states "
                "load_module_only",
                "as save_ckpt",
                ("return load_path, states",),
            ),
            ("backward", "self loss model _optimizer kwargs", "the next step begins where the data say so", ()),
        )
    ),
    Seam(
        "openrlhf.utils.loss_utils:iter_grad_accum_global_norm",
        ("train_sft", *_RAY),
        "data_iter strategy accumulated_gradient mask_fn",
        "rollouts that do not fill a batch are a step of their own, which DeepSpeed does not take",
        by="fix",
    ),
    *(
        Seam(f"openrlhf.trainer.ray.{name}.ppo_train", _RAY, parameters, "shuffles by what was drawn before", by="fix")
        for name, parameters in (("ppo_actor:ActorPPOTrainer", "self kl_ctl"), ("ppo_critic:CriticPPOTrainer", "self"))
    ),
    Seam(
        "openrlhf.trainer.ppo_trainer:BasePPOTrainer.init_checkpoint_states",
        _RAY,
        "self",
        "an episode whose last batch was not full is done again when the run goes on",
        ('"data_loader_state_dict"', '"episode"'),
        by="fix",
    ),
    Seam(
        "openrlhf.trainer.ppo_trainer:BasePPOTrainer.save_logs_and_checkpoints",
        _RAY,
        "self global_step logs_dict client_states",
        "leaves out an adaptive KL coefficient",
        by="fix",
    ),
    Seam(
        "openrlhf.utils.distributed_util:stateless_init_process_group",
        _RAY,
        "master_address master_port rank world_size device",
        "weights go to vLLM over NCCL",
        by="cpu",
    ),
    Seam(
        "openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap",
        _RAY,
        "",
        "weights are received on a CUDA device by name",
        ("update_weight", "init_process_group"),
        by="cpu",
    ),
    Seam(
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        _RAY,
        "layer remove_weight",
        "vLLM's CPU build packs linear weights and empties them, so that no new ones can be loaded",
        by="cpu",
    ),
    Seam(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        _RAY,
        "self usage_context headless",
        "float32 on a CPU without bf16 units, and a cache for keys and values that fits",
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
        found = operator.attrgetter(attribute)(importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        return [f"{seam.target} is missing: {error}"]
    found = inspect.unwrap(unwrap(found))
    parameters = " ".join(name for name in inspect.signature(found).parameters if name != _RAYS_OWN)
    wrong = []
    if parameters != seam.parameters:
        wrong.append(f"{seam.target} takes ({parameters}), not ({seam.parameters})")
    source = inspect.getsource(found) if seam.relies_on else ""
    for needed in seam.relies_on:
        if not (hasattr(found, needed) if needed.isidentifier() else needed in source):
            wrong.append(f"{seam.target} has no {needed!r}")
    return wrong
