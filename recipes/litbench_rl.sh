#!/usr/bin/env bash
# A policy whose stories LitBench's generative reward model prefers.
# (The judge, and a Bradley-Terry model as a second measure -> prompts -> GRPO with the judge as the reward -> stories
# before and after -> who is preferred, by both, and what of it is length.)
#
#   bash recipes/litbench_rl.sh                                          what fits this machine
#   JUDGE=path/to/genrm_model REWARD_MODEL=path/to/bt_reward_model bash recipes/litbench_rl.sh
#   DRY_RUN=1 bash recipes/litbench_rl.sh                                only prints the commands
RECIPE=litbench_rl
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

every=(
    LITBENCH_DATA=sample TEST_FILE= "DATA_DIR=$caller/data/litbench" ALLOW_TRAIN_HOLDOUT=0 JUDGE= REWARD_MODEL=
    JUDGE_ARGS= RM_ARGS= PAIRS=round_robin TEST_COMPLETIONS=1 ENGINES= TP= RAY_ADDRESS= DATA_ARGS= REWARD_ARGS= RL_ARGS=
    gpu_words= zero=2 attention=sdpa
)
smoke=(
    MODEL=models/tiny-2048 STYLE=marker TRAIN_PROMPTS=16 TEST_PROMPTS=8 MAX_LEN=512 MAX_NEW_TOKENS=24 RM_MAX_LEN=256
    ROLLOUT_BATCH=8 SAMPLES=4 BATCH_SIZE=32 MICRO_BATCH_SIZE=8 EPISODES=1 EVAL_STEPS=2 lr=1e-3 kl=1e-3
    JUDGE_ARGS="EPOCHS=1" sample_words="--backend hf"
)
cpu=(
    MODEL=models/smollm2-135m-instruct STYLE=chat TRAIN_PROMPTS=64 TEST_PROMPTS=26 MAX_LEN=192 MAX_NEW_TOKENS=96
    RM_MAX_LEN=256 ROLLOUT_BATCH=8 SAMPLES=4 BATCH_SIZE=32 MICRO_BATCH_SIZE=4 EPISODES=2 EVAL_STEPS=8 lr=5e-5 kl=1e-3
    TEST_COMPLETIONS=2 JUDGE_ARGS="MAX_LEN=320 EPOCHS=2 LEARNING_RATE=1e-4" RM_ARGS=EPOCHS=2 sample_words=
)
gpu=(
    MODEL=meta-llama/Llama-3.2-1B-Instruct STYLE=marker TRAIN_PROMPTS=all TEST_PROMPTS=500 MAX_LEN=2048
    MAX_NEW_TOKENS=1024 RM_MAX_LEN=2048 ROLLOUT_BATCH=64 SAMPLES=8 BATCH_SIZE=128 MICRO_BATCH_SIZE=2 EPISODES=1
    EVAL_STEPS=50 lr=1e-6 kl=1e-3 LITBENCH_DATA=SAA-Lab/LitBench-Train PAIRS=pivot zero=3 sample_words=
    gpu_words="--actor.gradient_checkpointing_enable --ds.adam_offload --ref.offload"
)
settings "$@"
data=$OUT/data policy=$OUT/policy stories=$OUT/stories
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "model=$MODEL"
echo "# $RECIPE: profile $PROFILE, prompts $LITBENCH_DATA, output in $OUT"
small_model "$MODEL"

# train_once RECIPE VARIABLES...: sets `made`, the model of another recipe of LitBench, which goes on in a folder of ours.
train_once() {
    local name=$1
    stage "$name" --keeps-outputs --out "$OUT/$name" -- \
        env -u MODEL -u MICRO_BATCH_SIZE -u MAX_LEN -u MAX_NEW_TOKENS -u OUTPUT_DIR -u PUSH_TO_HUB -u RM_ARGS \
        "OUT=$OUT/$name" "PROFILE=$PROFILE" "SEED=$SEED" "${shared[@]}" "${@:2}" \
        bash "recipes/$name.sh"
    made=model_TIME # a dry run does not know the time
    [[ $DRY_RUN == 1 ]] || made=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["run"])' "$OUT/$name/summary.json")
    made=$OUT/$name/$made
}

# 1. The judge; and another reward model of stories, which the policy is not trained on
if [[ -z $JUDGE ]]; then
    train_once litbench_genrm "STYLE=$STYLE" "${judge_args[@]}"
    JUDGE=$made
fi
if [[ -z $REWARD_MODEL ]]; then
    train_once litbench_btrm "MAX_LEN=$RM_MAX_LEN" "${rm_args[@]}"
    REWARD_MODEL=$made
fi
judge=(--judge.model "$JUDGE" --judge.template short --judge.style "$STYLE")

