#!/usr/bin/env bash
# EXO or DPO on Anthropic HH, from raw pairs to an evaluated policy.
# (Data -> SFT -> reward model -> samples -> labels -> EXO or DPO -> samples of each checkpoint -> table. Data in the format
# of HH will do.)
#
#   bash recipes/hh_exo.sh                                     what fits this machine
#   PROFILE=smoke LOSS=exo-pref bash recipes/hh_exo.sh         variables: docs/methods/exo.md
#   DRY_RUN=1 bash recipes/hh_exo.sh                           only prints the commands
RECIPE=${RECIPE:-hh_exo}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source recipes/hh/stages.sh # build_pairs, train_sft, train_reward_model, sample, label, compare_policies

every=(
    LOSS=exo-rw LOSSES= ROUNDS=1 ROUND_REFERENCE=sft NUM_CONTRASTIVE= PROMPT_FORMAT=hh LONG_ROWS=drop ALIGN_PROMPTS=all
    HH_DATA=sample HH_FOLDER= SFT_MODEL= REWARD_MODEL= ALIGN_DATA= SFT_ARGS= RM_ARGS= ALIGN_ARGS= gpu_words=
)
smoke=(
    MODEL=models/tiny TRAIN_PROMPTS=24 TEST_PROMPTS=8 NUM_COMPLETIONS=2 TEST_COMPLETIONS=2 NUM_CHECKPOINTS=1
    MAX_LEN=320 MAX_NEW_TOKENS=16 BATCH_SIZE=8 MICRO_BATCH_SIZE=4 RESUME_STEPS=1
    sft_lr=1e-3 rm_lr=1e-3 align_lr=1e-3 beta_pi=0.5 beta_r=0.5
)
cpu=(
    MODEL=models/smollm2-135m-instruct TRAIN_PROMPTS=128 TEST_PROMPTS=64 NUM_COMPLETIONS=4 TEST_COMPLETIONS=2
    NUM_CHECKPOINTS=1 MAX_LEN=88 MAX_NEW_TOKENS=48 BATCH_SIZE=8 MICRO_BATCH_SIZE=8 RESUME_STEPS=0
    sft_lr=3e-5 rm_lr=1e-4 align_lr=1e-4 beta_pi=0.1 beta_r=0.5
)
gpu=( # the paper's: 4 GPUs x 8 prompts x 4 accumulated, 175 steps of 128 prompts
    MODEL=EleutherAI/pythia-2.8b HH_DATA= LONG_ROWS=cut gpu_words=--model.gradient_checkpointing_enable
    TRAIN_PROMPTS=all ALIGN_PROMPTS=22400 TEST_PROMPTS=512 NUM_COMPLETIONS=2 TEST_COMPLETIONS=4 NUM_CHECKPOINTS=10
    MAX_LEN=512 MAX_NEW_TOKENS=200 BATCH_SIZE=128 MICRO_BATCH_SIZE=8 RESUME_STEPS=50
    sft_lr=1e-5 rm_lr=1e-5 align_lr=1e-6 beta_pi=0.5 beta_r=0.5
)
settings "$@"
find_hh_data

kind=nc$NUM_CONTRASTIVE # ends the folder of a policy
((ROUNDS == 1)) || kind+=_rounds${ROUNDS}_$ROUND_REFERENCE
data=$OUT/data samples=$OUT/samples results=$OUT/align_$(IFS=+ && echo "${losses[*]}")_$kind
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "loss=${losses[*]}" "num_contrastive=$NUM_CONTRASTIVE" "seed=$SEED" "model=$MODEL"
echo "# $RECIPE: profile $PROFILE, loss ${losses[*]}, data $HH_DATA, output in $OUT"

# 0. The model that training starts from
small_model "$MODEL"

prepare_training

# 1. Data: pairs, and the same as K-wise records
build_pairs

# 2. SFT on the chosen answers
train_sft

# 3. Reward model on the pairs
train_reward_model

# 4. and 5. Samples of the SFT model, labelled by the reward model; or the human pairs; or what is given
train=${ALIGN_DATA:-$data/train_kwise.jsonl} evaluation=()
if [[ -z $ALIGN_DATA && ${losses[0]} == *-pref ]]; then
    evaluation=(--eval.dataset "$data/test_kwise.jsonl" --eval.split train)
