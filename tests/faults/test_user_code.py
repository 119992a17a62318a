"""Code of the user's own that leaves the process, raises, or cannot be read, at every place where it is run."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import write

from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet
from orlhf_ext.rewards.extension import Rewards
from orlhf_ext.rewards.remote import Holder
from orlhf_ext.rewards.selection import build, choose

_numbers = itertools.count(1)

#: what a line of the user's does, and what is said of it
HOW = {
    "exit": ("import sys; sys.exit(0)", r"SystemExit: sys\.exit\(0\)"),
    "quit": ("raise SystemExit", r"SystemExit: sys\.exit\(\)"),
    "raise": ("raise KeyError('gone')", "KeyError: 'gone'"),
    "base": ("raise type('Odd', (BaseException,), {})('why')", "Odd: why"),
    "deeper": ("import json; json.loads('{')", "JSONDecodeError: Expecting property name"),
}
#: only where a module is read
UNREAD = {
    "syntax": ("def broken(:", "SyntaxError: invalid syntax"),
    "import": ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
}

PARTS = {
    "extension": """
        from orlhf_ext.extensions import Extension

        class It(Extension):
            name = "it"
            launchers = ("train_dpo",)
            replacements = {"openrlhf.trainer.dpo_trainer:DPOTrainer": "json:JSONDecoder"}

            def __init__(self):
                pass  # init

            def add_flags(self, parser):
                pass  # add_flags

            def check(self, args):
                pass  # check
        """,
    "reward": """
        from orlhf_ext.rewards import Reward

        class It(Reward):
            def __init__(self, a: int = 1):
                pass  # init

            def check(self, args):
                pass  # check

            def setup(self, context):
                pass  # setup

            def score(self, batch):
                pass  # score
                return [1.0] * len(batch)

            def teardown(self):
                pass  # teardown
        """,
    "builder": """
        class It:
            name, help = "it", "it"

            def __init__(self):
                pass  # init

            def add_arguments(self, parser):
                pass  # add_arguments

            def run(self, args):
                pass  # run
                yield 1
        """,
    "scorer": """
        class It:
            def __init__(self):
                pass  # init

            def __call__(self, texts):
                pass  # call
                return [0.5] * len(texts)
        """,
}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes a module in which one line is the fault: ``planted("reward", "score", "exit")`` gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def plant(part: str, place: str, how: str) -> str:
        name = f"planted_{next(_numbers)}"
        lines = re.sub("^        ", "", PARTS[part], flags=re.M).strip().split("\n")
        line = ({**HOW, **UNREAD})[how][0]
        if place == "import":
            lines.insert(0, line)
        else:
            lines = [text.replace("pass", line) if text.endswith(f"# {place}") else text for text in lines]
        (tmp_path / f"{name}.py").write_text("\n".join(lines) + "\n")
        return name

    yield plant
    for name in set(sys.modules) - before:
        if name.startswith("planted_"):
            del sys.modules[name]


def said(name: str, how: str, *before: str) -> str:
    """The sentence: what was being done, what happened, the user's file and line."""
    return ".*".join([*before, ({**HOW, **UNREAD})[how][1], rf"\({name}\.py line \d+\)"])


