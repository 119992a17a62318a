#!/usr/bin/env bash
# From Jigsaw's comments to text with less toxicity, by dead-end analysis: comments -> toxicity classifier; prompts ->
# continuations -> their toxicity -> the value function Q_D -> decoding under its caps, against plain decoding.
#
#   bash recipes/jigsaw_rectify.sh                                           what fits this machine, on the bundled sample
#   JIGSAW_DATA=/path/to/csvs EPSILONS="0.1 0.5" bash recipes/jigsaw_rectify.sh     variables: recipes/jigsaw_rectify.md
#   DRY_RUN=1 bash recipes/jigsaw_rectify.sh                                 only prints the commands
RECIPE=jigsaw_rectify
PATH_VARIABLES=(JIGSAW_DATA EVAL_PROMPTS MODEL Q_MODEL CLASSIFIER CLASSIFIER_MODEL PERPLEXITY_MODEL)
: "${SEED:=0}" # upstream's, of every draw
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${NUM_RETURNS:=25}" "${MAX_NEW_TOKENS:=20}" "${PROMPT_TOKENS:=20}"
: "${TOXICITY_TYPE:=toxicity}" "${EXAMPLES:=3}" "${SHOW:=0}"
case $PROFILE in
    smoke)
        : "${EPSILONS:=0.1 0.5}"
        default_model=models/tiny default_q=models/tiny default_classifier=models/tiny default_data=sample
        : "${NUM_COMMENTS:=240}" "${NUM_PROMPTS:=40}" "${NUM_EVAL:=8}" "${PROMPT_DROP_RATE:=0}" "${MODE:=all}"
        : "${CLASSIFIER_EPOCHS:=2}" "${CLASSIFIER_BATCH:=16}" "${Q_EPOCHS:=1}" "${BATCH_SIZE:=32}" "${MICRO_BATCH_SIZE:=16}"
        classifier_lr=1e-3 classifier_words=(--max_length 128) q_lr=1e-3 perplexity_num=0 backend=(--backend hf --batch_size 8)
        ;;
    cpu)
        default_model=models/smollm2-135m-instruct default_q=models/smollm2-135m-8-layers
        default_classifier=models/smollm2-135m-8-layers default_data=sample
        # few comments: none is spared, and their rare toxic ones stay rare, or the classifier would find too many
        : "${COMMENT_DROP_RATE:=0}" "${NUM_COMMENTS:=2000}" "${NUM_PROMPTS:=140}" "${NUM_EVAL:=40}" "${PROMPT_DROP_RATE:=0}" "${MODE:=all}"
        : "${CLASSIFIER_EPOCHS:=3}" "${CLASSIFIER_BATCH:=16}" "${Q_EPOCHS:=1}" "${BATCH_SIZE:=32}" "${MICRO_BATCH_SIZE:=32}"
        : "${EPSILONS:=0.3 0.5}" # Q_D of so few texts hardly ever says less than -0.1
        classifier_lr=1e-4 classifier_words=(--max_length 64 --group_by_length) q_lr=3e-4 perplexity_num=5
        backend=()
        ;;
    gpu) # upstream's
        default_model=gpt2-large default_q=gpt2 default_classifier=bert-large-uncased default_data=kaggle
        : "${NUM_COMMENTS:=all}" "${NUM_PROMPTS:=all}" "${NUM_EVAL:=5000}" "${PROMPT_DROP_RATE:=0.9}" "${MODE:=most}"
        : "${CLASSIFIER_EPOCHS:=1}" "${CLASSIFIER_BATCH:=32}" "${Q_EPOCHS:=3}" "${BATCH_SIZE:=64}" "${MICRO_BATCH_SIZE:=16}"
        : "${PERPLEXITY_MODEL:=gpt2-xl}"
        classifier_lr=2e-5 classifier_words=(--max_length 128) q_lr=3e-4 perplexity_num=0 backend=()
        ;;
