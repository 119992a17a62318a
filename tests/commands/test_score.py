"""Scoring with a real, tiny reward model, against OpenRLHF's own data set and model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import openrlhf_rewards

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import score
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.files.records import Line, read_records, write_jsonl
from orlhf_ext.models.folder import check_context, find_model, identity, load_tokenizer
from orlhf_ext.models.reward_models import encode_rows
from orlhf_ext.models.texts import read_samples, whole_text

PAIRS = [
    {"id": "a", "prompt": "\n\nHuman: hello?\n\nAssistant:", "chosen": " fine", "rejected": " no idea\n"},
    {"id": "b", "prompt": "\n\nHuman: how are you?\n\nAssistant:", "chosen": " fine, and you?\n\n", "rejected": " x"},
    {"id": "c", "prompt": "\n\nHuman: hello " + "you " * 30, "chosen": " fine" * 40, "rejected": " end </s>"},
    {"id": "d", "prompt": "\n\nHuman: " + "are " * 50 + "\n\nAssistant:", "chosen": " long", "rejected": " longer"},
]
MAX_LEN = 48


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path / "pairs.jsonl"


def run(model: Path, data: Path, out: Path, *more: str) -> list[dict]:
    score.main([*f"--model {model} --data {data} --out {out} --max_len {MAX_LEN}".split(), *more])
    return [line.record for line in read_records(out)]


@pytest.mark.launcher
def test_rows_and_rewards_are_those_of_training(reward_model: Path, pairs: Path, tmp_path: Path) -> None:
    ids, rewards = openrlhf_rewards(reward_model, PAIRS, MAX_LEN)
    encoded = encode_rows(read_samples(pairs), load_tokenizer(reward_model), MAX_LEN)
    assert [row.ids for row in encoded.rows] == ids
    assert (encoded.truncated, encoded.unseen) == (3, 2)
    alone = run(reward_model, pairs, tmp_path / "alone.jsonl", "--batch_tokens", "2")
    assert [record["rewards"] for record in alone] == rewards
    assert len({reward for row in rewards[:3] for reward in row}) == 6
    batched = run(reward_model, pairs, tmp_path / "batched.jsonl")  # other shapes, so other rounding
    for record, wanted in zip(batched, rewards, strict=True):
        assert record["rewards"] == pytest.approx(wanted, abs=0.05)
    assert alone[1]["completions"] == [PAIRS[1]["chosen"], PAIRS[1]["rejected"]]
    assert set(alone[0]) == {"id", "prompt", "completions", "rewards"}
    meta = json.loads((tmp_path / "alone.meta.json").read_text())
    assert meta["counts"] == {"records": 4, "completions": 8, "truncated": 3, "unseen": 2}
    assert meta["accuracy"] == sum(a > b for a, b in rewards) / 4


def test_nothing_is_printed_but_its_own_lines(
    reward_model: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    run(reward_model, pairs, tmp_path / "out.jsonl")
    printed = capfd.readouterr()
    assert all(line.startswith(str(tmp_path)) for line in printed.out.splitlines()), printed.out
    assert "Loading" not in printed.err and "WARNING" not in printed.err


def test_chats_go_through_the_template_as_in_training(reward_model: Path, tmp_path: Path) -> None:
    chats = [
        {
            "id": record["id"],
            "prompt": [{"role": "user", "content": record["prompt"].strip()}],
            "chosen": [{"role": "assistant", "content": record["chosen"].strip()}],
            "rejected": [{"role": "assistant", "content": record["rejected"].strip()}],
        }
        for record in PAIRS
    ]
    write_jsonl(tmp_path / "chats.jsonl", chats)
    ids, rewards = openrlhf_rewards(reward_model, chats, MAX_LEN, chat=True)
    tokenizer = load_tokenizer(reward_model)
    assert [row.ids for row in encode_rows(read_samples(tmp_path / "chats.jsonl"), tokenizer, MAX_LEN).rows] == ids
    found = run(reward_model, tmp_path / "chats.jsonl", tmp_path / "out.jsonl", "--batch_tokens", "2")
    assert [record["rewards"] for record in found] == rewards
    # strings, too, when the flag asks for it
    strings = [{"id": "a", "prompt": "hello", "completions": ["fine ", "you"]}]
    messages = [[{"role": "assistant", "content": text}] for text in ("fine", "you")]
    as_chat = [{"id": "a", "prompt": [{"role": "user", "content": "hello"}], "completions": messages}]
    write_jsonl(tmp_path / "s.jsonl", strings)
    write_jsonl(tmp_path / "m.jsonl", as_chat)
    by_flag = encode_rows(read_samples(tmp_path / "s.jsonl"), tokenizer, MAX_LEN, chat=True)
    assert by_flag == encode_rows(read_samples(tmp_path / "m.jsonl"), tokenizer, MAX_LEN)


def test_samples_keep_their_columns_and_end_like_training_text(
    reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sample = {"id": "s", "prompt": PAIRS[0]["prompt"], "completions": [" fine", " fine ", " fine\n \n", ""]}
    sample |= {"token_ids": [[5], [6], [7], [1]], "finish_reasons": ["stop"] * 4}
    write_jsonl(tmp_path / "samples.jsonl", [sample])
    (record,) = run(reward_model, tmp_path / "samples.jsonl", tmp_path / "out.jsonl", "--batch_tokens", "2")
    assert record == {**sample, "rewards": record["rewards"]}
    assert len(set(record["rewards"][:3])) == 1 and record["rewards"][3] != record["rewards"][0]
    assert "chosen above" not in capsys.readouterr().out
    (parsed,) = read_samples(tmp_path / "samples.jsonl")
    whole = whole_text(load_tokenizer(reward_model), parsed, " fine ", chat=False)[1]
    assert whole == "\n\nHuman: hello?\n\nAssistant: fine </s>"


def test_a_run_that_goes_on_gives_the_same_bytes(
    reward_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "more.jsonl", [{**PAIRS[0], "chosen": " you"}])
    files = ["--data", str(pairs), str(tmp_path / "more.jsonl"), "--max_len", str(MAX_LEN), "--batch_tokens", "100"]

    def whole(name: str) -> list[Path]:
        out = [tmp_path / f"{name}{i}.jsonl" for i in range(2)]
        score.main(["--model", str(reward_model), *files, "--out", *map(str, out)])
        return out

    wanted = [path.read_bytes() for path in whole("whole")]
    add, calls = Journal.add, []

    def cut_short(journal: Journal, key: str, value: list[float]) -> None:
        add(journal, key, value)
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", cut_short)
    with pytest.raises(SystemExit, match="130"):
        whole("cut")
    part = journal_path(tmp_path / "cut0.jsonl")
    part.write_bytes(part.read_bytes()[:-3])  # torn, too: the second batch is lost
    computed = []
    monkeypatch.setattr(Journal, "add", lambda journal, key, value: (computed.append(key), add(journal, key, value)))
    assert [path.read_bytes() for path in whole("cut")] == wanted
    assert computed[0] == "1" and computed.count("0") == 1  # the first file's first batch was not computed again
    assert not part.exists()


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_folders_that_cannot_score_are_refused(
    reward_model: Path, tiny_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare, pickled, adapter, cut, code, mute, lost = (
        copy(reward_model, tmp_path / name) for name in ("bare", "pickled", "adapter", "cut", "code", "mute", "lost")
    )
    (bare / "model.safetensors").unlink()
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (adapter / "adapter_config.json").write_text("{}")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    (mute / "tokenizer.json").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (lost / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder, said in (
        (tiny_model, "not a reward model: its weights have no score.weight"),
        (bare, "has no safetensors weights"),
        (pickled, "pytorch_model.bin is a pickle"),
        (adapter, "is a LoRA adapter"),
        (cut, "is broken or cut short"),
        (code, "code of its own"),
        (mute, "has no tokenizer"),
        (lost, "lacks model-00001-of-00002.safetensors"),
        (tmp_path / "nowhere", "is not a folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(folder, pairs, tmp_path / "out.jsonl")
        error = capsys.readouterr().err
        assert stop.value.code == 2 and said in error and error.count("\n") == 1, error


def test_an_unknown_hub_name_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no-such/model-at-all is neither a folder nor a model that the hub gave"):
        find_model("no-such/model-at-all")


def test_nan_names_the_record(reward_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    broken = copy(reward_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["value.weight"].fill_(3e38)  # finite; products with the hidden states overflow, in both directions
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit):
        run(broken, pairs, tmp_path / "out.jsonl", "--batch_tokens", "2")
    # the longest row comes first; whether its sum of infinities is one or none depends on the order of a machine's sums
    assert re.search(r"\(id 'c'\): completion 1 got a reward of (nan|-?inf);", capsys.readouterr().err)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "p"}, "line 2 has neither 'completions' nor"),
        ({"prompt": "", "completions": ["x"]}, "line 2 has an empty prompt"),
        ({"prompt": "p", "chosen": " ", "rejected": "x"}, "line 2 has an empty chosen"),
        ({"prompt": "p", "completions": []}, "line 2 has 'completions' that are not a list, or an empty one"),
        ({"prompt": "p", "completions": ["x", 3]}, "line 2 has a completion 2 that is neither"),
        ({"prompt": [{"role": "user"}], "completions": ["x"]}, "a message in its prompt without"),
        ({"prompt": [{"role": "user", "content": "p"}], "completions": ["x"]}, "mixes text and messages"),
        ({"completions": ["x"]}, "line 2 has no 'prompt'"),
        ({"id": 1.5, "prompt": "p", "completions": ["x"]}, "line 2 has an id that is neither"),
        ({"id": "a", "prompt": "p", "completions": ["x"]}, "line 2 has the id 'a' of"),
    ],
)
def test_bad_records_are_named(
    reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, record: dict, said: str
) -> None:
    write_jsonl(tmp_path / "bad.jsonl", [PAIRS[0], record])
    with pytest.raises(SystemExit) as stop:
        run(reward_model, tmp_path / "bad.jsonl", tmp_path / "out.jsonl")
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_more_tokens_than_positions(reward_model: Path) -> None:
    check_context(reward_model, 512)
    with pytest.raises(UserError, match="--max_len 513 is more than the 512 positions"):
        check_context(reward_model, 513)


def test_another_models_tokenizer(
    reward_model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = copy(reward_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(SystemExit):
        run(other, pairs, tmp_path / "out.jsonl")
    assert "beyond the model's vocabulary of 100" in capsys.readouterr().err


def test_an_identity_follows_weights_and_tokenizer(reward_model: Path, tmp_path: Path) -> None:
    one = copy(reward_model, tmp_path / "one")
    assert identity(one) == identity(reward_model)
    config = json.loads((one / "tokenizer_config.json").read_text())
    (one / "tokenizer_config.json").write_text(json.dumps({**config, "more": 1}))
    assert identity(one) != identity(reward_model)
    two = copy(reward_model, tmp_path / "two")
    (two / "model.safetensors").touch()
    assert identity(two) != identity(reward_model)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"completions": ["a", "b", "c"], "rewards": [0.5, 2.0, -1.0]}, "0.5000, 2.0000, -1.0000; completion 2"),
        ({"completions": ["a", "b"], "rewards": [1.0, 1.0]}, "1.0000, 1.0000"),
        ({"completions": ["a"], "rewards": [1.0]}, "1.0000"),
        ({"chosen": "a", "rejected": "b", "rewards": [1.0, 1.5]}, "1.0000, 1.5000; rejected"),
    ],
)
def test_what_a_record_shows(record: dict[str, Any], said: str) -> None:
    ahead = " has the highest" if ";" in said else ""
    assert score.compared(Line("x.jsonl line 3", record)) == f"x.jsonl line 3: {said}{ahead}"
