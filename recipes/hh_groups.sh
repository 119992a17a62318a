#!/usr/bin/env bash
# From a fresh machine to policies that serve several groups of people (gold, MaxMin, SharedRep), through OpenRLHF's
# launchers: data -> SFT -> two responses to each prompt -> gold traits -> pairs of groups -> reward models -> GRPO ->
# answers to held-out prompts -> each group's gold scores and win rates.
#
#   bash recipes/hh_groups.sh                                           what fits this machine, all methods
#   METHOD=sharedrep PROPORTION=0.05 K=2 bash recipes/hh_groups.sh      variables: recipes/hh_groups.md
#   PROPORTIONS="0.01 0.1" KS="2 16" SEEDS="42 123" bash recipes/hh_groups.sh     a grid, one table
RECIPE=hh_groups
PATH_VARIABLES=(HH_DATA MODEL SFT_MODEL RM_MODEL GROUPS_FILE)
: "${SEED:=42}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${METHOD:=all}" "${STYLE:=hh}" "${PRESET:=equal}" "${K:=16}" "${PROPORTION:=0.1}" "${SHARE_PROMPTS:=0}"
choice METHOD all gold maxmin sharedrep
choice STYLE hh chat legacy
choice PRESET equal paper
choice SHARE_PROMPTS 0 1
case $PROFILE in
    smoke)
        default_model=models/tiny default_traits="positiveness=positiveness conciseness=conciseness:20"
        : "${NUM_PROMPTS:=24}" "${NUM_RL:=16}" "${TEST_PROMPTS:=8}" "${MAX_LEN:=320}" "${MAX_NEW_TOKENS:=16}"
        : "${BATCH_SIZE:=16}" "${MICRO_BATCH_SIZE:=8}" "${ROLLOUT_BATCH:=8}" "${SAMPLES:=4}" "${EPISODES:=1}"
        : "${RM_BATCH_SIZE:=8}" "${RM_EPOCHS:=2}" "${RM_MAX_LEN:=320}"
        sft_lr=1e-3 rm_lr=1e-3 rl_lr=1e-3 kl=1e-3 sample_backend=(--backend hf)
        ;;
    cpu)
        default_model=models/smollm2-135m-instruct
        default_traits="positiveness=positiveness conciseness=conciseness:40"
        : "${NUM_PROMPTS:=96}" "${NUM_RL:=48}" "${TEST_PROMPTS:=48}" "${MAX_LEN:=96}" "${MAX_NEW_TOKENS:=32}"
        : "${BATCH_SIZE:=16}" "${MICRO_BATCH_SIZE:=8}" "${ROLLOUT_BATCH:=4}" "${SAMPLES:=4}" "${EPISODES:=1}"
        : "${RM_BATCH_SIZE:=16}" "${RM_EPOCHS:=20}" "${RM_MAX_LEN:=128}"
        sft_lr=3e-5 rm_lr=2e-3 rl_lr=5e-5 kl=0.01 sample_backend=()
        ;;
    gpu)
        default_model=TinyLlama/TinyLlama-1.1B-Chat-v1.0
        default_traits="helpful=Ray2333/gpt2-large-helpful-reward_model harmless=Ray2333/gpt2-large-harmless-reward_model"
        : "${NUM_PROMPTS:=10000}" "${NUM_RL:=10000}" "${TEST_PROMPTS:=2000}" "${MAX_LEN:=768}" "${MAX_NEW_TOKENS:=256}"
        : "${MICRO_BATCH_SIZE:=4}" "${RM_BATCH_SIZE:=32}" "${RM_EPOCHS:=3}" "${RM_MAX_LEN:=1024}"
        if [[ $PRESET == paper ]]; then
            : "${BATCH_SIZE:=8}" "${ROLLOUT_BATCH:=4}" "${SAMPLES:=2}" "${EPISODES:=2}"
        else
            : "${BATCH_SIZE:=512}" "${ROLLOUT_BATCH:=64}" "${SAMPLES:=8}" "${EPISODES:=1}"
        fi
        sft_lr=2e-5 rm_lr=5e-4 rl_lr=1e-5 kl=0.05 sample_backend=()
        ;;
esac
counts K NUM_PROMPTS NUM_RL TEST_PROMPTS MAX_LEN MAX_NEW_TOKENS BATCH_SIZE MICRO_BATCH_SIZE ROLLOUT_BATCH SAMPLES \
    EPISODES RM_BATCH_SIZE RM_EPOCHS RM_MAX_LEN
