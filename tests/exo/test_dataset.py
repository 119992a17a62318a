"""K-wise records: validation, token rows, truncation, collation, and the checks before a model is loaded."""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import write
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.exo import EXO
from orlhf_ext.exo.rows import Rules, parse_record

PAIR = {"id": "p1", "prompt": "\n\nHuman: a fruit\n\nAssistant:", "chosen": " Apple", "rejected": " No"}
KWISE = {"prompt": PAIR["prompt"], "completions": [" Apple.", " A pear?", " No", " Yes"], "rewards": [1.8, -0.3, 0, 2]}
CHAT = {
    "prompt": [{"role": "user", "content": "a fruit"}],
    "chosen": [{"role": "assistant", "content": "Apple"}],
    "rejected": [{"role": "assistant", "content": "No"}],
}


def launcher_args(**flags) -> SimpleNamespace:
    """The nested arguments that matter to EXO, with OpenRLHF's and our defaults; flags as ``exo__beta_pi=1``."""
    parser = argparse.ArgumentParser()
    EXO().add_flags(parser)
    exo = {key.removeprefix("exo."): value for key, value in vars(parser.parse_args([])).items()}
    args = SimpleNamespace(
        exo=SimpleNamespace(**exo),
        model=SimpleNamespace(model_name_or_path=None, ipo_enable=False, label_smoothing=0.0, beta=0.1),
        data=SimpleNamespace(
            dataset=None,
            dataset_split="train",
            max_len=64,
            prompt_key=None,
            chosen_key="chosen",
            rejected_key="rejected",
            apply_chat_template=False,
            tokenizer_chat_template=None,
        ),
        eval=SimpleNamespace(dataset=None, split="test"),
    )
    for flag, value in flags.items():
        section, _, name = flag.partition("__")
        setattr(getattr(args, section), name, value)
    return args


# ---- records


def test_pair_is_a_group_of_two():
    kwise = parse_record(PAIR, "here", Rules("exo-pref", 2))
    assert kwise.completions == [" Apple", " No"] and kwise.rewards == [1.0, 0.0]


@pytest.mark.parametrize(
    "change, rules, message",
    [
        ({"prompt": None}, {}, "has no 'prompt'"),
        ({"prompt": ""}, {}, "empty 'prompt'"),
        ({"prompt": 3}, {}, "type int"),
        ({"completions": None}, {}, "neither 'completions' nor 'chosen'"),
        ({"completions": "text"}, {}, "not a list"),
        ({"completions": [" a", 2, " b", " c"]}, {}, "completion 2 that is of type int"),
        ({"completions": [" a", None, " b", " c"]}, {}, "completion 2 that is empty"),
        ({"completions": [" a", "", " b", " c"]}, {}, "empty completion 2"),
        ({"rewards": None}, {}, "orlhf-ext score"),
        ({"rewards": [1, 2]}, {}, "4 completions but 2 rewards"),
        ({"rewards": [1, 2, 3, math.nan]}, {}, "reward nan"),
        ({"rewards": [1, 2, 3, -math.inf]}, {}, "reward -inf"),
        ({"rewards": [1, 2, 3, None]}, {}, "reward None"),
        ({"rewards": [1, 2, 3, "4"]}, {}, "reward '4'"),
        ({}, {"num_contrastive": 3}, "4 completions, which do not make groups of --exo.num_contrastive 3"),
        ({}, {"num_contrastive": 8}, "--exo.num_contrastive 8"),
        ({"completions": [], "rewards": []}, {}, "0 completions"),
        ({}, {"loss_type": "exo-pref"}, "use --exo.loss_type exo-rw"),
        ({"rewards": [1, 0, 0, 0]}, {"loss_type": "dpo-pref"}, "equal labels for completions 3 to 4"),
        ({"token_ids": [[1], [2], [3]]}, {}, "3 token ids"),
        ({"token_ids": [[1], [2], [3], []]}, {}, "empty completion 4"),
        ({"token_ids": [[1], [2], [3], [-1]]}, {}, "completion 4"),
        ({"token_ids": [[1], [2], [3], "a"]}, {}, "completion 4"),
        ({"finish_reasons": ["stop"]}, {}, "1 finish reasons"),
        ({}, {"chat": True}, "leave the flag out"),
        ({"prompt": CHAT["prompt"]}, {}, "add --data.apply_chat_template"),
        ({"prompt": [{"content": "a"}]}, {"chat": True}, "without a role"),
        ({"prompt": [{"role": "user", "content": ""}]}, {"chat": True}, "empty message"),
        ({"prompt": []}, {"chat": True}, "empty 'prompt'"),
    ],
)
def test_bad_records_are_named(change, rules, message):
    record = {"id": "k7", **KWISE, **change}
    with pytest.raises(UserError) as error:
        parse_record(record, "train.jsonl line 3", Rules(**{"loss_type": "exo-rw", "num_contrastive": 2, **rules}))
    assert message in str(error.value)
    assert str(error.value).startswith("train.jsonl line 3 (id 'k7') ") and "\n" not in str(error.value)


