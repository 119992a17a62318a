# The stages that recipes for HH share, as functions; they read the recipe's variables.

# build_pairs: pairs in `data`, and the same as K-wise records; `chat` is what launchers are told of the format
build_pairs() {
    local cut=() shuffle=()
    chat=()
    [[ $LONG_ROWS == drop ]] || cut=(--cut)
    [[ -z $TRAIN_PROMPTS$TEST_PROMPTS ]] || shuffle=(--shuffle)
    [[ $PROMPT_FORMAT == hh ]] || chat=(--data.apply_chat_template)
    stage data --source "$HH_DATA" "$MODEL" --out "$data" -- \
        python -m orlhf_ext.build_data hh "$HH_DATA" --out "$data" --format "$PROMPT_FORMAT" --kwise \
        ${TRAIN_PROMPTS:+--limit "$TRAIN_PROMPTS"} ${TEST_PROMPTS:+--limit_test "$TEST_PROMPTS"} "${shuffle[@]}" \
        --seed "$SEED" --tokenizer "$MODEL" --max_prompt_tokens $((MAX_LEN - MAX_NEW_TOKENS)) --max_tokens "$MAX_LEN" \
        ${HH_FOLDER:+--data_dir "$HH_FOLDER"} "${cut[@]}"
    run_file data "$data"
}

# prepare_training: `optimizer`, what all trainings by gradient steps on a file are told, and `resume`, checkpoints that a
# killed one goes on from (two: one alone can be torn)
prepare_training() {
    optimizer=(--train.batch_size "$BATCH_SIZE" --train.micro_batch_size "$micro" --train.seed "$SEED"
        --lr_scheduler cosine --lr_warmup_ratio 0 --adam.betas 0.9 0.95 --max_norm 1.0 --ds.zero_stage 2
        --data.max_len "$MAX_LEN" "${gpu_words[@]}" --train.max_epochs 1)
    resume=()
    [[ $RESUME_STEPS == 0 ]] || resume=(--ckpt.save_steps "$RESUME_STEPS" --ckpt.max_num 2 --ckpt.load_enable)
}

# train_sft: `sft`, on the chosen answers; or the user's own
train_sft() {
    sft=${SFT_MODEL:-$OUT/sft}
    set_logger sft
    [[ -n $SFT_MODEL ]] || stage sft --in "$data"/{train,test}.jsonl --source "$MODEL" --out "$sft" \
        --scratch "$OUT/checkpoints/sft" -- \
        "${launch[@]}" train_sft --model.model_name_or_path "$MODEL" --ckpt.output_dir "$sft" \
        --data.dataset "$data/train.jsonl" --data.input_key prompt --data.output_key chosen "${chat[@]}" \
        --eval.dataset "$data/test.jsonl" --eval.split train "${optimizer[@]}" --adam.lr "$sft_lr" \
        ${resume:+--ckpt.path "$OUT/checkpoints/sft"} "${resume[@]}" "${logger[@]}" "${sft_args[@]}"
}

# train_reward_model: `rm_model`, on the pairs; or the user's own
train_reward_model() {
    rm_model=${REWARD_MODEL:-$OUT/rm}
    set_logger rm
    [[ -n $REWARD_MODEL ]] || stage rm --in "$data"/{train,test}.jsonl --source "$MODEL" --out "$rm_model" \
        --scratch "$OUT/checkpoints/rm" -- \
        "${launch[@]}" train_rm --model.model_name_or_path "$MODEL" --ckpt.output_dir "$rm_model" \
        --data.dataset "$data/train.jsonl" --data.prompt_key prompt "${chat[@]}" \
        --eval.dataset "$data/test.jsonl" --eval.split train "${optimizer[@]}" --adam.lr "$rm_lr" \
        ${resume:+--ckpt.path "$OUT/checkpoints/rm"} "${resume[@]}" "${logger[@]}" "${rm_args[@]}"
}

