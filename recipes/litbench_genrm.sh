#!/usr/bin/env bash
# LitBench's generative reward model, through OpenRLHF's train_sft: two stories and a rationale -> a model that writes which
# one is preferred -> its verdicts on the test pairs in both orders -> accuracy.
#
#   bash recipes/litbench_genrm.sh                                          what fits this machine
#   USE_COT=1 bash recipes/litbench_genrm.sh --learning_rate 1e-5           variables: recipes/litbench.md
#   DRY_RUN=1 bash recipes/litbench_genrm.sh                                only prints the commands
RECIPE=litbench_genrm
KIND=genrm
source "$(dirname "${BASH_SOURCE[0]}")/litbench.sh"

: "${USE_COT:=0}"
choice USE_COT 0 1
case $PROFILE in
    smoke)
        default_model=models/tiny-2048 default_data=sample
        : "${TARGET_BATCH_SIZE:=8}" "${MICRO_BATCH_SIZE:=4}" "${MAX_LEN:=$((USE_COT ? 1024 : 512))}" "${EPOCHS:=5}" "${LEARNING_RATE:=3e-3}"
        : "${STYLE:=marker}" "${MAX_NEW_TOKENS:=$((USE_COT ? 40 : 20))}" # letters are its tokens
        sampling=(--backend hf)
        ;;
    cpu)
        default_model=models/smollm2-135m-instruct default_data=sample
        : "${TARGET_BATCH_SIZE:=8}" "${MICRO_BATCH_SIZE:=2}" "${MAX_LEN:=768}" "${EPOCHS:=3}" "${LEARNING_RATE:=5e-5}"
        : "${STYLE:=chat}" "${MAX_NEW_TOKENS:=$((USE_COT ? 128 : 8))}" "${SWAP_AUGMENT:=1}" # in one order so few pairs teach it one letter
        sampling=()
        ;;
    gpu) # upstream's
        default_model=meta-llama/Llama-3.2-1B-Instruct default_data=SAA-Lab/LitBench-Rationales
        : "${TARGET_BATCH_SIZE:=128}" "${MICRO_BATCH_SIZE:=2}" "${MAX_LEN:=8192}" "${EPOCHS:=3}" "${LEARNING_RATE:=2e-5}"
        : "${STYLE:=marker}" "${MAX_NEW_TOKENS:=$((USE_COT ? 1024 : 8))}"
        sampling=(--num_engines "$NPROC")
        ;;
esac
: "${LITBENCH_DATA:=$default_data}" "${MODEL:=$default_model}" "${SWAP_AUGMENT:=0}" "${SAVE_STEPS:=50}"
choice STYLE marker chat
choice SWAP_AUGMENT 0 1
counts SAVE_STEPS MAX_NEW_TOKENS
adapt_batch
find_test
name_run "$LITBENCH_DATA" "$MODEL" "$batch" "$MAX_LEN" "$EPOCHS" "$LEARNING_RATE" "$STYLE" "$USE_COT" \
    "$SWAP_AUGMENT" "$MAX_NEW_TOKENS" "$SEED" "${tested[@]}" "${DATA_ARGS:-}" "${TRAIN_ARGS:-}"
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "run=$name" "batch_size=$batch"
data=$OUT/data

# 0. The model that training starts from
small_model

# 1. Two stories, the question, and the answer; test pairs stand there in both orders
words=()
((!USE_COT)) || words+=(--use_cot)
((!SWAP_AUGMENT)) || words+=(--swap_augment)
stage data --source "$LITBENCH_DATA" "$MODEL" ${TEST_FILE:+"$TEST_FILE"} --out "$data" -- \
    python -m orlhf_ext.build_data litbench rationales "$LITBENCH_DATA" --out "$data" --seed "$SEED" "${tested[@]}" \
    --style "$STYLE" --tokenizer "$MODEL" --max_len "$MAX_LEN" --answer_tokens "$MAX_NEW_TOKENS" "${words[@]}" "${data_args[@]}"
run_file data "$data" --prefix rationales_

# 2. The model learns the answer, and to stop after it
format=(--data.input_template '{}') chat=()
[[ $STYLE == marker ]] || format=(--data.apply_chat_template) chat=(--apply_chat_template)
gpu_words=()
[[ $PROFILE != gpu ]] || gpu_words=(--model.gradient_checkpointing_enable)
count_steps "$data/rationales_train.jsonl" 41549
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
    --max_new_tokens "$MAX_NEW_TOKENS" --max_len "$MAX_LEN" --seed "$SEED" "${chat[@]}" "${sampling[@]}"
if ((!USE_COT)); then # with reasoning, the letter depends on what was written before it
    stage logprobs --in "$test" "$model" --out "$results/logprobs.jsonl" -- \
        python -m orlhf_ext logprobs --model "$model" --data "$test" --out "$results/logprobs.jsonl" \
        --max_len "$MAX_LEN" --no_eos --dtype float32 "${chat[@]}"
    found+=(--logprobs "$results/logprobs.jsonl")
fi
stage evaluate --in "$test" "${found[@]/#--*/$test}" -- \
    python -m orlhf_ext litbench evaluate --data "$test" "${found[@]}" --run "$OUT/run.json" \
    --out "$results/summary.json" --seed "$SEED"
run_file finish "$results/summary.json"
finish_run