@pytest.mark.parametrize("how", [*HOW, *UNREAD])
@pytest.mark.parametrize(
    "words",
    [
        "extension: launch train_dpo --ext.use M:It",
        "reward: launch train_ppo_ray --ext.reward M:It=0.5",
        "extension: doctor --ext.use M:It",
        "reward: doctor --ext.reward M:It",
        "reward: check reward M:It",
        "builder: build_data M:It",
        "scorer: deadend.score --data_file a.jsonl --model_name_or_path M:It",
    ],
)
def test_when_it_is_imported(fault, planted: Callable, tmp_path: Path, words: str, how: str) -> None:
    part, _, line = words.partition(": ")
    name = planted(part, "import", how)
    write(tmp_path / "a.jsonl", [{"prompt": {"text": "a"}, "generations": [{"text": "b"}]}])
    fault(*line.replace("M:", f"{name}:").split(), says=said(name, how, f"error: '{name}:It' cannot be imported: "))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("place", "words", "before"),
    [
        ("init", "extension: launch train_dpo --ext.use M:It", "--ext.use M:It cannot be made:"),
        ("add_flags", "extension: launch train_dpo --ext.use M:It", "extension 'it' cannot add its flags:"),
        ("add_flags", "extension: doctor --ext.use M:It", "extension 'it' cannot add its flags:"),
        ("init", "reward: check reward M:It", "reward 'it' refuses its arguments:"),
        ("init", "builder: build_data M:It", "builder M:It cannot be made:"),
        ("add_arguments", "builder: build_data M:It", "builder M:It cannot read its options:"),
        ("run", "builder: build_data M:It", "builder M:It raised"),
        ("init", "scorer: deadend.score --data_file a.jsonl --model_name_or_path M:It", "M:It cannot be made:"),
        ("call", "scorer: deadend.score --data_file a.jsonl --model_name_or_path M:It", "M:It raised"),
    ],
)
def test_when_it_is_called(
    fault, planted: Callable, tmp_path: Path, place: str, words: str, before: str, how: str
) -> None:
    part, _, line = words.partition(": ")
    name = planted(part, place, how)
    write(tmp_path / "a.jsonl", [{"prompt": {"text": "a"}, "generations": [{"text": "b"}]}])
    says = said(name, how, before.replace("M:", f"{name}:"))
    if (part, place, how) == ("reward", "init", "deeper"):  # a ValueError is its way to refuse an argument
        says = f"{before} Expecting property name"
    fault(*line.replace("M:", f"{name}:").split(), says=says)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("place", "finding"),
    [("setup", "wrong score +reward 'it' cannot be set up:"), ("score", "wrong score +reward 'it' raised"),
     ("teardown", "wrong tear-down +reward 'it' cannot be torn down:")],
)  # fmt: skip
def test_check_reward_says_it(
    fault, planted: Callable, monkeypatch: pytest.MonkeyPatch, place: str, finding: str, how: str
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    name = planted("reward", place, how)
    fault("check", "reward", f"{name}:It", says=said(name, how, finding.replace(" ", " +", 1)), rc=1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("place", ["check", "setup", "score", "teardown"])
def test_a_run_says_it(fault, planted: Callable, place: str, how: str) -> None:
    name = planted("reward", place, how)
    chosen = choose([f"{name}:It"])
    batch = RewardBatch([Rollout("r1", "a", "b"), Rollout("r2", "a", "c")])

    def run() -> None:
        if place == "check":
            flags = {"algo": SimpleNamespace(kl=SimpleNamespace(init_coef=0.1)), "it": SimpleNamespace(a=None)}
            ext = SimpleNamespace(
                reward=[f"{name}:It"], reward_combine="sum", reward_args=None, reward_actors=1, eval_top_k=-1,
                reward_timeout=None,
                reference_batch_tokens=9, rollouts_dir=None, eval_on_start=False, eval_top_p=1.0,
            )  # fmt: skip
            space = SimpleNamespace
            Rewards(chosen).check(
                space(
                    ext=ext, **flags, reward=space(remote_url=None), eval=space(dataset=None),
                    data=space(prompt_dataset=None), train=space(agent_func_path=None, async_enable=False),
                )
            )  # fmt: skip
        rewards = build(chosen, {})
        rewards.setup(RewardContext())
        rewards.score(batch)
        rewards.teardown()

    before = {"check": "cannot check the run:", "setup": "cannot be set up:", "score": "raised"}
    what = before.get(place, "cannot be torn down:")
    fault.call(run, says=said(name, how, f"^reward 'it' {what}"))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("place", ["setup", "teardown"])
def test_a_copy_in_an_actor_says_it(fault, planted: Callable, place: str, how: str) -> None:
    pytest.importorskip("torch")
    name = planted("reward", place, how)
    holder = Holder(build(choose([f"{name}:It"]), {}).rewards[0])
    call = (lambda: holder.setup(RewardContext())) if place == "setup" else holder.teardown
    fault.call(call, says=said(name, how, "^a copy of it raised"))


def test_the_sample_is_named_whatever_is_raised(fault, planted: Callable) -> None:
    name = planted("reward", "score", "exit")
    path = Path(f"{name}.py")
    path.write_text(path.read_text().replace("import sys; ", "import sys\n        if 'c' in batch.responses: "))
    rewards = RewardSet(build(choose([f"{name}:It"]), {}).rewards)
    batch = RewardBatch([Rollout("r1", "a", "b"), Rollout("r2", "a", "c")])
    fault.call(rewards.score, batch, says=said(name, "exit", "").replace(r"\(0\)", r"\(0\) on sample 'r2'", 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('launchers = ("train_dpo",)', "launchers = 'train_dpo'"), "has 'train_dpo' as launchers; give a tuple"),
        (('launchers = ("train_dpo",)', "launchers = (1,)"), "as launchers; give a tuple of names"),
        (('name = "it"', "name = 3"), "is named 3; give it a name that is text"),
        (('{"openrlhf.trainer.dpo_trainer:DPOTrainer": "json:JSONDecoder"}', "['a:b']"), r"has \['a:b'\] as replac"),
        (('"json:JSONDecoder"', "dict"), "as replacements; give a dict"),
        (('"json:JSONDecoder"', "'json'"), "as replacements; give a dict"),
    ],
)
def test_extensions_that_are_none(fault, planted: Callable, tmp_path: Path, change: tuple, says: str) -> None:
    name = planted("extension", "nowhere", "exit")
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text().replace(*change))
    fault("launch", "train_dpo", "--ext.use", f"{name}:It", says=says)


