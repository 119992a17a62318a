#!/usr/bin/env bash
# A policy whose plans make a story's next chapter more likely (VR-CLI).
# (Data -> a policy that knows what plans look like, if asked for -> baseline likelihoods -> GRPO -> plans before and
# after -> their improvements -> table.)
#
#   bash recipes/ncp_vrcli.sh                                  what fits this machine, on the bundled stories
#   STORIES=/path/to/books PROFILE=cpu bash recipes/ncp_vrcli.sh      variables: docs/methods/vrcli.md
#   DRY_RUN=1 bash recipes/ncp_vrcli.sh                        only prints the commands
RECIPE=ncp_vrcli
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

every=(
    STORIES=sample SYSTEM=keep ATTENTION= NUM_NODES=1 ENGINES= TP= RAY_ADDRESS= DATA_ARGS= RL_ARGS= instruction=
    TUNE_EPOCHS=0 TUNE_ARGS= tune_lr=1e-4 gpu_words= zero=2 save_steps=
)
smoke=(
    MODEL=models/tiny-2048 TRAIN_PROMPTS=16 VAL_PROMPTS=2 TEST_PROMPTS=4 TEST_COMPLETIONS=1 EPISODES=1
    CONTEXT_WORDS=40 GOLD_WORDS=20 MAX_LEN=1400 MAX_NEW_TOKENS=16 MAX_SCORED=1900
    ROLLOUT_BATCH=8 SAMPLES=4 BATCH_SIZE=16 MICRO_BATCH_SIZE=8 EVAL_STEPS=2
    lr=1e-3 kl=1e-3 REWARD_ARGS="--vrcli.reward positive --vrcli.cap 20"
)
cpu=(
    MODEL=models/smollm2-135m-instruct TRAIN_PROMPTS=32 VAL_PROMPTS=8 TEST_PROMPTS=30 TEST_COMPLETIONS=2 EPISODES=1
    CONTEXT_WORDS=40 GOLD_WORDS=50 MAX_LEN=224 MAX_NEW_TOKENS=32 MAX_SCORED=320
    ROLLOUT_BATCH=4 SAMPLES=4 BATCH_SIZE=16 MICRO_BATCH_SIZE=4 EVAL_STEPS=4
    # the builder's own words are long for a small model, and every sample computes them again
    instruction='Plan how the next chapter begins, in one short paragraph that starts with "In summary:".'
    # A small model's plans make the next sentences less likely at first, and learning not to do so is a gain, too.
    lr=1e-4 kl=1e-4 REWARD_ARGS="--vrcli.reward raw"
)
gpu=( # the paper's for 3B: 64 prompts x 16 samples, 16 optimizer steps a rollout, 20 episodes (7B: SAMPLES=8)
    MODEL=Qwen/Qwen2.5-3B-Instruct TRAIN_PROMPTS=all VAL_PROMPTS=64 TEST_PROMPTS=all TEST_COMPLETIONS=1 EPISODES=20
    CONTEXT_WORDS=5000 GOLD_WORDS=5000 MAX_LEN=14048 MAX_NEW_TOKENS=2048 MAX_SCORED=24000
    ROLLOUT_BATCH=64 SAMPLES=16 BATCH_SIZE=64 MICRO_BATCH_SIZE=1 EVAL_STEPS=8 save_steps=16
    gpu_words="--actor.gradient_checkpointing_enable --ds.adam_offload --ref.offload" zero=3
    lr=5e-7 kl=1e-6 REWARD_ARGS="--vrcli.reward tiers"
)
settings "$@"
data=$OUT/data base=$OUT/baseline plans=$OUT/plans policy=$OUT/policy
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "model=$MODEL"
echo "# $RECIPE: profile $PROFILE, stories $STORIES, output in $OUT"

