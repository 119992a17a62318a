"""Mistakes in the data and flags of ``train_ppo_ray``: each ends in one sentence before Ray is started."""

from __future__ import annotations

import json
import shutil
import socket
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import meta, read, run_python, write

from data_builders.story.prompts import from_messages
from orlhf_ext.backends import machine
from orlhf_ext.cli.errors import UserError
from orlhf_ext.launch.preflight import check_arguments
from orlhf_ext.rewards.base import RewardContext
from orlhf_ext.rewards.extension import Rewards
from orlhf_ext.rewards.http import HTTP
from orlhf_ext.rewards.selection import choose
from orlhf_ext.vrcli.reward import VRCLI

pytest.importorskip("openrlhf")


def nested(model: Path, **changes: Any) -> SimpleNamespace:
    """The launcher's nested arguments, with those of rewards; ``__`` in a name stands for a dot."""
    from openrlhf.utils.config import hierarchize

    flags: dict[str, Any] = {
        "actor.model_name_or_path": str(model),
        "algo.kl.init_coef": 0.01,
        "data.prompt_dataset": "prompts.jsonl",
        "data.input_key": "prompt",
        "data.label_key": "label",
        "data.input_template": None,
        "data.apply_chat_template": False,
        "data.image_key": "images",
        "data.max_len": 400,
        "data.max_samples": 10**8,
        "ds.attn_implementation": "sdpa",
        "ds.packing_samples": False,
        "ds.param_dtype": "bf16",
        "eval.dataset": None,
        "ext.reward": ["vrcli"],
        "ext.reward_combine": "sum",
        "ext.reward_args": None,
        "ext.reward_timeout": None,
        "ext.reward_actors": 1,
        "ext.reference_batch_tokens": 1000,
        "ext.rollouts_dir": None,
        "ext.eval_on_start": False,
        "ext.eval_top_k": -1,
        "ext.eval_top_p": 1.0,
        "reward.remote_url": None,
        "rollout.max_new_tokens": 16,
        "rollout.n_samples_per_prompt": 2,
        "train.agent_func_path": None,
        "train.async_enable": False,
        "train.batch_size": 4,
    }
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return hierarchize(Namespace(**flags))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the run starts, with four prompts."""
    write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}", "label": "x"} for i in range(4)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


# the data that the launcher reads

LINE = '{"prompt": "a", "label": "b"}\n'


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        (None, {}, "new.jsonl does not exist; give a .jsonl"),
        ("", {}, "--data.prompt_dataset new.jsonl has no record; build the data again"),
        (LINE + "{oops\n", {}, "new.jsonl line 2 is not JSON"),
        (LINE + '{"label": "b"}\n', {}, "new.jsonl line 2 has no 'prompt', which --data.input_key names; known: label"),
        (
            LINE,
            {"data__input_key": "promt"},
            "line 1 has no 'promt', which --data.input_key names; did you mean 'prompt'",
        ),
        (
            LINE,
            {"data__label_key": "gold"},
            "new.jsonl has no 'gold', which --data.label_key names; known: label, prompt",
        ),
        ('{"prompt": [], "label": ""}\n', {}, "line 1 has a prompt that is not text; for chats add --data.apply_chat"),
        (LINE, {}, "has 1 prompts, which make 2 samples, fewer than --train.batch_size 4; lower the latter"),
        (LINE * 9, {"data__max_samples": 1}, "has 1 prompts"),
        (LINE * 9, {"rollout__max_new_tokens": 400}, "400 leaves no room for a prompt in --data.max_len 400"),
        (LINE * 9, {"eval__dataset": "prompts.jsonl,gone.jsonl"}, "gone.jsonl does not exist"),
        (LINE * 9, {"data__prompt_dataset": None}, "train_ppo_ray needs --data.prompt_dataset"),
        (LINE * 9, {"data__prompt_dataset": "prompts.jsonl, ./nowhere"}, "./nowhere does not exist"),
        (
            LINE * 9,
            {"train__enable_ema": True, "ckpt__load_enable": True},
            "--train.enable_ema with --ckpt.load_enable",
        ),
    ],
)
def test_prompts(tiny_model: Path, folder: Path, text: str | None, changes: dict, said: str) -> None:
    if text is not None:
        (folder / "new.jsonl").write_text(text)
    with pytest.raises(UserError) as told:
        check_arguments("train_ppo_ray", nested(tiny_model, **{"data__prompt_dataset": "new.jsonl", **changes}))
    assert said in str(told.value)


def test_prompts_that_are_fine(tiny_model: Path, folder: Path) -> None:
    chats = [{"prompt": [{"role": "user", "content": "a"}]}] * 3
    write(folder / "chats.jsonl", chats)
    for changes in (
        {},
        {"data__prompt_dataset": "prompts.jsonl,some/hub-name"},
        {"data__prompt_dataset": "chats.jsonl", "data__apply_chat_template": True, "data__label_key": None},
        {"rollout__max_new_tokens": None, "eval__dataset": "prompts.jsonl"},
    ):
        check_arguments("train_ppo_ray", nested(tiny_model, **changes))


# rewards


def check(model: Path, *specs: str, **changes: Any) -> None:
    Rewards(choose(specs)).check(nested(model, ext__reward=list(specs), **changes))


def test_images_and_a_text_reward(tiny_model: Path, folder: Path) -> None:
    rows = [{"prompt": "a", "images": []}, {"prompt": "b", "images": ["cat.png"]}]
    write(folder / "seen.jsonl", rows)
    with pytest.raises(UserError, match=r"'length' reads text only, and seen.jsonl line 2 has 'images'; remove"):
        check(tiny_model, "length", length__target="5", data__prompt_dataset="seen.jsonl")
    with pytest.raises(UserError, match=r"seen.jsonl line 2 has 'images'"):
        check(tiny_model, "length", length__target="5", eval__dataset="prompts.jsonl,seen.jsonl")
    check(tiny_model, "length", length__target="5", data__prompt_dataset="seen.jsonl", data__image_key="pictures")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__async_enable": True}, "the trainer uses while --train.async_enable samples; train without it"),
        ({"algo__kl__init_coef": 0.0}, "with --algo.kl.init_coef 0 there is none; give more than 0"),
        ({"train__async_enable": True, "ext__eval_top_k": 20}, "have no effect with --train.async_enable"),
        ({"reward__remote_url": "http://x"}, "--ext.reward and --reward.remote_url http://x both give rewards"),
    ],
)
def test_runs_that_a_reward_cannot_be_used_in(tiny_model: Path, folder: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError) as told:
        check(tiny_model, "vrcli", **changes)
    assert said in str(told.value)


def test_the_policy_is_not_asked_while_it_is_trained(tiny_model: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"needs the policy as it was when it sampled, .* train without it"):
        check(tiny_model, "likelihood", likelihood__model="policy", train__async_enable=True)


def test_rewards_without_a_model_work_with_asynchronous_training(tiny_model: Path, folder: Path) -> None:
    check(tiny_model, "length", length__target="5", train__async_enable=True)


def test_a_server_that_is_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        HTTP(["http://127.0.0.1:1/x", f"http://127.0.0.1:{port}/x"]).check(SimpleNamespace())  # one is enough
    down = HTTP([f"http://127.0.0.1:{port}/get_reward"])
    said = rf"no server listens at http://127.0.0.1:{port}/get_reward \(Connection refused\); start it"
    with pytest.raises(UserError, match=said):
        down.check(SimpleNamespace())
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    down.check(SimpleNamespace())  # what that cluster reaches is not known here


@pytest.mark.launcher
def test_the_launcher_refuses_what_is_no_reward(folder: Path) -> None:
    for spec, said in (("math:pi", "is 3.14"), ("my_rewards:Gone", "no module 'my_rewards'"), ("lenght", "'length'")):
        done = run_python("-m", "orlhf_ext.launch", "train_ppo_ray", "--ext.reward", spec)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


# VR-CLI


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for prompts that are spelt in bytes."""
    folder = tmp_path_factory.mktemp("models") / "long"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 420}))
    return folder


