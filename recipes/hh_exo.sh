#!/usr/bin/env bash
# From a fresh machine to an EXO-aligned model on Anthropic HH (or data in its format), through OpenRLHF's launchers:
# data -> SFT -> reward model -> samples of the SFT model -> labels -> EXO or DPO -> samples of each checkpoint -> table.
#
#   bash recipes/hh_exo.sh                                     what fits this machine
#   PROFILE=smoke LOSS=exo-pref bash recipes/hh_exo.sh         variables: recipes/README.md
#   DRY_RUN=1 bash recipes/hh_exo.sh                           only prints the commands
RECIPE=${RECIPE:-hh_exo}
PAGE=hh_exo
PATH_VARIABLES=(HH_DATA MODEL SFT_MODEL REWARD_MODEL ALIGN_DATA)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${LOSS:=exo-rw}" "${NUM_CONTRASTIVE:=2}" "${NUM_COMPLETIONS:=2}"
choice LOSS exo-rw exo-pref dpo-rw dpo-pref
case $PROFILE in
    smoke)
        default_model=models/tiny
        : "${TRAIN_PROMPTS:=24}" "${TEST_PROMPTS:=8}" "${TEST_COMPLETIONS:=2}" "${NUM_CHECKPOINTS:=1}"
        : "${MAX_LEN:=320}" "${MAX_NEW_TOKENS:=16}" "${BATCH_SIZE:=8}" "${MICRO_BATCH_SIZE:=4}" "${RESUME_STEPS:=1}"
        sft_lr=1e-3 rm_lr=1e-3 align_lr=1e-3 beta_pi=0.5 beta_r=0.5
        ;;
    cpu)
        default_model=models/smollm2-135m-instruct
        # The bundled sample is there to see everything run; on data of one's own, the table should show something.
        if [[ -z ${HH_DATA:-} ]]; then
            : "${TRAIN_PROMPTS:=80}" "${TEST_PROMPTS:=48}"
        else
            : "${TRAIN_PROMPTS:=160}" "${TEST_PROMPTS:=64}"
        fi
        : "${TEST_COMPLETIONS:=2}" "${NUM_CHECKPOINTS:=1}" "${MAX_LEN:=88}" "${MAX_NEW_TOKENS:=48}"
        : "${BATCH_SIZE:=8}" "${MICRO_BATCH_SIZE:=8}" "${RESUME_STEPS:=0}"
        sft_lr=3e-5 rm_lr=4e-5 align_lr=7e-5
        # A reward model that saw a hundred pairs spreads its rewards over hundredths, not over units as the paper's.
        beta_pi=0.1 beta_r=0.02
        ;;
    gpu) # the paper's: 4 GPUs x 8 prompts x 4 accumulated, 175 steps of 128 prompts
        default_model=EleutherAI/pythia-2.8b
        : "${TRAIN_PROMPTS:=all}" "${ALIGN_PROMPTS:=22400}" "${TEST_PROMPTS:=512}" "${TEST_COMPLETIONS:=4}"
        : "${NUM_CHECKPOINTS:=10}" "${MAX_LEN:=512}" "${MAX_NEW_TOKENS:=200}" "${BATCH_SIZE:=128}"
        : "${MICRO_BATCH_SIZE:=8}" "${RESUME_STEPS:=50}"
        sft_lr=1e-5 rm_lr=1e-5 align_lr=1e-6 beta_pi=0.5 beta_r=0.5
        ;;
esac
: "${ALIGN_PROMPTS:=all}"
counts NUM_CONTRASTIVE NUM_COMPLETIONS TEST_COMPLETIONS NUM_CHECKPOINTS MAX_LEN MAX_NEW_TOKENS BATCH_SIZE \
    MICRO_BATCH_SIZE