esac
: "${EPSILONS:=0.1 0.3 0.5}" "${COMMENT_DROP_RATE:=0.3}"
choice MODE most sample all
choice SHOW 0 1
counts NUM_RETURNS MAX_NEW_TOKENS PROMPT_TOKENS NUM_EVAL CLASSIFIER_EPOCHS CLASSIFIER_BATCH Q_EPOCHS BATCH_SIZE \
    MICRO_BATCH_SIZE
counts_or_all NUM_COMMENTS NUM_PROMPTS
[[ $EXAMPLES =~ ^[0-9]+$ ]] || die "EXAMPLES=$EXAMPLES is not a whole number"
for name in COMMENT_DROP_RATE PROMPT_DROP_RATE; do
    [[ ${!name} =~ ^(0|1|0?\.[0-9]+)$ ]] || die "$name=${!name} is not a number from 0 to 1"
done
read -ra epsilons <<<"$EPSILONS"
((${#epsilons[@]})) || die "EPSILONS names at least one value, such as 0.1"
for epsilon in "${epsilons[@]}"; do
    [[ $epsilon =~ ^(0|1|0?\.[0-9]+)$ ]] || die "EPSILONS=$EPSILONS are numbers from 0 to 1 with spaces between them; $epsilon is not"
done
fit_training "BATCH_SIZE=$BATCH_SIZE:$MICRO_BATCH_SIZE" "CLASSIFIER_BATCH=$CLASSIFIER_BATCH:1"
[[ $NUM_PROMPTS == all || -n ${EVAL_PROMPTS:-} ]] || ((NUM_EVAL < NUM_PROMPTS)) ||
    die "NUM_EVAL=$NUM_EVAL held-out prompts leave none of NUM_PROMPTS=$NUM_PROMPTS to train on; change one"
[[ -z ${CLASSIFIER:-} || -z ${CLASSIFIER_ARGS:-} ]] ||
    die "CLASSIFIER_ARGS has no effect with CLASSIFIER, which is not trained; unset one"
[[ ${CLASSIFIER:-} != perspective || -n ${PERSPECTIVE_API_KEY:-} || $DRY_RUN == 1 ]] ||
    die "CLASSIFIER=perspective asks Google's Perspective API; set PERSPECTIVE_API_KEY in the environment"
split_words DATA CLASSIFIER CONTINUATION SCORE VALUE Q DECODE EVALUATE
data=$OUT/data value=$OUT/value generated=$OUT/generations
: "${JIGSAW_DATA:=$default_data}"
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "seed=$SEED" "jigsaw_data=$JIGSAW_DATA"
echo "# $RECIPE: profile $PROFILE, data $JIGSAW_DATA, epsilons ${epsilons[*]}, output in $OUT"

# 0. The models: a policy, and what Q_D and the classifier start from. Q_D shares the policy's vocabulary
: "${Q_MODEL:=${MODEL:-$default_q}}" "${MODEL:=$default_model}" "${CLASSIFIER_MODEL:=$default_classifier}"
: "${PERPLEXITY_MODEL:=$MODEL}"
small_model
cut_model=models/smollm2-135m-8-layers whole_model=models/smollm2-135m-instruct
if [[ $Q_MODEL == "$cut_model" || (-z ${CLASSIFIER:-} && $CLASSIFIER_MODEL == "$cut_model") ]]; then
    [[ $MODEL == "$whole_model" ]] || MODEL=$whole_model small_model
    stage model/cut --keeps-outputs --source "$whole_model" --out "$cut_model" -- \
        python -m orlhf_ext small_models cut --model "$whole_model" --layers 8 --out "$cut_model"
fi

# 1. Data: labelled comments for the classifier; beginnings of other comments as prompts, some of them held out
raw=()
[[ $JIGSAW_DATA == kaggle ]] || raw=(--raw_dir "$JIGSAW_DATA")
limit=()
[[ $NUM_COMMENTS == all ]] || limit=(--limit "$NUM_COMMENTS")
[[ -n ${CLASSIFIER:-} ]] || stage data/reward --source "$JIGSAW_DATA" --out "$data/reward" -- \
    python -m orlhf_ext.build_data jigsaw reward "${raw[@]}" --out "$data/reward" --drop_rate "$COMMENT_DROP_RATE" \
    --seed "$SEED" "${limit[@]}" "${data_args[@]}"
limit=()
[[ $NUM_PROMPTS == all ]] || limit=(--limit "$NUM_PROMPTS")
tokenizer=gpt2
[[ $PROFILE == gpu ]] || tokenizer=$MODEL
stage data/prompts --source "$JIGSAW_DATA" "$tokenizer" --out "$data/prompts" -- \
    python -m orlhf_ext.build_data jigsaw prompts "${raw[@]}" --out "$data/prompts" --drop_rate "$PROMPT_DROP_RATE" \
    --max_len "$PROMPT_TOKENS" --tokenizer "$tokenizer" --seed "$SEED" "${limit[@]}"
prompts=$data/prompts/prompts.jsonl
if [[ -z ${EVAL_PROMPTS:-} ]]; then
    stage data/held_out --in "$prompts" --out "$data/split" -- \
        python -m orlhf_ext deadend hold_out --data_file "$prompts" --num "$NUM_EVAL" --save_dir "$data/split" --seed "$SEED"
    prompts=$data/split/prompts.jsonl EVAL_PROMPTS=$data/split/held_out.jsonl
fi

# 2. The toxicity classifier
start=(python -m)
((NPROC == 1)) || start=(torchrun --standalone --nproc_per_node "$NPROC" -m)
if [[ -z ${CLASSIFIER:-} ]]; then
    CLASSIFIER=$OUT/classifier
    stage classifier --in "$data"/reward/rm_{train,valid}.json --source "$CLASSIFIER_MODEL" --out "$CLASSIFIER" \
        --scratch "$OUT/.classifier.checkpoints" -- \
        "${start[@]}" orlhf_ext deadend classifier --model_name_or_path "$CLASSIFIER_MODEL" \
        --train_file "$data/reward/rm_train.json" --validation_file "$data/reward/rm_valid.json" \
        --output_dir "$CLASSIFIER" "${classifier_words[@]}" --per_device_train_batch_size "$((CLASSIFIER_BATCH / NPROC))" \
        --learning_rate "$classifier_lr" --num_train_epochs "$CLASSIFIER_EPOCHS" --seed "$SEED" "${classifier_args[@]}"
fi

# score NAME: toxicity of every continuation in the files `inputs`, into the files `scored`
score() {
    local model=()
    [[ $CLASSIFIER == *:* || $CLASSIFIER == perspective ]] || model=(--source "$CLASSIFIER")
    stage "score/$1" --in "${inputs[@]}" "${model[@]}" --out "${scored[@]}" -- \
        python -m orlhf_ext deadend score --model_name_or_path "$CLASSIFIER" --data_file "${inputs[@]}" \
        --save_file "${scored[@]}" --toxicity_type "$TOXICITY_TYPE" "${score_args[@]}"
}

# 3. Value data: continuations of the prompts, -1 for a toxic one, 0 for another
stage continuations --in "$prompts" --source "$MODEL" --out "$value/prompts_and_gens.jsonl" -- \
    python -m orlhf_ext deadend continuations --model_name_or_path "$MODEL" --data_file "$prompts" \
    --save_file "$value/prompts_and_gens.jsonl" --num_returns "$NUM_RETURNS" --max_new_tokens "$MAX_NEW_TOKENS" \
    --sample_size -1 --seed "$SEED" "${backend[@]}" "${continuation_args[@]}"
inputs=("$value/prompts_and_gens.jsonl") scored=("$value/scored.jsonl")
score continuations
stage value --in "$value/scored.jsonl" --out "$value/rows" -- \
    python -m orlhf_ext.build_data jigsaw value -f "$value/scored.jsonl" -s "$value/rows" --mode "$MODE" \
    --toxicity_type "$TOXICITY_TYPE" --seed "$SEED" "${value_args[@]}"
run_file data "$value/rows"

# 4. Q_D. OpenRLHF takes the warm-up as a ratio; on gpu it is upstream's 500 steps
warmup=0.1
if [[ $PROFILE == gpu ]]; then
    steps=$(($(rows "$value/rows/train.jsonl" 400000) / BATCH_SIZE * Q_EPOCHS))
    ((steps > 1000)) || steps=1000
    warmup=$(printf '0.%06d' $((500 * 1000000 / steps)))
fi
set_logger q_d
stage q_d --in "$value"/rows/{train,val}.jsonl --source "$Q_MODEL" --out "$OUT/q_d" --scratch "$OUT/checkpoints/q_d" -- \
    "${launch[@]}" train_sft --ext.use dead-end --deadend.gamma 1.0 --deadend.polyak 0.1 --deadend.loss_norm tokens \
    --model.model_name_or_path "$Q_MODEL" --ckpt.output_dir "$OUT/q_d" --ckpt.path "$OUT/checkpoints/q_d" \
    --data.dataset "$value/rows/train.jsonl" --eval.dataset "$value/rows/val.jsonl" --eval.split train \
    --data.max_len $((PROMPT_TOKENS * 2 + MAX_NEW_TOKENS * 2)) --train.batch_size "$BATCH_SIZE" \
    --train.micro_batch_size "${micros[0]}" --train.max_epochs "$Q_EPOCHS" --train.seed "$SEED" --adam.lr "$q_lr" \
    --adam.betas 0.9 0.999 --lr_scheduler linear --lr_warmup_ratio "$warmup" --max_norm 0 --ds.zero_stage 2 \
    "${logger[@]}" "${q_args[@]}"

stage calibration --in "$value/rows/val.jsonl" "$OUT/q_d" --out "$OUT/calibration.json" -- \
    python -m orlhf_ext deadend calibration --q_model_name_or_path "$OUT/q_d" --data_file "$value/rows/val.jsonl" \
    --save_file "$OUT/calibration.json"

# 5. Held-out prompts: plain decoding, and under the caps of Q_D
compared=() inputs=() scored=()
# decode NAME WORDS...: continuations of the held-out prompts
decode() {
    local reads=()
    [[ $1 == plain ]] || reads=("$OUT/q_d")
    stage "decode/$1" --in "$EVAL_PROMPTS" "${reads[@]}" --source "$MODEL" --out "$generated/$1.jsonl" -- \
        python -m orlhf_ext deadend decode --model_name_or_path "$MODEL" "${@:2}" --data_file "$EVAL_PROMPTS" \
        --save_file "$generated/$1.jsonl" --num_returns "$NUM_RETURNS" --max_new_tokens "$MAX_NEW_TOKENS" \
        --num_samples_for_eval "$NUM_EVAL" --seed "$SEED" "${backend[@]}" "${decode_args[@]}"
    inputs+=("$generated/$1.jsonl") scored+=("$generated/$1_scored.jsonl") compared+=("$1=$generated/$1_scored.jsonl")
}
decode plain --plain
for epsilon in "${epsilons[@]}"; do
    decode "eps$epsilon" --q_model_name_or_path "$OUT/q_d" --epsilon "$epsilon"
done
score generations

# 6. The table
show=()
((!SHOW)) || show=(--show)
stage evaluate --in "${scored[@]}" --source "$PERPLEXITY_MODEL" -- \
    python -m orlhf_ext deadend evaluate "${compared[@]}" --toxicity_type "$TOXICITY_TYPE" \
    --perplexity_model "$PERPLEXITY_MODEL" --perplexity_num "$perplexity_num" --save_file "$OUT/evaluation/summary.json" --run "$OUT/run.json" \
    --seed "$SEED" --samples "$EXAMPLES" "${show[@]}" "${evaluate_args[@]}"
run_file finish "$OUT/evaluation/summary.json"
[[ $PERPLEXITY_MODEL != "$MODEL" ]] || echo "# perplexity is that under the unrectified policy itself"

# 7. To a hub, if asked to
[[ $CLASSIFIER != "$OUT/classifier" ]] || push_model classifier "$CLASSIFIER"
push_model q_d "$OUT/q_d"
echo "# classifier: $CLASSIFIER, Q_D: $OUT/q_d, numbers: $OUT/summary.json and $OUT/evaluation/summary.{json,md,csv}"