# sample NAME MODEL PROMPTS OUT COUNT [WORDS...]
sample() {
    stage "$1" --in "$3" --source "$2" --out "$4" -- \
        python -m orlhf_ext generate --model "$2" --data "$3" --out "$4" --num_completions "$5" --temperature 0.8 \
        --max_new_tokens "$MAX_NEW_TOKENS" --max_len "$MAX_LEN" --seed "$SEED" "${samplers[@]}" "${@:6}"
}

# label NAME SAMPLES OUT: the reward model's scores of samples
label() {
    stage "$1" --in "$2" --source "$rm_model" --out "$3" -- \
        python -m orlhf_ext score --model "$rm_model" --data "$2" --out "$3" --max_len "$MAX_LEN" "${workers[@]}"
}

# compare_policies: the table of the policies `models`, which `names` (in the table: `shown`) name, and the SFT model.
# `aligned` has a folder for each loss, `steps` its policies, whose answers go into the files `sampled`, without the ending.
compare_policies() {
    local i align loss answers compared=()
    # answers to held-out prompts, of the SFT model and of each policy
    sample sample_test/sft "$sft" "$data/test.jsonl" "$samples/test_sft.jsonl" "$TEST_COMPLETIONS"
    for i in "${!names[@]}"; do
        sample "sample_test/${names[i]}" "${models[i]}" "$data/test.jsonl" "${sampled[i]}.jsonl" "$TEST_COMPLETIONS"
    done

    # their rewards, and those of the chosen answers
    stage score/sft --in "$samples/test_sft.jsonl" "$data/test.jsonl" --source "$rm_model" \
        --out "$samples"/test_{sft,chosen}_rw.jsonl -- \
        python -m orlhf_ext score --model "$rm_model" --data "$samples/test_sft.jsonl" "$data/test.jsonl" \
        --out "$samples"/test_{sft,chosen}_rw.jsonl --max_len "$MAX_LEN" "${workers[@]}"
    for align in "${aligned[@]}"; do
        answers=("${steps[@]/#/$align/samples/$mark}") loss=${align#"$OUT/align_"}
        stage "score/${loss%_nc*}" --in "${answers[@]/%/.jsonl}" --source "$rm_model" --out "${answers[@]/%/_rw.jsonl}" -- \
            python -m orlhf_ext score --model "$rm_model" --data "${answers[@]/%/.jsonl}" \
            --out "${answers[@]/%/_rw.jsonl}" --max_len "$MAX_LEN" "${workers[@]}"
    done

    # how far each policy went: log-probabilities of its answers under the SFT model and under itself
    for align in "${aligned[@]}"; do
        answers=("${steps[@]/#/$align/samples/$mark}") loss=${align#"$OUT/align_"}
        stage "logprobs/${loss%_nc*}-sft" --in "${answers[@]/%/_rw.jsonl}" --source "$sft" \
            --out "${answers[@]/%/_sft.jsonl}" -- \
            python -m orlhf_ext logprobs --model "$sft" --data "${answers[@]/%/_rw.jsonl}" \
            --out "${answers[@]/%/_sft.jsonl}" --key logprobs_sft --max_len "$MAX_LEN" "${workers[@]}"
    done
    for i in "${!names[@]}"; do
        stage "logprobs/${names[i]}" --in "${sampled[i]}_sft.jsonl" "${models[i]}" --out "${sampled[i]}_eval.jsonl" -- \
            python -m orlhf_ext logprobs --model "${models[i]}" --data "${sampled[i]}_sft.jsonl" \
            --out "${sampled[i]}_eval.jsonl" --key logprobs_policy --max_len "$MAX_LEN" "${workers[@]}"
        compared+=(--policy "${shown[i]}=${sampled[i]}_eval.jsonl")
    done

    # the table, and three prompts with answers before and after
    stage evaluate --show --in "$samples"/test_{sft,chosen}_rw.jsonl "${sampled[@]/%/_eval.jsonl}" -- \
        python -m orlhf_ext evaluate --sft "$samples/test_sft_rw.jsonl" "${compared[@]}" \
        --chosen "$samples/test_chosen_rw.jsonl" --run "$OUT/run.json" --out "$results/summary.json" --show 3 --seed "$SEED"
}