def test_pair_without_rewards_is_refused_by_rw():
    with pytest.raises(UserError, match=r"use --exo.loss_type exo-pref"):
        parse_record(PAIR, "x", Rules("exo-rw", 2))


def test_labels_serve_every_loss_and_equal_rewards_are_legal():
    record = {**KWISE, "rewards": [1, 0, 0, 1]}
    for loss_type in ("exo-pref", "dpo-pref", "exo-rw", "dpo-rw"):
        assert parse_record(record, "x", Rules(loss_type, 2)).rewards == [1.0, 0.0, 0.0, 1.0]
    assert parse_record({**KWISE, "rewards": [0.5] * 4}, "x", Rules("exo-rw", 4)).rewards == [0.5] * 4


def test_empty_text_with_token_ids_is_a_response():
    record = {**KWISE, "completions": ["", " a"], "rewards": [1, 2], "token_ids": [[1], [5, 1]]}
    assert parse_record(record, "x", Rules("exo-rw", 2)).token_ids == [[1], [5, 1]]


# ---- token rows


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def strategy_for():
    """A real, not distributed, DeepSpeed strategy around the arguments."""
    from orlhf_ext import backends

    backends.install()
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    def make(args: SimpleNamespace):
        args.ds = SimpleNamespace(param_dtype="bf16")
        args.train = SimpleNamespace(micro_batch_size=1)
        return DeepspeedStrategy(args=args)

    return make


def build(records, tokenizer, strategy_for, max_len=64, template=None, **flags):
    from datasets import Dataset

    from orlhf_ext.exo.dataset import KwiseDataset

    args = launcher_args(data__max_len=max_len, **flags)
    return KwiseDataset(Dataset.from_list(records), tokenizer, max_len, strategy_for(args), template, is_dpo=True)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rows_of(dataset, index):
    """Rows of a record as (prompt ids, response ids)."""
    item, rows, at = dataset[index], [], 0
    for length, prompt in zip(item["lengths"], item["prompt_lengths"], strict=True):
        row = item["ids"][at : at + length]
        rows.append((row[:prompt], row[prompt:]))
        at += length
    return rows


def test_boundaries_come_from_token_ids(tokenizer, strategy_for, capsys):
    dataset = build([PAIR], tokenizer, strategy_for)
    prompt, eos = ids_of(tokenizer, PAIR["prompt"]), [tokenizer.eos_token_id]
    assert rows_of(dataset, 0) == [(prompt, ids_of(tokenizer, text) + eos) for text in (" Apple", " No")]
    assert tokenizer.bos_token_id not in dataset[0]["ids"]
    assert "EXO data: 1 records, 2 completions (K = 2), mean response" in capsys.readouterr().out