# 2. Writing prompts; those of the test have no story that either model was trained on
stage data --source "$LITBENCH_DATA" ${TEST_FILE:+"$TEST_FILE"} --out "$data" -- \
    python -m orlhf_ext.build_data litbench prompts "$LITBENCH_DATA" --out "$data" --seed "$SEED" "${tested[@]}" \
    ${TRAIN_PROMPTS:+--limit "$TRAIN_PROMPTS"} ${TEST_PROMPTS:+--limit_test "$TEST_PROMPTS"} "${data_args[@]}"
run_file data "$data" --prefix prompts_

# 3. GRPO: OpenRLHF's launcher, with the judge as the reward
set_logger policy
stage train --in "$data"/prompts_{train,val}.jsonl "$JUDGE" --source "$MODEL" --out "$policy/model" "$policy/rollouts" \
    --scratch "$policy/checkpoints" -- \
    python -m orlhf_ext.launch train_ppo_ray --ext.reward judge "${judge[@]}" --judge.pairs "$PAIRS" \
    --judge.against_label "${reward_args[@]}" --ext.rollouts_dir "$policy/rollouts" \
    --actor.model_name_or_path "$MODEL" --actor.num_gpus_per_node "$NPROC" --ref.num_gpus_per_node "$NPROC" \
    --train.colocate_actor_ref --vllm.num_engines "$ENGINES" --vllm.tensor_parallel_size "$TP" \
    --vllm.enable_prefix_caching --ds.zero_stage "$zero" --ds.param_dtype bf16 --ds.attn_implementation "$attention" \
    "${gpu_words[@]}" "${placement[@]}" --data.prompt_dataset "$data/prompts_train.jsonl" --data.input_key prompt \
    --data.label_key label --data.apply_chat_template --data.max_len "$MAX_LEN" \
    --rollout.max_new_tokens "$MAX_NEW_TOKENS" --rollout.batch_size "$ROLLOUT_BATCH" \
    --rollout.n_samples_per_prompt "$SAMPLES" --rollout.micro_batch_size "$micro" --train.batch_size "$BATCH_SIZE" \
    --train.micro_batch_size "$micro" --train.num_episodes "$EPISODES" --train.max_epochs 1 --train.seed "$SEED" \
    --actor.adam.lr "$lr" --algo.advantage.estimator group_norm --algo.kl.init_coef "$kl" --algo.kl.use_loss \
    --algo.kl.estimator k3 --eval.dataset "$data/prompts_val.jsonl" --eval.steps "$EVAL_STEPS" \
    --eval.n_samples_per_prompt 1 --ext.eval_on_start --ckpt.output_dir "$policy/model" \
    --ckpt.path "$policy/checkpoints" --ckpt.save_steps "$EVAL_STEPS" --ckpt.max_num 2 --ckpt.load_enable \
    "${logger[@]}" "${rl_args[@]}"

# 4. Stories for the test prompts before and after, and what the other reward model says of them
for when in before after; do
    writer=$MODEL
    [[ $when == before ]] || writer=$policy/model
    stage "sample/$when" --in "$data/prompts_test.jsonl" --source "$writer" --out "$stories/$when.jsonl" -- \
        python -m orlhf_ext generate --model "$writer" --data "$data/prompts_test.jsonl" --out "$stories/$when.jsonl" \
        --num_completions "$TEST_COMPLETIONS" --temperature 1 --max_new_tokens "$MAX_NEW_TOKENS" --max_len "$MAX_LEN" \
        --apply_chat_template --seed "$SEED" "${sample_words[@]}" "${samplers[@]}"
    stage "score/$when" --in "$stories/$when.jsonl" "$REWARD_MODEL" --out "$stories/${when}_scored.jsonl" -- \
        python -m orlhf_ext score --model "$REWARD_MODEL" --data "$stories/$when.jsonl" \
        --out "$stories/${when}_scored.jsonl" --max_len "$RM_MAX_LEN" --no_prompt "${workers[@]}"
done

# 5. Who is preferred, in both orders; by the judge, by the other reward model, and by length alone
stage evaluate --show --in "$stories"/{before,after}_scored.jsonl "$JUDGE" -- \
    python -m orlhf_ext judge compare --before "$stories/before_scored.jsonl" --after "$stories/after_scored.jsonl" \
    --out "$policy/summary.json" "${judge[@]}" --show 3 --run "$OUT/run.json" --seed "$SEED"
run_file finish "$policy/summary.json"
cards "$policy/summary.json" "$policy/model"
report
cat <<END
# policy: $policy/model, numbers: $OUT/summary.json (also $policy/summary.json, .md, .csv and .records.jsonl)
# judge: $JUDGE; on LitBench's own test pairs, what it owes to length is in the table of litbench_genrm.sh
END
