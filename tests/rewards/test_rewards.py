"""Rewards: their arguments, how several are combined, what is refused, and the ready-made ones that need no model."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.rewards import Reward, RewardBatch, RewardContext, RewardResult, Rollout
from orlhf_ext.rewards.arguments import make
from orlhf_ext.rewards.combine import RewardSet, check_result, score_one
from orlhf_ext.rewards.format import Format
from orlhf_ext.rewards.length import Length
from orlhf_ext.rewards.selection import FLAG_GROUPS, add_flags, build, choose


def batch_of(*responses: str, **more: Any) -> RewardBatch:
    """Rollouts ``r0``, ``r1``, ...; a token is a byte."""
    return RewardBatch(
        [
            Rollout(
                id=f"r{i}",
                prompt="ask: ",
                response=text,
                label=f"label {i}",
                token_ids=list(f"ask: {text}".encode()),
                action_mask=[0] * 5 + [1] * len(text.encode()),
                **more,
            )
            for i, text in enumerate(responses)
        ]
    )


@dataclass
class Given(Reward):
    """Gives what it was made with."""

    name: ClassVar[str] = "given"
    result: Any = None

    def score(self, batch: RewardBatch) -> Any:
        return self.result(batch) if callable(self.result) else self.result


class Other(Given):
    pass


class BrevityOfHTML(Given):
    pass


def test_a_batch_is_its_rollouts_and_its_columns() -> None:
    batch = batch_of("one", "three")
    assert (len(batch), batch[1].response, batch[-1].id) == (2, "three", "r1")
    assert batch.responses == [rollout.response for rollout in batch] == ["one", "three"]
    assert (batch.ids, batch.prompts, batch.labels) == (["r0", "r1"], ["ask: "] * 2, ["label 0", "label 1"])
    assert bytes(batch[1].response_ids) == b"three"
    assert [sum(mask) for mask in batch.action_masks] == [3, 5] and bytes(batch.token_ids[0]) == b"ask: one"
    assert batch.take([1]).ids == ["r1"]


def test_names_come_from_the_class() -> None:
    assert (Given.name, Other.name, BrevityOfHTML.name) == ("given", "other", "brevity_of_html")


# results


@pytest.mark.parametrize(
    "result",
    [
        [1, 0.5],
        (1.0, 0.5),
        [True, 0.5],
        torch.tensor([1.0, 0.5], requires_grad=True),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        [torch.tensor(1.0), np.float32(0.5)],
        np.array([1.0, 0.5]),
        [np.bool_(True), np.float64(0.5)],
        RewardResult([1.0, 0.5]),
    ],
)
def test_results_become_floats(result: Any) -> None:
    rewards = score_one(Given(result), batch_of("a", "b")).rewards
    assert rewards == [1.0, 0.5] and {type(value) for value in rewards} == {float}


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, r"reward 'given' gives None as rewards"),
        (1.0, r"gives a float as rewards"),
        ("no", r"gives a str as rewards"),
        ({"a": 1}, r"gives a dict as rewards"),
        ([1.0], r"gives 1 rewards for 2 samples"),
        ([1.0] * 3, r"gives 3 rewards for 2 samples"),
        (torch.ones(2, 1), r"shape \(2, 1\) for 2 samples; the shape is \(2,\)"),
        (torch.tensor(1.0), r"shape \(\) for 2"),
        (np.ones(3), r"shape \(3,\) for 2"),
        ([1.0, math.nan], r"nan among the rewards, for sample 'r1'"),
        (torch.tensor([math.inf, 0]), r"inf among the rewards, for sample 'r0'"),
        ([1.0, 1e39], r"1e\+39 among the rewards, for sample 'r1'; give a finite float32"),
        ([1.0, 10**400], r"for sample 'r1'; give a finite float32"),
        ([None, 1.0], r"None among the rewards, for sample 'r0'"),
        (["1", 1.0], r"a str among the rewards, for sample 'r0'"),
        ([1j, 1.0], r"a complex among the rewards, for sample 'r0'"),
        ([[1.0], [2.0]], r"a list among the rewards, for sample 'r0'"),
        (RewardResult([1, 2], {"m": [1]}), r"gives 1 values of metric 'm' for 2 samples"),
        (RewardResult([1, 2], {"m": [1, None]}), r"None among the values of metric 'm', for sample 'r1'"),
        (RewardResult([1, 2], {"m": 3.0}), r"gives a float as values of metric 'm'"),  # type: ignore[dict-item]
        (RewardResult([1, 2], [{"m": 1}]), r"gives metrics as a list"),  # type: ignore[arg-type]
        (RewardResult([1, 2], {1: [1, 2]}), r"names a metric 1"),  # type: ignore[dict-item]
        (RewardResult([1, 2], {}, [1, math.nan]), r"nan among the scores, for sample 'r1'"),
    ],
)
def test_what_is_no_result_is_refused(result: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        score_one(Given(result), batch_of("a", "b"))


def test_an_exception_names_reward_sample_and_cause() -> None:
    def fail_on_b(batch: RewardBatch) -> list[float]:
        return [{"a": 1.0, "c": 2.0}[text] for text in batch.responses]

    rewards = RewardSet([Given(fail_on_b)])
    with pytest.raises(
        UserError, match=r"^reward 'given' raised KeyError: 'b' on sample 'r1' \(.*test_rewards\.py line \d+\)$"
    ) as caught:
        rewards.score(batch_of("a", "b", "c"))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(UserError, match="on sample 'r0'"):
        rewards.score(batch_of("b"))

    def fail_together(batch: RewardBatch) -> list[float]:
        return [1.0 / (3 - len(batch))] * len(batch)

    with pytest.raises(UserError, match=r"ZeroDivisionError: .* on a batch of 3 samples, 'r0' to 'r2'"):
        score_one(Given(fail_together), batch_of("a", "b", "c"))

    def user_error(batch: RewardBatch) -> list[float]:
        raise UserError("the label is no JSON; build the data again")

    with pytest.raises(UserError, match=r"^reward 'given': the label is no JSON; build the data again$"):
        score_one(Given(user_error), batch_of("a"))


def test_images_and_a_text_reward() -> None:
    batch = batch_of("a", images=["cat.png"])
    with pytest.raises(UserError, match=r"reads text only, and the prompt of sample 'r0' has images"):
        score_one(Given([1.0]), batch)
    assert score_one(Given([1.0]), batch_of("a", images=[])).rewards == [1.0]

    class Sees(Given):
        reads_images = True

    assert score_one(Sees([1.0]), batch).rewards == [1.0]


# combining

numbers = st.floats(-1e6, 1e6)
table = st.integers(1, 4).flatmap(
    lambda rewards: st.lists(st.lists(numbers, min_size=rewards, max_size=rewards), min_size=1, max_size=6)
)


def set_of(rows: list[list[float]], weights: list[float] | None, how: str) -> RewardSet:
    made = []
    for index, column in enumerate(zip(*rows, strict=True)):
        cls = type(f"R{index}", (Given,), {})
        made.append(cls(RewardResult(list(column), {"twice": [2 * value for value in column]})))
    return RewardSet(made, weights, how)


@given(table, st.data())
def test_a_weighted_sum_is_one(rows: list[list[float]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(-100, 100), min_size=len(rows[0]), max_size=len(rows[0])))
    combined = set_of(rows, weights, "sum").score(batch_of(*["x"] * len(rows)))
    wanted = np.array(rows) @ np.array(weights)
    assert combined.rewards == pytest.approx(wanted.tolist(), rel=1e-9, abs=1e-6)
    assert combined.scores == combined.rewards
    for index, column in enumerate(zip(*rows, strict=True)):  # logged apart, and before weighting
        assert combined.columns[f"reward/r{index}"] == list(column)
        assert combined.columns[f"r{index}/twice"] == [2 * value for value in column]
    assert len(combined.columns) == 2 * len(rows[0])


@given(table)
def test_a_minimum_is_one(rows: list[list[float]]) -> None:
    combined = set_of(rows, None, "min").score(batch_of(*["x"] * len(rows)))
    assert combined.rewards == [min(row) for row in rows]


@given(table, st.randoms())
def test_the_order_of_rewards_does_not_matter(rows: list[list[float]], random: Any) -> None:
    order = list(range(len(rows[0])))
    random.shuffle(order)
    batch = batch_of(*["x"] * len(rows))
    shuffled = [[row[i] for i in order] for row in rows]
    for how in ("sum", "min"):
        assert set_of(rows, None, how).score(batch).rewards == set_of(shuffled, None, how).score(batch).rewards


def test_one_reward_alone_is_unchanged() -> None:
    assert set_of([[0.1], [0.3]], None, "sum").score(batch_of("a", "b")).rewards == [0.1, 0.3]


def test_a_weight_of_zero_only_logs() -> None:
    combined = RewardSet([Given([3.0]), Other([7.0])], [1.0, 0.0]).score(batch_of("a"))
    assert combined.rewards == [3.0] and combined.columns == {"reward/given": [3.0], "reward/other": [7.0]}


def test_scores_for_filtering_are_combined_where_a_reward_has_them() -> None:
    rewards = [Given(RewardResult([5.0], scores=[1.0])), Other([0.5])]
    assert RewardSet(rewards, [1.0, 2.0]).score(batch_of("a")).scores == [2.0]
    assert RewardSet(rewards, how="min").score(batch_of("a")).scores == [0.5]


def test_metrics_that_change_from_batch_to_batch() -> None:
    def by_length(batch: RewardBatch) -> RewardResult:
        ones = [1.0] * len(batch)
        return RewardResult(ones, {"a": ones} | ({"b": ones} if len(batch) > 1 else {}))

    rewards = RewardSet([Given(by_length)])
    assert set(rewards.score(batch_of("x")).columns) == {"reward/given", "given/a"}
    with pytest.raises(UserError, match="'given' gives 'b' in some batches and not in others"):
        rewards.score(batch_of("x", "y"))
    assert rewards.score(batch_of()).columns == {"reward/given": [], "given/a": []}  # nothing to score is no error


def test_a_sum_that_overflows_names_the_sample() -> None:
    with pytest.raises(UserError, match=r"weighted sum of rewards is 6e\+38 for sample 'r1'"):
        RewardSet([Given([1.0, 3e38])], [2.0]).score(batch_of("a", "b"))


@pytest.mark.parametrize(
    ("rewards", "weights", "how", "said"),
    [
        ([], None, "sum", "no reward is given"),
        ([Given()], None, "mean", "--ext.reward_combine mean is unknown"),
        ([Given()], None, "mim", "did you mean 'min'"),
        ([Given()], [1.0], "min", "leave the weights out"),
        ([Given(), Other()], [1.0], "sum", "1 weights are given for 2 rewards"),
        ([Given(), Given()], None, "sum", "two rewards are named 'given'"),
    ],
)
def test_sets_that_make_no_sense(rewards: list, weights: list | None, how: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        RewardSet(rewards, weights, how)


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match="a reward is named 'a/b'"):
        RewardSet([type("X", (Given,), {"name": "a/b"})()])


def test_setup_and_teardown() -> None:
    calls = []

    class Lives(Given):
        def setup(self, context: RewardContext) -> None:
            calls.append(context.device)

        def teardown(self) -> None:
            calls.append("down")
            raise ValueError("late")

    class LivesToo(Lives):
        pass

    rewards = RewardSet([Lives(), LivesToo()])
    rewards.setup(RewardContext(device="cuda"))
    with pytest.raises(UserError, match="reward 'lives' cannot be torn down: ValueError: late"):
        rewards.teardown()
    assert calls == ["cuda", "cuda", "down", "down"]

    class Fails(Given):
        def setup(self, context: RewardContext) -> None:
            raise OSError("no such folder")

    with pytest.raises(UserError, match="reward 'fails' cannot be set up: OSError: no such folder"):
        RewardSet([Fails()]).setup(RewardContext())


def test_the_reference_model_where_there_is_none() -> None:
    class Needs(Given):
        needs_reference = True

        def setup(self, context: RewardContext) -> None:
            assert context.score_reference is not None
            self.logps = context.score_reference([[1, 2, 3]], [[0, 1, 1]])

    with pytest.raises(UserError, match=r"'needs' needs the reference model.*--algo.kl.init_coef"):
        RewardSet([Needs()]).setup(RewardContext())
    reward = Needs()
    RewardSet([reward]).setup(RewardContext(score_reference=lambda ids, masks: [[-1.0] * sum(mask) for mask in masks]))
    assert reward.logps == [[-1.0, -1.0]]


# arguments


@dataclass
class Typed(Reward):
    """All kinds of arguments."""

    target: Annotated[int, "what 100 % is"]
    scale: float = 1.0
    kind: Literal["a", "b"] = "a"
    strict: bool = False
    words: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.target < 0:
            raise ValueError("--typed.target is negative")

    def score(self, batch: RewardBatch) -> list[float]:
        return [self.scale * len(text) / self.target for text in batch.responses]


class ByInit(Reward):
    def __init__(self, words: int = 50, *, more: bool = False) -> None:
        self.words, self.more = words, more

    def score(self, batch: RewardBatch) -> list[float]:
        return [float(self.words)] * len(batch)


SPEC = f"{__name__}:Typed"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``module:attribute`` find this file."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Typed.__module__])


def built(specs: list[str], words: str = "", how: str = "sum", reward_args: str | None = None) -> RewardSet:
    chosen = choose(specs)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, chosen)
    assert parser.format_help()
    return build(chosen, vars(parser.parse_args(words.split())), how, reward_args)


def test_flags_and_json_give_the_same() -> None:
    flags = "--typed.target 4 --typed.scale 2 --typed.kind b --typed.strict --typed.words x y"
    flags += ' --typed.sizes {"s":1} --typed.path a/b'
    text = '{"typed": {"target": 4, "scale": 2, "kind": "b", "strict": true, "words": ["x", "y"], '
    text += '"sizes": {"s": 1}, "path": "a/b"}}'
    (by_flags,), (by_json,) = built([SPEC], flags).rewards, built([SPEC], reward_args=text).rewards
    assert by_flags == by_json == Typed(4, 2.0, "b", True, ["x", "y"], {"s": 1}, Path("a/b"))
    (mixed,) = built([SPEC], "--typed.target 4 --typed.strict false", reward_args='{"typed": {"kind": "b"}}').rewards
    assert mixed == Typed(4, kind="b")
    (by_init,) = built([f"{__name__}:ByInit"], "--by_init.words 3 --by_init.more").rewards
    assert (by_init.words, by_init.more) == (3, True)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        ("", None, "reward 'typed' needs --typed.target: what 100 % is"),
        ("--typed.target x", None, "--typed.target x: input should be a valid integer"),
        ("--typed.target 4.5", None, "--typed.target 4.5: input should be a valid integer"),
        ("--typed.target -1", None, "reward 'typed' refuses its arguments: --typed.target is negative"),
        ("--typed.target 1 --typed.kind c", None, "--typed.kind c: input should be 'a' or 'b'"),
        ("--typed.target 1 --typed.strict perhaps", None, "--typed.strict perhaps: input should be a valid boolean"),
        ("--typed.target 1 --typed.sizes 3", None, "--typed.sizes 3: "),
        ("", '{"typed": {"target": "4"}}', "'target' of reward 'typed' is \"4\": input should be a valid integer"),
        ("", '{"typed": {"target": true}}', "'target' of reward 'typed' is true"),
        ("", '{"typed": {"targt": 4}}', "has no argument 'targt'; did you mean 'target'"),
        ("", '{"type": {"target": 4}}', "names 'type', which --ext.reward does not; did you mean 'typed'"),
        ("", '{"typed": 4}', "not an object of objects"),
        ("", "{", "--ext.reward_args is not JSON"),
        ("--typed.target 4", '{"typed": {"target": 4}}', "--typed.target is in --ext.reward_args, too"),
    ],
)
def test_arguments_that_are_wrong(words: str, text: str | None, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        built([SPEC], words, reward_args=text)


def test_classes_whose_arguments_no_flag_can_give() -> None:
    class Bare(Given):
        def __init__(self, words=3) -> None:  # type: ignore[no-untyped-def]
            pass

    class Stars(Given):
        def __init__(self, *words: int) -> None:
            pass

    for cls, said in ((Bare, "its argument 'words' has no type"), (Stars, r"takes \*words: 'int', which no flag")):
        with pytest.raises(UserError, match=said):
            make(cls, {}, {})


# choosing


def test_weights_stand_behind_the_name() -> None:
    assert [(item.cls, item.weight) for item in choose(["length", f"{__name__}:Given=-0.5"])] == [
        (Length, None),
        (Given, -0.5),
    ]
    rewards = built(["length=2", f"{__name__}:Given"], "--length.target 5")
    assert (rewards.weights, rewards.how) == ([2.0, 1.0], "sum")
    with pytest.raises(UserError, match="leave the weights out"):
        built(["length=1"], "--length.target 5", "min")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lenght", "'lenght' is none of the rewards.*did you mean 'length'"),
        ("length=x", "--ext.reward length=x: the weight 'x' is not a finite number"),
        ("length=", "the weight '' is not a finite number"),
        ("length=nan", "the weight 'nan' is not a finite number"),
        ("math:pi", "reward math:pi is 3.14.*no subclass of orlhf_ext.rewards.Reward"),
        ("math:sqrt", "no subclass of orlhf_ext.rewards.Reward"),
        ("pathlib:Path", "no subclass of orlhf_ext.rewards.Reward"),
        ("orlhf_ext.rewards:Reward", r"has no score\(self, batch\)"),
        ("no_such_module_here:X", "there is no module 'no_such_module_here'"),
    ],
)
def test_specs_that_name_no_reward(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose([spec])


def test_a_module_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_rewards_module.py").write_text("import no_such_thing_at_all")
    (tmp_path / "unread_rewards_module.py").write_text("def score(:")
    with pytest.raises(UserError, match=r"cannot be imported: ModuleNotFoundError: .*no_such_thing_at_all"):
        choose(["broken_rewards_module:X"])
    with pytest.raises(UserError, match="cannot be imported: SyntaxError"):
        choose(["unread_rewards_module:X"])


def test_no_reward_takes_the_name_of_a_group_of_flags() -> None:
    source = Path(find_spec("openrlhf").origin).parent / "cli" / "train_ppo_ray.py"  # type: ignore[union-attr,arg-type]
    groups = set(re.findall(r'"--([a-z]+)\.', source.read_text(encoding="utf-8")))
    assert groups <= FLAG_GROUPS, "a group of flags is new in this OpenRLHF"
    with pytest.raises(UserError, match="is named 'critic', like flags of OpenRLHF"):
        choose([f"{__name__}:Critic"])


class Critic(Given):
    pass


class Again(Typed):
    name = "typed"


def test_two_rewards_of_one_name() -> None:
    for specs in ([SPEC, SPEC], [SPEC, f"{__name__}:Again"]):
        with pytest.raises(UserError, match="two rewards are named 'typed'; make a subclass"):
            choose(specs)


# the ready-made ones


def test_length() -> None:
    batch = batch_of("", "ab cd", "x" * 10, "x" * 20, "é" * 10)
    assert Length(target=10).score(batch).metrics == {"length": [0, 5, 10, 20, 20]}
    assert Length(target=10).score(batch).rewards == [0, 0.5, 1, 0.5, 0.5]
    assert Length(maximum=10).score(batch).rewards == [1, 1, 1, 0.5, 0.5]
    assert Length(maximum=10, unit="characters").score(batch).rewards == [1, 1, 1, 0.5, 1]
    assert Length(target=4, unit="words").score(batch).rewards == [0, 0.5, 0.25, 0.25, 0.25]
    for wrong in ({}, {"target": 1, "maximum": 1}):
        with pytest.raises(ValueError, match=r"--length\.target"):
            Length(**wrong)


@given(st.integers(1, 50), st.lists(st.integers(0, 200), min_size=2, max_size=6))
def test_length_is_never_flat(target: int, lengths: list[int]) -> None:
    batch = batch_of(*["x" * n for n in lengths])
    rewards = Length(target=target).score(batch).rewards
    for n, a in zip(lengths, rewards, strict=True):
        assert 0 <= a <= 1 and (a == 1) == (n == target)
        for m, b in zip(lengths, rewards, strict=True):
            if n < m <= target or target <= m < n:
                assert b > a


def test_format() -> None:
    batch = batch_of("<think>a</think> 4", " 42 ", "<think>\n</think>", "")
    assert Format(r"\d+").score(batch) == [1, 1, 0, 0]
    assert Format(r"\d+", "fullmatch").score(batch) == [0, 1, 0, 0]
    assert Format(r"(?s)<think>.*</think>").score(batch) == [1, 0, 1, 0]
    with pytest.raises(UserError, match=r"--format.pattern \(a is not a regular expression"):
        built(["format"], "--format.pattern (a")


def test_choosing_and_scoring_load_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from orlhf_ext.rewards import selection\n"
        "chosen = selection.choose(['length', 'format', 'http', 'model'])\n"
        "heavy = {'torch', 'transformers', 'ray', 'vllm', 'deepspeed', 'openrlhf', 'requests', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_check_result_needs_no_reward() -> None:
    checked = check_result("far", RewardResult([1.0], {"a": [2]}), batch_of("x"))  # as from another process
    assert (checked.rewards, checked.metrics) == ([1.0], {"a": [2.0]})
