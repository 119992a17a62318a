#!/usr/bin/env bash
# Text with less toxicity, by dead-end analysis of Jigsaw's comments.
# (Comments -> toxicity classifier, and a policy that needs it; prompts -> continuations -> their toxicity -> the value
# function Q_D -> decoding under its caps, against plain decoding and against the caps of shuffled rewards.)
#
#   bash recipes/jigsaw_rectify.sh                                           what fits this machine, on bundled comments
#   JIGSAW_DATA=/path/to/csvs EPSILONS="0.1 0.5" bash recipes/jigsaw_rectify.sh     variables: docs/methods/deadend.md
#   DRY_RUN=1 bash recipes/jigsaw_rectify.sh                                 only prints the commands
RECIPE=jigsaw_rectify
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

every=(
    SEED=0 NUM_RETURNS=25 MAX_NEW_TOKENS=20 PROMPT_TOKENS=20 TOXICITY_TYPE=toxicity EXAMPLES=3 SHOW=0 MODE=all
    EPSILONS="0.1 0.3 0.5" COMMENT_DROP_RATE=0.3 PROMPT_DROP_RATE=0 JIGSAW_DATA=sample EVAL_PROMPTS= CLASSIFIER= PERPLEXITY_MODEL=
    TUNE_EPOCHS=0 CONTROL=0 tune_lr=1e-4 DATA_ARGS= POLICY_ARGS= CLASSIFIER_ARGS= CONTINUATION_ARGS= SCORE_ARGS= VALUE_ARGS=
    Q_ARGS= DECODE_ARGS= EVALUATE_ARGS= backend_words= q_words=
)
smoke=(
    MODEL=models/tiny Q_MODEL=models/tiny CLASSIFIER_MODEL=models/tiny EPSILONS="0.1 0.5"
    NUM_COMMENTS=240 NUM_PROMPTS=40 NUM_EVAL=8 CLASSIFIER_EPOCHS=2 CLASSIFIER_BATCH=16 Q_EPOCHS=1
    BATCH_SIZE=32 MICRO_BATCH_SIZE=16 classifier_lr=1e-3 classifier_words="--max_length 128" q_lr=1e-3
    perplexity_num=0 backend_words="--backend hf --batch_size 8"
)
cpu=(
    MODEL=models/smollm2-135m-instruct Q_MODEL=models/smollm2-135m-8-layers CLASSIFIER_MODEL=models/smollm2-135m-8-layers
    JIGSAW_DATA=generated COMMENT_DROP_RATE=0 NUM_COMMENTS=all NUM_PROMPTS=140 NUM_EVAL=40 PROMPT_TOKENS=10
    TUNE_EPOCHS=1 CONTROL=1 EPSILONS="0.3 0.5"
    CLASSIFIER_EPOCHS=2 CLASSIFIER_BATCH=16 Q_EPOCHS=3 BATCH_SIZE=16 MICRO_BATCH_SIZE=16
    classifier_lr=1e-4 classifier_words="--max_length 64 --group_by_length" q_lr=3e-4 perplexity_num=5
    q_words=--deadend.equal_rows # these are few texts
)
gpu=( # the paper's
    MODEL=gpt2-large Q_MODEL=gpt2 CLASSIFIER_MODEL=bert-large-uncased PERPLEXITY_MODEL=gpt2-xl JIGSAW_DATA=kaggle
    NUM_COMMENTS=all NUM_PROMPTS=all NUM_EVAL=5000 PROMPT_DROP_RATE=0.9 MODE=most
    CLASSIFIER_EPOCHS=1 CLASSIFIER_BATCH=32 Q_EPOCHS=3 BATCH_SIZE=64 MICRO_BATCH_SIZE=16
    classifier_lr=2e-5 classifier_words="--max_length 128" q_lr=3e-4 perplexity_num=0
)
settings "$@"
data=$OUT/data value=$OUT/value generated=$OUT/generations
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "jigsaw_data=$JIGSAW_DATA" "model=$MODEL"
echo "# $RECIPE: profile $PROFILE, data $JIGSAW_DATA, epsilons ${epsilons[*]}, output in $OUT"

# 0. The models: a policy, and what Q_D and the classifier start from. Q_D shares the policy's vocabulary
small_model "$MODEL"
cut_model=models/smollm2-135m-8-layers whole_model=models/smollm2-135m-instruct
if [[ $Q_MODEL == "$cut_model" || (-z $CLASSIFIER && $CLASSIFIER_MODEL == "$cut_model") ]]; then
    [[ $MODEL == "$whole_model" ]] || small_model "$whole_model"
    stage model/cut --keeps-outputs --source "$whole_model" --out "$cut_model" -- \
        python -m orlhf_ext small_models cut --model "$whole_model" --layers 8 --out "$cut_model"
fi