elif [[ -z $ALIGN_DATA ]]; then
    train=$samples/train_rw.jsonl
    sample sample_train "$sft" "$data/train.jsonl" "$samples/train.jsonl" "$NUM_COMPLETIONS" \
        ${ALIGN_PROMPTS:+--limit "$ALIGN_PROMPTS"}
    label label "$samples/train.jsonl" "$train"
fi

# align NAME RECORDS POLICY REFERENCE OUT... : alignment of POLICY by $loss, which writes the model OUT (`saving`: and more)
align() {
    set_logger "${align##*/}${1#"align/$loss"}"
    stage "$1" --in "$2" "$data/test_kwise.jsonl" --source "$3" "$4" --out "${@:5}" -- \
        "${launch[@]}" train_dpo --ext.use exo --exo.loss_type "$loss" --exo.num_contrastive "$NUM_CONTRASTIVE" \
        --exo.beta_pi "$beta_pi" --exo.beta_r "$beta_r" --exo.temperature 0.8 \
        --exo.max_completion_len "$MAX_NEW_TOKENS" \
        --model.model_name_or_path "$3" --ref.model_name_or_path "$4" --ckpt.output_dir "$5" \
        --data.dataset "$2" ${ALIGN_PROMPTS:+--data.max_samples "$ALIGN_PROMPTS"} "${chat[@]}" "${evaluation[@]}" \
        "${optimizer[@]}" --adam.lr "$align_lr" "${saving[@]}" "${logger[@]}" "${align_args[@]}"
}

# 6. Alignment by each loss, with checkpoints at equal distances (`steps`, `interval` apart); the last one is the final
# model. DeepSpeed's own checkpoints stay off: they would rotate these folders away. A killed alignment starts again.
# With ROUNDS, each but the first one begins with samples of the policy that the last one made, and their labels.
assign checkpoints "$train" "${TRAIN_PROMPTS:-43835}" "$BATCH_SIZE" "$NUM_CHECKPOINTS" $ALIGN_PROMPTS
mark=step
((ROUNDS == 1)) || mapfile -t steps < <(seq "$ROUNDS")
((ROUNDS == 1)) || mark=round
aligned=() models=() names=() sampled=() # of each policy: its folder, its name, and the file of its answers, without the ending
for loss in "${losses[@]}"; do
    align=$OUT/align_${loss}_$kind saving=() outputs=()
    if ((ROUNDS == 1 && ${#steps[@]} > 1)); then
        saving=(--ckpt.path "$align/checkpoints" --ckpt.save_steps "$interval" --ckpt.save_hf --ckpt.disable_ds)
        outputs=("$align/checkpoints")
    fi
    ((ROUNDS > 1)) || align "align/$loss" "$train" "$sft" "$sft" "$align/model" "${outputs[@]}"
    policy=$sft records=$train
    for step in "${steps[@]}"; do
        model=$align/checkpoints/global_step${step}_hf
        if ((ROUNDS > 1)); then
            model=$align/rounds/model$step
            ((step < ROUNDS)) || model=$align/model
            if ((step > 1)); then
                records=$align/rounds/train${step}_rw.jsonl
                sample "sample_train/$loss-round$step" "$policy" "$data/train.jsonl" "$align/rounds/train$step.jsonl" \
                    "$NUM_COMPLETIONS" ${ALIGN_PROMPTS:+--limit "$ALIGN_PROMPTS"}
                label "label/$loss-round$step" "$align/rounds/train$step.jsonl" "$records"
            fi
            reference=$sft
            [[ $ROUND_REFERENCE == sft ]] || reference=$policy
            align "align/$loss-round$step" "$records" "$policy" "$reference" "$model"
            policy=$model
        fi
        models+=("$model")
        names+=("$loss-$mark$step") sampled+=("$align/samples/$mark$step")
    done
    aligned+=("$align")
    models[-1]=$align/model
done
shown=("${names[@]}") # in the table
((${#losses[@]} > 1)) || shown=("${names[@]#"${losses[0]}"-}")

# 7. to 10. Answers to held-out prompts before and after, their rewards, how far each policy went; the table
compare_policies
run_file finish "$results/summary.json"
cards "$results/summary.json" "$sft" "$rm_model" "${aligned[@]/%//model}"
report
cat <<END_OF_RUN
# policy: ${models[-1]} (checkpoints beside it), SFT model: $sft, reward model: $rm_model
# numbers: $OUT/summary.json (this run's, also $results/summary.json, .md and .csv), answers: $OUT/align_*/samples
END_OF_RUN
