"""What `--ext.reward` refuses before anything is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.errors import UserError
from orlhf_ext.rewards.extension import Rewards
from orlhf_ext.rewards.selection import choose


def arguments(*rewards: str, **changes: Any) -> SimpleNamespace:
    """The launcher's nested arguments, as far as they are looked at."""
    groups: dict[str, dict[str, Any]] = {
        "ext": {
            "reward": list(rewards),
            "reward_combine": "sum",
            "reward_args": None,
            "reward_actors": 1,
            "reference_batch_tokens": 16384,
            "eval_on_start": False,
            "eval_top_p": 1.0,
            "eval_top_k": -1,
        },
        "train": {"async_enable": False, "agent_func_path": None},
        "reward": {"remote_url": None},
        "eval": {"dataset": None},
        "algo": {"kl": SimpleNamespace(init_coef=0.01)},
    }
    for name, value in changes.items():
        group, _, key = name.partition("__")
        groups[group][key] = value
    return SimpleNamespace(**{name: SimpleNamespace(**group) for name, group in groups.items()})


@pytest.mark.parametrize(
    ("rewards", "changes", "said"),
    [
        (
            ["vrcli"],
            {"train__async_enable": True},
            "reward 'vrcli' needs the reference model, which the trainer uses while --train.async_enable samples; "
            "train without it",
        ),
        (
            ["vrcli"],
            {"algo__kl": SimpleNamespace(init_coef=0.0)},
            "reward 'vrcli' needs the reference model, and with --algo.kl.init_coef 0 there is none; give more than 0 "
            "(1e-6, say)",
        ),
        (
            ["format"],
            {"train__async_enable": True, "ext__eval_top_k": 20},
            "--ext.eval_on_start, --ext.eval_top_p and --ext.eval_top_k have no effect with --train.async_enable, "
            "whose evaluation is OpenRLHF's own; leave them out",
        ),
        (
            ["format"],
            {"reward__remote_url": "http://there"},
            "--ext.reward and --reward.remote_url http://there both give rewards; leave one of them out",
        ),
    ],
)
def test_runs_that_cannot_work(rewards: list[str], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        Rewards(choose(rewards)).check(arguments(*rewards, **changes))
    assert str(error.value) == said


def test_rewards_without_a_model_work_with_asynchronous_training() -> None:
    args = arguments("length", train__async_enable=True, ext__reward_args='{"length": {"target": 5}}')
    Rewards(choose(["length"])).check(args)
    assert args.train.agent_func_path.endswith("agent.py")