counts_or_all TRAIN_PROMPTS ALIGN_PROMPTS TEST_PROMPTS
engines=()
[[ $PROFILE != gpu ]] || engines=(--num_engines "$NPROC") # all GPUs can sample
fit_training "BATCH_SIZE=$BATCH_SIZE:$MICRO_BATCH_SIZE"
((MAX_NEW_TOKENS < MAX_LEN)) || die "MAX_NEW_TOKENS=$MAX_NEW_TOKENS leaves no room for a prompt in MAX_LEN=$MAX_LEN"
((NUM_CONTRASTIVE > 1)) || die "NUM_CONTRASTIVE=$NUM_CONTRASTIVE leaves nothing to contrast with; give at least 2"
[[ $LOSS == *-rw || -n ${ALIGN_DATA:-} || $NUM_CONTRASTIVE == 2 ]] ||
    die "NUM_CONTRASTIVE=$NUM_CONTRASTIVE is for LOSS=*-rw; the human pairs of LOSS=$LOSS have two completions"
if [[ $LOSS == *-rw && -z ${ALIGN_DATA:-} ]] && ((NUM_COMPLETIONS % NUM_CONTRASTIVE)); then
    die "NUM_COMPLETIONS=$NUM_COMPLETIONS is no multiple of NUM_CONTRASTIVE=$NUM_CONTRASTIVE; change one"
fi
[[ -z ${SFT_MODEL:-} || -z ${SFT_ARGS:-} ]] || die "SFT_ARGS has no effect with SFT_MODEL, which skips SFT; unset one"
[[ -z ${REWARD_MODEL:-} || -z ${RM_ARGS:-} ]] || die "RM_ARGS has no effect with REWARD_MODEL; unset one"
for name in TRAIN_PROMPTS ALIGN_PROMPTS; do
    [[ ${!name} == all || -n ${ALIGN_DATA:-} ]] || ((${!name} >= BATCH_SIZE)) ||
        die "${!name} records of $name are fewer than BATCH_SIZE=$BATCH_SIZE; lower it, or raise $name"
done
split_words SFT RM ALIGN
hh_words

data=$OUT/data samples=$OUT/samples align=$OUT/align_${LOSS}_nc$NUM_CONTRASTIVE
chat=() gpu_words=()
[[ $PROMPT_FORMAT == hh ]] || chat=(--data.apply_chat_template)
[[ $PROFILE != gpu ]] || gpu_words=(--model.gradient_checkpointing_enable)
optimizer=(--train.batch_size "$BATCH_SIZE" --train.micro_batch_size "${micros[0]}" --train.seed "$SEED"
    --lr_scheduler cosine --lr_warmup_ratio 0 --adam.betas 0.9 0.95 --max_norm 1.0 --ds.zero_stage 2
    --data.max_len "$MAX_LEN" "${gpu_words[@]}")

default_hh_data
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "loss=$LOSS" "num_contrastive=$NUM_CONTRASTIVE" "seed=$SEED"
echo "# $RECIPE: profile $PROFILE, loss $LOSS, data $HH_DATA, output in $OUT"

# 0. The model that training starts from
: "${MODEL:=${SFT_MODEL:-$default_model}}"
small_model

