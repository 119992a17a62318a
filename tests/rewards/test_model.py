"""The reward-model reward with real, tiny models, against ``score`` and against transformers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import score
from orlhf_ext.files.records import read_records, write_jsonl
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet
from orlhf_ext.rewards.model import Model

PROMPT = "\n\nHuman: hello?\n\nAssistant:"
RESPONSES = [" fine", " no idea\n", " fine, and you? ", " hello" * 20]
CHAT = [{"role": "user", "content": "how are you?"}]


def classifier(tiny_model: Path, folder: Path, pad: str, labels: int = 1) -> Path:
    """What transformers saves: a sequence classifier."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(2)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.pad_token = pad
    model = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=labels, dtype=torch.bfloat16)
    model.score.weight.data.normal_()
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    # a line break after the end of a turn, as ChatML has it, makes the last token another one than EOS
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token }}", "eos_token + '\n' }}")
    tokenizer.save_pretrained(folder)
    return folder


def batch_of(prompt: str, responses: list[str]) -> RewardBatch:
    return RewardBatch([Rollout(f"r{i}", prompt, text) for i, text in enumerate(responses)])


def run(reward: Model, batch: RewardBatch, **context: Any) -> list[float]:
    rewards = RewardSet([reward])
    rewards.setup(RewardContext(**context))
    return rewards.score(batch).rewards


def test_a_model_of_train_rm_scores_as_score_does(reward_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "prompt": PROMPT, "completions": RESPONSES}])
    paths = f"--model {reward_model} --data {tmp_path}/in.jsonl --out {tmp_path}/out.jsonl"
    score.main(f"{paths} --max_len 64 --batch_tokens 2".split())
    (record,) = (line.record for line in read_records(tmp_path / "out.jsonl"))
    found = run(Model(str(reward_model), max_len=64, batch_tokens=2), batch_of(PROMPT, RESPONSES))
    assert found == record["rewards"] and len(set(found)) == 4
    batched = run(Model(str(reward_model), max_len=64), batch_of(PROMPT, RESPONSES))
    assert batched == pytest.approx(found, abs=0.02)  # padding changes nothing but rounding


def test_chats_end_as_in_training(reward_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(reward_model)
    replies = [[{"role": "assistant", "content": text.strip()}] for text in RESPONSES]
    write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "prompt": CHAT, "completions": replies}])
    paths = f"--model {reward_model} --data {tmp_path}/in.jsonl --out {tmp_path}/out.jsonl"
    score.main(f"{paths} --max_len 64 --batch_tokens 2".split())
    (record,) = (line.record for line in read_records(tmp_path / "out.jsonl"))
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    batch = batch_of(str(prompt), [text.strip() for text in RESPONSES])
    reward = Model(str(reward_model), max_len=64, batch_tokens=2, chat=True)
    assert run(reward, batch, tokenizer=tokenizer) == record["rewards"]
    assert run(Model(str(reward_model), max_len=64, batch_tokens=2), batch) != record["rewards"]
    other = load_tokenizer(reward_model)
    other.chat_template = other.chat_template.replace("Human", "User")
    with pytest.raises(UserError, match="chat template is not the policy's"):
        run(reward, batch, tokenizer=other)


def test_a_thought_that_the_prompt_opens_is_no_part_of_what_is_scored(reward_model: Path, tmp_path: Path) -> None:
    """Rollouts stand behind the generation prompt, and the model reads the conversation, as orlhf-ext score does."""
    folder = tmp_path / "thinks"
    shutil.copytree(reward_model, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'user' %}<q>{{ m['content'] }}{% else %}"
        "<a>{{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a><think>\n{% endif %}"
    )
    tokenizer = load_tokenizer(folder)
    texts = ["Six.", "Eight legs.", "I count.</think>Eight."]
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "prompt": CHAT, "completions": replies}])
    score.main(f"--model {folder} --data {tmp_path}/in.jsonl --out {tmp_path}/out.jsonl --max_len 64".split())
    (record,) = (line.record for line in read_records(tmp_path / "out.jsonl"))
    prompt = str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    assert prompt.endswith("<a><think>\n")
    found = run(Model(str(folder), max_len=64, chat=True), batch_of(prompt, texts), tokenizer=tokenizer)
    assert found == record["rewards"] and len(set(found)) == 3


@pytest.mark.launcher
@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_classifier_of_transformers_scores_as_its_own_class(tiny_model: Path, tmp_path: Path, pad: str) -> None:
    import torch
    from transformers import LlamaForSequenceClassification

    folder = classifier(tiny_model, tmp_path / "classifier", pad)
    tokenizer = load_tokenizer(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def own(texts: list[str]) -> list[float]:
        with torch.inference_mode():
            ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
            return [model(row).logits.float().item() for row in ids]

    wanted = own([f"{PROMPT}{text.rstrip()} </s>" for text in RESPONSES])
    found = run(Model(str(folder), batch_tokens=2), batch_of(PROMPT, RESPONSES))
    assert found == pytest.approx(wanted, abs=0.02) and max(wanted) - min(wanted) > 0.2
    assert run(Model(str(folder)), batch_of(PROMPT, RESPONSES)) == pytest.approx(wanted, rel=0.01)  # bf16

    replies = [text.strip() for text in RESPONSES]
    wanted = own(
        [
            tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": text}], tokenize=False)
            for text in replies
        ]
    )
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    found = run(Model(str(folder), chat=True, batch_tokens=2), batch_of(str(prompt), replies))
    assert found == pytest.approx(wanted, abs=0.02) and max(wanted) - min(wanted) > 0.05


def test_a_prompt_that_leaves_nothing_to_see(reward_model: Path) -> None:
    batch = RewardBatch([Rollout("short", "hello", " fine"), Rollout("long", "hello " * 30, " fine")])
    with pytest.raises(UserError, match=r"the prompt of sample 'long' has \d+ tokens and fills --model.max_len 16"):
        run(Model(str(reward_model), max_len=16), batch)
    cut = run(Model(str(reward_model), max_len=16, batch_tokens=2), batch_of("hello", [" fine" * 40, " fine" * 50]))
    assert cut[0] == cut[1]


def test_folders_that_do_not_fit(reward_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(reward_model, mute)
    config = json.loads((mute / "config.json").read_text())
    del config["max_position_embeddings"]
    (mute / "config.json").write_text(json.dumps(config))
    (mute / "chat_template.jinja").unlink()
    two = classifier(tiny_model, tmp_path / "two", "<pad>", labels=2)
    for reward, said in (
        (Model(str(tmp_path / "none")), "--model.path .*none is not a folder"),
        (Model(str(tiny_model)), "--model.path .*is not a reward model: its weights have no score.weight"),
        (Model(str(two)), "--model.path .*gives 2 scores for a text"),
        (Model(str(reward_model), max_len=513), "--model.max_len 513 is more than the 512 positions"),
        (Model(str(mute)), "does not say how many positions it has; give --model.max_len"),
        (Model(str(mute), max_len=9, chat=True), "has no chat template"),
    ):
        with pytest.raises(UserError, match=said):
            run(reward, batch_of(PROMPT, RESPONSES))


def test_weights_that_give_nan_name_the_sample(reward_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(reward_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["value.weight"].fill_(3e38)  # finite; products with the hidden states overflow, in both directions
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"reward 'model' has (nan|-?inf) among the rewards, for sample 'r0'"):
        run(Model(str(broken)), batch_of(PROMPT, RESPONSES))
