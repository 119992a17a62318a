"""The part of the table of seams at which bugs are fixed (`orlhf_ext.openrlhf_fixes`)."""

from __future__ import annotations

from .contracts import Seam
from .releases import LAUNCHERS, RAY_LAUNCHERS, TRAIN_LAUNCHERS

_RAY = RAY_LAUNCHERS
_TRAIN = TRAIN_LAUNCHERS

FIXED = (
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
)
