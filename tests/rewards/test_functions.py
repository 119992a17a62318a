"""A reward function of OpenRLHF as a reward: what it is given, what it may return, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, failing

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands.check import main
from orlhf_ext.rewards import selection
from orlhf_ext.rewards.base import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import Combined, RewardSet

GOLDENS = ROOT / "tests" / "goldens" / "rewards2.json"
#: what an unchanged file of a user looks like
OLD = """
import torch

def reward_func(queries, prompts, labels, **kwargs):
    rewards = torch.tensor([float(query.count(label)) for query, label in zip(queries, labels)])
    assert queries[0].startswith(prompts[0]) and len(queries) == 1
    logs = {"length": torch.tensor([len(queries[0])])}
    return {"rewards": rewards, "scores": rewards.clamp(0, 1), "extra_logs": logs}
"""


def rollouts(count: int = 2) -> RewardBatch:
    return RewardBatch(
        [Rollout(id=f"p/{i}", prompt="q: ", response="yes " * (i + 1), label="yes") for i in range(count)]
    )


def score(file: Path, text: str, batch: RewardBatch | None = None, name: str = "reward_func") -> Combined:
    file.write_text(text)
    reward = selection.build(selection.choose([f"{file}:{name}"]), {})
    assert isinstance(reward, RewardSet)
    reward.setup(RewardContext())
    return reward.score(rollouts() if batch is None else batch)


def test_a_file_of_openrlhf_is_taken_unchanged(tmp_path: Path) -> None:
    found = score(tmp_path / "counts.py", OLD)
    assert found.rewards == [1.0, 2.0] and found.scores == [1.0, 1.0]
    assert found.columns == {"reward/counts": [1.0, 2.0], "counts/length": [7.0, 11.0]}


def test_what_it_reads_is_what_the_policy_read_and_wrote(tmp_path: Path, tiny_model: Path) -> None:
    from orlhf_ext.models.folder import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    head, tail = tokenizer.encode("q:"), [*tokenizer.encode(" a"), tokenizer.eos_token_id]
    rollout = Rollout("p/0", "q:", " a", "b", [*head, *tail], [0] * len(head) + [1] * len(tail))
    seen = tmp_path / "seen.json"
    keep = f"json.dump([queries, prompts, labels], open({str(seen)!r}, 'w'))"
    text = f"import json\ndef f(queries, prompts, labels):\n    {keep}\n    return 1"
    (tmp_path / "f.py").write_text(text)
    reward = selection.build(selection.choose([f"{tmp_path / 'f.py'}:f"]), {})
    reward.setup(RewardContext(tokenizer=tokenizer))
    assert reward.score(RewardBatch([rollout])).columns == {"reward/f": [1.0]}
    assert json.loads(seen.read_text()) == [[tokenizer.decode([*head, *tail])], ["q:"], ["b"]]
    assert tokenizer.eos_token in json.loads(seen.read_text())[0][0]


@pytest.mark.skipif(not GOLDENS.exists(), reason="the golden values are not here")
def test_golden_values(tmp_path: Path) -> None:
    words = {
        "two values for one rollout": "it gave 2 values as rewards",
        "no rewards": "gave no 'rewards'",
        "not finite": "give a finite float32",
        "nothing returned": "returned nothing",
    }
    for number, case in enumerate(json.loads(GOLDENS.read_text())["functions"]["openrlhf"]):
        returned: Any = None if case["returns"] == "None" else case["returns"]
        text = f"def reward_func(queries, prompts, labels):\n    return {returned!r}\n".replace("'NaN'", "float('nan')")
        file = tmp_path / f"case{number}.py"
        if "error" in case:
            with pytest.raises(UserError, match=words[case["error"]]):
                score(file, text)
            continue
        found = score(file, text)
        assert found.rewards == [case["reward"]] * 2 and found.scores == [case["score"]] * 2
        metrics = {f"{file.stem}/{key}": [value] * 2 for key, value in case["metrics"].items()}
        assert found.columns == {f"reward/{file.stem}": [case["reward"]] * 2} | metrics


@pytest.mark.parametrize(
    "text, says",
    [
        ("def reward_func(prompts, completions): return 1", "is no reward function of OpenRLHF"),
        ("def reward_func(queries, prompts, labels, scale): return 1", "is no reward function of OpenRLHF"),
        ("async def reward_func(queries, prompts, labels): return 1", "does not await"),
        ("def reward_func(queries, prompts, labels): return 'good'", "gave str as rewards for sample 'p/0'"),
        (
            "def reward_func(queries, prompts, labels): return 1 / 0",
            "raised ZeroDivisionError: division by zero on",
        ),
        ("def reward_fun(queries, prompts, labels): return 1", "has no 'reward_func'; did you mean 'reward_fun'?"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit"),
        ("reward_func = 5", "is 5, no subclass of"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        score(tmp_path / "mine.py", text)
    assert says in str(error.value)


def test_a_class_in_a_file(tmp_path: Path) -> None:
    text = (
        "from dataclasses import dataclass\nfrom orlhf_ext.rewards import Reward\n\n@dataclass\nclass Short(Reward):\n"
        "    words: int = 2\n    def score(self, batch):\n"
        "        return [self.words / len(text.split()) for text in batch.responses]\n"
    )
    assert score(tmp_path / "short.py", text, name="Short").columns == {"reward/short": [2.0, 1.0]}


def test_check_reward_tries_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "counts.py").write_text("def reward_func(queries, prompts, labels): return len(queries[0]) / 1000\n")
    main(["reward", f"{tmp_path / 'counts.py'}:reward_func"])
    assert "named 'counts'" in capsys.readouterr().out
    assert "there is no file" in failing(capsys, main, "reward", tmp_path / "none.py:reward_func")
