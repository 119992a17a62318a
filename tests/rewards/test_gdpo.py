"""``--ext.reward_combine gdpo``: the formula's goldens, what holds for any numbers, and what OpenRLHF makes of it."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from ray_runs import flags, launch, rollouts, scalars, write_inputs

from orlhf_ext.cli.errors import UserError
from orlhf_ext.rewards import Reward, RewardBatch, RewardResult, Rollout, gdpo
from orlhf_ext.rewards.combine import Combined, RewardSet
from orlhf_ext.rewards.remote import cut_at_groups

GOLDENS = json.loads((ROOT / "tests/goldens/rewards2.json").read_text())["gdpo"]


def columns(prompts: Sequence[Sequence[Sequence[float | None]]]) -> tuple[list[list[float]], list[list[int]]]:
    """Rewards by prompt, reward and sample, as one column for each reward, and the indices of each prompt."""
    groups: list[list[int]] = []
    for prompt in prompts:
        start = sum(map(len, groups))
        groups.append(list(range(start, start + len(prompt[0]))))
    found = [[math.nan if x is None else float(x) for p in prompts for x in p[k]] for k in range(len(prompts[0]))]
    return found, groups


def advantages(prompts: Sequence[Sequence[Sequence[float | None]]], weights: Sequence[float]) -> list[float]:
    found, groups = columns(prompts)
    return gdpo.whiten(gdpo.sums_of_z(found, weights, groups))


def test_goldens() -> None:
    batch = GOLDENS["batch"]
    found, groups = columns(batch["rewards"])
    assert gdpo.sums_of_z(found, batch["weights"], groups) == pytest.approx(batch["sums_of_z"], abs=1e-12)
    assert advantages(batch["rewards"], batch["weights"]) == pytest.approx(batch["advantages_trl"], abs=1e-12)
    doubled = [2 * weight for weight in batch["weights"]]
    wanted = batch["advantages_trl_weights_doubled"]
    assert advantages(batch["rewards"], doubled) == pytest.approx(wanted, abs=1e-12)
    for pair, wanted in GOLDENS["one_prompt"].items():
        table = GOLDENS["paper_example"][pair]["rewards"]
        assert advantages([table], [1, 1]) == pytest.approx(wanted, abs=1e-12)
    for case in GOLDENS["teaches"]:
        found, groups = columns([case["rewards"]])
        sums = gdpo.sums_of_z(found, [1.0] * len(found), groups)
        assert sums == pytest.approx(case["sums_of_z"], abs=1e-12)
        assert gdpo.same(sums, gdpo.SPREAD) == (max(map(abs, case["sums_of_z"])) < 1e-3)


def test_a_reward_that_does_not_apply_counts_in_nothing() -> None:
    case = GOLDENS["none"]
    found, groups = columns(case["rewards"])
    wanted = [math.nan if value is None else value for value in case["sums_of_z"]]
    assert gdpo.sums_of_z(found, [1, 1], groups) == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert advantages(case["rewards"], [1, 1]) == pytest.approx(case["advantages_trl"], abs=1e-12)


@given(st.integers(-30, 30), st.integers(2, 9))
def test_a_constant_reward_counts_exactly_nothing(exponent: int, count: int) -> None:
    constant = [1.1 * 10.0**exponent] * count
    assert advantages([[constant, list(range(count))]], [1, 1]) == advantages([[list(range(count))]], [1])
    assert advantages([[constant]], [1]) == [0.0] * count


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4, unique=True), st.permutations(range(4)))
def test_order_and_units_do_not_matter(values: list[float], order: list[int]) -> None:
    if gdpo.moments(values)[1] < 1:
        return
    other = [[0.0, 1.0, 2.0, 5.0], [3.0, 1.0, 1.0, 0.0]]
    plain = advantages([[values, other[0]], other], [1, 2])
    scaled = advantages([[[7 * v - 3 for v in values], other[0]], other], [1, 2])
    assert scaled == pytest.approx(plain, abs=2e-3)
    turned = advantages([[[values[i] for i in order], [other[0][i] for i in order]], other], [1, 2])
    assert turned == pytest.approx([plain[i] for i in order] + plain[4:], abs=1e-9)


def test_rewards_that_cancel_are_found() -> None:
    opposed, agreed = [[1, 1, 0], [0, 0, 1]], [[1, 1, 0], [1, 1, 0]]
    found, groups = columns([opposed, agreed, [[1, 1, 1], [2, 2, 2]]])
    assert gdpo.conflicts(found, gdpo.sums_of_z(found, [1, 1], groups), groups) == [1.0] * 3 + [0.0] * 6


# in a set of rewards


def make(name: str, values: Sequence[float | None], **more: Any) -> Reward:
    class Given(Reward):
        def score(self, batch: RewardBatch) -> RewardResult:
            return RewardResult(values, **more)  # type: ignore[arg-type]

    Given.name = name
    return Given()


def score(rewards: list[Reward], size: int, weights: list[float] | None = None, how: str = "gdpo") -> Combined:
    count = 2 * size
    batch = RewardBatch([Rollout(f"train {i // size}/{i % size}", "q", "a", group=i // size) for i in range(count)])
    return RewardSet(rewards, weights, how).score(batch)


def test_a_set_of_rewards_gives_sums_of_z_and_logs_plain_sums(capsys: pytest.CaptureFixture) -> None:
    case = GOLDENS["none"]
    table, groups = columns(case["rewards"])
    rewards = [make(f"r{k}", [None if math.isnan(v) else v for v in column]) for k, column in enumerate(table)]
    found = score(rewards, 4, [1.0, 1.0])
    assert found.normalised == gdpo.sums_of_z(table, [1, 1], groups)
    assert found.rewards == found.scores == found.columns["gdpo/sum"] == [1.2, 0, 0.1, 1.9, 0.5, 0.5, 0.25, 1.75]
    assert math.isnan(found.columns["reward/r0"][1])
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="reward 'r0' has None among the rewards, for sample 'train 0/1'"):
        score(rewards, 4, how="sum")
    score([make("tiny", [1e-6 * i for i in range(8)])], 4)
    assert "reward 'tiny' varies by less than 0.001" in capsys.readouterr().out


def test_parts_of_a_reward_are_normalised_apart() -> None:
    """As the groups of annotators are."""
    young, old = [0.0, 1, 2, 9, 1, 1, 0, 4], [100.0, 0, 300, 50, 0, 10, 0, 0]
    least = [min(pair) for pair in zip(young, old, strict=True)]
    together = score([make("groups", least, apart={"young": young, "old": old})], 4, [3.0])
    apart = score([make("young", young), make("old", old)], 4, [3.0, 3.0])
    assert together.normalised == apart.normalised and together.rewards == [3 * value for value in least]


def arguments(**changes: Any) -> SimpleNamespace:
    given = {"estimator": "dr_grpo", "samples": 4, "prompts": 8, "overlong": None, "stop": None, **changes}
    return SimpleNamespace(
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=given["estimator"], gamma=1.0, lambd=1.0)),
        rollout=SimpleNamespace(n_samples_per_prompt=given["samples"], batch_size=given["prompts"], max_new_tokens=4),
        reward=SimpleNamespace(
            clip_range=(-10, 10), overlong_buffer_len=given["overlong"], stop_properly_penalty_coef=given["stop"]
        ),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"estimator": "group_norm"}, "give --algo.advantage.estimator dr_grpo"),
        ({"samples": 1}, "give --rollout.n_samples_per_prompt 2 or more"),
        ({"prompts": 1}, "give --rollout.batch_size 2 or more"),
        ({"overlong": 4.0}, "--reward.overlong_buffer_len would be added"),
        ({"stop": 0.0}, "--reward.stop_properly_penalty_coef would be added"),
    ],
)
def test_a_run_that_would_change_it_again_is_refused(changes: dict[str, Any], said: str) -> None:
    gdpo.check(arguments())
    with pytest.raises(UserError, match=re.escape(said)):
        gdpo.check(arguments(**changes))


def test_few_prompts_are_warned_of(capsys: pytest.CaptureFixture) -> None:
    gdpo.check(arguments(prompts=4))
    assert "--rollout.batch_size 4 prompts, which are few" in capsys.readouterr().out


def test_openrlhf_leaves_it_as_it_is() -> None:
    """Through its own estimator, in uneven micro batches of samples in another order."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("openrlhf")
    from orlhf_ext import backends

    backends.install()
    from openrlhf.trainer.ppo_utils.experience_maker import Experience, RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController

    batch = GOLDENS["batch"]
    whole = advantages(batch["rewards"], batch["weights"])
    maker = object.__new__(RemoteExperienceMaker)
    maker.strategy = SimpleNamespace(args=arguments())
    maker.advantage_estimator = "dr_grpo"
    maker.kl_ctl = FixedKLController(0.0)
    order = random.Random(1).sample(range(12), 12)
    cuts = [order[:5], order[5:6], order[6:10], order[10:]]
    experiences = [
        Experience(
            index=rows,
            rewards=torch.tensor([whole[i] for i in rows]),
            kl=torch.zeros(len(rows), 3),
            action_mask=torch.ones(len(rows), 3, dtype=torch.bool),
            info={},
        )
        for rows in cuts
    ]
    for found, rows in zip(maker.compute_advantages_and_returns(experiences), cuts, strict=True):
        for column in found.advantages.T:
            assert column.tolist() == pytest.approx([batch["advantages_trl"][i] for i in rows], abs=1e-6)


