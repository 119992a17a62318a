"""`train_ppo_ray` for real on the tiny model: rewards are learned, weights stay in step, mistakes end in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray_runs import ROOT, flags, launch, mean_reward, rollouts, run, scalars, synced, write_inputs

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def test_a_reward_of_ones_own_is_learned(tiny_model: Path, folder: Path) -> None:
    """30 steps of GRPO, with the weights compared after each."""
    output = launch(
        folder,
        *("--ext.reward", "my_rewards:Letters=1", "--ext.reward", "my_rewards:Brevity=0", "--brevity.words", "3"),
        *("--ext.use", "ray_probe:Probe"),
        *flags(
            tiny_model,
            train__num_episodes=4,
            actor__adam__lr=2e-3,
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
    assert "is now orlhf_ext.rewards.samples:RewardedSamples" in output


def test_a_reward_that_gives_nan_stops_the_run(tiny_model: Path, folder: Path) -> None:
    output = launch(folder, "--ext.reward", "my_rewards:Breaks", *flags(tiny_model), fails=True)
    told = [line for line in output.splitlines() if line.startswith("orlhf-ext: error:")]
    assert told == [
        "orlhf-ext: error: reward 'breaks' has nan among the rewards, for sample 'train 1/3'; give a finite float32"
    ]


def test_what_the_readme_says_about_a_reward_works(tiny_model: Path, tmp_path: Path) -> None:
    """Its class, its check and its launch, as they stand there."""
    section = (ROOT / "README.md").read_text().partition("## Your own reward in five minutes")[2].partition("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    commands = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    write_inputs(tmp_path, prompts=16)
    (tmp_path / "my_rewards.py").write_text(code[0])
    checked = run(tmp_path, *commands[0].split()[1:])
    assert checked.returncode == 0, checked.stdout
    words = commands[1].replace("<any OpenRLHF flag>", "").split()
    assert words[:4] == ["python", "-m", "orlhf_ext.launch", "train_ppo_ray"]
    launch(tmp_path, *words[4:], *flags(tiny_model))
    batches = rollouts(tmp_path)
    assert len(batches) == 2
    for row in (row for batch in batches for row in batch):
        assert row["reward"] == pytest.approx(min(1.0, 5 / max(1, len(row["response"].split()))))