# 1. Data: pairs, and the same as K-wise records
limit=()
[[ $TRAIN_PROMPTS == all ]] || limit=(--limit "$TRAIN_PROMPTS")
drawn=("${limit[@]}")
[[ $TEST_PROMPTS == all ]] || drawn+=(--limit_test "$TEST_PROMPTS")
((${#drawn[@]} == 0)) || drawn+=(--shuffle)
stage data --source "$HH_DATA" "$MODEL" --out "$data" -- \
    python -m orlhf_ext.build_data hh "$HH_DATA" --out "$data" --format "$PROMPT_FORMAT" --kwise \
    "${drawn[@]}" --seed "$SEED" --tokenizer "$MODEL" --max_prompt_tokens $((MAX_LEN - MAX_NEW_TOKENS)) \
    --max_tokens "$MAX_LEN" "${hh_data[@]}"
run_file data "$data"

# train NAME WORDS...: the stage that runs train_NAME on the pairs, whose columns WORDS name; NAME_lr and NAME_args are its.
train() {
    local -n lr=$1_lr more=$1_args
    local checkpoints=() # that a killed stage resumes from (two are kept: one alone can be torn)
    [[ $RESUME_STEPS == 0 ]] || checkpoints=(--ckpt.path "$OUT/checkpoints/$1" --ckpt.save_steps "$RESUME_STEPS"
        --ckpt.max_num 2 --ckpt.load_enable)
    set_logger "$1"
    stage "$1" --in "$data/train.jsonl" "$data/test.jsonl" --source "$MODEL" --out "$OUT/$1" \
        --scratch "$OUT/checkpoints/$1" -- \
        "${launch[@]}" "train_$1" --model.model_name_or_path "$MODEL" --ckpt.output_dir "$OUT/$1" \
        --data.dataset "$data/train.jsonl" "${@:2}" "${chat[@]}" --eval.dataset "$data/test.jsonl" --eval.split train \
        "${optimizer[@]}" --train.max_epochs 1 --adam.lr "$lr" "${checkpoints[@]}" "${logger[@]}" "${more[@]}"
}

# 2. SFT on the chosen answers
sft=${SFT_MODEL:-$OUT/sft}
[[ -n ${SFT_MODEL:-} ]] || train sft --data.input_key prompt --data.output_key chosen

# 3. Reward model on the pairs
rm_model=${REWARD_MODEL:-$OUT/rm}
[[ -n ${REWARD_MODEL:-} ]] || train rm --data.prompt_key prompt

# sample NAME MODEL PROMPTS OUT COUNT [WORDS...]
sample() {
    stage "$1" --in "$3" --source "$2" --out "$4" -- \
        python -m orlhf_ext generate --model "$2" --data "$3" --out "$4" --num_completions "$5" --temperature 0.8 \
        --max_new_tokens "$MAX_NEW_TOKENS" --max_len "$MAX_LEN" --seed "$SEED" "${engines[@]}" "${@:6}"
}

# 4. and 5. Samples of the SFT model, labelled by the reward model
if [[ -n ${ALIGN_DATA:-} ]]; then
    train=$ALIGN_DATA
elif [[ $LOSS == *-pref ]]; then
    train=$data/train_kwise.jsonl
else
    train=$samples/train_rw.jsonl
    limit=()
    [[ $ALIGN_PROMPTS == all ]] || limit=(--limit "$ALIGN_PROMPTS")
    sample sample_train "$sft" "$data/train.jsonl" "$samples/train.jsonl" "$NUM_COMPLETIONS" "${limit[@]}"
    stage label --in "$samples/train.jsonl" --source "$rm_model" --out "$train" -- \
        python -m orlhf_ext score --model "$rm_model" --data "$samples/train.jsonl" --out "$train" --max_len "$MAX_LEN"
fi

# 6. Alignment. Checkpoints at equal distances, at most NUM_CHECKPOINTS of them; the last one is the final model.
[[ $TRAIN_PROMPTS == all ]] && known=43835 || known=$TRAIN_PROMPTS
records=$(rows "$train" "$known")
limit=()
if [[ $ALIGN_PROMPTS != all ]]; then
    limit=(--data.max_samples "$ALIGN_PROMPTS")
    ((records <= ALIGN_PROMPTS)) || records=$ALIGN_PROMPTS
fi
steps=$((records / BATCH_SIZE))
((steps > 0)) || die "$train has $records records, fewer than BATCH_SIZE=$BATCH_SIZE; lower it, or raise TRAIN_PROMPTS"
every=$(((steps + NUM_CHECKPOINTS - 1) / NUM_CHECKPOINTS))
names=() models=() saving=() outputs=("$align/model")
for ((step = every; step < steps; step += every)); do
    names+=("step$step")
    models+=("$align/checkpoints/global_step${step}_hf")
done
if ((${#names[@]})); then
    # DeepSpeed's own checkpoints stay off: they would rotate these folders away. A killed alignment starts again.
    saving=(--ckpt.path "$align/checkpoints" --ckpt.save_steps "$every" --ckpt.save_hf --ckpt.disable_ds)
    outputs+=("$align/checkpoints")
fi
names+=("step$steps")
models+=("$align/model")
evaluation=()
[[ $LOSS == *-rw || -n ${ALIGN_DATA:-} ]] || evaluation=(--eval.dataset "$data/test_kwise.jsonl" --eval.split train)
set_logger "align_${LOSS}_nc$NUM_CONTRASTIVE"
stage align --in "$train" "$data/test_kwise.jsonl" --source "$sft" --out "${outputs[@]}" -- \
    "${launch[@]}" train_dpo --ext.use exo --exo.loss_type "$LOSS" --exo.num_contrastive "$NUM_CONTRASTIVE" \
    --exo.beta_pi "$beta_pi" --exo.beta_r "$beta_r" --exo.temperature 0.8 --exo.max_completion_len "$MAX_NEW_TOKENS" \
    --model.model_name_or_path "$sft" --ref.model_name_or_path "$sft" --ckpt.output_dir "$align/model" \
    --data.dataset "$train" "${limit[@]}" "${chat[@]}" "${evaluation[@]}" "${optimizer[@]}" --train.max_epochs 1 \
    --adam.lr "$align_lr" "${saving[@]}" "${logger[@]}" "${align_args[@]}"

# 7. Answers to held-out prompts, of the SFT model and of each checkpoint
sample sample_test/sft "$sft" "$data/test.jsonl" "$samples/test_sft.jsonl" "$TEST_COMPLETIONS"
for i in "${!names[@]}"; do
    sample "sample_test/${names[i]}" "${models[i]}" "$data/test.jsonl" "$align/samples/${names[i]}.jsonl" "$TEST_COMPLETIONS"
done

# 8. Their rewards, and those of the chosen answers
stage score/sft --in "$samples/test_sft.jsonl" "$data/test.jsonl" --source "$rm_model" \
    --out "$samples/test_sft_rw.jsonl" "$samples/test_chosen_rw.jsonl" -- \
    python -m orlhf_ext score --model "$rm_model" --data "$samples/test_sft.jsonl" "$data/test.jsonl" \
    --out "$samples/test_sft_rw.jsonl" "$samples/test_chosen_rw.jsonl" --max_len "$MAX_LEN"
sampled=("${names[@]/#/$align/samples/}") # one file per policy, without its ending
stage score/policy --in "${sampled[@]/%/.jsonl}" --source "$rm_model" --out "${sampled[@]/%/_rw.jsonl}" -- \
    python -m orlhf_ext score --model "$rm_model" --data "${sampled[@]/%/.jsonl}" --out "${sampled[@]/%/_rw.jsonl}" \
    --max_len "$MAX_LEN"

# 9. How far each policy went: log-probabilities of its answers under the SFT model and under itself
stage logprobs/sft --in "${sampled[@]/%/_rw.jsonl}" --source "$sft" --out "${sampled[@]/%/_sft.jsonl}" -- \
    python -m orlhf_ext logprobs --model "$sft" --data "${sampled[@]/%/_rw.jsonl}" --out "${sampled[@]/%/_sft.jsonl}" \
    --key logprobs_sft --max_len "$MAX_LEN"
for i in "${!names[@]}"; do
    stage "logprobs/${names[i]}" --in "${sampled[i]}_sft.jsonl" "${models[i]}" --out "${sampled[i]}_eval.jsonl" -- \
        python -m orlhf_ext logprobs --model "${models[i]}" --data "${sampled[i]}_sft.jsonl" \
        --out "${sampled[i]}_eval.jsonl" --key logprobs_policy --max_len "$MAX_LEN"
done

# 10. The table, three prompts with answers before and after, and where everything lies
compared=()
for i in "${!names[@]}"; do
    compared+=(--policy "${names[i]}=${sampled[i]}_eval.jsonl")
done
stage evaluate --in "$samples/test_sft_rw.jsonl" "$samples/test_chosen_rw.jsonl" "${sampled[@]/%/_eval.jsonl}" -- \
    python -m orlhf_ext evaluate --sft "$samples/test_sft_rw.jsonl" "${compared[@]}" \
    --chosen "$samples/test_chosen_rw.jsonl" --run "$OUT/run.json" --out "$align/summary.json" --show 3 --seed "$SEED"
run_file finish "$align/summary.json"
cat <<END
# policy: $align/model (checkpoints beside it), SFT model: $sft, reward model: $rm_model
# numbers: $OUT/summary.json (this run's, also $align/summary.json, .md and .csv), answers: $align/samples
END
