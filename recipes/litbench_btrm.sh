#!/usr/bin/env bash
# LitBench's Bradley-Terry reward model of stories, and its accuracy.
# (Pairs of stories -> OpenRLHF's train_rm -> accuracy with interval, baseline and control for length.)
#
#   bash recipes/litbench_btrm.sh                                           what fits this machine
#   TARGET_BATCH_SIZE=64 bash recipes/litbench_btrm.sh --epochs 2           variables: docs/methods/litbench.md
#   DRY_RUN=1 bash recipes/litbench_btrm.sh                                 only prints the commands
RECIPE=litbench_btrm
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

every=(
    LITBENCH_DATA=sample TEST_FILE= "DATA_DIR=$caller/data/litbench" ALLOW_TRAIN_HOLDOUT=0 OUTPUT_DIR= NEW=0
    WITH_PROMPT=0 SAVE_STEPS=500 DATA_ARGS= TRAIN_ARGS= gpu_words=
)
smoke=(MODEL=models/tiny TARGET_BATCH_SIZE=8 MICRO_BATCH_SIZE=4 MAX_LEN=256 EPOCHS=1 LEARNING_RATE=1e-3)
cpu=(
    MODEL=models/smollm2-135m-instruct LITBENCH_DATA=graded
    TARGET_BATCH_SIZE=8 MICRO_BATCH_SIZE=4 MAX_LEN=256 EPOCHS=1 LEARNING_RATE=3e-5
)
gpu=( # the paper's
    MODEL=meta-llama/Llama-3.2-1B LITBENCH_DATA=SAA-Lab/LitBench-Train gpu_words=--model.gradient_checkpointing_enable
    TARGET_BATCH_SIZE=128 MICRO_BATCH_SIZE=8 MAX_LEN=2048 EPOCHS=1 LEARNING_RATE=1e-5
)
settings "$@"

# 0. The run's folder, and the model that training starts from
assign run "$OUT" bt_reward "$NEW" "$LITBENCH_DATA" "$MODEL" "$batch" "$MAX_LEN" "$EPOCHS" "$LEARNING_RATE" \
    "${WITH_PROMPT:-0}" "$SEED" "${tested[@]}" "$DATA_ARGS" "$TRAIN_ARGS"
model=$OUT/$name results=$OUT/results/$name data=$OUT/data
echo "# $RECIPE: profile $PROFILE, data $LITBENCH_DATA, model in $model"
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "run=$name" "batch_size=$batch" "model=$MODEL"
small_model "$MODEL"

# 1. Pairs for training and validation, and the test pairs
stage data --source "$LITBENCH_DATA" ${TEST_FILE:+"$TEST_FILE"} --out "$data" -- \
    python -m orlhf_ext.build_data litbench pairs "$LITBENCH_DATA" --out "$data" --seed "$SEED" "${tested[@]}" \
    "${data_args[@]}"
run_file data "$data" --prefix pairs_

# 2. The reward model; by default it reads the story alone
prompted=() alone=(--no_prompt)
[[ -z $WITH_PROMPT ]] || prompted=(--data.prompt_key prompt --data.input_template $'{}\n\n') alone=()
assign saving "$data/pairs_train.jsonl" 43327 "$batch" "$EPOCHS" "$SAVE_STEPS"
saving=(--eval.steps "$interval" --ckpt.save_steps "$interval" --ckpt.path "$OUT/checkpoints/$name" --ckpt.max_num 3
    --ckpt.load_enable)
set_logger "$name"
stage train --in "$data"/pairs_{train,val}.jsonl --source "$MODEL" --out "$model" --scratch "$OUT/checkpoints/$name" -- \
    "${launch[@]}" train_rm --model.model_name_or_path "$MODEL" --ckpt.output_dir "$model" \
    --data.dataset "$data/pairs_train.jsonl" --eval.dataset "$data/pairs_val.jsonl" --eval.split train \
    --data.chosen_key chosen --data.rejected_key rejected "${prompted[@]}" --data.max_len "$MAX_LEN" \
    --train.batch_size "$batch" --train.micro_batch_size "$MICRO_BATCH_SIZE" --train.max_epochs "$EPOCHS" \
    --train.seed "$SEED" --adam.lr "$LEARNING_RATE" --adam.betas 0.9 0.999 --lr_scheduler linear --lr_warmup_ratio 0.1 \
    --max_norm 1.0 --model.compute_fp32_loss_enable --ds.zero_stage 2 "${gpu_words[@]}" "${saving[@]}" \
    "${logger[@]}" "${train_args[@]}"

# 3. The test pairs
stage score --in "$data/pairs_test.jsonl" "$model" --out "$results/scored.jsonl" -- \
    python -m orlhf_ext score --model "$model" --data "$data/pairs_test.jsonl" --out "$results/scored.jsonl" \
    --max_len "$MAX_LEN" "${alone[@]}" "${workers[@]}"
stage evaluate --show --in "$results/scored.jsonl" -- \
    python -m orlhf_ext litbench evaluate --pairs "$results/scored.jsonl" --run "$OUT/run.json" \
    --out "$results/summary.json" --seed "$SEED"
run_file finish "$results/summary.json"
cards "$results/summary.json" "$model"
[[ $DRY_RUN == 1 ]] || : >"$OUT/$name.done"
report
echo "# model: $model, numbers: $OUT/summary.json and $results/summary.{json,md,csv}, every pair: $results"
