"""A reward function of OpenRLHF as a reward: what it is given, what it may return, what is refused."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, failing
from ray_runs import flags, launch, write_inputs
from ray_runs import rollouts as made

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


def test_golden_values_of_trl_and_verl(tmp_path: Path) -> None:
    goldens = json.loads(GOLDENS.read_text())["functions"]
    for number, case in enumerate(goldens["trl"]):
        returned = [None if value == "None" else value for value in case["returns"]]
        text, file = f"def f(prompts, completions):\n    return {returned}\n", tmp_path / f"trl{number}.py"
        if "rewards" in case:
            assert score(file, text, name="f").rewards == case["rewards"]
        elif "gdpo" in case:
            file.write_text(text)
            rewards = selection.build(selection.choose([f"{file}:f"]), {}, "gdpo")
            rewards.setup(RewardContext())
            assert rewards.score(rollouts()).columns["reward/f"] == pytest.approx([0.5, math.nan], nan_ok=True)
    for number, case in enumerate(goldens["verl"]):
        text = f"given = {case['returns']}\ndef compute_score(solution_str, **_):\n    return given.pop(0)\n"
        file = tmp_path / f"verl{number}.py"
        if "error" in case:
            continue  # among the mistakes
        found = score(file, text, name="compute_score")
        assert found.rewards == case["rewards"]
        assert found.columns == {f"reward/verl{number}": case["rewards"]} | {
            f"verl{number}/{key}": values for key, values in case["metrics"].items()
        }


def test_labels_become_columns(tmp_path: Path) -> None:
    """The goldens, and what a function of TRL names."""
    keep = "def f({}):\n    import json; json.dump({}, open({!r}, 'w')); return {}\n"
    seen = tmp_path / "seen.json"
    known = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
    columns = f"{{k: v[0] for k, v in words.items() if k not in {known}}}"
    for number, case in enumerate(json.loads(GOLDENS.read_text())["functions"]["label_to_columns"]):
        batch = RewardBatch([Rollout("p/0", "q", "a", case["label"])])
        if "trl" in case:
            text = keep.format("completions, **words", columns, str(seen), "[1]")
            score(tmp_path / f"trl{number}.py", text, batch, "f")
            assert json.loads(seen.read_text()) == case["trl"]
        if "verl" in case:
            text = keep.format("solution_str, **words", "words", str(seen), "1")
            score(tmp_path / f"verl{number}.py", text, batch, "f")
            assert json.loads(seen.read_text()) == case["verl"]
    count = "[c.count(a) for c, a in zip(completions, answer)]"
    text = f"def f(completions, answer, log_metric):\n    log_metric('n', 2)\n    return {count}"
    assert score(tmp_path / "answers.py", text, name="f").columns == {"reward/f": [1.0, 2.0], "f/n": [2.0, 2.0]}


def test_completions_may_be_messages(tmp_path: Path) -> None:
    lengths = "[len(c[0]['content']) + len(p[0]['role']) for p, c in zip(prompts, completions)]"
    (tmp_path / "chat.py").write_text(f"def f(prompts, completions):\n    return {lengths}")
    rewards = selection.build(selection.choose([f"{tmp_path / 'chat.py'}:f"]), {"f.messages": "true"})
    rewards.setup(RewardContext())
    assert rewards.score(rollouts()).rewards == [8.0, 12.0]


def test_a_function_of_a_batch_has_flags(tmp_path: Path) -> None:
    """Typed parameters with a default, also where annotations are strings."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "def brevity(batch, words: int = 50, names: list[str] = []):\n"
        "    return [words / len(text.split()) + len(names) for text in batch.responses]\n"
    )
    chosen = selection.choose([f"{file}:brevity"])
    for given, wanted in (({}, [50.0, 25.0]), ({"brevity.words": "4", "brevity.names": ["a", "b"]}, [6.0, 4.0])):
        rewards = selection.build(chosen, given)
        rewards.setup(RewardContext())
        assert rewards.score(rollouts()).rewards == wanted
    with pytest.raises(UserError, match=r"--brevity\.words x"):
        selection.build(chosen, {"brevity.words": "x"})