def test_copies_of_a_reward_get_whole_prompts() -> None:
    assert cut_at_groups([[0, 1, 2], [3, 4, 5], [6, 7, 8]], 2) == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]
    assert cut_at_groups([[i] for i in range(5)], 2) == [[0, 1], [2, 3, 4]]
    assert cut_at_groups([[i] for i in range(6)], 3) == [[0, 1], [2, 3], [4, 5]]
    assert cut_at_groups([[0, 2], [1, 3]], 4) == [[0, 2], [1, 3]]


# a run

ONE_APPLIES_SOMETIMES = '''
from orlhf_ext.rewards import Reward


class Even(Reward):
    """Applies to responses of an even number of characters."""

    def score(self, batch):
        return [None if len(text) % 2 else 100.0 * text.count("e") for text in batch.responses]
'''


@pytest.mark.slow
@pytest.mark.launcher
def test_a_run_with_two_rewards(tiny_model: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path, prompts=24)
    (tmp_path / "even.py").write_text(ONE_APPLIES_SOMETIMES)
    (tmp_path / "seen_maker.py").write_text(
        "import json\n"
        "from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker\n"
        "class Maker(RemoteExperienceMaker):\n"
        "    def compute_advantages_and_returns(self, experiences):\n"
        "        found = super().compute_advantages_and_returns(experiences)\n"
        "        rows = sorted((i, x.advantages[r, 0].item(), x.info['gdpo/z'][r].item()) for x in found\n"
        "                      for r, i in enumerate(x.index))\n"
        "        print(json.dumps(rows), file=open('advantages.jsonl', 'a'))\n"
        "        return found\n"
    )
    (tmp_path / "seen.py").write_text(
        "from orlhf_ext.extensions import Extension\n"
        "class Seen(Extension):\n"
        "    name = 'seen'\n"
        "    launchers = ('train_ppo_ray',)\n"
        "    replacements = {'openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker': 'seen_maker:Maker'}\n"
    )
    launch(
        tmp_path,
        *("--ext.use", "seen:Seen", "--ext.reward", "my_rewards:Letters=1", "--ext.reward", "even:Even=2"),
        *("--ext.reward_combine", "gdpo"),
        *flags(tiny_model, algo__advantage__estimator="dr_grpo", algo__kl__init_coef=1e-6),
        *("--eval.dataset", "prompts.jsonl", "--eval.steps", "3", "--eval.n_samples_per_prompt", "1"),
    )
    batches = rollouts(tmp_path)
    seen = [json.loads(line) for line in (tmp_path / "advantages.jsonl").read_bytes().splitlines()]
    assert len(batches) == len(seen) == 3
    for batch, rows in zip(batches, seen, strict=True):
        table = [[row[f"reward/{name}"] for row in batch] for name in ("letters", "even")]
        assert None in table[1]
        groups = [table_of(table, start) for start in range(0, 32, 4)]
        wanted = advantages(groups, [1, 2])
        assert [value for _, value, _ in rows] == pytest.approx(wanted, abs=1e-5)
        assert sum(wanted) == pytest.approx(0, abs=1e-9)
        assert [row["gdpo/z"] for row in batch] == pytest.approx([z for *_, z in rows], abs=1e-5)
        assert all(row["reward"] == row["reward/letters"] + 2 * (row["reward/even"] or 0) for row in batch)
    logged = scalars(tmp_path)
    assert {"train/gdpo/sum", "train/gdpo/conflict", "train/reward/even"} <= set(logged)
    assert not any(math.isnan(value) for values in logged.values() for value in values)
    kept = [row for batch in rollouts(tmp_path, "eval") for row in batch]
    mean = sum(row["reward"] for row in kept) / len(kept)
    assert logged["eval/eval_reward"][-1] == pytest.approx(mean, rel=1e-5) and mean > 0.1


def table_of(table: list[list[float | None]], start: int) -> list[list[float | None]]:
    return [column[start : start + 4] for column in table]
