#!/usr/bin/env bash
# Gold, MaxMin and SharedRep policies for several groups on Anthropic HH, and one that knows no groups.
# (Data -> SFT -> responses to each prompt -> gold traits -> pairs of groups -> reward models -> GRPO -> answers to
# held-out prompts -> each group's gold scores and win rates.)
#
#   bash recipes/hh_groups.sh                                           what fits this machine, all methods
#   METHOD=sharedrep PROPORTION=0.05 K=2 bash recipes/hh_groups.sh      variables: docs/methods/groups.md
#   PROPORTIONS="0.01 0.1" KS="2 16" SEEDS="42 123" bash recipes/hh_groups.sh     a grid, one table
RECIPE=hh_groups
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source recipes/groups/stages.sh # sample, score, answers, reward_model, merged_model, policy

every=(
    SEED=42 METHOD=all STYLE=hh PRESET=equal AGGREGATE=min K=16 PROPORTION=0.1 KS= PROPORTIONS= SEEDS= SHARE_PROMPTS=0
    RM_SAMPLES=2 HH_DATA=sample HH_FOLDER= LONG_ROWS=drop GROUPS_FILE=recipes/groups/words.yaml RAY_ADDRESS= ENGINES= TP=
    SFT_MODEL= RM_MODEL= SFT_ARGS= RM_ARGS= RL_ARGS= TRAIT_ARGS= eos=append gpu_words= sample_words= scale_words=
)
smoke=(
    MODEL=models/tiny TRAITS="positiveness=positiveness conciseness=conciseness:20"
    NUM_PROMPTS=24 NUM_RL=16 TEST_PROMPTS=8 MAX_LEN=320 MAX_NEW_TOKENS=16
    BATCH_SIZE=16 MICRO_BATCH_SIZE=8 ROLLOUT_BATCH=8 SAMPLES=4 EPISODES=1
    RM_BATCH_SIZE=8 RM_EPOCHS=2 RM_MAX_LEN=320 sft_lr=1e-3 rm_lr=1e-3 rl_lr=1e-3 kl=1e-3 "sample_words=--backend hf"
)
cpu=(
    MODEL=models/smollm2-135m-instruct TRAITS="positiveness=positiveness conciseness=conciseness:60"
    GROUPS_FILE=recipes/groups/praise.yaml HH_DATA=generated
    NUM_PROMPTS=200 NUM_RL=80 TEST_PROMPTS=90 MAX_LEN=80 MAX_NEW_TOKENS=48 PROPORTION=0.2 RM_SAMPLES=4
    BATCH_SIZE=16 MICRO_BATCH_SIZE=8 ROLLOUT_BATCH=4 SAMPLES=4 EPISODES=1
    RM_BATCH_SIZE=16 RM_EPOCHS=20 RM_MAX_LEN=96 sft_lr=3e-4 rm_lr=2e-3 rl_lr=1e-4 kl=0.01
    scale_words=--groups.normalize # a preference loss leaves each head's offset open
)
gpu=(
    MODEL=TinyLlama/TinyLlama-1.1B-Chat-v1.0 RM_MODEL=gpt2-large HH_DATA= LONG_ROWS=cut
    TRAITS="helpful=Ray2333/gpt2-large-helpful-reward_model harmless=Ray2333/gpt2-large-harmless-reward_model"
    GROUPS_FILE=recipes/groups/hh.yaml gpu_words=--actor.gradient_checkpointing_enable
    NUM_PROMPTS=10000 NUM_RL=10000 TEST_PROMPTS=2000 MAX_LEN=768 MAX_NEW_TOKENS=256
    BATCH_SIZE=512 MICRO_BATCH_SIZE=4 ROLLOUT_BATCH=64 SAMPLES=8 EPISODES=1
    RM_BATCH_SIZE=32 RM_EPOCHS=3 RM_MAX_LEN=1024 sft_lr=2e-5 rm_lr=5e-4 rl_lr=1e-5 kl=0.05
)
if [[ ${PRESET:-} == paper ]]; then
    gpu+=(BATCH_SIZE=8 ROLLOUT_BATCH=4 SAMPLES=2 EPISODES=2)
    every+=(eos=none) # gold models read texts as they end; the paper's reward models, too
