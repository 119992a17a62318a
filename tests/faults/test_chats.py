"""Chats that a template refuses, templates that defy the rule, tokenizers without an end, and what is cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.files.records import write_jsonl
from orlhf_ext.openrlhf_fixes.chat_data import check_chats

pytest.importorskip("transformers", reason="no transformers")

EACH = "{% for m in messages %}"
ASSISTANT = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
GOOD = EACH + "<{{ m['role'] }}>{{ m['content'] }}</s>" + ASSISTANT
#: templates that no chat can be read by, and what is said of them
TEMPLATES = {
    "none": (None, "has no chat template"),
    "defies": (
        EACH + "{{ messages | length }}{{ m['content'] }}{% endfor %}",
        "nothing says where the response begins",
    ),
    "no answers": (EACH + "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "an answer once"),
    "answers twice": (
        EACH + "{{ m['content'] * (2 if m['role'] == 'assistant' else 1) }}{% endfor %}",
        "an answer once",
    ),
    "another turn": (
        EACH + "<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}?{% endif %}",
        "nothing says where the response begins",
    ),
    "not a template": ("{% for %}", r"is refused by the model's chat template \("),
    "wrong type": ("{{ messages[0]['content'] + 1 }}", r"is refused by the model's chat template \("),
    "undefined": ("{{ messages[9]['content'] }}", r"is refused by the model's chat template \("),
    "divides by zero": ("{{ 1 // 0 }}", r"is refused by the model's chat template \(.*zero"),
    "calls what is not there": ("{{ render() }}", r"is refused by the model's chat template \(.*render"),
    "refuses": ("{{ raise_exception('only Tuesdays') }}", r"is refused by the model's chat template \(only Tuesdays"),
}
QUESTION = [{"role": "user", "content": "How many legs has a spider?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *QUESTION]
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + GOOD
PAIR = {
    "id": "a",
    "prompt": QUESTION,
    "chosen": [{"role": "assistant", "content": "Eight."}],
    "rejected": [{"role": "assistant", "content": "Six."}],
}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with another chat template, or with other values in its tokenizer's configuration."""

    def make(template: str | None, **config: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return make


def data_of(folder: Path, *records: dict[str, Any]) -> Path:
    write_jsonl(folder / "in.jsonl", list(records))
    return folder / "in.jsonl"


def arguments(model: Path, data: Path, **more: Any) -> Any:
    keys = {"apply_chat_template": True, "dataset": str(data), "prompt_dataset": str(data), "multiturn": False}
    keys |= {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected", "input_key": "prompt"}
    folder = SimpleNamespace(model_name_or_path=str(model))
    spaces = {"model": folder, "actor": folder, "eval": SimpleNamespace(dataset=None)}
    return SimpleNamespace(data=SimpleNamespace(**{**keys, "output_key": "chosen", **more}), **spaces)


@pytest.mark.parametrize("launcher", ["train_sft", "train_rm", "train_dpo", "train_ppo_ray"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_before_a_training(
    fault: Any, model: Callable[..., Path], tmp_path: Path, name: str, launcher: str
) -> None:
    template, says = TEMPLATES[name]
    fault.call(check_chats, launcher, arguments(model(template), data_of(tmp_path, PAIR)), says=says)


@pytest.mark.parametrize(
    ("launcher", "record", "says"),
    [
        ("train_rm", {"prompt": SYSTEM}, r"line 2 is refused by the model's chat template \(no system role\)"),
        ("train_dpo", {"prompt": SYSTEM}, r"line 2 is refused by .*give another template with --data.tokenizer_chat"),
        ("train_sft", {"prompt": SYSTEM}, r"line 2 is refused by the model's chat template"),
        ("train_ppo_ray", {"prompt": SYSTEM}, r"line 2 is refused by .*take a model with another chat template"),
        ("train_rm", {"prompt": "text"}, r"line 2 has no messages in 'prompt'"),
        ("train_rm", {"chosen": "text"}, r"line 2 has no messages in 'chosen'"),
        ("train_dpo", {"rejected": []}, r"line 2 has no messages in 'rejected'"),
        ("train_sft", {"prompt": "text"}, r"line 2 has no messages in 'prompt'"),
        ("train_sft", {"chosen": None}, r"line 2 has no messages in 'chosen'"),
        ("train_dpo", {"chosen": [*PAIR["chosen"], *QUESTION]}, r"line 2 is a chat that ends with the user's message"),
        ("train_rm", {"rejected": [{"role": "assistant"}]}, r"line 2 is refused by .*content"),
        ("train_rm", {"rejected": [{"role": "assistant", "content": None}]}, r"line 2 is refused by .*None"),
        ("train_ppo_ray", {"prompt": [{"role": "user"}]}, r"line 2 is refused by .*content"),
    ],
)
def test_a_record_before_a_training(
    fault: Any, model: Callable[..., Path], tmp_path: Path, launcher: str, record: dict[str, Any], says: str
) -> None:
    strict = NO_SYSTEM.replace("{{ m['content'] }}", "{{ '' + m['content'] }}")
    data = data_of(tmp_path, PAIR, {**PAIR, **record})
    fault.call(check_chats, launcher, arguments(model(strict), data), says=says)


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_several_turns_whose_thoughts_go(fault: Any, model: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """OpenRLHF would find the answers of earlier turns at the places that they had when they were the last."""
    thoughtless = "m['content'].split('</think>')[-1]"
    content = f"m['content'] if loop.last else {thoughtless}" if name == "qwen3" else thoughtless
    opens = "" if name == "qwen3" else "<think>\n"
    ends = ASSISTANT.replace("<assistant>", f"<assistant>{opens}")
    template = EACH + "<{{ m['role'] }}>{{ " + content + " }}</s>" + ends
    answer = {"role": "assistant", "content": "I count.</think>Eight."}
    data = data_of(
        tmp_path, {"prompt": [*QUESTION, answer, {"role": "user", "content": "And a fly?"}, *PAIR["rejected"]]}
    )
    args = arguments(model(template), data, output_key=None, multiturn=True)
    fault.call(check_chats, "train_sft", args, says=r"line 1: the chat template renders message 2 otherwise")


def with_head(folder: Path, reward_model: Path) -> None:
    """Give a folder the weights of a reward model."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(reward_model / name, folder / name)


COMMANDS = {
    "generate": "--max_new_tokens 4 --backend hf",
    "score": "",
    "logprobs": "",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if TEMPLATES[name][1].startswith(("has no", "is refused"))]
)
def test_a_template_in_a_command(
    fault: Any, model: Callable[..., Path], reward_model: Path, tmp_path: Path, name: str, command: str
) -> None:
    template, says = TEMPLATES[name]
    folder = model(template)
    if command == "score":
        with_head(folder, reward_model)
    line = (
        f"--model {folder} --data {data_of(tmp_path, PAIR)} --out {tmp_path}/out.jsonl --max_len 64 {COMMANDS[command]}"
    )
    says = says.replace("has no", r"\(id 'a'\) is a chat, and the model's tokenizer has no")
    fault(command, *line.split(), says=says)


@pytest.mark.parametrize("command", ["score", "logprobs"])
@pytest.mark.parametrize("name", ["defies", "no answers", "answers twice", "another turn"])
def test_a_defiant_template_in_a_command(
    fault: Any, model: Callable[..., Path], reward_model: Path, tmp_path: Path, name: str, command: str
) -> None:
    template, says = TEMPLATES[name]
    folder = model(template)
    if command == "score":
        with_head(folder, reward_model)
    line = f"--model {folder} --data {data_of(tmp_path, PAIR)} --out {tmp_path}/out.jsonl --max_len 64"
    fault(command, *line.split(), says=r"\(id 'a'\): the chat template .*" + says)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_without_an_end(
    fault: Any, model: Callable[..., Path], reward_model: Path, tmp_path: Path, command: str
) -> None:
    folder = model(GOOD, eos_token=None, pad_token=None)
    if command == "score":
        with_head(folder, reward_model)
    line = (
        f"--model {folder} --data {data_of(tmp_path, PAIR)} --out {tmp_path}/out.jsonl --max_len 64 {COMMANDS[command]}"
    )
    fault(command, *line.split(), says=r"has a tokenizer without an EOS token; set eos_token in tokenizer_config.json")


def scored(folder: Path, name: str, **columns: Any) -> Path:
    records = [
        {"id": name, "prompt": "How many?", "completions": [" Six.", " Eight."], "rewards": [0, 1], **columns}
        for name in "ab"
    ]
    write_jsonl(folder / name, records)
    return folder / name


@pytest.mark.parametrize("key", ["logprobs_policy", "logprobs_sft"])
@pytest.mark.parametrize("cut", [[True, False], [False, True], [True, True]])
def test_log_probabilities_of_cut_completions(fault: Any, tmp_path: Path, key: str, cut: list[bool]) -> None:
    both = {"logprobs_policy": [-3.0, -4.0], "logprobs_sft": [-3.5, -4.5]}
    sft, policy = scored(tmp_path, "sft.jsonl"), scored(tmp_path, "p.jsonl", **both, **{f"{key}_cut": cut})
    line = f"--sft {sft} --policy last={policy} --out {tmp_path}/summary.json"
    fault("evaluate", *line.split(), says=rf"\(id 'a'\) has {key} of a completion that was cut.*larger --max_len")


@pytest.mark.parametrize("max_len", [8, 16, 30])
def test_what_logprobs_cuts_is_told(fault: Any, tiny_model: Path, tmp_path: Path, max_len: int) -> None:
    record = {"id": "a", "prompt": "How many legs?", "completions": ["x"], "token_ids": [[7] * 40]}
    line = f"--model {tiny_model} --data {data_of(tmp_path, record)} --out {tmp_path}/out.jsonl --max_len {max_len}"
    said = rf"at --max_len {max_len}, 1 of 1 completions are cut on the right"
    fault("logprobs", *line.split(), says=said, rc=0, makes=("out.jsonl", "out.meta.json"))
    (written,) = (json.loads(text) for text in (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert written["logprobs_cut"] == [True]
    assert json.loads((tmp_path / "out.meta.json").read_text())["counts"]["completions_cut"] == 1


def test_samples_that_do_not_say_how_their_prompt_was_rendered(fault: Any, tmp_path: Path) -> None:
    record = {"id": "a", "prompt": "How many?", "completions": [" Six.", " Eight."], "traits": {"x": [0, 1]}}
    (tmp_path / "groups.yaml").write_text(
        "groups:\n- {name: one, proportion: 0.5, weights: {x: 1}}\n- {name: two, proportion: 0.5, weights: {x: 1}}\n"
    )
    line = f"hh-groups {data_of(tmp_path, record)} --groups {tmp_path}/groups.yaml --out {tmp_path}/pairs"
    fault("build_data", *line.split(), says=r"line 1 \(id 'a'\) does not say how its prompt was rendered; add --style")