@pytest.mark.parametrize("how", HOW)
def test_the_type_of_a_flag(fault, planted: Callable, tmp_path: Path, how: str) -> None:
    name = planted("extension", "nowhere", "exit")
    path = tmp_path / f"{name}.py"
    lines = [f"def read(text):\n    {HOW[how][0]}\n", path.read_text()]
    path.write_text("".join(lines).replace("pass  # add_flags", "parser.add_argument('--it.a', type=read)"))
    says = said(name, how, "a flag of an extension cannot be read:")
    if how == "deeper":  # a ValueError is argparse's way to refuse a value
        says = r"argument --it\.a: invalid read value: 'x'"
    fault("launch", "train_dpo", "--ext.use", f"{name}:It", "--it.a", "x", says=says)


def test_a_builder_that_gives_something_else(fault, planted: Callable) -> None:
    name = planted("builder", "nowhere", "exit")
    fault("build_data", f"{name}:It", says=f"builder {name}:It gives a int; yield data_builders.common.Built")


def test_a_builder_that_needs_a_package(fault, planted: Callable, tmp_path: Path) -> None:
    name = planted("builder", "nowhere", "exit")
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text().replace("pass  # run", "import no_such_package_here"))
    fault("build_data", f"{name}:It", says="this needs no_such_package_here, which is not installed; pip install")


def test_the_listing_of_builders_goes_on_without_a_broken_one(
    fault, planted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orlhf_ext import build_data

    name = planted("builder", "import", "exit")
    monkeypatch.setattr(build_data, "names", lambda group: {"theirs": f"{name}:It", "hh": "data_builders.hh:Builder"})
    monkeypatch.setattr(build_data, "resolve", lambda group, spec: _load(build_data.names(group)[spec]))
    fault("build_data", "--help", says=rf"(?s)hh +\w.*theirs +.*cannot be loaded: .*\({name}.py line 1\)", rc=0)


def _load(target: str) -> object:
    from orlhf_ext.extensions import load

    return load(target)


def test_extensions_that_nobody_asked_for_are_left_out(
    fault, planted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another package's broken extension stops no run, and is named in the help."""
    from orlhf_ext import extensions
    from orlhf_ext.launch import flags

    name = planted("extension", "import", "exit")
    known = {"theirs": f"{name}:It", "exo": "orlhf_ext.exo:EXO"}
    for module in (flags, extensions):
        monkeypatch.setattr(module, "names", lambda group: known)
    fault("launch", "--help", says=rf"(?s)--exo\.beta_pi.*left out: '{name}:It' cannot be imported: SystemExit", rc=0)
    fault("launch", "train_dpo", "--exo.beta_pi", "1", says="belongs to the extension 'exo'; add --ext.use exo")


INTERRUPT = "import signal; signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("part", "place", "words"),
    [
        ("extension", "import", "launch train_dpo --ext.use M:It"),
        ("extension", "add_flags", "launch train_dpo --ext.use M:It"),
        ("reward", "setup", "check reward M:It"),
        ("reward", "score", "check reward M:It"),
        ("reward", "teardown", "check reward M:It"),
        ("builder", "run", "build_data M:It"),
        ("scorer", "call", "deadend.score --data_file a.jsonl --model_name_or_path M:It"),
    ],
)
def test_ctrl_c_in_it_is_ctrl_c(
    fault, planted: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str, place: str, words: str
) -> None:
    monkeypatch.setitem(HOW, "interrupt", (INTERRUPT, ""))
    name = planted(part, place, "interrupt")
    write(tmp_path / "a.jsonl", [{"prompt": {"text": "a"}, "generations": [{"text": "b"}]}])
    fault(*words.replace("M:", f"{name}:").split(), says="orlhf-ext: interrupted; finished files are kept", rc=130)


def test_ctrl_c_says_what_is_kept(fault, planted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orlhf_ext.deadend import score

    monkeypatch.setattr(score, "_AT_ONCE", 4)
    name = planted("scorer", "nowhere", "exit")
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text().replace("pass  # call", f"if '9' in texts: {INTERRUPT}"))
    rows = [{"prompt": {"text": "a"}, "generations": [{"text": f"{i}"}]} for i in range(40)]
    data = write(tmp_path / "a.jsonl", rows)
    before = data.read_bytes()
    words = ("--data_file", data, "--save_file", tmp_path / "b.jsonl", "--batch_size", 2)
    kept = r"interrupted; 4 finished pieces are kept in .*\.b\.jsonl\.part: run the same command again to go on"
    fault("deadend.score", *words, "--model_name_or_path", f"{name}:It", says=kept, rc=130)
    path.write_text(path.read_text().replace(INTERRUPT, "pass"))
    del sys.modules[name]
    score.main([str(word) for word in (*words, "--model_name_or_path", f"{name}:It")])
    assert len((tmp_path / "b.jsonl").read_bytes().splitlines()) == 40 and data.read_bytes() == before
    assert json.loads((tmp_path / "b.meta.json").read_text())["command"] == "deadend.score"
