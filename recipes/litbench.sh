# What litbench_btrm.sh and litbench_genrm.sh share: their variables and flags, the batch, the folder of a run.
# They set RECIPE and KIND (bt_reward or genrm) and source this file with their own arguments.
PAGE=litbench
PATH_VARIABLES=(LITBENCH_DATA TEST_FILE DATA_DIR MODEL)

# The training scripts' flags stand for variables.
while (($#)); do
    case $1 in
        -h | --help) break ;; # common.sh answers
        --epochs | --epochs=*) _flag=EPOCHS ;;
        --max_length | --max_length=*) _flag=MAX_LEN ;;
        --learning_rate | --learning_rate=*) _flag=LEARNING_RATE ;;
        --output_dir | --output_dir=*) _flag=OUTPUT_DIR ;;
        --data_dir | --data_dir=*) _flag=DATA_DIR ;;
        --use_cot)
            if [[ $KIND != genrm ]]; then
                echo "recipe: error: --use_cot has no effect on a Bradley-Terry model; leave it out" >&2
                exit 2
            fi
            USE_COT=1
            shift
            continue
            ;;
        *)
            echo "recipe: error: $1 is not known; flags are --epochs, --max_length, --learning_rate, --output_dir, --data_dir and (GenRM) --use_cot, all else is a variable" >&2
            exit 2
            ;;
    esac
    if [[ $1 == *=* ]]; then
        printf -v "$_flag" %s "${1#*=}"
        shift
    elif (($# > 1)); then
        printf -v "$_flag" %s "$2"
        shift 2
    else
        echo "recipe: error: $1 needs a value behind it" >&2
        exit 2
    fi
done
if [[ -n ${OUTPUT_DIR:-} && -n ${OUT:-} && $OUT != "$OUTPUT_DIR" ]]; then
    echo "recipe: error: OUTPUT_DIR=$OUTPUT_DIR and OUT=$OUT name two folders; unset one" >&2
    exit 2
fi
OUT=${OUT:-${OUTPUT_DIR:-}}
[[ -n $OUT ]] || unset OUT
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${DATA_DIR:=$_caller/data/litbench}" # where `litbench rehydrate` writes: in the folder that it is called from
: "${NEW:=0}" "${ALLOW_TRAIN_HOLDOUT:=0}"
choice NEW 0 1
choice ALLOW_TRAIN_HOLDOUT 0 1
split_words DATA TRAIN

# The batch of an optimizer step: TARGET_BATCH_SIZE, or the next larger number that MICRO_BATCH_SIZE texts on each of
# NPROC processes, accumulated, come to.
# adapt_batch: sets batch.
adapt_batch() {
    counts TARGET_BATCH_SIZE MICRO_BATCH_SIZE MAX_LEN EPOCHS
    [[ $LEARNING_RATE =~ ^([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?$ && ${LEARNING_RATE%e*} =~ [1-9] ]] ||
        die "LEARNING_RATE=$LEARNING_RATE is not a number such as 1e-5"
    local at_once=$((MICRO_BATCH_SIZE * NPROC))
    batch=$(((TARGET_BATCH_SIZE + at_once - 1) / at_once * at_once))
    echo "# $NPROC processes x $MICRO_BATCH_SIZE x $((batch / at_once)) accumulated: $batch texts a step"
}

# find_test: the words `tested` for the builders, from TEST_FILE, or from what `litbench rehydrate` has written.
find_test() {
    tested=()
    if [[ -n ${TEST_FILE:-} ]]; then
        tested=(--test_file "$TEST_FILE")
    elif [[ $LITBENCH_DATA != sample && -f $DATA_DIR/rehydrated_test_data.csv ]]; then
        tested=(--test_file "$DATA_DIR/rehydrated_test_data.csv")
    fi
    ((!ALLOW_TRAIN_HOLDOUT)) || tested+=(--allow_train_holdout)
}

# name_run WORD...: sets `name`, the folder of this run's model in OUT: the newest unfinished one that was begun with the
# same WORDs, else the newest finished one of them, else (and with NEW=1) one with the time in its name.
name_run() {
    local stamp file found='' state
    stamp=$(date -u +%Y%m%d_%H%M%S)
    name=${KIND}_model_$stamp
    if ((!NEW)); then
        for file in "$OUT/${KIND}"_model_*.begun; do # in the order of their time stamps
            [[ -f $file && $(<"$file") == "$*" ]] || continue
            state=${file%.begun}
            if [[ ! -f $state.done || -z $found || -f $found.done ]]; then found=$state; fi
        done
        [[ -z $found ]] || name=${found##*/}
    fi
    if [[ -z $found ]]; then
        local number=2
        while [[ -e $OUT/$name || -e $OUT/$name.begun ]]; do
            name=${KIND}_model_${stamp}_$number
            ((number += 1))
        done
        [[ $DRY_RUN == 1 ]] || echo "$*" >"$OUT/$name.begun"
    fi
    model=$OUT/$name results=$OUT/results/$name
    echo "# $RECIPE: profile $PROFILE, data $LITBENCH_DATA, model in $model"
}

# count_steps FILE ROWS: sets `steps`, the optimizer steps of an epoch (ROWS in a dry run), and `saving`: a checkpoint and an
# evaluation every SAVE_STEPS steps, at least twice in a run.
count_steps() {
    local total
    total=$(rows "$1" "$2")
    steps=$((total / batch))
    ((steps > 0)) ||
        die "$1 has $total rows, fewer than the $batch of one step; lower TARGET_BATCH_SIZE"
    local every=$((steps * EPOCHS / 2))
    ((every > 0)) || every=1
    ((every < SAVE_STEPS)) || every=$SAVE_STEPS
    saving=(--eval.steps "$every" --ckpt.save_steps "$every" --ckpt.path "$OUT/checkpoints/$name" --ckpt.max_num 3
        --ckpt.load_enable)
}

# finish_run: marks the run as finished, and says where everything lies.
finish_run() {
    [[ $DRY_RUN == 1 ]] || : >"$OUT/$name.done"
    echo "# model: $model, numbers: $OUT/summary.json and $results/summary.{json,md,csv}, every pair: $results"
}