@pytest.fixture(scope="module")
def baselines(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three records with their baselines."""
    from orlhf_ext.vrcli import baseline

    rows = []
    for i in range(3):
        chat = [{"role": "user", "content": f"Why {i}?" + " Why?" * i}, {"role": "assistant", "content": f"So {i}."}]
        task: Any = from_messages({"messages": chat}, "keep", None)
        prompt = f"Why {i}?" + " Why?" * i
        rows.append({"id": f"r{i}", "prompt": prompt, "label": json.dumps(task.label(f"r{i}"))})
    folder = tmp_path_factory.mktemp("baselines")
    words = ["--data", str(write(folder / "raw.jsonl", rows)), "--out", str(folder / "train.jsonl")]
    baseline.main(["--model", str(model), *words])
    return folder / "train.jsonl"


@pytest.fixture
def copied(baselines: Path, folder: Path) -> Callable[..., None]:
    """Puts the records, changed, where the run starts."""

    def copy(row: int = 0, record: dict | None = None, label: dict | None = None, parts: dict | None = None) -> None:
        rows = read(baselines)
        fields = {**json.loads(rows[row]["label"]), **(label or {})}
        rows[row] |= {"label": json.dumps({key: value for key, value in fields.items() if value is not None})}
        rows[row] |= record or {}
        write(folder / "prompts.jsonl", rows)
        sidecar = meta(baselines)
        sidecar["fingerprint"] |= parts or {}
        (folder / "prompts.meta.json").write_text(json.dumps(sidecar))

    return copy


def test_records_that_are_fine(model: Path, copied: Callable) -> None:
    copied()
    check(model, "vrcli")
    check(model, "vrcli", data__max_len=300, rollout__max_new_tokens=None, eval__dataset="prompts.jsonl, prompts.jsonl")


@pytest.mark.parametrize(
    ("change", "changes", "said"),
    [
        ({"record": {"label": "So."}}, {}, "line 2 has a label that VR-CLI cannot read: it is not JSON; make the data"),
        ({"label": {"base": None}}, {}, "line 2 (id 'r1') has no baseline; compute it with orlhf-ext vrcli baseline"),
        ({"label": {"base": {"nll": 1, "n": 3, "fp": "x"}}}, {}, "line 2 (id 'r1') has a baseline of another model"),
        (
            {},
            {"ds__param_dtype": "fp16"},
            "prompts.jsonl has baselines with another dtype (bfloat16 there, float16 here)",
        ),
        ({}, {"ds__attn_implementation": "eager"}, "another attention (sdpa there, eager here); compute it with"),
        ({"parts": {"device": "cuda"}}, {}, "another device (cuda there, cpu here)"),
        ({"record": {"prompt": "?" * 399}}, {}, "line 2 (id 'r1') has a prompt of 399 tokens, which leaves 1 of"),
        ({"record": {"prompt": "?" * 399}}, {}, "to generate, not --rollout.max_new_tokens 16; raise --data.max_len"),
        (
            {"record": {"prompt": "?" * 400}},
            {"rollout__max_new_tokens": None},
            "a prompt of 400 tokens, which leaves 0 of --data.max_len 400 to generate; raise",
        ),
        (
            {},
            {"rollout__max_new_tokens": 380},
            "leaves no room for --rollout.max_new_tokens 380 in the 420 that the model reads",
        ),
        ({}, {"data__label_key": None}, "reward 'vrcli' reads the column 'label'; give --data.label_key label"),
        (
            {},
            {"eval__dataset": "raw.jsonl"},
            "raw.jsonl has no baselines (raw.meta.json has no fingerprint); compute it",
        ),
    ],
)
def test_records_that_vrcli_cannot_use(
    model: Path, copied: Callable, folder: Path, change: dict, changes: dict, said: str
) -> None:
    copied(1, **change)
    (folder / "raw.jsonl").write_text(LINE)
    with pytest.raises(UserError) as told:
        check(model, "vrcli", **changes)
    assert said in str(told.value)


def test_baselines_of_a_gpu_and_a_driver_without_one(
    model: Path, copied: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a cluster scores is not known in the driver; the actors of the reference model know."""
    from orlhf_ext.models.folder import load_tokenizer
    from orlhf_ext.vrcli.fingerprint import digest

    if machine.gpu_present():
        pytest.skip("there is a CUDA device")
    copied()
    parts = {**meta(folder / "prompts.jsonl")["fingerprint"], "device": "cuda"}
    rows = read(folder / "prompts.jsonl")
    for row in rows:
        fields = json.loads(row["label"])
        fields["base"]["fp"] = digest(parts)
        row["label"] = json.dumps(fields)
    copied(parts=parts)
    write(folder / "prompts.jsonl", rows)
    with pytest.raises(UserError, match="another device"):
        check(model, "vrcli")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    check(model, "vrcli")

    class Scorer:
        device = "cuda"

        def __call__(self, token_ids: Any, masks: Any) -> list[list[float]]:
            raise AssertionError

    reward = VRCLI()
    reward.setup(RewardContext(load_tokenizer(model), nested(model), "cpu", Scorer()))
    assert reward._digest == digest(parts)
