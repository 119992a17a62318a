"""``check reward``: what it says of rewards that are right, and of each way to be wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers import ROOT, failing

from orlhf_ext.commands import check
from orlhf_ext.commands.check import bundled, load_rollouts
from orlhf_ext.files.records import write_jsonl

MODULE = """
import random, time
from dataclasses import dataclass
from orlhf_ext.rewards import Reward, RewardResult

@dataclass
class Brevity(Reward):
    words: int = 50

    def score(self, batch):
        return [min(1.0, self.words / max(1, len(text.split()))) for text in batch.responses]

class Short(Reward):
    def score(self, batch):
        return [1.0]

class NotANumber(Reward):
    def score(self, batch):
        return [float("nan") if r.id == "tea/3" else 1.0 for r in batch]

class Raises(Reward):
    def score(self, batch):
        return [1 / len(text) for text in batch.responses]

class Changing(Reward):
    def score(self, batch):
        ones = [1.0] * len(batch)
        return RewardResult(ones, {"all": ones} if len(batch) > 1 else {"one": ones})

class Random(Reward):
    def score(self, batch):
        return [random.random() for _ in batch]

class Relative(Reward):
    def score(self, batch):
        longest = max(len(text) for text in batch.responses)
        return [len(text) / (longest or 1) for text in batch.responses]

class Slow(Reward):
    def score(self, batch):
        time.sleep(0.01 * len(batch))
        return [1.0] * len(batch)

class NeedsTokenizer(Reward):
    def setup(self, context):
        self.decode = context.tokenizer.decode

    def score(self, batch):
        return [float(len(self.decode(r.response_ids))) for r in batch]

class Reference(Reward):
    needs_reference = True

    def score(self, batch):
        raise AssertionError

class Abstract(Reward):
    pass

class Plain:
    def score(self, batch):
        return [1.0] * len(batch)
"""


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of rewards, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "checked_rewards.py").write_text(MODULE)
    return "checked_rewards"


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, what each check said, and everything."""
    try:
        check.main(["reward", *words])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    lines = re.findall(r"^(ok|wrong|info) +([\w-]+) *(.*)$", out.out, re.M)
    return code, {what: (verdict, said) for verdict, what, said in lines}, out.out + out.err


def test_a_good_reward(rewards: str, capsys: pytest.CaptureFixture) -> None:
    code, found, text = run(capsys, f"{rewards}:Brevity", "--brevity.words", "5")
    assert code == 0
    assert {what for what, (verdict, _) in found.items() if verdict == "ok"} == {
        *("class", "set-up", "values", "metrics", "repeatability", "order", "independence", "speed")
    }
    assert re.search(r"^code/1 .* 0\.4545\s*$", text, re.M) and re.search(r"^tea/3 +\(empty\) +1\s*$", text, re.M)
    same = run(capsys, f"{rewards}:Brevity", "--ext.reward_args", '{"brevity": {"words": 5}}')[2]
    assert same.partition("sample")[2] == text.partition("sample")[2]
    assert run(capsys, f"{rewards}:Brevity")[2].partition("sample")[2] != text.partition("sample")[2]


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("Plain", "class", "no subclass of orlhf_ext.rewards.Reward"),
        ("Abstract", "class", r"has no score\(self, batch\)"),
        ("Short", "score", "gives 1 rewards for 12 samples"),
        ("NotANumber", "score", "nan among the rewards, for sample 'tea/3'"),
        ("Raises", "score", "raised ZeroDivisionError: .* on sample 'tea/3'"),
        ("Changing", "metrics", "'all', 'one' is given for some batches"),
        ("Random", "repeatability", "a second call gives sample 'sum/1'"),
        ("Slow --min_speed 1000", "speed", "less than --min_speed 1000"),
        ("NeedsTokenizer", "score", "cannot be set up: AttributeError: 'NoneType'"),
    ],
)
def test_each_way_to_be_wrong(rewards: str, capsys: pytest.CaptureFixture, name: str, check: str, said: str) -> None:
    code, found, text = run(capsys, *f"{rewards}:{name}".split())
    assert code == 1 and [what for what, (verdict, _) in found.items() if verdict == "wrong"] == [check], text
    assert re.search(said, found[check][1])


def test_what_is_only_told(rewards: str, capsys: pytest.CaptureFixture, tiny_model: Path) -> None:
    code, found, _ = run(capsys, f"{rewards}:Relative")
    lengths = [len(rollout.response) for rollout in load_rollouts(bundled(), None, 64)]
    apart = 1 - min(filter(None, lengths)) / max(lengths)  # alone, each but the empty one is the longest
    assert (code, found["independence"]) == (0, ("info", f"rollouts alone get rewards up to {apart:.3g} apart"))
    code, found, _ = run(capsys, f"{rewards}:Random", "--random_ok")
    assert (code, found["repeatability"][0]) == (0, "info")
    code, found, _ = run(capsys, f"{rewards}:Reference")
    assert (code, found["set-up"][0]) == (0, "info")
    code, found, _ = run(capsys, f"{rewards}:NeedsTokenizer", "--tokenizer", str(tiny_model))
    assert code == 0 and "tokens" not in found
    assert run(capsys, "length", "--length.target", "20")[1]["tokens"][0] == "info"