fi
settings "$@"
[[ $PRESET == equal ]] || assign group_names "$GROUPS_FILE"
find_hh_data
[[ $HH_DATA != Anthropic/hh-rlhf ]] || : "${HH_FOLDER:=all}"

data=$OUT/data prompts=$OUT/prompts samples=$OUT/samples sft=${SFT_MODEL:-$OUT/sft}
run_file begin "recipe=$RECIPE" "profile=$PROFILE" "method=$METHOD" "preset=$PRESET" "style=$STYLE" "model=$MODEL"
echo "# $RECIPE: profile $PROFILE, method $METHOD, data $HH_DATA, groups $GROUPS_FILE, output in $OUT"

# 0. The models that training starts from
small_model "$MODEL"

# 1. Data: dialogues in one style, and prompts for reward models, for RL (others, unless SHARE_PROMPTS=1), and held out
cut=() limit=() rl_prompts=(--num_rl "$NUM_RL")
[[ $LONG_ROWS == drop ]] || cut=(--cut)
[[ -z $SHARE_PROMPTS ]] || rl_prompts=(--share_prompts)
[[ $PROFILE == gpu ]] || limit=(--limit $((NUM_PROMPTS + (SHARE_PROMPTS ? 0 : NUM_RL))) --limit_test "$TEST_PROMPTS" --shuffle)
stage data --source "$HH_DATA" "$MODEL" --out "$data" -- \
    python -m orlhf_ext.build_data hh "$HH_DATA" --out "$data" --format "${STYLE/chat/template}" \
    ${HH_FOLDER:+--data_dir "$HH_FOLDER"} "${cut[@]}" "${limit[@]}" --seed "$SEED" --tokenizer "$MODEL" \
    --max_prompt_tokens $((MAX_LEN - MAX_NEW_TOKENS))
run_file data "$data"
stage prompts --in "$data"/{train,test}.jsonl --out "$prompts" -- \
    python -m orlhf_ext.build_data hh-prompts "$data" --out "$prompts" --num_prompts "$NUM_PROMPTS" "${rl_prompts[@]}" \
    --num_test "$TEST_PROMPTS" --seed "$SEED"

# 2. SFT on the chosen answers
training=(--adam.betas 0.9 0.999 --lr_scheduler linear --lr_warmup_ratio 0)
set_logger sft
[[ -n $SFT_MODEL ]] || stage sft --in "$data"/{train,test}.jsonl --source "$MODEL" --out "$sft" -- \
    "${launch[@]}" train_sft --model.model_name_or_path "$MODEL" --ckpt.output_dir "$sft" \
    --data.dataset "$data/train.jsonl" --data.input_key prompt --data.output_key chosen --data.max_len "$MAX_LEN" \
    --eval.dataset "$data/test.jsonl" --eval.split train --train.batch_size "$RM_BATCH_SIZE" \
    --train.micro_batch_size "$rm_micro" --train.max_epochs 1 --train.seed "$SEED" --adam.lr "$sft_lr" \
    "${training[@]}" --ds.zero_stage 2 "${logger[@]}" "${sft_args[@]}"

# 3. Responses to each prompt, two or more, and their gold traits
sample pairs "$sft" "$prompts/rm.jsonl" "$samples/pairs.jsonl" --num_completions "$RM_SAMPLES" --temperature 1.0 --seed "$SEED"
score pairs "$samples/pairs.jsonl" "$samples/pairs_scored.jsonl"

# 4. What does not depend on a proportion: SFT's answers, and the gold policy of each seed
drawn=() reward_models=() answered=() summaries=() # what is made
answers sft "$sft"
for seed in "${seeds[@]}"; do
    policy "gold-seed$seed" "$seed" "" --groups.config "$GROUPS_FILE" --groups.kind gold --groups.traits "${traits[@]}"
done