def test_stored_token_ids_win_over_text(tokenizer, strategy_for):
    eos = tokenizer.eos_token_id
    record = {
        **KWISE,
        "token_ids": [[40, 41, eos], [50, 51], [60, 61], [70, eos]],
        "finish_reasons": ["stop", "length", "stop", "length"],
    }
    responses = [
        response for _, response in rows_of(build([record], tokenizer, strategy_for, exo__loss_type="exo-rw"), 0)
    ]
    assert responses == [[40, 41, eos], [50, 51], [60, 61, eos], [70, eos]]
    del record["finish_reasons"]  # then they are exactly what the engine produced
    responses = [
        response for _, response in rows_of(build([record], tokenizer, strategy_for, exo__loss_type="exo-rw"), 0)
    ]
    assert responses == record["token_ids"]


def test_text_that_stopped_by_length_gets_no_eos(tokenizer, strategy_for):
    record = {**KWISE, "finish_reasons": ["length", "stop", "length", "stop"]}
    rows = rows_of(build([record], tokenizer, strategy_for, exo__loss_type="exo-rw"), 0)
    assert [response[-1] == tokenizer.eos_token_id for _, response in rows] == [False, True, False, True]


def test_eos_is_not_doubled(tokenizer, strategy_for):
    dataset = build([{**PAIR, "chosen": " Apple" + tokenizer.eos_token}], tokenizer, strategy_for)
    assert rows_of(dataset, 0)[0][1] == [*ids_of(tokenizer, " Apple"), tokenizer.eos_token_id]


def test_truncation(tokenizer, strategy_for, capsys):
    """A response is cut on its right to the cap and loses EOS; the prompt on its left to what the longest leaves."""
    prompt, long = ids_of(tokenizer, PAIR["prompt"]), ids_of(tokenizer, " pear" * 40)
    record = {**PAIR, "rejected": " pear" * 40}
    rows = rows_of(build([record], tokenizer, strategy_for, max_len=20, exo__max_completion_len=8), 0)
    short = [*ids_of(tokenizer, " Apple"), tokenizer.eos_token_id]
    assert rows == [(prompt[-12:], short), (prompt[-12:], long[:8])]
    assert "truncated: 100.0% of prompts, 50.0% of responses" in capsys.readouterr().out
    rows = rows_of(build([record], tokenizer, strategy_for, max_len=20), 0)  # no cap: one prompt token stays
    assert rows == [(prompt[-1:], short), (prompt[-1:], long[:19])]
    groups = {**KWISE, "completions": [" a", " b", " pear" * 40, " c"]}
    flags = {"max_len": 20, "exo__max_completion_len": 8, "exo__loss_type": "exo-rw"}
    rows = rows_of(build([groups], tokenizer, strategy_for, **flags), 0)  # what is compared has one prompt
    assert [len(kept) for kept, _ in rows] == [16, 16, 12, 12]
    exact = len(prompt) + len(short)
    assert rows_of(build([PAIR], tokenizer, strategy_for, max_len=exact), 0)[0] == (prompt, short)


def test_input_template_and_keys(tokenizer, strategy_for):
    record = {"q": "fruit?", "good": " Apple", "bad": " No"}
    keys = {"data__prompt_key": "q", "data__chosen_key": "good", "data__rejected_key": "bad"}
    dataset = build([record], tokenizer, strategy_for, template="Q: {} A:", **keys)
    assert rows_of(dataset, 0)[0][0] == ids_of(tokenizer, "Q: fruit? A:")


def test_chat_template(tokenizer, strategy_for):
    tokenizer = copy.deepcopy(tokenizer)
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    flags = {"data__apply_chat_template": True, "data__tokenizer_chat_template": template}
    eos = tokenizer.eos_token_id
    prompt = ids_of(tokenizer, f"<user>a fruit{tokenizer.eos_token}\n<assistant>")
    expected = [(prompt, [*ids_of(tokenizer, text), eos]) for text in ("Apple", "No")]
    assert rows_of(build([CHAT], tokenizer, strategy_for, **flags), 0) == expected
    text = {"prompt": CHAT["prompt"], "completions": ["Apple", "No"], "rewards": [1, 0]}
    assert rows_of(build([text], tokenizer, strategy_for, **flags), 0) == expected
    strange = "{% for m in messages %}{{ messages|length }}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match=r"record 1: the chat template .* --data.tokenizer_chat_template"):
        build([CHAT], tokenizer, strategy_for, **{**flags, "data__tokenizer_chat_template": strange})