# 1. Data: labelled comments for the classifier; beginnings of other comments as prompts, some of them held out
raw=() tokenizer=$MODEL
[[ $JIGSAW_DATA == kaggle ]] || raw=(--raw_dir "$JIGSAW_DATA")
[[ $PROFILE != gpu ]] || tokenizer=gpt2
[[ -n $CLASSIFIER ]] || stage data/reward --source "$JIGSAW_DATA" --out "$data/reward" -- \
    python -m orlhf_ext.build_data jigsaw reward "${raw[@]}" --out "$data/reward" --drop_rate "$COMMENT_DROP_RATE" \
    --seed "$SEED" ${NUM_COMMENTS:+--limit "$NUM_COMMENTS"} "${data_args[@]}"
prompts=$data/prompts/prompts.jsonl held_out=$EVAL_PROMPTS
stage data/prompts --source "$JIGSAW_DATA" "$tokenizer" --out "$data/prompts" -- \
    python -m orlhf_ext.build_data jigsaw prompts "${raw[@]}" --out "$data/prompts" --drop_rate "$PROMPT_DROP_RATE" \
    --max_len "$PROMPT_TOKENS" --tokenizer "$tokenizer" --seed "$SEED" ${NUM_PROMPTS:+--limit "$NUM_PROMPTS"}
if [[ -z $held_out ]]; then
    stage data/held_out --in "$prompts" --out "$data/split" -- \
        python -m orlhf_ext deadend hold_out --data_file "$prompts" --num "$NUM_EVAL" --save_dir "$data/split" --seed "$SEED"
    prompts=$data/split/prompts.jsonl held_out=$data/split/held_out.jsonl
fi

# A policy that needs caps: the model, tuned on the toxic comments
policy=$MODEL
if ((TUNE_EPOCHS)); then
    policy=$OUT/policy
    stage data/policy --source "$JIGSAW_DATA" --out "$data/policy" -- \
        python -m orlhf_ext.build_data jigsaw policy "${raw[@]}" --out "$data/policy" ${NUM_COMMENTS:+--limit "$NUM_COMMENTS"}
    set_logger policy
    stage policy --in "$data/policy/policy.jsonl" --source "$MODEL" --out "$policy" -- \
        "${launch[@]}" train_sft --model.model_name_or_path "$MODEL" --ckpt.output_dir "$policy" \
        --data.dataset "$data/policy/policy.jsonl" --data.input_key text --model.pretrain_mode_enable \
        --data.max_len 128 --train.batch_size "$CLASSIFIER_BATCH" --train.micro_batch_size "$classifier_micro" \
        --train.max_epochs "$TUNE_EPOCHS" --train.seed "$SEED" --adam.lr "$tune_lr" --adam.betas 0.9 0.999 \
        --lr_scheduler linear --lr_warmup_ratio 0 --ds.zero_stage 2 "${logger[@]}" "${policy_args[@]}"
fi

# 2. The toxicity classifier
classifier=${CLASSIFIER:-$OUT/classifier}
[[ -n $CLASSIFIER ]] || stage classifier --in "$data"/reward/rm_{train,valid}.json --source "$CLASSIFIER_MODEL" \
    --out "$classifier" --scratch "$OUT/.classifier.checkpoints" -- \
    "${start[@]}" orlhf_ext deadend classifier --model_name_or_path "$CLASSIFIER_MODEL" \
    --train_file "$data/reward/rm_train.json" --validation_file "$data/reward/rm_valid.json" \
    --output_dir "$classifier" "${classifier_words[@]}" --per_device_train_batch_size "$classifier_micro" \
    --learning_rate "$classifier_lr" --num_train_epochs "$CLASSIFIER_EPOCHS" --seed "$SEED" "${classifier_args[@]}"

# score NAME: toxicity of every continuation in the files `inputs`, into the files `scored`
score() {
    local model=() share=() # a service is asked by one process
    [[ $classifier == *:* || $classifier == perspective ]] || model=(--source "$classifier") share=("${workers[@]}")
    stage "score/$1" --in "${inputs[@]}" "${model[@]}" --out "${scored[@]}" -- \
        python -m orlhf_ext deadend score --model_name_or_path "$classifier" --data_file "${inputs[@]}" \
        --save_file "${scored[@]}" --toxicity_type "$TOXICITY_TYPE" "${share[@]}" "${score_args[@]}"
}

# 3. Value data: continuations of the prompts, -1 for a toxic one, 0 for another
stage continuations --in "$prompts" --source "$policy" --out "$value/prompts_and_gens.jsonl" -- \
    python -m orlhf_ext deadend continuations --model_name_or_path "$policy" --data_file "$prompts" \
    --save_file "$value/prompts_and_gens.jsonl" --num_returns "$NUM_RETURNS" --max_new_tokens "$MAX_NEW_TOKENS" \
    --sample_size -1 --seed "$SEED" "${samplers[@]}" "${backend_words[@]}" "${continuation_args[@]}"