((MAX_NEW_TOKENS < MAX_LEN)) || die "MAX_NEW_TOKENS=$MAX_NEW_TOKENS leaves no room for a prompt in MAX_LEN=$MAX_LEN"
((SAMPLES > 1)) || die "SAMPLES=$SAMPLES leaves nothing to compare a sample with; give at least 2"
((ROLLOUT_BATCH * SAMPLES % BATCH_SIZE == 0)) ||
    die "ROLLOUT_BATCH=$ROLLOUT_BATCH times SAMPLES=$SAMPLES is no multiple of BATCH_SIZE=$BATCH_SIZE; change one"
fit_training "RM_BATCH_SIZE=$RM_BATCH_SIZE:16"
rm_micro=${micros[0]}
NUM_NODES=1
fit_rl 1 "BATCH_SIZE=$BATCH_SIZE:$MICRO_BATCH_SIZE"
: "${PROPORTIONS:=$PROPORTION}" "${KS:=$K}" "${SEEDS:=$SEED}"
read -ra proportions <<<"$PROPORTIONS"
read -ra ks <<<"$KS"
read -ra seeds <<<"$SEEDS"
for value in "${proportions[@]}"; do
    [[ $value =~ ^0?\.[0-9]+$ && $value =~ [1-9] ]] || die "PROPORTION=$value is not a number between 0 and 1, such as 0.1"
done
for value in "${ks[@]}" "${seeds[@]}"; do
    [[ $value =~ ^[0-9]{1,9}$ ]] || die "KS=$KS and SEEDS=$SEEDS are whole numbers with spaces between them; $value is not"
done
for value in "${ks[@]}"; do
    [[ $value =~ [1-9] ]] || die "KS=$KS are whole numbers of at least 1 with spaces between them; $value is not"