# 5. For each proportion, seed and k: pairs, reward models, policies, and the table
compare() { compared+=(--policy "$1=$samples/test/$2_scored.jsonl") inputs+=("$samples/test/$2_scored.jsonl"); }
for proportion in "${proportions[@]}"; do for seed in "${seeds[@]}"; do
    where=prop$proportion-seed$seed pairs=$OUT/pairs/prop$proportion-seed$seed maxmin=maxmin-prop$proportion-seed$seed
    single=single-prop$proportion-seed$seed
    if [[ $METHOD != gold ]]; then
        stage "pairs/$where" --in "$samples/pairs_scored.jsonl" "$GROUPS_FILE" --out "$pairs" -- \
            python -m orlhf_ext.build_data hh-groups "$samples/pairs_scored.jsonl" --out "$pairs" \
            --groups "$GROUPS_FILE" --proportion "$proportion" --style "$STYLE" --seed "$seed"
        drawn+=("$where")
    fi
    if [[ $METHOD == all || $METHOD == single ]]; then # the control: one score for all pairs, as without groups
        reward_model "$single" "$pairs" "$seed" "$RM_MODEL" "$rm_lr" --groups.head single --groups.squash tanh
        policy "$single" "$seed" "$OUT/rm/$single" --groups.kind group_rm "${scale_words[@]}"
        reward_models+=("$single")
    fi
    if [[ $METHOD == all || $METHOD == maxmin ]]; then
        if [[ $PRESET == paper ]]; then
            merged_model "$maxmin" "$pairs" "$seed"
        else
            reward_model "$maxmin" "$pairs" "$seed" "$RM_MODEL" "$rm_lr" --groups.head independent --groups.squash tanh
        fi
        policy "$maxmin" "$seed" "$OUT/rm/$maxmin" --groups.kind group_rm --groups.config "$GROUPS_FILE" \
            "${scale_words[@]}"
        reward_models+=("$maxmin")
    fi
    for k in "${ks[@]}"; do # one empty k, where no method has one
        name=$where${k:+-k$k} compared=() inputs=("$samples/test/sft_scored.jsonl")
        compare gold "gold-seed$seed"
        [[ $METHOD != all && $METHOD != single ]] || compare single "$single"
        [[ $METHOD != all && $METHOD != maxmin ]] || compare maxmin "$maxmin"
        if [[ -n $k ]]; then
            reward_model "sharedrep-$name" "$pairs" "$seed" "$RM_MODEL" "$rm_lr" --groups.head shared --groups.k "$k" \
                --groups.squash tanh
            policy "sharedrep-$name" "$seed" "$OUT/rm/sharedrep-$name" --groups.kind group_rm \
                --groups.config "$GROUPS_FILE" "${scale_words[@]}"
            reward_models+=("sharedrep-$name")
            compare sharedrep "sharedrep-$name"
        fi
        own=$OUT/runs/$name
        [[ $METHOD != gold ]] || own=$OUT/runs/gold-seed$seed # what was drawn does not move gold's table
        run_file cell "$own/run.json" "proportion=$proportion" "k=$k" "seed=$seed"
        stage "evaluate/$name" --show --in "${inputs[@]}" "$GROUPS_FILE" -- \
            python -m orlhf_ext groups evaluate --groups "$GROUPS_FILE" --sft "$samples/test/sft_scored.jsonl" \
            "${compared[@]}" --out "$own/summary.json" --run "$own/run.json" --seed "$seed"
        run_file finish "$own/summary.json"
        summaries+=("$own/summary.json")
    done
done; done
table=${summaries[0]} policies=("${answered[@]:1}")
if ((${#summaries[@]} > 1)); then
    table=$OUT/grid.json
    stage grid --show --in "${summaries[@]}" -- \
        python -m orlhf_ext groups evaluate --grid "${summaries[@]}" --out "$table"
fi
cards "$table" "$sft" "${reward_models[@]/#/$OUT/rm/}" "${policies[@]/#/$OUT/policy/}"

# 6. To a hub, if asked to: the models that are to be used, the data that they learned from, and what they answered
[[ -n $SFT_MODEL ]] || push_model sft "$sft"
push_data raw "$samples/pairs_scored.jsonl"
for name in "${drawn[@]}"; do push_data "pairs/$name" "$OUT/pairs/$name"/{train,test}.jsonl; done
for name in "${reward_models[@]}"; do push_model "rm/$name" "$OUT/rm/$name"; done
for name in "${policies[@]}"; do push_model "policy/$name" "$OUT/policy/$name"; done
for name in "${answered[@]}"; do push_data "eval/$name" "$samples/test/${name}_scored.jsonl"; done
report
echo "# policies: $OUT/policy/, reward models: $OUT/rm/, numbers: $OUT/summary.json and $OUT/runs/*/summary.{json,md,csv}"
((${#summaries[@]} < 2)) || echo "# the grid: $OUT/grid.json, .md, .csv"