@pytest.mark.launcher
@pytest.mark.parametrize(
    "head",
    [
        "queries, prompts, labels",
        "completions, prompts",
        "data_source, solution_str, ground_truth, extra_info",
        "batch",
    ],
)
def test_async_functions_of_a_batch_run_together(tmp_path: Path, head: str) -> None:
    """Each form; of those that are called once a sample, all wait at the same time."""
    value = "[0.5, 0.5]" if head.startswith(("completions", "batch")) else "0.5"
    text = f"import asyncio\nasync def f({head}):\n    await asyncio.sleep(0.5)\n    return {value}\n"
    began = time.monotonic()
    assert score(tmp_path / f"{head.partition(',')[0]}.py", text, name="f").rewards == [0.5, 0.5]
    assert time.monotonic() - began < 0.95


def test_a_form_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    score(tmp_path / "counts.py", OLD)
    assert capsys.readouterr().out == "[orlhf-ext] reward 'counts' is a function in OpenRLHF's form\n"


@pytest.mark.parametrize(
    "text, says",
    [
        ("def reward_func(prompts, labels): return 1", "has the parameters of no reward function that is known"),
        ("def reward_func(prompts, queries, labels): return 1", "(queries, prompts, labels) of OpenRLHF; "),
        ("def reward_func(queries, prompts, labels, scale): return 1", "has the parameters of no reward function"),
        ("def reward_func(batch, scale): return 1", "reward_func(batch) of orlhf-ext"),
        ("def reward_func(solution_str, other): return 1", "(data_source, solution_str, ground_truth, extra_info) of"),
        ("def reward_func(prompts, completions): return [1]", "gives 1 rewards for 2 samples"),
        ("def reward_func(prompts, completions): return None", "returned nothing"),
        ("def reward_func(prompts, completions): return [1, None]", "None among the rewards, for sample 'p/1'"),
        ("def reward_func(completions, gold): return [1, 1]", "it takes the column 'gold', which the label of sample"),
        ("def reward_func(solution_str): return {'acc': 1}", "gave no 'score' for sample 'p/0'"),
        ("async def reward_func(queries, prompts, labels): return 1 / 0", "raised ZeroDivisionError: division by zero"),
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


@pytest.mark.slow
@pytest.mark.launcher
def test_a_run_with_functions_of_each_form(tiny_model: Path, tmp_path: Path) -> None:
    """OpenRLHF's, TRL's and ours, two of them coroutines, under a limit of time."""
    write_inputs(tmp_path, prompts=16)
    (tmp_path / "mine.py").write_text(
        "import asyncio\n"
        "def counts(queries, prompts, labels):\n"
        "    return {'rewards': queries[0].count('e'), 'extra_logs': {'n': len(labels)}}\n"
        "async def echoes(completions, label, **words):\n"
        "    await asyncio.sleep(0.1)\n"
        "    return [float(answer in text) for text, answer in zip(completions, label)]\n"
        "async def brevity(batch, letters: int = 9):\n"
        "    await asyncio.sleep(0.1)\n"
        "    return [min(1.0, letters / max(1, len(text))) for text in batch.responses]\n"
    )
    named = [word for name in ("counts", "echoes", "brevity") for word in ("--ext.reward", f"mine.py:{name}")]
    output = launch(
        tmp_path,
        *named,
        "--brevity.letters",
        "4",
        "--ext.reward_timeout",
        "60",
        *flags(tiny_model, ext__eval_on_start=None),
    )
    for name, form in (("counts", "OpenRLHF"), ("echoes", "TRL"), ("brevity", "orlhf-ext")):
        assert output.count(f"reward {name!r} is a function in {form}'s form") == 1
    rows = [row for batch in made(tmp_path) for row in batch]
    assert len(rows) == 64
    for row in rows:
        text = row["response"]
        assert row["reward/echoes"] == float(row["label"] in text)
        assert row["reward/brevity"] == min(1.0, 4 / max(1, len(text)))
        assert row["reward"] == pytest.approx(sum(row[f"reward/{name}"] for name in ("counts", "echoes", "brevity")))
        assert row["counts/n"] == 1 and row["reward/counts"] >= text.count("e")
