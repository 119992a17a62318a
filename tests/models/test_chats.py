"""Chats: where a response begins, over templates that behave like those of the field (all written for these tests)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import write_jsonl
from orlhf_ext.models.chats import ChatError, Messages, Refusal, opening, proven, render_with, split_chat
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.texts import read_samples, whole_text
from orlhf_ext.openrlhf_fixes.chat_data import check_chats, pair_texts, sft_texts


def written(path: Path, records: list[dict]) -> Path:
    write_jsonl(path, records)
    return path


pytest.importorskip("transformers", reason="no transformers")

_EACH = "{% for m in messages %}"
_DONE = "{% endfor %}{% if add_generation_prompt %}"
_THOUGHTLESS = "m['content'].split('</think>')[-1]"
CHATML = (
    _EACH + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n" + _DONE + "<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": "<|begin|>"
    + _EACH
    + "<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>"
    + _DONE
    + "<|h|>assistant<|/h|>\n\n{% endif %}",
    # no generation prompt; contents are stripped
    "mistral": _EACH + "{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }}</s>{% endif %}{% endfor %}",
    # another name for the assistant, no system messages
    "gemma": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _EACH
    + "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}</turn>\n"
    + _DONE
    + "<turn>model\n{% endif %}",
    # an empty thought stands before the last answer, as nothing is thought there
    "qwen3": _EACH + "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last and "
    "'</think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] if loop.last else "
    + _THOUGHTLESS
    + ".lstrip('\n') }}<|im_end|>\n"
    + _DONE
    + "<|im_start|>assistant\n{% endif %}",
    # the generation prompt opens a thought, which conversations lack
    "r1": _EACH
    + "{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}<|Assistant|>{{ "
    + _THOUGHTLESS
    + " }}</s>{% endif %}"
    + _DONE
    + "<|Assistant|><think>\n{% endif %}",
    # the generation prompt has an empty thought
    "smollm3": _EACH
    + "<|im_start|>{{ m['role'] }}\n{{ m['content'].lstrip('\n') }}<|im_end|>\n"
    + _DONE
    + "<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}",
}
DEFIANT = {
    "counts the messages": _EACH + "{{ messages | length }}{{ m['content'] }}{% endfor %}",
    "marks the turn otherwise": _EACH + "<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}?{% endif %}",
    "puts the last first": "{% for m in messages | reverse %}<{{ m['role'] }}>{{ m['content'] }}"
    + _DONE
    + "<assistant>{% endif %}",
    "leaves answers out": _EACH + "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
    "writes answers twice": _EACH
    + "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}",
}
QUESTION: Messages = [{"role": "user", "content": "How many legs has a spider?"}]
ANSWERS = ["Six.", "Eight legs.", "No", "<", "<think>\nI count.\n</think>\n\nEight.", "I count.\n</think>\n\nEight."]
THINKS = ("r1", "smollm3")


@pytest.fixture(scope="module")
def with_template(tiny_model: Path) -> Callable[[str], Any]:
    def make(template: str) -> Any:
        tokenizer = load_tokenizer(tiny_model)
        tokenizer.chat_template = template
        return tokenizer

    return make


def answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ANSWERS)
def test_a_reward_model_reads_the_conversation(with_template: Callable[[str], Any], name: str, text: str) -> None:
    render = proven(with_template(TEMPLATES[name]))
    before, response = split_chat(render, QUESTION, answer(text), sampled=False)
    assert before + response == render([*QUESTION, *answer(text)], False)
    assert before.count(QUESTION[0]["content"]) == 1 and text.split("</think>")[-1].strip() in response
    assert "Eight" not in before and "Six" not in before


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ANSWERS)
def test_a_policys_response_stands_behind_its_prompt(with_template: Callable[[str], Any], name: str, text: str) -> None:
    render = proven(with_template(TEMPLATES[name]))
    before, response = split_chat(render, QUESTION, answer(text), sampled=True)
    whole = render([*QUESTION, *answer(text)], False)
    assert before == render(QUESTION, True)
    if name not in THINKS:
        assert before + response == whole  # what OpenRLHF's data sets read
        return
    end = "<|im_end|>\n" if name == "smollm3" else "</s>"
    if name == "r1":  # a thought is part of what the policy wrote, and is opened once
        assert response == text.removeprefix("<think>\n") + end
    else:
        assert response == text + end


@pytest.mark.parametrize(
    "name, opens",
    [(name, "") for name in TEMPLATES if name not in THINKS]
    + [("r1", "<think>\n"), ("smollm3", "<think>\n\n</think>\n")],
)
def test_what_a_generation_prompt_opens(with_template: Callable[[str], Any], name: str, opens: str) -> None:
    assert opening(render_with(with_template(TEMPLATES[name]))) == opens


@pytest.mark.parametrize("name", DEFIANT)
def test_a_template_that_defies_the_rule_is_refused(with_template: Callable[[str], Any], name: str) -> None:
    tokenizer = with_template(DEFIANT[name])
    with pytest.raises(ChatError, match=r"nothing says where the response begins|write an answer once"):
        proven(tokenizer)


def test_short_answers_are_scored_whole(with_template: Callable[[str], Any], tmp_path: Path) -> None:
    """Cut at the length of the prompt, "Eight legs." was "gs.", and all short answers were one."""
    tokenizer = with_template(TEMPLATES["r1"])
    texts = ["Six.", "Two.", "Eight legs.", "thinking </think>Eight."]
    record = {"id": "a", "prompt": QUESTION, "completions": [answer(text) for text in texts]}
    (sample,) = read_samples(written(tmp_path / "in.jsonl", [record]))
    read = [whole_text(tokenizer, sample, completion, False)[1] for completion in sample.completions]
    start = "<|User|>How many legs has a spider?<|Assistant|>"
    assert read == [start + text + "</s>" for text in ("Six.", "Two.", "Eight legs.", "Eight.")]
    read = [whole_text(tokenizer, sample, completion, False, sampled=True)[1] for completion in sample.completions]
    assert read == [f"{start}<think>\n{text}</s>" for text in texts]


def test_whatever_a_template_raises_is_one_sentence(with_template: Callable[[str], Any], tmp_path: Path) -> None:
    for broken in (
        "{{ messages[7]['content'] }}", "{{ messages[0]['content'] + 1 }}", "{{ 1 / 0 }}", "{% if %}", "{{ no() }}",
        "{{ raise_exception('no, thanks') }}",
    ):  # fmt: skip
        with pytest.raises(Refusal, match=r"^ is refused by the model's chat template \(.+\)$"):
            render_with(with_template(broken))(QUESTION, True)
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    record = {"id": "s", "prompt": system, "completions": [answer("Six.")]}
    (sample,) = read_samples(written(tmp_path / "in.jsonl", [record]))
    with pytest.raises(UserError, match=r"\(id 's'\) is refused by the model's chat template \(System role not supp"):
        whole_text(with_template(TEMPLATES["gemma"]), sample, sample.completions[0], False)
    user = [{"role": "user", "content": "And a fly?"}]
    with pytest.raises(ChatError, match="ends with the user's message"):
        split_chat(render_with(with_template(CHATML)), QUESTION, user, sampled=False)


def data_of(module: Any, name: str, template: Any, record: dict[str, Any], **flags: Any) -> Any:
    """OpenRLHF's own data set of one record."""
    from datasets import Dataset

    keys = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected", "input_key": "prompt"}
    keys |= {"output_key": "chosen", "apply_chat_template": True, "tokenizer_chat_template": None}
    strategy: Any = SimpleNamespace(args=SimpleNamespace(data=SimpleNamespace(**keys)))
    return getattr(module, name)(Dataset.from_list([record]), template, 512, strategy, num_processors=None, **flags)


