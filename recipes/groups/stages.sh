# The stages that hh_groups.sh repeats, as functions of what differs between their runs; the rest they read from the
# recipe's variables.

# sample NAME MODEL PROMPTS OUT WORDS...
sample() {
    stage "sample/$1" --in "$3" --source "$2" --out "$4" -- \
        python -m orlhf_ext generate --model "$2" --data "$3" --out "$4" --max_new_tokens "$MAX_NEW_TOKENS" \
        --max_len "$MAX_LEN" "${sample_words[@]}" "${samplers[@]}" "${@:5}"
}
# score NAME IN OUT: the gold traits of samples
score() {
    stage "score/$1" --in "$2" --out "$3" -- \
        python -m orlhf_ext groups score --data "$2" --out "$3" "${trait_flags[@]}" "${workers[@]}" \
        "${trait_args[@]}"
}
# answers NAME MODEL: greedy answers to the held-out prompts, and their gold traits
answers() {
    sample "test/$1" "$2" "$prompts/test.jsonl" "$samples/test/$1.jsonl" --temperature 0
    score "test/$1" "$samples/test/$1.jsonl" "$samples/test/$1_scored.jsonl"
    answered+=("$1")
}
# reward_model NAME PAIRS SEED START LR WORDS...: into $OUT/rm/NAME
reward_model() {
    set_logger "rm_$1"
    stage "rm/$1" --in "$2"/{train,test}.jsonl --source "$4" --out "$OUT/rm/$1" -- \
        "${launch[@]}" train_rm --ext.use group-rm --model.model_name_or_path "$4" --ckpt.output_dir "$OUT/rm/$1" \
        --data.dataset "$2/train.jsonl" --data.prompt_key prompt --eval.dataset "$2/test.jsonl" \
        --data.max_len "$RM_MAX_LEN" --train.batch_size "$RM_BATCH_SIZE" --train.micro_batch_size "$rm_micro" \
        --train.max_epochs "$RM_EPOCHS" --train.seed "$3" --adam.lr "$5" "${training[@]}" --max_norm 1.0 \
        --ds.zero_stage 2 --groups.eos "$eos" --groups.cache_features "$OUT/features" "${@:6}" "${logger[@]}" "${rm_args[@]}"
}
# merged_model NAME PAIRS SEED: PRESET=paper, a reward model for each group, trained twice, merged into one
merged_model() {
    local group parts=() words=(--groups.squash identity)
    for group in "${group_names[@]}"; do
        reward_model "$1-$group-first" "$2" "$3" "$RM_MODEL" 5e-5 --groups.only "$group" "${words[@]}"
        reward_model "$1-$group" "$2" "$3" "$OUT/rm/$1-$group-first" 5e-5 --groups.only "$group" "${words[@]}"
        parts+=("$group=$OUT/rm/$1-$group")
    done
    stage "rm/$1" --in "${parts[@]#*=}" --out "$OUT/rm/$1" -- \
        python -m orlhf_ext groups merge --models "${parts[@]}" --out "$OUT/rm/$1"
}
# policy NAME SEED REWARD_MODEL WORDS...: GRPO with the reward of groups that WORDS describe (without a model, or with one)
policy() {
    local batch_min=() model=(${3:+--groups.model "$3" --groups.max_len "$RM_MAX_LEN"})
    [[ $AGGREGATE != batch-min ]] || batch_min=(--ext.use batch-min)
    set_logger "policy_$1"
    stage "policy/$1" --in "$prompts/rl.jsonl" "$GROUPS_FILE" ${3:+"$3"} --source "$sft" --out "$OUT/policy/$1" -- \
        python -m orlhf_ext.launch train_ppo_ray --ext.reward groups "${batch_min[@]}" --groups.aggregate "$AGGREGATE" \
        "${@:4}" "${model[@]}" --actor.model_name_or_path "$sft" \
        --actor.num_nodes 1 --actor.num_gpus_per_node "$NPROC" --ref.num_nodes 1 --ref.num_gpus_per_node "$NPROC" \
        --train.colocate_actor_ref --vllm.num_engines "$ENGINES" --vllm.tensor_parallel_size "$TP" --ds.zero_stage 2 \
        --ds.param_dtype bf16 "${gpu_words[@]}" "${placement[@]}" --data.prompt_dataset "$prompts/rl.jsonl" \
        --data.input_key prompt --data.label_key label --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$MAX_NEW_TOKENS" \
        --rollout.batch_size "$ROLLOUT_BATCH" --rollout.n_samples_per_prompt "$SAMPLES" \
        --rollout.micro_batch_size "$micro" --train.batch_size "$BATCH_SIZE" --train.micro_batch_size "$micro" \
        --train.num_episodes "$EPISODES" --train.max_epochs 1 --train.seed "$2" --actor.adam.lr "$rl_lr" \
        "${training[@]/#--/--actor.}" --algo.advantage.estimator group_norm --algo.kl.init_coef "$kl" --algo.kl.use_loss \
        --algo.kl.estimator k3 --ckpt.output_dir "$OUT/policy/$1" --ckpt.path "$OUT/checkpoints/$1" "${logger[@]}" "${rl_args[@]}"
    answers "$1" "$OUT/policy/$1"
}