done
((${#proportions[@]} && ${#ks[@]} && ${#seeds[@]})) || die "PROPORTIONS, KS and SEEDS name at least one value each"
[[ $METHOD == all || $METHOD == sharedrep ]] || ks=("") # no other method has a k
[[ $METHOD != gold ]] || ((${#proportions[@]} == 1)) || die "METHOD=gold has no proportion to vary; give PROPORTION alone"
[[ -z ${SFT_MODEL:-} || -z ${SFT_ARGS:-} ]] || die "SFT_ARGS has no effect with SFT_MODEL, which skips SFT; unset one"
if [[ -z ${GROUPS_FILE:-} ]]; then
    GROUPS_FILE=recipes/groups/words.yaml
    [[ $PROFILE != gpu ]] || GROUPS_FILE=recipes/groups/hh.yaml
fi
[[ -f $GROUPS_FILE ]] || die "GROUPS_FILE=$GROUPS_FILE does not exist; give a YAML file such as recipes/groups/words.yaml"
[[ $PRESET == equal ]] || groups=$(grep -oP '^\s*-\s*\{?\s*name:\s*\K[\w-]+' "$GROUPS_FILE") || die "GROUPS_FILE=$GROUPS_FILE names no groups"
: "${TRAITS:=$default_traits}" "${AGGREGATE:=min}"
choice AGGREGATE min mean softmin batch-min
split_words SFT RM RL TRAIT
read -ra traits <<<"$TRAITS"
for i in "${!traits[@]}"; do
    from_caller "${traits[i]}"
    traits[i]=$REPLY
done
trait_flags=()
((${#traits[@]})) || die "TRAITS names at least one trait, NAME=KIND"
for trait in "${traits[@]}"; do
    [[ $trait == ?*=?* ]] || die "TRAITS=$TRAITS are NAME=KIND with spaces between them; $trait is not"
    trait_flags+=(--trait "$trait")
done
# Gold models read texts as they end; upstream's reward models, too.
eos=append
[[ $PRESET != paper ]] || eos=none

gpu_words=() engines=()
if [[ $PROFILE == gpu ]]; then
    gpu_words=(--actor.gradient_checkpointing_enable)
    engines=(--num_engines "$((here ? here : 1))")
fi
gpu_words+=("${placement[@]}")
[[ -z ${RAY_ADDRESS:-} || $OUT == /* ]] || OUT=$PWD/$OUT
[[ -z ${RAY_ADDRESS:-} || $GROUPS_FILE == /* ]] || GROUPS_FILE=$PWD/$GROUPS_FILE
data=$OUT/data prompts=$OUT/prompts samples=$OUT/samples
default_hh_data
[[ $HH_DATA != Anthropic/hh-rlhf ]] || : "${HH_FOLDER:=all}"
hh_words
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "method=$METHOD" "preset=$PRESET" "style=$STYLE"
echo "# $RECIPE: profile $PROFILE, method $METHOD, data $HH_DATA, groups $GROUPS_FILE, output in $OUT"

# 0. The models that training starts from
: "${MODEL:=${SFT_MODEL:-$default_model}}"
small_model
if [[ -z ${RM_MODEL:-} ]]; then
    RM_MODEL=$MODEL
    [[ $PROFILE != gpu ]] || RM_MODEL=gpt2-large
fi

# 1. Data: dialogues in one style, and prompts for reward models, for RL (others, unless SHARE_PROMPTS=1), and held out
format=$STYLE
[[ $STYLE != chat ]] || format=template
limit=()
[[ $PROFILE == gpu ]] || limit=(--limit "$((NUM_PROMPTS + (SHARE_PROMPTS ? 0 : NUM_RL)))" --limit_test "$TEST_PROMPTS" --shuffle)
stage data --source "$HH_DATA" "$MODEL" --out "$data" -- \
    python -m orlhf_ext.build_data hh "$HH_DATA" --out "$data" --format "$format" "${hh_data[@]}" "${limit[@]}" \
    --seed "$SEED" --tokenizer "$MODEL" --max_prompt_tokens $((MAX_LEN - MAX_NEW_TOKENS))
run_file data "$data"
rl_prompts=(--num_rl "$NUM_RL")
((!SHARE_PROMPTS)) || rl_prompts=(--share_prompts)
stage prompts --in "$data"/{train,test}.jsonl --out "$prompts" -- \
    python -m orlhf_ext.build_data hh-prompts "$data" --out "$prompts" --num_prompts "$NUM_PROMPTS" "${rl_prompts[@]}" \
    --num_test "$TEST_PROMPTS" --seed "$SEED"

# 2. SFT on the chosen answers
sft=${SFT_MODEL:-$OUT/sft}
set_logger sft
[[ -n ${SFT_MODEL:-} ]] || stage sft --in "$data"/{train,test}.jsonl --source "$MODEL" --out "$OUT/sft" -- \
    "${launch[@]}" train_sft --model.model_name_or_path "$MODEL" --ckpt.output_dir "$OUT/sft" \
    --data.dataset "$data/train.jsonl" --data.input_key prompt --data.output_key chosen --data.max_len "$MAX_LEN" \
    --eval.dataset "$data/test.jsonl" --eval.split train --train.batch_size "$RM_BATCH_SIZE" \
    --train.micro_batch_size "$rm_micro" --train.max_epochs 1 --train.seed "$SEED" --adam.lr "$sft_lr" \
    --adam.betas 0.9 0.999 --lr_scheduler linear --lr_warmup_ratio 0 --ds.zero_stage 2 "${logger[@]}" "${sft_args[@]}"

# 3. Two responses to each prompt, their gold traits
# sample NAME MODEL PROMPTS OUT WORDS...
sample() {
    stage "sample/$1" --in "$3" --source "$2" --out "$4" -- \
        python -m orlhf_ext generate --model "$2" --data "$3" --out "$4" --max_new_tokens "$MAX_NEW_TOKENS" \
        --max_len "$MAX_LEN" "${sample_backend[@]}" "${engines[@]}" "${@:5}"
}
# score NAME IN OUT: the gold traits of samples
score() {
    stage "score/$1" --in "$2" --out "$3" -- \
        python -m orlhf_ext groups score --data "$2" --out "$3" "${trait_flags[@]}" "${trait_args[@]}"
}
sample pairs "$sft" "$prompts/rm.jsonl" "$samples/pairs.jsonl" --num_completions 2 --temperature 1.0 --seed "$SEED"
score pairs "$samples/pairs.jsonl" "$samples/pairs_scored.jsonl"

# reward_model NAME PAIRS SEED START EPOCHS LR WORDS...: into $OUT/rm/NAME
reward_model() {
    set_logger "rm_$1"
    stage "rm/$1" --in "$2"/{train,test}.jsonl --source "$4" --out "$OUT/rm/$1" -- \
        "${launch[@]}" train_rm --ext.use group-rm --model.model_name_or_path "$4" --ckpt.output_dir "$OUT/rm/$1" \
        --data.dataset "$2/train.jsonl" --data.prompt_key prompt --eval.dataset "$2/test.jsonl" \
        --data.max_len "$RM_MAX_LEN" --train.batch_size "$RM_BATCH_SIZE" --train.micro_batch_size "$rm_micro" \
        --train.max_epochs "$5" --train.seed "$3" --adam.lr "$6" --adam.betas 0.9 0.999 --lr_scheduler linear \
        --lr_warmup_ratio 0 --max_norm 1.0 --ds.zero_stage 2 --groups.eos "$eos" --groups.cache_features "$OUT/features" \
        "${@:7}" "${logger[@]}" "${rm_args[@]}"
}

# policy NAME SEED REWARD_MODEL WORDS...: GRPO with the reward of groups that WORDS describe
policy() {
    local batch_min=()
    [[ $AGGREGATE != batch-min ]] || batch_min=(--ext.use batch-min)
    set_logger "policy_$1"
    stage "policy/$1" --in "$prompts/rl.jsonl" "$GROUPS_FILE" ${3:+"$3"} --source "$sft" --out "$OUT/policy/$1" -- \
        python -m orlhf_ext.launch train_ppo_ray --ext.reward groups "${batch_min[@]}" --groups.aggregate "$AGGREGATE" \
        --groups.config "$GROUPS_FILE" "${@:4}" --actor.model_name_or_path "$sft" \
        --actor.num_nodes 1 --actor.num_gpus_per_node "$NPROC" --ref.num_nodes 1 --ref.num_gpus_per_node "$NPROC" \
        --train.colocate_actor_ref --vllm.num_engines "$ENGINES" --vllm.tensor_parallel_size "$TP" --ds.zero_stage 2 \
        --ds.param_dtype bf16 "${gpu_words[@]}" --data.prompt_dataset "$prompts/rl.jsonl" --data.input_key prompt \
        --data.label_key label --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$MAX_NEW_TOKENS" \
        --rollout.batch_size "$ROLLOUT_BATCH" --rollout.n_samples_per_prompt "$SAMPLES" \
        --rollout.micro_batch_size "${micros[0]}" --train.batch_size "$BATCH_SIZE" \
        --train.micro_batch_size "${micros[0]}" --train.num_episodes "$EPISODES" --train.max_epochs 1 --train.seed "$2" \
        --actor.adam.lr "$rl_lr" --actor.adam.betas 0.9 0.999 --actor.lr_scheduler linear --actor.lr_warmup_ratio 0 \
        --algo.advantage.estimator group_norm --algo.kl.init_coef "$kl" --algo.kl.use_loss --algo.kl.estimator k3 \
        --ckpt.output_dir "$OUT/policy/$1" --ckpt.path "$OUT/checkpoints/$1" "${logger[@]}" "${rl_args[@]}"
    policies+=("$1")
    answers "$1" "$OUT/policy/$1"
}

# answers NAME MODEL: greedy answers to the held-out prompts, and their gold traits
answers() {
    sample "test/$1" "$2" "$prompts/test.jsonl" "$samples/test/$1.jsonl" --temperature 0
    score "test/$1" "$samples/test/$1.jsonl" "$samples/test/$1_scored.jsonl"
}

# maxmin_model PAIRS SEED PROPORTION: both groups at once; with PRESET=paper as upstream, each by itself, twice
maxmin_model() {
    local name=maxmin-prop$3-seed$2 group stacked=()
    if [[ $PRESET == equal ]]; then
        reward_model "$name" "$1" "$2" "$RM_MODEL" "$RM_EPOCHS" "$rm_lr" --groups.head independent --groups.squash tanh
        return
    fi
    for group in $groups; do
        reward_model "$name-$group-first" "$1" "$2" "$RM_MODEL" "$RM_EPOCHS" 5e-5 --groups.only "$group" --groups.squash identity
        reward_model "$name-$group" "$1" "$2" "$OUT/rm/$name-$group-first" "$RM_EPOCHS" 5e-5 --groups.only "$group" --groups.squash identity
        stacked+=("$group=$OUT/rm/$name-$group")
    done
    stage "rm/$name" --in "${stacked[@]#*=}" --out "$OUT/rm/$name" -- \
        python -m orlhf_ext groups merge --models "${stacked[@]}" --out "$OUT/rm/$name"
}

drawn=() reward_models=() policies=() # what is made, and is worth keeping

# 4. What does not depend on a proportion: SFT's answers, and the gold policy of each seed
answers sft "$sft"
for seed in "${seeds[@]}"; do
    policy "gold-seed$seed" "$seed" "" --groups.kind gold --groups.traits "${traits[@]}"
done

# 5. For each proportion, seed and k: pairs, reward models, policies, and the table
summaries=()
for proportion in "${proportions[@]}"; do
    for seed in "${seeds[@]}"; do
        where=prop$proportion-seed$seed pairs=$OUT/pairs/prop$proportion-seed$seed
        compared=(--policy "gold=$samples/test/gold-seed${seed}_scored.jsonl")
        if [[ $METHOD != gold ]]; then
            drawn+=("$where")
            stage "pairs/$where" --in "$samples/pairs_scored.jsonl" "$GROUPS_FILE" --out "$pairs" -- \
                python -m orlhf_ext.build_data hh-groups "$samples/pairs_scored.jsonl" --out "$pairs" \
                --groups "$GROUPS_FILE" --proportion "$proportion" --style "$STYLE" --seed "$seed"
        fi
        if [[ $METHOD == all || $METHOD == maxmin ]]; then
            maxmin_model "$pairs" "$seed" "$proportion"
            reward_models+=("maxmin-$where")
            policy "maxmin-$where" "$seed" "$OUT/rm/maxmin-$where" --groups.kind group_rm \
                --groups.model "$OUT/rm/maxmin-$where" --groups.max_len "$RM_MAX_LEN"
            compared+=(--policy "maxmin=$samples/test/maxmin-${where}_scored.jsonl")
        fi
        for k in "${ks[@]}"; do
            files=("${compared[@]}") name=$where${k:+-k$k}
            if [[ -n $k ]]; then
                reward_model "sharedrep-$name" "$pairs" "$seed" "$RM_MODEL" "$RM_EPOCHS" "$rm_lr" --groups.head shared \
                    --groups.k "$k" --groups.squash tanh
                reward_models+=("sharedrep-$name")
                policy "sharedrep-$name" "$seed" "$OUT/rm/sharedrep-$name" --groups.kind group_rm \
                    --groups.model "$OUT/rm/sharedrep-$name" --groups.max_len "$RM_MAX_LEN"
                files+=(--policy "sharedrep=$samples/test/sharedrep-${name}_scored.jsonl")
            fi
            # what was drawn does not move gold's table
            own=$OUT/runs/$name
            [[ $METHOD != gold ]] || own=$OUT/runs/gold-seed$seed
            run_file cell "$own/run.json" "proportion=$proportion" "k=$k" "seed=$seed"
            inputs=("$samples/test/sft_scored.jsonl")
            for file in "${files[@]}"; do [[ $file != *=* ]] || inputs+=("${file#*=}"); done
            stage "evaluate/$name" --in "${inputs[@]}" "$GROUPS_FILE" -- \
                python -m orlhf_ext groups evaluate --groups "$GROUPS_FILE" --sft "$samples/test/sft_scored.jsonl" \
                "${files[@]}" --out "$own/summary.json" --run "$own/run.json" --seed "$seed"
            run_file finish "$own/summary.json"
            summaries+=("$own/summary.json")
        done
    done
done
if ((${#summaries[@]} > 1)); then
    stage grid --in "${summaries[@]}" -- \
        python -m orlhf_ext groups evaluate --grid "${summaries[@]}" --out "$OUT/grid.json"
fi

# 6. To a hub, if asked to: the models that are to be used, the data that they learned from, and what they answered
[[ -n ${SFT_MODEL:-} ]] || push_model sft "$sft"
push_data raw "$samples/pairs_scored.jsonl"
for name in "${drawn[@]}"; do push_data "pairs/$name" "$OUT/pairs/$name"/{train,test}.jsonl; done
for name in "${reward_models[@]}"; do push_model "rm/$name" "$OUT/rm/$name"; done
for name in "${policies[@]}"; do push_model "policy/$name" "$OUT/policy/$name"; done
for name in sft "${policies[@]}"; do push_data "eval/$name" "$samples/test/${name}_scored.jsonl"; done
cat <<END
# policies: $OUT/policy/, reward models: $OUT/rm/, numbers: $OUT/summary.json and $OUT/runs/*/summary.{json,md,csv}
END
((${#summaries[@]} < 2)) || echo "# the grid: $OUT/grid.json, .md, .csv"
