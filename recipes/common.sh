# What the recipes share: variables with their defaults per profile, set-up, and the functions that stages are made of.
# A recipe sets RECIPE, PATH_VARIABLES (those that may hold a path) and, if its page has another name, PAGE, and sources this
# file. recipes/README.md documents every variable.
set -euo pipefail

die() {
    echo "recipe: error: $*" >&2
    exit 2
}

# show_help: the head of the recipe, and the variables that its page and README.md list, each once.
show_help() {
    sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "recipes/$RECIPE.sh"
    printf '\nVariables [and their defaults]; recipes/%s.md has the profiles and the stages, too:\n' "${PAGE:-$RECIPE}"
    awk -F '|' '/^## / { on = /^## Variables/ } on && /^[|] `/ {
        gsub(/`/, ""); gsub(/\\[|]/, "/")
        for (i = 2; i <= 4; i++) gsub(/^ +| +$/, "", $i)
        count = split($2, names, ", ")
        $2 = ""
        for (i = 1; i <= count; i++) if (!(names[i] in shown)) { shown[names[i]]; $2 = $2 ($2 == "" ? "" : ", ") names[i] }
        if ($2 == "") next
        printf "  %s%s\n      %s\n", $2, ($3 == "" ? "" : " [" $3 "]"), $4
    }' "recipes/${PAGE:-$RECIPE}.md" recipes/README.md
}

[[ -n ${RECIPE:-} ]] || die "$(basename "$0") is a part of recipes; run one of those that recipes/README.md lists"
_caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A recipe has variables and no arguments; LitBench's have taken theirs by now.
if (($#)); then
    [[ $1 == -h || $1 == --help ]] || die "$1 is not known; a recipe has variables, NAME=VALUE bash recipes/$RECIPE.sh (--help lists them)"
    show_help
    exit
fi
source recipes/setup.sh
# Stages run in the project's folder; relative paths are those of the folder that the recipe was called from.
if [[ $_caller != "$PWD" ]]; then
    [[ ${OUT:-/} == /* ]] || OUT=$_caller/$OUT
    for _name in "${PATH_VARIABLES[@]}"; do
        [[ ${!_name:-/} == /* || ! -e $_caller/${!_name} ]] || printf -v "$_name" %s "$_caller/${!_name}"
    done
fi

# choice NAME VALUE...: the variable NAME must have one of the values.
choice() {
    local name=$1 value
    shift
    for value; do
        [[ ${!name} == "$value" ]] && return
    done
    die "$name=${!name} is not known; choose one of: $*"
}

# counts NAME...: each variable must be a whole number, at least 1.
counts() {
    local name
    for name; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name=${!name} is not a whole number of at least 1${or_all:-}"
        [[ ${!name} =~ ^.{1,9}$ ]] || die "$name=${!name} is too large; give a number below 1000000000${or_all:-}"
    done
}

# counts_or_all NAME...: the same, or `all`.
counts_or_all() {
    local name or_all=", or all"
    for name; do
        [[ ${!name} == all ]] || counts "$name"
    done
}

: "${DRY_RUN:=0}"
choice DRY_RUN 0 1
# GPUS: a dry run for a machine that has so many.
if [[ -n ${GPUS:-} ]]; then
    [[ $GPUS =~ ^(0|[1-9][0-9]{0,3})$ ]] || die "GPUS=$GPUS is not a number of GPUs such as 8"
    [[ $DRY_RUN == 1 ]] || die "GPUS=$GPUS is for DRY_RUN=1; to use some of this machine's GPUs set CUDA_VISIBLE_DEVICES"
    has_gpu() { ((GPUS)); }
fi
if [[ -z ${PROFILE:-} ]]; then
    PROFILE=cpu
    has_gpu && PROFILE=gpu
fi
choice PROFILE smoke cpu gpu
: "${SEED:=1234}" "${OUT:=outputs/$RECIPE-$PROFILE}" "${PROMPT_FORMAT:=hh}"
choice PROMPT_FORMAT hh chat
[[ $SEED =~ ^[0-9]+$ ]] || die "SEED=$SEED is not a whole number"
[[ $SEED =~ ^.{1,9}$ ]] || die "SEED=$SEED is too large; give a number below 1000000000"
OUT=${OUT%/}
export DRY_RUN
if [[ -n ${PUSH_TO_HUB:-} ]]; then
    [[ $RECIPE == hh_groups || $RECIPE == jigsaw_rectify ]] ||
        die "PUSH_TO_HUB has no effect on $RECIPE; unset it, and upload a folder with hf upload OWNER/NAME FOLDER --private"
    [[ $PUSH_TO_HUB =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
        die "PUSH_TO_HUB=$PUSH_TO_HUB is not OWNER/PREFIX, such as me/study"
fi

# count_gpus: how many NVIDIA GPUs a recipe may use on this machine.
count_gpus() {
    local count=${GPUS:-0}
    if [[ -z ${GPUS:-} ]] && has_gpu; then
        count=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
        [[ -z ${CUDA_VISIBLE_DEVICES:-} ]] || count=$(tr "," "\n" <<<"${CUDA_VISIBLE_DEVICES%%,-1*}" | wc -l)
        ((count > 0)) || count=1
    fi
    echo "$count"
}

# _fit WORDS...: asks fit.py; sets `fitted`, and prints what it has to say.
_fit() {
    local found
    found=$("${ORLHF_EXT_PYTHON:-python3}" recipes/fit.py "$@") || exit 2
    read -ra fitted <<<"${found%%$'\n'*}"
    [[ $found != *$'\n'* ]] || echo "${found#*$'\n'}"
}

# fit_training NAME=BATCH:MICRO...: how many processes run a training by itself, so that they divide its batches. Sets
# NPROC, `launch` (how a launcher is started: by itself, or once per process) and `micros`, a number for each batch.
fit_training() {
    _fit "$NPROC" "$@" ${given_nproc:+--processes "$given_nproc"}
    NPROC=${fitted[0]} micros=("${fitted[@]:1}")
    set_launch
}

# fit_rl SPARE NAME=BATCH:MICRO: who trains and who samples in train_ppo_ray: this machine's GPUs (less SPARE, if there are
# more than one), half for each, a single one doing both in turn; on a cluster, or where there are none to count, four
# beside two engines of two. NUM_NODES is how many nodes train. Sets NPROC, ENGINES, TP, `micros`, `here` (GPUs) and the launcher's words `placement`.
fit_rl() {
    local gpus=0
    here=$(count_gpus)
    [[ -n ${RAY_ADDRESS:-} ]] || gpus=$((here > 1 ? here - $1 : here))
    [[ $PROFILE == gpu ]] || : "${given_nproc:=1}" "${ENGINES:=1}" "${TP:=1}"
    counts NUM_NODES ${ENGINES:+ENGINES} ${TP:+TP}
    _fit "$gpus" "$2" --rl --nodes "$NUM_NODES" ${given_nproc:+--processes "$given_nproc"} \
        ${ENGINES:+--engines "$ENGINES"} ${TP:+--tp "$TP"}
    NPROC=${fitted[0]} ENGINES=${fitted[1]} TP=${fitted[2]} micros=("${fitted[@]:4}") placement=()
    if ((fitted[3])); then
        placement=(--train.colocate_all --vllm.enable_sleep --ds.enable_sleep --vllm.gpu_memory_utilization 0.6)
    elif [[ $PROFILE == gpu ]]; then
        placement=(--vllm.gpu_memory_utilization 0.9)
    fi
}

# Whether stages will find flash-attn; a dry run looks where it is called.
has_flash_attn() {
    python -c 'import sys; from orlhf_ext.backends import flash_attn_present as here; sys.exit(not here())' 2>/dev/null
}

# Processes of a training stage (fit_training and fit_rl take fewer where a batch asks for it), and threads of each: a
# single process takes all cores, several share them. `given_nproc` is what the user asked for.
given_nproc=${NPROC:-}
if [[ -z ${NPROC:-} ]]; then
    NPROC=1
    [[ $PROFILE != gpu ]] || NPROC=$(count_gpus)
    ((NPROC > 0)) || NPROC=1
fi
counts NPROC
if ! has_gpu; then
    if [[ $PROFILE == smoke ]]; then
        : "${OMP_NUM_THREADS:=1}" # tiny matrices: threads cost more than they bring
    else
        : "${OMP_NUM_THREADS:=$(($(nproc) > NPROC ? $(nproc) / NPROC : 1))}"
    fi
    # vLLM's CPU sampler is compiled at its first call, which takes seconds, needs a C++ compiler and gains nothing here.
    : "${TORCH_COMPILE_DISABLE:=1}"
    : "${OMP_WAIT_POLICY:=PASSIVE}" # threads that spin at barriers make a busy machine far slower
    export OMP_NUM_THREADS OMP_WAIT_POLICY TORCH_COMPILE_DISABLE DS_ACCELERATOR=cpu
fi
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
# Nothing that is local needs a hub; the stages that do are on the gpu profile, or are given a hub name by the user.
export HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

if [[ $DRY_RUN == 0 ]]; then
    set_up
    [[ -z ${PUSH_TO_HUB:-} ]] || python -c 'import huggingface_hub, sys; sys.exit(not huggingface_hub.get_token())' ||
        die "PUSH_TO_HUB needs a token of the hub; set HF_TOKEN, or run hf auth login"
    # HH_DATA is looked at by the first stage; what a later one needs is looked for at once.
    for _name in "${PATH_VARIABLES[@]}"; do
        [[ $_name == HH_DATA || ! ${!_name:-} =~ ^[.]{0,2}/ || -e ${!_name} ]] ||
            die "$_name=${!_name} does not exist; give a path that does, or a name on a hub"
    done
    mkdir -p "$OUT/logs" 2>/dev/null || die "OUT=$OUT cannot be made; give another folder"
    exec {_out_lock}>"$OUT/.lock"
    flock -n "$_out_lock" || die "another recipe is running in $OUT; wait for it, or give another OUT"
fi

# A stage (see recipes/stage.py): stage NAME [--in PATH...] [--source PATH|NAME...] [--out PATH...] -- COMMAND...
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

# run_file begin KEY=VALUE... | cell FILE KEY=VALUE... | data FOLDER | finish SUMMARY: what $OUT/run.json collects beside the stages' seconds.
run_file() {
    [[ $DRY_RUN == 1 ]] || python recipes/stage.py "$1" --base "$OUT" "${@:2}"
}

# set_launch: sets `launch` for NPROC processes.
set_launch() {
    launch=(python -m orlhf_ext.launch)
    ((NPROC == 1)) || launch=(torchrun --standalone --nproc_per_node "$NPROC" -m orlhf_ext.launch)
}
set_launch

# Words for every training stage's logger: TensorBoard files in OUT, and W&B when the environment has a key. OpenRLHF
# logs in by itself then; "env" only switches the logger on, the key stays off the command line.
# set_logger NAME: sets the array `logger`.
set_logger() {
    logger=(--logger.tensorboard_dir "$OUT/tb" --logger.wandb.run_name "$1")
    [[ -z ${WANDB_API_KEY:-} ]] || logger+=(--logger.wandb.key env)
    [[ -z ${WANDB_API_KEY:-} || -z ${WANDB_PROJECT:-} ]] || logger+=(--logger.wandb.project "$WANDB_PROJECT")
}

# from_caller WORD: sets REPLY to the word, or if it is PATH, or NAME=PATH, in the caller's folder, to that path in full.
from_caller() {
    local name='' path=$1
    REPLY=$1
    [[ $path != *=* ]] || name=${path%%=*}= path=${path#*=}
    [[ $_caller == "$PWD" || -z $path || $path == [/-]* || ! -e $_caller/$path ]] || REPLY=$name$_caller/$path
}

# split_words NAME...: the words of NAME_ARGS as the array name_args, split as a shell splits words, quotes included, with
# nothing run or expanded; paths are the caller's.
split_words() {
    local name split i
    for name; do
        local -n words=${name,,}_args text=${name}_ARGS
        words=()
        [[ -n ${text:-} ]] || continue
        split=$(xargs -r -n 1 printf '%s\n' <<<"$text" 2>/dev/null) || die "${name}_ARGS=$text has an open quote; close it"
        [[ -z $split ]] || mapfile -t words <<<"$split"
        for i in "${!words[@]}"; do
            from_caller "${words[i]}"
            words[i]=$REPLY
        done
    done
}

# small_model: makes MODEL, if it is one of those that come without a hub.
small_model() {
    local words
    case $MODEL in
        models/tiny) words=(tiny) ;;
        models/tiny-2048) words=(tiny --positions 2048) ;;
        models/smollm2-135m-instruct) words=(smollm2) ;;
        *) return 0 ;;
    esac
    stage model --keeps-outputs --out "$MODEL" -- python -m orlhf_ext small_models "${words[@]}" --out "$MODEL"
}

# default_hh_data: HH_DATA where it is not given: the bundled sample, or on the gpu profile Anthropic's, if the hub answers.
default_hh_data() {
    [[ -z ${HH_DATA:-} ]] || return 0
    HH_DATA=sample
    [[ $PROFILE == gpu ]] || return 0
    if [[ $DRY_RUN == 1 ]] || python -c \
        'from huggingface_hub import HfApi; HfApi().dataset_info("Anthropic/hh-rlhf", timeout=15)' 2>/dev/null; then
        HH_DATA=Anthropic/hh-rlhf
    else
        echo "# the hub cannot be reached: the bundled sample stands in for Anthropic/hh-rlhf (set HH_DATA to change that)"
    fi
}

# hh_words: the words `hh_data` for build_data hh: the folder of the data set (HH_FOLDER), and what becomes of long rows.
hh_words() {
    : "${LONG_ROWS:=$([[ $PROFILE == gpu ]] && echo cut || echo drop)}"
    choice LONG_ROWS cut drop
    hh_data=()
    [[ -z ${HH_FOLDER:-} ]] || hh_data=(--data_dir "$HH_FOLDER")
    [[ $LONG_ROWS == drop ]] || hh_data+=(--cut)
}

# push_model NAME FOLDER: uploads what a stage has made, if PUSH_TO_HUB is given, to a repository of its own.
push_model() {
    [[ -z ${PUSH_TO_HUB:-} ]] || stage "push/$1" --in "$2" -- hf upload "$PUSH_TO_HUB-${1//\//-}" "$2" --private
}

# push_data NAME FILE...: the same with data files of one folder and the sidecars beside them.
push_data() {
    local file included=()
    [[ -n ${PUSH_TO_HUB:-} ]] || return 0
    for file in "${@:2}"; do
        included+=(--include "$(basename "$file")" --include "$(basename "$file" .jsonl).meta.json")
    done
    stage "push/$1" --in "${@:2}" -- hf upload "$PUSH_TO_HUB-${1//\//-}" "$(dirname "$2")" . "${included[@]}" \
        --repo-type dataset --private
}

# rows FILE DEFAULT: how many records a file has; DEFAULT in a dry run, which needs no environment.
rows() {
    if [[ $DRY_RUN == 0 && -f $1 ]]; then
        python -c 'import sys; from orlhf_ext.files.records import read_lines as lines; print(len([*lines(sys.argv[1])]))' \
            "$1" 2>/dev/null || echo "$2"
    else
        echo "$2"
    fi
}
