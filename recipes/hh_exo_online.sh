#!/usr/bin/env bash
# Online EXO on Anthropic HH: the policy learns from its own samples, as the reward model labels them.
# (Data -> SFT -> reward model -> train_ppo_ray with EXO's loss -> answers to held-out prompts -> table. Data in the format
# of HH will do.)
#
#   bash recipes/hh_exo_online.sh                                    what fits this machine
#   PROFILE=smoke LOSS=dpo-rw bash recipes/hh_exo_online.sh          variables: docs/methods/exo.md
#   DRY_RUN=1 bash recipes/hh_exo_online.sh                          only prints the commands
RECIPE=hh_exo_online
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source recipes/hh/stages.sh # prepare_training, build_pairs, train_sft, train_reward_model, sample, compare_policies

every=(
    LOSS=exo-rw PROMPT_FORMAT=hh LONG_ROWS=drop HH_DATA=sample HH_FOLDER= SFT_MODEL= REWARD_MODEL= ENGINES= TP=
    RAY_ADDRESS= SFT_ARGS= RM_ARGS= RL_ARGS= gpu_words= rl_words=
)
smoke=(
    MODEL=models/tiny TRAIN_PROMPTS=24 TEST_PROMPTS=8 SAMPLES=4 ROLLOUT_BATCH=8 EPISODES=1 TEST_COMPLETIONS=2
    MAX_LEN=320 MAX_NEW_TOKENS=16 BATCH_SIZE=8 MICRO_BATCH_SIZE=4 RESUME_STEPS=1
    sft_lr=1e-3 rm_lr=1e-3 rl_lr=1e-3 beta_pi=0.1 beta_r=0.5
)
cpu=(
    MODEL=models/smollm2-135m-instruct TRAIN_PROMPTS=128 TEST_PROMPTS=64 SAMPLES=4 ROLLOUT_BATCH=8 EPISODES=2
    TEST_COMPLETIONS=2 MAX_LEN=88 MAX_NEW_TOKENS=48 BATCH_SIZE=8 MICRO_BATCH_SIZE=8 RESUME_STEPS=0
    sft_lr=3e-5 rm_lr=1e-4 rl_lr=5e-5 beta_pi=0.1 beta_r=0.5
)
gpu=(
    MODEL=EleutherAI/pythia-2.8b HH_DATA= LONG_ROWS=cut gpu_words=--model.gradient_checkpointing_enable
    rl_words=--actor.gradient_checkpointing_enable TRAIN_PROMPTS=all TEST_PROMPTS=512 SAMPLES=8 ROLLOUT_BATCH=64
    EPISODES=1 TEST_COMPLETIONS=4 MAX_LEN=512 MAX_NEW_TOKENS=200 BATCH_SIZE=128 MICRO_BATCH_SIZE=8 RESUME_STEPS=50
    sft_lr=1e-5 rm_lr=1e-5 rl_lr=1e-6 beta_pi=0.1 beta_r=0.5
)
settings "$@"
find_hh_data

data=$OUT/data samples=$OUT/samples results=$OUT/align_online-${LOSS}_nc$SAMPLES
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "loss=$LOSS" "num_contrastive=$SAMPLES" "seed=$SEED" "model=$MODEL"
echo "# $RECIPE: profile $PROFILE, loss $LOSS, data $HH_DATA, output in $OUT"

# 0. The model that training starts from
small_model "$MODEL"
prepare_training

# 1. to 3. Pairs, SFT on the chosen answers, and the reward model
build_pairs
train_sft
train_reward_model

# 4. Online EXO: OpenRLHF's launcher, with the reward model's scores as labels of a prompt's own samples. Each rollout batch
# is one optimizer step, and an episode has whole ones.
assign checkpoints "$data/train.jsonl" "${TRAIN_PROMPTS:-43835}" "$ROLLOUT_BATCH" 1
prompts=$((steps[-1] * ROLLOUT_BATCH)) steps=($((steps[-1] * EPISODES)))
reads=() # the reward model reads prompts as it was trained
[[ $PROMPT_FORMAT == hh ]] || reads=(--model.chat)
set_logger policy
stage train --in "$data/train.jsonl" "$rm_model" --source "$sft" --out "$results/model" "$results/rollouts" \
    --scratch "$OUT/checkpoints/policy" -- \
    python -m orlhf_ext.launch train_ppo_ray --ext.use online-exo --kwise.loss_type "$LOSS" --kwise.beta_pi "$beta_pi" \
    --kwise.beta_r "$beta_r" --ext.reward model --model.path "$rm_model" --model.max_len "$MAX_LEN" "${reads[@]}" \
    --ext.rollouts_dir "$results/rollouts" --actor.model_name_or_path "$sft" --actor.num_nodes 1 \
    --actor.num_gpus_per_node "$actors" --ref.num_nodes 1 --ref.num_gpus_per_node "$actors" --train.colocate_actor_ref \
    --vllm.num_engines "$ENGINES" --vllm.tensor_parallel_size "$TP" --ds.zero_stage 2 --ds.param_dtype bf16 \
    "${rl_words[@]}" "${placement[@]}" --data.prompt_dataset "$data/train.jsonl" --data.input_key prompt "${chat[@]}" \
    --data.max_samples "$prompts" --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$MAX_NEW_TOKENS" \
    --rollout.temperature 0.8 --rollout.batch_size "$ROLLOUT_BATCH" --rollout.n_samples_per_prompt "$SAMPLES" \
    --rollout.micro_batch_size "$rl_micro" --train.batch_size $((ROLLOUT_BATCH * SAMPLES)) \
    --train.micro_batch_size "$rl_micro" --train.num_episodes "$EPISODES" --train.max_epochs 1 --train.seed "$SEED" \
    --actor.adam.lr "$rl_lr" --actor.adam.betas 0.9 0.95 --actor.lr_scheduler cosine --actor.lr_warmup_ratio 0 \
    --algo.kl.init_coef 0.01 --ckpt.output_dir "$results/model" --ckpt.path "$OUT/checkpoints/policy" "${resume[@]}" \
    "${logger[@]}" "${rl_args[@]}"

# 5. to 8. Answers to held-out prompts before and after, their rewards, how far the policy went; the table
aligned=("$results") mark=step models=("$results/model") names=("online-$LOSS-step${steps[0]}")
shown=("step${steps[0]}") sampled=("$results/samples/step${steps[0]}")
compare_policies
run_file finish "$results/summary.json"
cards "$results/summary.json" "$sft" "$rm_model" "$results/model"
report
cat <<END_OF_RUN
# policy: $results/model, SFT model: $sft, reward model: $rm_model
# numbers: $OUT/summary.json (also $results/summary.json, .md and .csv), answers: $OUT/align_*/samples
END_OF_RUN
