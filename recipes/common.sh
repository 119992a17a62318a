# What the recipes share. A recipe sets RECIPE, sources this file, writes its defaults into the arrays every, smoke, cpu
# and gpu, and calls `settings "$@"`; then it runs its stages. docs/recipes.md documents the variables.
set -euo pipefail

die() {
    echo "recipe: error: $*" >&2
    exit 2
}

[[ -n ${RECIPE:-} ]] || die "$(basename "$0") is a part of recipes; run one of those that recipes/README.md lists"
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." # stages run in the project's folder
source recipes/setup.sh
python=${ORLHF_EXT_PYTHON:-python3}

# assign ACTION WORDS...: sets the variables that settings.py finds.
assign() {
    local found
    found=$("$python" recipes/settings.py "$@") || exit 2
    eval "$found"
}

# settings WORDS...: sets every variable of the run, makes the environment, and takes the output folder.
settings() {
    command -v "$python" >/dev/null || die "$python is not a program; install Python 3.11, or set ORLHF_EXT_PYTHON"
    assign values "$RECIPE" "$caller" "$(has_gpu && echo 1)" -- "${every[@]}" smoke "${smoke[@]}" cpu "${cpu[@]}" gpu "${gpu[@]}" -- "$@"
    export DRY_RUN
    set_machine
    [[ $DRY_RUN == 0 ]] || return 0
    set_up
    python=python
    [[ -z $PUSH_TO_HUB ]] || python -c 'import huggingface_hub, sys; sys.exit(not huggingface_hub.get_token())' ||
        die "PUSH_TO_HUB needs a token of the hub; set HF_TOKEN, or run hf auth login"
    mkdir -p "$OUT/logs" 2>/dev/null || die "OUT=$OUT cannot be made; give another folder"
    exec {out_lock}>"$OUT/.lock"
    flock -n "$out_lock" || die "another recipe is running in $OUT; wait for it, or give another OUT"
}

# set_machine: the environment of the stages.
set_machine() {
    if ((!gpus)); then
        : "${OMP_NUM_THREADS:=$threads}"
        : "${TORCH_COMPILE_DISABLE:=1}"  # vLLM's CPU sampler: compiling takes seconds and a C++ compiler, and gains nothing
        : "${OMP_WAIT_POLICY:=PASSIVE}" # threads that spin at barriers make a busy machine far slower
        export OMP_NUM_THREADS OMP_WAIT_POLICY TORCH_COMPILE_DISABLE DS_ACCELERATOR=cpu
    fi
    # Nothing that is local needs a hub.
    export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
    export HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
}

# stage NAME [--in PATH...] [--source PATH|NAME...] [--out PATH...] -- COMMAND...: runs a stage (recipes/stage.py).
# A dry run prints the command and needs no environment.
stage() {
    if [[ $DRY_RUN == 0 ]]; then
        python recipes/stage.py run "$1" --base "$OUT" "${@:2}"
        return
    fi
    printf '# --- %s\n' "$1"
    while [[ $1 != -- ]]; do shift; done
    printf '%q ' "${@:2:$#-2}"
    printf '%q\n' "${@: -1}"
}

# run_file begin KEY=VALUE... | cell FILE KEY=VALUE... | data FOLDER | finish SUMMARY: what $OUT/run.json collects.
run_file() {
    [[ $DRY_RUN == 1 ]] || python recipes/stage.py "$1" --base "$OUT" "${@:2}"
}

# set_logger NAME: sets `logger`, a training's words: TensorBoard files in OUT, or W&B if the environment has a key, which
# OpenRLHF then reads by itself ("env" only switches it on): a group for each run of a recipe, a name with the run's.
set_logger() {
    local run=${OUT##*/}
    logger=(--logger.tensorboard_dir "$OUT/tb" --logger.wandb.run_name "$1")
    [[ -z ${WANDB_API_KEY:-} ]] || logger=(--logger.wandb.key env --logger.wandb.project "${WANDB_PROJECT:-orlhf-ext}"
        --logger.wandb.group "$run" --logger.wandb.run_name "$run/$1")
}

# Whether stages will find flash-attn; a dry run looks where it is called.
has_flash_attn() {
    python -c 'import sys; from orlhf_ext.backends import flash_attn_present as here; sys.exit(not here())' 2>/dev/null
}

# cards SUMMARY MODEL...: a card beside the weights of each model that this run has made, with the table of a result.
cards() {
    local model made=()
    for model in "${@:2}"; do [[ $model != "$OUT"/* ]] || made+=("$model"); done
    ((!${#made[@]})) || stage cards --in "$1" -- python -m orlhf_ext card "${made[@]}" --summary "$1"
}

# report: the run as a page, $OUT/report.html. It is no reason to fail that an environment of the user's own cannot draw.
report() {
    if [[ $DRY_RUN == 0 ]] && ! python -c 'import altair, vl_convert' 2>/dev/null; then
        echo "# no report: pip install 'orlhf-ext[report]', then orlhf-ext report $OUT --out $OUT/report.html"
        return
    fi
    stage report -- python -m orlhf_ext report "$OUT" --out "$OUT/report.html"
    echo "# report: $OUT/report.html"
}

# small_model MODEL: makes a model, if it is one of those that come without a hub.
small_model() {
    local words
    case $1 in
        models/tiny) words=(tiny) ;;
        models/tiny-2048) words=(tiny --positions 2048) ;;
        models/smollm2-135m-instruct) words=(smollm2) ;;
        *) return 0 ;;
    esac
    stage model --keeps-outputs --out "$1" -- python -m orlhf_ext small_models "${words[@]}" --out "$1"
}

# find_hh_data: sets HH_DATA, if it is empty: to Anthropic's if the hub answers, else to the bundled sample.
find_hh_data() {
    [[ -z $HH_DATA ]] || return 0
    if [[ $DRY_RUN == 1 ]] || python -c \
        'from huggingface_hub import HfApi; HfApi().dataset_info("Anthropic/hh-rlhf", timeout=15)' 2>/dev/null; then
        HH_DATA=Anthropic/hh-rlhf
    else
        HH_DATA=sample
        echo "# the hub cannot be reached: the bundled sample stands in for Anthropic/hh-rlhf (set HH_DATA to change that)"
    fi
}

# push_model NAME FOLDER: uploads what a stage has made, if PUSH_TO_HUB is given, to a repository of its own.
push_model() {
    [[ -z $PUSH_TO_HUB ]] || stage "push/$1" --in "$2" -- hf upload "$PUSH_TO_HUB-${1//\//-}" "$2" --private
}

# push_data NAME FILE...: the same with data files of one folder and the sidecars beside them.
push_data() {
    local file included=()
    [[ -n $PUSH_TO_HUB ]] || return 0
    for file in "${@:2}"; do
        included+=(--include "$(basename "$file")" --include "$(basename "$file" .jsonl).meta.json")
    done
    stage "push/$1" --in "${@:2}" -- hf upload "$PUSH_TO_HUB-${1//\//-}" "$(dirname "$2")" . "${included[@]}" \
        --repo-type dataset --private
}
