#!/usr/bin/env bash
# LitBench's generative reward model of stories, and its verdicts.
# (Two stories and a rationale -> OpenRLHF's train_sft -> a model that writes which one is preferred -> its verdicts in
# both orders -> accuracy.)
#
#   bash recipes/litbench_genrm.sh                                          what fits this machine
#   USE_COT=1 bash recipes/litbench_genrm.sh --learning_rate 1e-5           variables: docs/methods/litbench.md
#   DRY_RUN=1 bash recipes/litbench_genrm.sh                                only prints the commands
RECIPE=litbench_genrm
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

every=(
    LITBENCH_DATA=sample TEST_FILE= "DATA_DIR=$caller/data/litbench" ALLOW_TRAIN_HOLDOUT=0 OUTPUT_DIR= NEW=0
    USE_COT=0 STYLE=marker SWAP_AUGMENT=0 SAVE_STEPS=50 DATA_ARGS= TRAIN_ARGS= gpu_words= sample_words=
)
smoke=(
    MODEL=models/tiny-2048 TARGET_BATCH_SIZE=8 MICRO_BATCH_SIZE=4 MAX_LEN=512 EPOCHS=5 LEARNING_RATE=3e-3
    MAX_NEW_TOKENS=20 sample_words="--backend hf" # letters are its tokens
)
cpu=(
    MODEL=models/smollm2-135m-instruct TARGET_BATCH_SIZE=8 MICRO_BATCH_SIZE=2 MAX_LEN=768 EPOCHS=3 LEARNING_RATE=5e-5
    STYLE=chat MAX_NEW_TOKENS=8 SWAP_AUGMENT=1 # in one order so few pairs teach it one letter
)
gpu=( # the paper's
    MODEL=meta-llama/Llama-3.2-1B-Instruct LITBENCH_DATA=SAA-Lab/LitBench-Rationales MAX_NEW_TOKENS=8
    TARGET_BATCH_SIZE=128 MICRO_BATCH_SIZE=2 MAX_LEN=8192 EPOCHS=3 LEARNING_RATE=2e-5
    gpu_words=--model.gradient_checkpointing_enable
)
if [[ ${USE_COT:-} == 1 || " $* " == *" --use_cot "* ]]; then # room for the reasoning
    smoke+=(MAX_LEN=1024 MAX_NEW_TOKENS=40) cpu+=(MAX_NEW_TOKENS=128) gpu+=(MAX_NEW_TOKENS=1024)
fi
settings "$@"

# 0. The run's folder, and the model that training starts from
assign run "$OUT" genrm "$NEW" "$LITBENCH_DATA" "$MODEL" "$batch" "$MAX_LEN" "$EPOCHS" "$LEARNING_RATE" "$STYLE" \
    "${USE_COT:-0}" "${SWAP_AUGMENT:-0}" "$MAX_NEW_TOKENS" "$SEED" "${tested[@]}" "$DATA_ARGS" "$TRAIN_ARGS"
model=$OUT/$name results=$OUT/results/$name data=$OUT/data
echo "# $RECIPE: profile $PROFILE, data $LITBENCH_DATA, model in $model"
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "run=$name" "batch_size=$batch" "model=$MODEL"
small_model "$MODEL"

# 1. Two stories, the question, and the answer; test pairs stand there in both orders
stage data --source "$LITBENCH_DATA" "$MODEL" ${TEST_FILE:+"$TEST_FILE"} --out "$data" -- \
    python -m orlhf_ext.build_data litbench rationales "$LITBENCH_DATA" --out "$data" --seed "$SEED" "${tested[@]}" \
    --style "$STYLE" --tokenizer "$MODEL" --max_len "$MAX_LEN" --answer_tokens "$MAX_NEW_TOKENS" ${USE_COT:+--use_cot} \
    ${SWAP_AUGMENT:+--swap_augment} "${data_args[@]}"
run_file data "$data" --prefix rationales_

# 2. The model learns the answer, and to stop after it
format=(--data.input_template '{}') chat=()
[[ $STYLE == marker ]] || format=(--data.apply_chat_template) chat=(--apply_chat_template)
assign saving "$data/rationales_train.jsonl" 41549 "$batch" "$EPOCHS" "$SAVE_STEPS"
saving=(--eval.steps "$interval" --ckpt.save_steps "$interval" --ckpt.path "$OUT/checkpoints/$name" --ckpt.max_num 3
    --ckpt.load_enable)
set_logger "$name"
stage train --in "$data"/rationales_{train,val}.jsonl --source "$MODEL" --out "$model" \
    --scratch "$OUT/checkpoints/$name" -- \
    "${launch[@]}" train_sft --model.model_name_or_path "$MODEL" --ckpt.output_dir "$model" \
    --data.dataset "$data/rationales_train.jsonl" --eval.dataset "$data/rationales_val.jsonl" --eval.split train \
    --data.input_key prompt --data.output_key completion "${format[@]}" --data.max_len "$MAX_LEN" \
    --train.batch_size "$batch" --train.micro_batch_size "$MICRO_BATCH_SIZE" --train.max_epochs "$EPOCHS" \
    --train.seed "$SEED" --adam.lr "$LEARNING_RATE" --adam.betas 0.9 0.999 --lr_scheduler linear --lr_warmup_ratio 0.1 \
    --max_norm 1.0 --ds.zero_stage 2 "${gpu_words[@]}" "${saving[@]}" "${logger[@]}" "${train_args[@]}"

# 3. Verdicts on the test pairs, written greedily; and without writing: which letter is likelier behind "Preferred:"
test=$data/rationales_test.jsonl found=(--verdicts "$results/verdicts.jsonl")
stage verdicts --in "$test" "$model" --out "$results/verdicts.jsonl" -- \
    python -m orlhf_ext generate --model "$model" --data "$test" --out "$results/verdicts.jsonl" --temperature 0 \
    --max_new_tokens "$MAX_NEW_TOKENS" --max_len "$MAX_LEN" --seed "$SEED" "${chat[@]}" "${sample_words[@]}" "${samplers[@]}"
if [[ -z $USE_COT ]]; then # with reasoning, the letter depends on what was written before it
    stage logprobs --in "$test" "$model" --out "$results/logprobs.jsonl" -- \
        python -m orlhf_ext logprobs --model "$model" --data "$test" --out "$results/logprobs.jsonl" \
        --max_len "$MAX_LEN" --no_eos --dtype float32 "${chat[@]}" "${workers[@]}"
    found+=(--logprobs "$results/logprobs.jsonl")
fi
stage evaluate --show --in "$test" "${found[@]/#--*/$test}" -- \
    python -m orlhf_ext litbench evaluate --data "$test" "${found[@]}" --run "$OUT/run.json" \
    --out "$results/summary.json" --seed "$SEED"
run_file finish "$results/summary.json"
cards "$results/summary.json" "$model"
[[ $DRY_RUN == 1 ]] || : >"$OUT/$name.done"
report
echo "# model: $model, numbers: $OUT/summary.json and $results/summary.{json,md,csv}, every pair: $results"
