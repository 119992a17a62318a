"""The one table of seams: what we replace in OpenRLHF and the libraries under it, and what we rely on there."""

from __future__ import annotations

from .contracts import Seam
from .fixed_seams import FIXED
from .releases import LAUNCHERS, RAY_LAUNCHERS, TRAIN_LAUNCHERS

_RAY = RAY_LAUNCHERS
_TRAIN = TRAIN_LAUNCHERS

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
            # how windows become steps, to 0.11.1 and since
            (
                "# Every emitted window is one complete optimizer update.",
                "step % self.strategy.accumulated_gradient == 0",
            ),
            (
                "self.save_logs_and_checkpoints(args, engine.global_steps, step_bar, logs_dict, client_states)",
                "self.save_logs_and_checkpoints(args, global_step, step_bar, logs_dict, client_states)",
            ),
        ),
    ),
    Seam(
        "openrlhf.models.utils:log_probs_from_logits",
        ("train_dpo",),
        "logits labels temperature",
        "log-probabilities at a temperature, of the logits that EXO asks for",
        ("logits.div_(temperature)",),
        by="import",
    ),
    Seam(
        "openrlhf.models.model:_get_reward_model",
        ("train_rm", "train_ppo_ray"),
        "base_pretrained_model base_llm_model value_head_prefix packing_samples",
        "the class of reward models, of which groups make one with a head for each",
        ("self.value_head_prefix = value_head_prefix",),
        by="import",
    ),
    Seam(
        "openrlhf.utils.agent:SingleTurnAgentExecutor",
        _RAY,
        "remote_rm_url",
        "what samples a response; with rewards of ours, none of its own",
        ("execute", '"truncated"'),
        by="import",
    ),
    Seam(
        "openrlhf.trainer.ray.vllm_engine:batch_vllm_engine_call",
        _RAY,
        "engines method_name args rank_0_only kwargs",
        "engines sleep while rewards with a model are computed",
        by="import",
    ),
    Seam(
        "openrlhf.trainer.ray.launcher:RayActorGroup",
        _RAY,
        "num_nodes num_gpus_per_node ray_actor_type pg num_gpus_per_actor duplicate_actors resources "
        "num_resources_per_node",
        "calls of the reference model's processes",
        ("async_run_method", "async_run_method_batch", "_actor_handlers"),
        by="import",
    ),
    Seam(
        "openrlhf.trainer.ppo_utils.experience:Experience",
        _RAY,
        "",
        "samples, which rewards fill in",
        ("sequences", "action_mask", "rewards", "scores", "info", "prompts", "labels", "images", "truncated"),
        by="import",
    ),
    Seam(
        "openrlhf.utils.utils:zero_pad_sequences",
        ("train_sft", "train_rm"),
        "sequences side value stack",
        "makes tensors of rows",
        by="import",
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
        "the policy's actors; rewards may score any tokens with them; for losses and metrics of one's own",
        (
            "init_model_from_pretrained",
            "fit",
            "forward",
            "broadcast_to_vllm",
            "self.actor, self.actor_optim, self.actor_scheduler = strategy.prepare(",
            "self.trainer = ActorPPOTrainer(",
        ),
    ),
    *FIXED,
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