@pytest.mark.parametrize("name", TEMPLATES)
def test_openrlhfs_data_sets_train_on_what_is_read(
    with_template: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    """Reward models on the conversation as it is scored; SFT and DPO on the response behind the prompt of sampling."""
    from orlhf_ext import backends, openrlhf_fixes

    backends.install()
    openrlhf_fixes.install()
    from openrlhf.datasets import reward_dataset, sft_dataset

    tokenizer = with_template(TEMPLATES[name])
    record = {"prompt": QUESTION, "chosen": answer("Eight legs."), "rejected": answer("Six.")}
    (sample,) = read_samples(written(tmp_path / "in.jsonl", [record]))

    def wanted(sampled: bool) -> list[list[int]]:
        texts = [whole_text(tokenizer, sample, one, False, sampled)[1] for one in sample.completions]
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    chosen, _, rejected, *_ = data_of(reward_dataset, "RewardDataset", tokenizer, record)[0]
    assert [chosen[0].tolist(), rejected[0].tolist()] == wanted(sampled=False)
    chosen, _, rejected, _, length = data_of(reward_dataset, "RewardDataset", tokenizer, record, is_dpo=True)[0]
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert [chosen[0].tolist(), rejected[0].tolist()] == wanted(sampled=True)
    assert length == len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids, _, mask = data_of(sft_dataset, "SFTDataset", tokenizer, record)[0]
    assert ids[0].tolist() == wanted(sampled=True)[0]
    assert int(mask.sum()) == ids.shape[1] - length


def test_several_turns_are_refused_where_their_thoughts_go(with_template: Callable[[str], Any]) -> None:
    chat = [*QUESTION, *answer("<think>\nI count.\n</think>\n\nEight."), {"role": "user", "content": "And a fly?"}]
    record = {"messages": [*chat, *answer("Six.")]}
    texts = sft_texts(render_with(with_template(CHATML)), record, "messages", None, True)
    assert "".join(texts) == render_with(with_template(CHATML))(record["messages"], False)
    for name in ("qwen3", "r1"):
        render = render_with(with_template(TEMPLATES[name]))
        with pytest.raises(ChatError, match=r"renders message 2 otherwise when more messages follow"):
            sft_texts(render, record, "messages", None, True)
        assert sft_texts(render, record, "messages", None, False)[1].endswith(("Six.<|im_end|>\n", "Six.</s>"))


def test_conversations_of_a_pair_answer_one_prompt(with_template: Callable[[str], Any]) -> None:
    render = render_with(with_template(CHATML))
    record = {"chosen": [*QUESTION, *answer("Eight.")], "rejected": [*QUESTION, *answer("Six.")]}
    assert pair_texts(render, record, None, "chosen", "rejected", True)[1:] == (
        "Eight.<|im_end|>\n",
        "Six.<|im_end|>\n",
    )
    record["rejected"] = [{"role": "user", "content": "Hi"}, *answer("Six.")]
    assert pair_texts(render, record, None, "chosen", "rejected", False)[0] == ""  # a reward model reads any two
    with pytest.raises(ChatError, match="another conversation before the answer in 'chosen' than in 'rejected'"):
        pair_texts(render, record, None, "chosen", "rejected", True)


@pytest.fixture
def launch(tiny_model: Path, tmp_path: Path) -> Callable[..., None]:
    """The check of a launch on one file, with the model's chat template changed."""

    def check(launcher: str, records: list[dict], template: str | None, **data: Any) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        source = str(written(tmp_path / "in.jsonl", records))
        keys = {"apply_chat_template": True, "dataset": source, "prompt_dataset": source, "multiturn": False}
        keys |= {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"}
        keys |= {"input_key": "prompt", "output_key": "chosen", **data}
        model = SimpleNamespace(model_name_or_path=str(folder))
        spaces = {"model": model, "actor": model, "eval": SimpleNamespace(dataset=None)}
        check_chats(launcher, SimpleNamespace(data=SimpleNamespace(**keys), **spaces))

    return check


LAUNCHERS = ["train_sft", "train_rm", "train_dpo", "train_ppo_ray"]
PAIR = {"prompt": QUESTION, "chosen": answer("Eight."), "rejected": answer("Six.")}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launch_is_refused_before_a_model_is_loaded(launch: Callable[..., None], launcher: str) -> None:
    for template in TEMPLATES.values():
        launch(launcher, [PAIR], template)
    with pytest.raises(UserError, match=r"has no chat template, which --data.apply_chat_template needs"):
        launch(launcher, [PAIR], None)
    for template in DEFIANT.values():
        with pytest.raises(UserError, match=r"model: the chat template .*; change its messages, or"):
            launch(launcher, [PAIR], template)
    system = {**PAIR, "prompt": [{"role": "system", "content": "Be brief."}, *QUESTION]}
    with pytest.raises(UserError, match=r"in.jsonl line 2 is refused by the model's chat template \(System role"):
        launch(launcher, [PAIR, system], TEMPLATES["gemma"])
    if launcher != "train_ppo_ray":
        launch(launcher, [PAIR], None, tokenizer_chat_template=CHATML)
        with pytest.raises(
            UserError, match=r"line 1 has no messages in 'prompt', which --data.apply_chat_template needs"
        ):
            launch(launcher, [{**PAIR, "prompt": "How many legs?"}], CHATML)


@pytest.mark.parametrize("max_len", [512, 40, 12])
def test_what_data_sets_cut_and_leave_out_is_told(
    tiny_model: Path, max_len: int, capsys: pytest.CaptureFixture
) -> None:
    """A long answer is cut on the right; SFT and DPO leave a record out whose prompt leaves no room."""
    from orlhf_ext import backends, openrlhf_fixes

    backends.install()
    openrlhf_fixes.install()
    from datasets import Dataset
    from openrlhf.datasets.reward_dataset import RewardDataset
    from openrlhf.datasets.sft_dataset import SFTDataset

    tokenizer = load_tokenizer(tiny_model)
    records = [
        {"prompt": "you " * 5, "chosen": " fine" * 40, "rejected": " no"},
        {"prompt": "you " * 30, "chosen": " fine", "rejected": " no"},
    ]
    keys = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected", "input_key": "prompt"}
    data = SimpleNamespace(**keys, output_key="chosen", apply_chat_template=False)
    for cls, words in ((SFTDataset, {}), (RewardDataset, {"is_dpo": True}), (RewardDataset, {})):
        capsys.readouterr()
        strategy: Any = SimpleNamespace(args=SimpleNamespace(data=data))
        found = cls(Dataset.from_list(records), tokenizer, max_len, strategy, num_processors=None, **words)
        texts = [f"{record['prompt']}{record[key]} </s>" for record in records for key in ("chosen", "rejected")]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        kept = [0, 1, 2, 3] if len(found) == 2 else [0, 1]
        over = sum(lengths[i] > max_len for i in (kept if cls is RewardDataset else kept[::2]))
        text = "".join(line for line in capsys.readouterr() if "[orlhf-ext]" in line)
        assert (f"{over} texts are cut at --data.max_len {max_len} tokens" in text) == bool(over)
        assert ("1 of 2 records are left out" in text) == (len(found) == 1)
        assert bool(text) == bool(over or len(found) == 1)