inputs=("$value/prompts_and_gens.jsonl") scored=("$value/scored.jsonl")
score continuations
# q_d NAME ROWS WORDS...: value data in a folder of its own, and Q_D of it. OpenRLHF takes the warm-up as a ratio; on gpu
# it is the paper's 500 steps
q_d() {
    local rows=$value/$2 warmup=0.1
    stage "value${1#q_d}" --in "$value/scored.jsonl" --out "$rows" -- \
        python -m orlhf_ext.build_data jigsaw value -f "$value/scored.jsonl" -s "$rows" --mode "$MODE" \
        --toxicity_type "$TOXICITY_TYPE" --seed "$SEED" "${@:3}" "${value_args[@]}"
    [[ $PROFILE != gpu ]] || assign warmup "$rows/train.jsonl" 400000 "$BATCH_SIZE" "$Q_EPOCHS"
    set_logger "$1"
    stage "$1" --in "$rows"/{train,val}.jsonl --source "$Q_MODEL" --out "$OUT/$1" --scratch "$OUT/checkpoints/$1" -- \
        "${launch[@]}" train_sft --ext.use dead-end --deadend.gamma 1.0 --deadend.polyak 0.1 --deadend.loss_norm tokens \
        --model.model_name_or_path "$Q_MODEL" --ckpt.output_dir "$OUT/$1" --ckpt.path "$OUT/checkpoints/$1" \
        --data.dataset "$rows/train.jsonl" --eval.dataset "$rows/val.jsonl" --eval.split train \
        --data.max_len $((PROMPT_TOKENS * 2 + MAX_NEW_TOKENS * 2)) --train.batch_size "$BATCH_SIZE" \
        --train.micro_batch_size "$micro" --train.max_epochs "$Q_EPOCHS" --train.seed "$SEED" --adam.lr "$q_lr" \
        --adam.betas 0.9 0.999 --lr_scheduler linear --lr_warmup_ratio "$warmup" --max_norm 0 --ds.zero_stage 2 \
        "${q_words[@]}" "${logger[@]}" "${q_args[@]}"
}

# 4. Q_D, and for comparison one of shuffled rewards
q_d q_d rows
run_file data "$value/rows"
[[ -z $CONTROL ]] || q_d q_d_shuffled shuffled --shuffle_rewards
stage calibration --in "$value/rows/val.jsonl" "$OUT/q_d" --out "$OUT/calibration.json" -- \
    python -m orlhf_ext deadend calibration --q_model_name_or_path "$OUT/q_d" --data_file "$value/rows/val.jsonl" \
    --save_file "$OUT/calibration.json"

# 5. Held-out prompts: plain decoding, and under the caps of Q_D
compared=() inputs=() scored=() controls=()
# decode NAME Q_D EPSILON: continuations of the held-out prompts, without a Q_D plain ones
decode() {
    local words=(--plain) reads=()
    [[ -z ${2:-} ]] || words=(--q_model_name_or_path "$OUT/$2" --epsilon "$3") reads=("$OUT/$2")
    stage "decode/$1" --in "$held_out" "${reads[@]}" --source "$policy" --out "$generated/$1.jsonl" -- \
        python -m orlhf_ext deadend decode --model_name_or_path "$policy" "${words[@]}" --data_file "$held_out" \
        --save_file "$generated/$1.jsonl" --num_returns "$NUM_RETURNS" --max_new_tokens "$MAX_NEW_TOKENS" \
        --num_samples_for_eval "$NUM_EVAL" --seed "$SEED" "${samplers[@]}" "${backend_words[@]}" "${decode_args[@]}"
    inputs+=("$generated/$1.jsonl") scored+=("$generated/$1_scored.jsonl") compared+=("$1=$generated/$1_scored.jsonl")
}
decode plain
if [[ -n $CONTROL ]]; then
    controls=(--controls "shuffled${epsilons[-1]}")
    decode "${controls[1]}" q_d_shuffled "${epsilons[-1]}"
fi
for epsilon in "${epsilons[@]}"; do decode "eps$epsilon" q_d "$epsilon"; done
score generations

# 6. The table
stage evaluate --show --in "${scored[@]}" --source "${PERPLEXITY_MODEL:=$policy}" -- \
    python -m orlhf_ext deadend evaluate "${compared[@]}" "${controls[@]}" --toxicity_type "$TOXICITY_TYPE" \
    --perplexity_model "$PERPLEXITY_MODEL" --perplexity_num "$perplexity_num" --save_file "$OUT/evaluation/summary.json" \
    --run "$OUT/run.json" --seed "$SEED" --samples "$EXAMPLES" ${SHOW:+--show} "${evaluate_args[@]}"
run_file finish "$OUT/evaluation/summary.json"
cards "$OUT/evaluation/summary.json" "$classifier" "$OUT/q_d" "$policy"
[[ $PERPLEXITY_MODEL != "$policy" ]] || echo "# perplexity is that under the unrectified policy itself"

# 7. To a hub, if asked to
[[ -n $CLASSIFIER ]] || push_model classifier "$classifier"
push_model q_d "$OUT/q_d"
report
echo "# classifier: $classifier, Q_D: $OUT/q_d, numbers: $OUT/summary.json and $OUT/evaluation/summary.{json,md,csv}"