def test_bad_record_of_a_loaded_data_set_is_named(tokenizer, strategy_for):
    with pytest.raises(UserError, match=r"record 2 \(id 'p2'\) has an empty completion 1"):
        build([PAIR, {**PAIR, "id": "p2", "chosen": ""}], tokenizer, strategy_for)
    with pytest.raises(UserError, match="no record"):
        build([], tokenizer, strategy_for)


def test_collate_flattens_ragged_records(tokenizer, strategy_for):
    import torch

    pair = {"prompt": KWISE["prompt"], "completions": [" a", " longer answer"], "rewards": [0.25, -1]}
    dataset = build([KWISE, pair], tokenizer, strategy_for, exo__loss_type="exo-rw")
    assert len(dataset) == 2 and dataset.row_offsets.tolist() == [0, 4, 6]
    ids, mask, rewards, again, extra = dataset.collate_fn([dataset[1], dataset[0]])
    assert ids.shape == mask.shape == (6, int(dataset.row_lengths.max())) and ids.dtype == torch.long
    assert rewards.shape == again.shape == (6, 1)
    assert rewards.squeeze(1).tolist() == pytest.approx([0.25, -1, 1.8, -0.3, 0, 2])
    assert extra.records == [1, 0] and extra.reference is None
    for row, (prompt, response) in enumerate([*rows_of(dataset, 1), *rows_of(dataset, 0)]):
        length = len(prompt) + len(response)
        assert ids[row].tolist() == prompt + response + [tokenizer.pad_token_id] * (ids.shape[1] - length)
        assert mask[row].tolist() == [1] * length + [0] * (ids.shape[1] - length)
        assert extra.prompt_lengths[row] == len(prompt)
    dataset.reference_logps = torch.arange(6.0)
    assert dataset.collate_fn([dataset[1], dataset[0]])[4].reference.tolist() == [4, 5, 0, 1, 2, 3]


def test_digest_changes_with_tokens_and_boundaries(tokenizer, strategy_for):
    a, b = PAIR, {**PAIR, "chosen": " Apples"}
    first = build([a, b], tokenizer, strategy_for).digest()
    assert build([a, b], tokenizer, strategy_for).digest() == first
    assert build([b, a], tokenizer, strategy_for).digest() != first
    moved = {**PAIR, "prompt": PAIR["prompt"] + " A", "chosen": "pple", "rejected": "n"}
    assert build([moved], tokenizer, strategy_for).digest() != build([a], tokenizer, strategy_for).digest()


words = st.text(alphabet="ab \n", min_size=1, max_size=40)


@given(
    prompt=words, completions=st.lists(words, min_size=2, max_size=4), cap=st.integers(0, 9), room=st.integers(10, 30)
)
def test_every_row_holds_its_rules(tokenizer, prompt, completions, cap, room):
    """Any text: rows fit, end with EOS unless cut, keep the prompt's end and the response's beginning."""
    from orlhf_ext.exo.dataset import Encoder

    encoder = Encoder(tokenizer, Rules("exo-rw", len(completions)), room, cap)
    out = encoder({"prompt": [prompt], "completions": [completions], "rewards": [[0.0] * len(completions)]}, [0])
    ids, at, whole = out["ids"][0], 0, ids_of(tokenizer, prompt)
    for n, text in enumerate(completions):
        length, boundary = out["lengths"][0][n], out["prompt_lengths"][0][n]
        row, at = ids[at : at + length], at + length
        response = [*ids_of(tokenizer, text), tokenizer.eos_token_id]
        kept = row[boundary:]
        assert boundary >= 1 and length <= room and kept == response[: len(kept)]
        assert len(kept) == min(len(response), cap or room - 1)
        assert row[:boundary] == whole[-boundary:] and boundary == out["prompt_lengths"][0][0]
        assert out["response_cut"][0][n] == (kept[-1] != tokenizer.eos_token_id)
        assert out["prompt_cut"][0][n] == (boundary < len(whole))
    assert at == len(ids) and (max(out["lengths"][0]) == room or boundary == len(whole))