def test_records_of_ones_own(rewards: str, capsys: pytest.CaptureFixture, tmp_path: Path, tiny_model: Path) -> None:
    from orlhf_ext.models.folder import load_tokenizer

    records = [{"id": "a", "prompt": "hello", "completions": [" fine", " you"], "label": 7}]
    records[0]["finish_reasons"] = ["stop", "length"]
    write_jsonl(tmp_path / "own.jsonl", records)
    code, _, text = run(capsys, f"{rewards}:Brevity", "--data", "own.jsonl")
    assert code == 0 and "a/2" in text and "sum/1" not in text
    first, second = load_rollouts(tmp_path / "own.jsonl", None, 64)
    assert bytes(first.response_ids) == b" fine" and (first.label, first.truncated, second.truncated) == (
        7,
        False,
        True,
    )
    tokenizer = load_tokenizer(tiny_model)
    first, second = load_rollouts(tmp_path / "own.jsonl", tokenizer, 64)
    assert tokenizer.decode(first.token_ids) == "hello fine</s>"
    assert tokenizer.decode(second.response_ids) == " you"
    chat = {
        "prompt": [{"role": "user", "content": "hello"}],
        "completions": [[{"role": "assistant", "content": "hi"}]] * 2,
    }
    write_jsonl(tmp_path / "chat.jsonl", [chat])
    (first, _) = load_rollouts(tmp_path / "chat.jsonl", tokenizer, 64)
    assert (first.prompt, first.response) == ("\n\nHuman: hello\n\nAssistant: ", "hi")
    code, _, text = run(capsys, f"{rewards}:Brevity", "--data", "chat.jsonl")
    assert code == 2 and "is a chat, which a chat template must write out; give --tokenizer" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("checked_rewards:Brevty", "has no 'Brevty'; did you mean 'Brevity'"),
        ("lenght", "did you mean 'length'"),
        ("length", "give one of --length.target and --length.maximum"),
        ("length --length.targt 5", "unknown: --length.targt; did you mean '--length.target'"),
        ("length --length.target five", "--length.target five: input should be a valid integer"),
        ("http", "reward 'http' needs --http.url: the servers"),
        ("length --length.target 5 --data none.jsonl", "none.jsonl does not exist"),
        ("length --length.target 5 --limit 1", "--limit 1 is too small"),
    ],
)
def test_mistakes_are_one_sentence(rewards: str, capsys: pytest.CaptureFixture, words: str, said: str) -> None:
    code, _, text = run(capsys, *words.split())
    assert code == 2 and said in text and text.count("\n") == 1


def test_bundled_rollouts_try_what_breaks_rewards() -> None:
    rollouts = load_rollouts(bundled(), None, 64)
    responses = [rollout.response for rollout in rollouts]
    assert "" in responses and any(not text.isascii() for text in responses) and any("\n" in text for text in responses)
    assert {rollout.truncated for rollout in rollouts} == {True, False} and all(r.prompt for r in rollouts)
    assert len({rollout.id for rollout in rollouts}) == len(rollouts) == 12


def test_the_command_line_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(MODULE)
    script = """
        import sys
        sys.argv = ["orlhf-ext", "check", "reward", "my_rewards:Brevity", "--brevity.words", "5"]
        from orlhf_ext.__main__ import main
        main()
        sys.argv = ["orlhf-ext", "check", "reward", "length", "--help"]
        try:
            main()
        except SystemExit:
            pass
        heavy = {"torch", "transformers", "ray", "vllm", "deepspeed", "openrlhf", "numpy"} & set(sys.modules)
        print("HEAVY", sorted(heavy))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("HEAVY []\n") and "--length.unit" in done.stdout and "rollouts/s" in done.stdout


@pytest.mark.launcher
def test_watching_checks_again_after_a_change(tmp_path: Path) -> None:
    file, log = tmp_path / "mine.py", tmp_path / "log.txt"
    file.write_text("def f(batch): return [0.5] * len(batch)\n")
    words = [sys.executable, "-m", "orlhf_ext", "check", "reward", f"{file}:f", "--watch"]
    with log.open("w") as stream:
        watching = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)

    def until(count: int) -> None:
        end = time.monotonic() + 60
        while log.read_text().count("Ctrl-C ends it") < count:
            assert watching.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)

    try:
        until(1)
        assert "wrong" not in log.read_text() and "a function in orlhf-ext's form" in log.read_text()
        file.write_text("def f(batch) return\n")
        until(2)
        assert "cannot be imported: SyntaxError" in log.read_text()
        file.write_text("def f(batch): return [0.25, 1]\n")
        until(3)
        assert "gives 2 rewards for" in log.read_text()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.wait()


def test_watching_needs_a_file(capsys: pytest.CaptureFixture) -> None:
    assert "--watch has no file of yours" in failing(capsys, check.main, "reward", "length", "--watch")