# 0. The model that training starts from, and that scores all plans
small_model "$MODEL"
[[ -z $RAY_ADDRESS || $MODEL == /* || ! -d $MODEL ]] || MODEL=$PWD/$MODEL # a cluster's workers have folders of their own

# Baselines are those of one kind of attention, so that all stages have the same.
if [[ -z $ATTENTION ]]; then
    ATTENTION=sdpa
    [[ $PROFILE != gpu ]] || ! has_flash_attn || ATTENTION=flash_attention_2
fi
scoring=(--attn_implementation "$ATTENTION" --vrcli.system "$SYSTEM")

# 1. Data: prompts that ask for a plan, with the next chapter's beginning in the label; split by story
shuffle=() lengths=()
[[ -z $TRAIN_PROMPTS$VAL_PROMPTS$TEST_PROMPTS ]] || shuffle=(--shuffle)
# Books are cut; rows have their chapters ready.
if [[ $STORIES == sample ]] || compgen -G "$STORIES/*.txt" >/dev/null; then
    lengths=(--context_words "$CONTEXT_WORDS" --gold_words "$GOLD_WORDS")
elif [[ $STORIES == generated ]]; then
    lengths=(--unfiltered --same_instruction) # short chapters, and a plan that says nothing changes nothing
fi
stage data --source "$STORIES" "$MODEL" --out "$data" -- \
    python -m orlhf_ext.build_data story "$STORIES" --out "$data" ${TRAIN_PROMPTS:+--limit "$TRAIN_PROMPTS"} \
    ${VAL_PROMPTS:+--limit_val "$VAL_PROMPTS"} ${TEST_PROMPTS:+--limit_test "$TEST_PROMPTS"} "${shuffle[@]}" --seed "$SEED" \
    ${instruction:+--instruction "$instruction"} "${lengths[@]}" --system "$SYSTEM" --tokenizer "$MODEL" \
    --max_prompt_tokens $((MAX_LEN - MAX_NEW_TOKENS)) --max_tokens "$MAX_SCORED" "${data_args[@]}"
run_file data "$data"

# A model that knows what plans look like, for rows that bring plans along; all else is about that model
tuned=()
if ((TUNE_EPOCHS)); then
    set_logger tuned
    stage tune --in "$data/train.jsonl" --source "$MODEL" --out "$OUT/tuned" -- \
        "${launch[@]}" train_sft --model.model_name_or_path "$MODEL" --ckpt.output_dir "$OUT/tuned" \
        --data.dataset "$data/train.jsonl" --data.input_key prompt --data.output_key plan --data.apply_chat_template \
        --data.max_len "$MAX_LEN" --train.batch_size "$BATCH_SIZE" --train.micro_batch_size "$tune_micro" \
        --train.max_epochs "$TUNE_EPOCHS" --train.seed "$SEED" --adam.lr "$tune_lr" --adam.betas 0.9 0.999 \
        --lr_scheduler linear --lr_warmup_ratio 0 --ds.zero_stage 2 "${logger[@]}" "${tune_args[@]}"
    MODEL=$OUT/tuned tuned=("$OUT/tuned")
fi

# 2. Baselines: how likely each gold text is without a plan
stage baseline --in "$data"/{train,val,test}.jsonl --source "$MODEL" --out "$base"/{train,val,test}.jsonl -- \
    python -m orlhf_ext vrcli baseline --model "$MODEL" --data "$data"/{train,val,test}.jsonl \
    --out "$base"/{train,val,test}.jsonl --plan_tokens "$MAX_NEW_TOKENS" "${scoring[@]}" "${workers[@]}"

# 3. GRPO: OpenRLHF's launcher, with VR-CLI as the reward
set_logger policy
stage train --in "$base/train.jsonl" "$base/val.jsonl" --source "$MODEL" --out "$policy/model" "$policy/checkpoints" -- \
    python -m orlhf_ext.launch train_ppo_ray --ext.reward vrcli "${reward_args[@]}" --vrcli.system "$SYSTEM" \
    --actor.model_name_or_path "$MODEL" --actor.num_nodes "$NUM_NODES" --actor.num_gpus_per_node "$NPROC" \
    --ref.num_nodes "$NUM_NODES" --ref.num_gpus_per_node "$NPROC" --train.colocate_actor_ref \
    --vllm.num_engines "$ENGINES" --vllm.tensor_parallel_size "$TP" --vllm.enable_prefix_caching \
    --ds.zero_stage "$zero" --ds.param_dtype bf16 --ds.attn_implementation "$ATTENTION" "${gpu_words[@]}" "${placement[@]}" \
    --data.prompt_dataset "$base/train.jsonl" --data.input_key prompt --data.label_key label --data.apply_chat_template \
    --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$MAX_NEW_TOKENS" --rollout.batch_size "$ROLLOUT_BATCH" \
    --rollout.n_samples_per_prompt "$SAMPLES" --rollout.micro_batch_size "$micro" \
    --train.batch_size "$BATCH_SIZE" --train.micro_batch_size "$micro" --train.num_episodes "$EPISODES" \
    --train.max_epochs 1 --train.seed "$SEED" --actor.adam.lr "$lr" --actor.loss_agg_mode seq-mean-token-mean \
    --algo.advantage.estimator group_norm --algo.kl.init_coef "$kl" --algo.kl.use_loss --algo.kl.estimator k3 \
    --eval.dataset "$base/val.jsonl" --eval.steps "$EVAL_STEPS" --eval.temperature 0.7 --eval.n_samples_per_prompt 1 \
    --ext.eval_on_start --ext.eval_top_p 0.8 --ext.eval_top_k 20 --ckpt.best_metric_key eval_vrcli/pct_improvements \
    --ckpt.output_dir "$policy/model" --ckpt.path "$policy/checkpoints" --ckpt.save_steps "${save_steps:-$EVAL_STEPS}" \
    --ckpt.save_hf --ckpt.max_num 2 --ckpt.load_enable "${logger[@]}" "${rl_args[@]}"

# The best policy by evaluation, under a name of its own: the newest that was saved whole (its tokenizer comes last)
best=checkpoints/best_global_stepN_hf
if [[ $DRY_RUN == 0 ]]; then
    best=$(cd "$policy" && find checkpoints -path '*/best_global_step*_hf/tokenizer_config.json' -printf '%h\n' |
        sort -V | tail -n 1)
    ln -sfnT "${best:=model}" "$policy/best" || die "$policy/best is not a link of this recipe's; move it away"
fi

# 4. Plans for held-out stories before and after, as upstream samples them
# score NAME PLANS WORDS...: how much they help
score() {
    stage "score/$1" --in "$base/test.jsonl" "$plans/$2.jsonl" --source "$MODEL" --out "$plans/${1}_scored.jsonl" -- \
        python -m orlhf_ext vrcli score --model "$MODEL" --data "$base/test.jsonl" --samples "$plans/$2.jsonl" \
        --out "$plans/${1}_scored.jsonl" "${@:3}" "${reward_args[@]}" "${scoring[@]}" "${workers[@]}"
}
for when in before after; do
    writer=$MODEL
    [[ $when == before ]] || writer=$policy/model
    stage "sample/$when" --in "$base/test.jsonl" --source "$writer" --out "$plans/$when.jsonl" -- \
        python -m orlhf_ext generate --model "$writer" --data "$base/test.jsonl" --out "$plans/$when.jsonl" \
        --num_completions "$TEST_COMPLETIONS" --temperature 0.7 --top_p 0.8 --top_k 20 \
        --max_new_tokens "$MAX_NEW_TOKENS" --max_len "$MAX_LEN" --seed "$SEED" "${samplers[@]}"
    score "$when" "$when"
done

score others after --plans_of_others # which should not help

# 5. The table, three plans before and after, and where everything lies
stage evaluate --show --in "$plans"/{before,after,others}_scored.jsonl "$base/test.jsonl" -- \
    python -m orlhf_ext vrcli evaluate --before "$plans/before_scored.jsonl" --after "$plans/after_scored.jsonl" \
    --others "$plans/others_scored.jsonl" \
    --data "$base/test.jsonl" --run "$OUT/run.json" --out "$policy/summary.json" --show 3 --seed "$SEED"
run_file finish "$policy/summary.json"
cards "$policy/summary.json" "${tuned[@]}" "$policy"/{model,best}
report
cat <<END
# policy: $policy/model; the best by evaluation: $policy/best -> $best
# numbers: $OUT/summary.json (also $policy/summary.json, .md, .csv and .records.jsonl), plans: $plans
END