# ---- checks before a model is loaded


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"exo__loss_type": "exo-prf"}, "--exo.loss_type: unknown loss 'exo-prf'; did you mean 'exo-pref'?"),
        ({"exo__loss_type": "exo-rw", "exo__epsilon": 0.1}, "--exo.epsilon: .* leave it out"),
        ({"exo__epsilon": 0.0}, "--exo.epsilon: .*log 0"),
        ({"exo__max_completion_len": 64}, "less than --data.max_len 64"),
        ({"model__ipo_enable": True}, "--model.ipo_enable"),
        ({"model__label_smoothing": 0.1}, "use --exo.epsilon"),
        ({"model__beta": 0.5}, "use --exo.beta_pi"),
        ({"exo__cache_reference": "/proc/nothing"}, "--exo.cache_reference /proc/nothing"),
        ({"data__dataset": "x.jsonl.gz"}, "unpack it"),
    ],
)
def test_flags_that_contradict(flags, message):
    with pytest.raises(UserError, match=message):
        EXO().check(launcher_args(**flags))


def test_defaults_pass(tmp_path):
    EXO().check(launcher_args(data__dataset=str(write(tmp_path / "a.jsonl", [PAIR, PAIR]))))
    EXO().check(launcher_args(exo__loss_type="dpo-pref", exo__epsilon=0.0))
    EXO().check(launcher_args(data__dataset="some/hub-name", eval__dataset="another/name"))


def test_file_and_line_are_named(tmp_path):
    file = str(write(tmp_path / "train.jsonl", [PAIR, {**PAIR, "id": "p2", "rejected": ""}]))
    with pytest.raises(UserError, match=r"train.jsonl line 2 \(id 'p2'\) has an empty completion 2"):
        EXO().check(launcher_args(data__dataset=file))
    good = str(write(tmp_path / "good.jsonl", [PAIR]))
    with pytest.raises(UserError, match=r"train.jsonl line 2"):
        EXO().check(launcher_args(data__dataset=good, eval__dataset=f"{good}, {file}", eval__split="train"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    with pytest.raises(UserError, match=r"broken.jsonl line 1 is not JSON"):
        EXO().check(launcher_args(data__dataset=str(tmp_path / "broken.jsonl")))
    nan = tmp_path / "nan.jsonl"
    nan.write_text(json.dumps({**KWISE, "rewards": [1.0, math.nan, 0, 0]}) + "\n")
    with pytest.raises(UserError, match=r"nan.jsonl line 1 has the reward nan"):
        EXO().check(launcher_args(data__dataset=str(nan), exo__loss_type="exo-rw"))
    array = tmp_path / "array.json"
    array.write_text(json.dumps([KWISE, {**KWISE, "rewards": [1]}]))
    with pytest.raises(UserError, match=r"array.json record 2 has 4 completions but 1 rewards"):
        EXO().check(launcher_args(data__dataset=str(array), exo__loss_type="exo-rw"))


def test_longer_than_the_models_positions(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"is more than the 512 positions of"):
        EXO().check(launcher_args(model__model_name_or_path=str(tiny_model), data__max_len=513))


def test_flags_and_checks_load_nothing_heavy():
    code = (
        "import sys, argparse; from orlhf_ext.exo import EXO; EXO().add_flags(argparse.ArgumentParser());"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'openrlhf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
