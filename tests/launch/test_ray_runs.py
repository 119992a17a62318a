"""`train_ppo_ray` for real on the tiny model: rewards are learned, weights stay in step, mistakes end in a sentence."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from ray_runs import flags, judge, launch, mean_reward, rollouts, run, scalars, synced, write_inputs

from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.small_models import make_tiny

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_reward_of_ones_own_is_learned(tiny_model: Path, folder: Path) -> None:
    """30 steps of GRPO, with the weights compared after each."""
    output = launch(
        folder,
        *("--ext.reward", "my_rewards:Letters=1", "--ext.reward", "my_rewards:Brevity=0", "--brevity.words", "3"),
        *("--ext.use", "ray_probe:Probe"),
        *flags(
            tiny_model,
            train__num_episodes=4,
            actor__adam__lr=1e-3,
            data__max_samples=60,
            rollout__batch_size=8,
            algo__advantage__is_correction_level="token",
            eval__dataset="prompts.jsonl",
            eval__steps=30,
            eval__n_samples_per_prompt=2,
            ext__eval_on_start=True,
        ),
    )
    batches = rollouts(folder)
    assert len(batches) >= 28
    before, after = mean_reward(batches[:3]), mean_reward(batches[-3:])
    assert after > before + 0.2, (before, after)
    row = batches[0][0]
    assert row["reward"] == row["reward/letters"] and 0 < row["reward/brevity"] <= 1 and row["letters/characters"] > 0
    counts = synced(output)
    assert len(counts) == len(batches) and all(equal == every > 0 for equal, every in counts), counts
    logged = scalars(folder)
    assert max(logged["train/vllm_kl"]) < 1e-3
    assert {"train/reward/letters", "train/reward/brevity", "train/letters/characters"} <= set(logged)
    assert logged["eval/eval_reward"][0] == pytest.approx(before, abs=0.1)
    assert "is now orlhf_ext.rewards.generator:RewardedSamples" in output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Breaks", "reward 'breaks' has nan among the rewards, for sample 'train 1/3'; give a finite float32"),
        pytest.param(
            "Leaves",
            "reward 'leaves' raised SystemExit: sys.exit() on sample 'train 1/1' (my_rewards.py line 32)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_reward_that_breaks_stops_the_run(tiny_model: Path, folder: Path, name: str, said: str) -> None:
    output = launch(folder, "--ext.reward", f"my_rewards:{name}", *flags(tiny_model), fails=True)
    told = [line for line in output.splitlines() if line.startswith("orlhf-ext: error:")]
    assert told == [f"orlhf-ext: error: {said}"]


def scored_ids(tokenizer: Any, label: dict[str, Any], response: str | None) -> tuple[list[int], list[int]]:
    """What VR-CLI scores, put together anew from a label: token ids, and a mask on the gold text and what the template
    puts behind it. Without a response it is the baseline's sequence."""
    chat, splice = copy.deepcopy(label["messages"]), label["plan"]
    if response is not None:
        for marker in ("In summary:", "In summary,", "Detailed Plan:"):
            response = response.split(marker)[-1]
        plan = response.strip()
        text = chat[splice["message"]]["content"]
        words = splice["before"] + plan + splice["after"] if plan else splice["empty"]
        chat[splice["message"]]["content"] = text[: splice["start"]] + words + text[splice["end"] :]
    before = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    answered = [*chat, {"role": "assistant", "content": label["gold"]}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole.startswith(before + label["gold"])
    parts = [before, label["gold"], whole[len(before + label["gold"]) :]]
    context, *scored = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
    ids = [*context, *scored[0], *scored[1]]
    return ids, [0] * len(context) + [1] * (len(ids) - len(context))


@pytest.mark.slow
def test_likelihood_rewards_are_those_of_transformers(tmp_path: Path) -> None:
    """VR-CLI, 16 samples a step: the likelihoods that the run computed, with the very model that training starts from,
    equal those of transformers with the same dtype and attention, one whole sequence at a time, but for the rounding
    of bf16 in attention of other shapes."""
    model = make_tiny(tmp_path / "model", positions=2048)
    data = "story sample --out data --limit 12 --shuffle --context_words 40 --gold_words 80 --tokenizer model"
    room = "--max_prompt_tokens 1384 --max_tokens 1900"
    base = "--model model --data data/train.jsonl --out base/train.jsonl"
    for words in (f"orlhf_ext.build_data {data} {room}", f"orlhf_ext.vrcli.baseline {base}"):
        done = run(tmp_path, "-m", *words.split())
        assert done.returncode == 0, done.stdout
    reward = ("--ext.reward", "vrcli", "--vrcli.reward", "positive", "--vrcli.cap", "20")
    sizes = {"data__max_len": 1400, "rollout__batch_size": 4, "train__batch_size": 16}
    output = launch(
        tmp_path,
        *reward,
        *flags(model, data__prompt_dataset="base/train.jsonl", data__apply_chat_template=True, **sizes),
    )
    rows = [row for batch in rollouts(tmp_path) for row in batch]
    assert len(rows) == 48
    assert re.search(r"the scorer's own noise is [\d.e-]+ % \(the same gold text in several batches", output)
    tokenizer, nll = load_tokenizer(model), judge(model)
    for row in rows:
        label = json.loads(row["label"])
        written = [token for token, ours in zip(row["token_ids"], row["action_mask"], strict=True) if ours]
        assert row["response"] == tokenizer.decode(written, skip_special_tokens=True)
        assert row["vrcli/base_nll"] == label["base"]["nll"]
        assert row["vrcli/base_nll"] == pytest.approx(nll(*scored_ids(tokenizer, label, None)), abs=1e-3)
        assert row["vrcli/nll"] == pytest.approx(nll(*scored_ids(tokenizer, label, row["response"])), abs=1e-3)
        better = 100 * (1 - math.exp(row["vrcli/nll"]) / math.exp(row["vrcli/base_nll"]))
        assert row["vrcli/pct_improvements"] == pytest.approx(better, abs=1e-4)
        assert row["reward"] == pytest.approx(min(20, max(0, better)), abs=1e-4)
