"""Log-probabilities of completions, against the formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import failing

from orlhf_ext.commands import logprobs
from orlhf_ext.files.journal import journal_path
from orlhf_ext.files.records import read_records, write_jsonl
from orlhf_ext.models.batches import Row
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.logprobs import encode_rows, load_model, make_compute, response_logprobs
from orlhf_ext.models.texts import read_samples

PROMPT = "\n\nHuman: how are you?\n\nAssistant:"


def direct(model: torch.nn.Module, row: Row, temperature: float = 1.0) -> float:
    """One row alone: a whole forward pass and a log softmax in float32."""
    ids = torch.tensor([row.ids])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].float() / temperature
    picked = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return picked[row.prompt_length - 1 :].sum().item()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, (prompt, response) in enumerate([(4, 9), (1, 1), (12, 3), (7, 20), (5, 0)]):
        ids = torch.randint(3, 280, (prompt + response,), generator=generator).tolist()
        made.append(Row(i, 0, ids, prompt))
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_batches_against_the_formula(tiny_model: Path, rows: list[Row], temperature: float) -> None:
    model = load_model(tiny_model, "float32", "sdpa")
    found = make_compute(model, 2, temperature)(rows)
    assert found == pytest.approx([direct(model, row, temperature) for row in rows], abs=2e-4)
    assert found[-1] == 0.0
    assert found[3] < found[2] < 0


def test_long_responses_are_added_up_piecewise(
    tiny_model: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = make_compute(load_model(tiny_model, "float32", "sdpa"), 2)
    whole = compute(rows)
    monkeypatch.setattr("orlhf_ext.models.logprobs._ROWS_AT_ONCE", 4)
    assert compute(rows) == pytest.approx(whole, abs=1e-5)


def test_what_a_model_does_to_its_logits_stays_its_own(rows: list[Row]) -> None:
    """Gemma 2 caps its logits behind the output layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
    )
    model = Gemma2ForCausalLM(config).eval()
    found = make_compute(model, 0)(rows)  # type: ignore[arg-type]
    assert found == pytest.approx([direct(model, row) for row in rows], abs=2e-4)
    model.config.final_logit_softcapping = None
    uncapped = make_compute(model, 0)(rows)  # type: ignore[arg-type]
    assert abs(uncapped[3] - found[3]) > 1e-3


def test_only_positions_that_predict_a_response_reach_the_output_layer(tiny_model: Path, rows: list[Row]) -> None:
    model = load_model(tiny_model, "float32", "sdpa")
    seen: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))
    make_compute(model, 2)(rows)
    handle.remove()
    assert seen == [sum(len(row.ids) - row.prompt_length for row in rows)]
    ids = torch.tensor([[5, 6, 7]])
    none = response_logprobs(model, ids, torch.ones_like(ids), torch.tensor([3]))
    assert none.tolist() == [0.0]


def test_rows_come_from_token_ids_and_not_from_text(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    ids = [[9, 8, 7, 1], [11] * 40]
    base = {"prompt": PROMPT, "completions": ["whatever", "else"], "token_ids": ids}
    write_jsonl(tmp_path / "s.jsonl", [{"id": "a", **base}, {"id": "b", **base, "prompt_tokens": 3}])
    rows = encode_rows(read_samples(tmp_path / "s.jsonl"), tokenizer, 24).rows
    assert (
        [row.ids for row in rows]
        == [
            prompt[-20:] + ids[0],
            prompt[-1:] + ids[1][:23],  # a response that is too long is cut, and one id of the prompt stays
            prompt[-3:] + ids[0],  # as much of the prompt as the sampler saw
            prompt[-1:] + ids[1][:23],
        ]
    )
    assert [row.prompt_length for row in rows] == [min(20, len(prompt)), 1, 3, 1]


def test_text_without_ids_is_tokenised_as_in_training(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": PROMPT, "chosen": " fine\n", "rejected": " no </s>"}])
    rows = encode_rows(read_samples(tmp_path / "p.jsonl"), tokenizer, 100).rows
    assert [tokenizer.decode(row.ids[row.prompt_length :]) for row in rows] == [" fine </s>", " no </s>"]
    assert all(tokenizer.decode(row.ids[: row.prompt_length]) == PROMPT for row in rows)
    chat = {
        "id": "c",
        "prompt": [{"role": "user", "content": "hello"}],
        "completions": [[{"role": "assistant", "content": "fine "}]],
    }
    write_jsonl(tmp_path / "c.jsonl", [chat])
    (row,) = encode_rows(read_samples(tmp_path / "c.jsonl"), tokenizer, 100).rows
    assert tokenizer.decode(row.ids[row.prompt_length :]) == "fine</s>"


def test_the_command_adds_columns_and_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    records = [
        {
            "id": f"r{i}",
            "prompt": PROMPT,
            "completions": ["x", "y"],
            "token_ids": [[5 + i, 1], [7] * (i + 1)],
            "rewards": [1, 2],
        }
        for i in range(6)
    ]
    write_jsonl(tmp_path / "s.jsonl", records)
    line = f"--model {tiny_model} --data {tmp_path}/s.jsonl --max_len 64 --batch_tokens 90"
    more = ["--dtype", "float32", "--key", "logprobs_sft", "--out", f"{tmp_path}/a.jsonl"]
    logprobs.main([*line.split(), *more])
    found = [item.record for item in read_records(tmp_path / "a.jsonl")]
    model = load_model(tiny_model, "float32", "sdpa")
    for record, given in zip(found, records, strict=True):
        assert {**record, "logprobs_sft": None} == {**given, "logprobs_sft": None}
        wanted = [direct(model, Row(0, 0, prompt + ids, len(prompt))) for ids in given["token_ids"]]  # type: ignore[attr-defined]
        assert record["logprobs_sft"] == pytest.approx(wanted, abs=2e-4)
    # the second column keeps the first; a second temperature changes it
    line = f"--model {tiny_model} --data {tmp_path}/a.jsonl --out {tmp_path}/b.jsonl --max_len 64 --temperature 2"
    logprobs.main(line.split())
    second = next(iter(read_records(tmp_path / "b.jsonl"))).record
    assert second["logprobs_sft"] == found[0]["logprobs_sft"] and second["logprobs"] != second["logprobs_sft"]
    assert json.loads((tmp_path / "b.meta.json").read_text())["counts"]["tokens"] == 12 + 21
    assert not journal_path(tmp_path / "b.jsonl").exists()


def test_what_is_cut_is_counted_told_and_marked(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The same completion has another log-probability when it is cut: that of its beginning."""
    records = [
        {"id": "long", "prompt": PROMPT, "completions": ["x", "y"], "token_ids": [[7] * 40, [7, 1]]},
        {"id": "short", "prompt": PROMPT, "completions": ["x"], "token_ids": [[7, 1]], "logprobs_cut": [True]},
    ]
    write_jsonl(tmp_path / "s.jsonl", records)
    for max_len in (100, 24):
        out = tmp_path / f"{max_len}.jsonl"
        logprobs.main(f"--model {tiny_model} --data {tmp_path}/s.jsonl --out {out} --max_len {max_len}".split())
    said = capsys.readouterr().out
    assert said.count("are cut") == 1
    assert "at --max_len 24, 1 of 3 completions are cut on the right" in said and "and 1 prompts on the left" in said
    line = f"--model {tiny_model} --data {tmp_path}/s.jsonl --out {tmp_path}/48.jsonl --max_len 48"
    logprobs.main(line.split())
    assert "at --max_len 48, 1 of 3 prompts are cut on the left; raise it" in capsys.readouterr().out
    whole, cut = ([line.record for line in read_records(tmp_path / f"{n}.jsonl")] for n in (100, 24))
    assert [record.get("logprobs_cut") for record in whole] == [None, None]
    assert [record.get("logprobs_cut") for record in cut] == [[True, False], None]
    assert whole[0]["logprobs"][0] < cut[0]["logprobs"][0] - 50
    counts = [json.loads((tmp_path / f"{n}.meta.json").read_text())["counts"] for n in (100, 24)]
    assert [(one["completions_cut"], one["prompts_cut"]) for one in counts] == [(0, 0), (1, 1)]


def test_a_finished_journal_needs_no_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last batch and the output: nothing is computed again."""
    write_jsonl(tmp_path / "s.jsonl", [{"id": "a", "prompt": PROMPT, "completions": ["x", "y"]}])
    line = f"--model {tiny_model} --data {tmp_path}/s.jsonl --max_len 64 --out {tmp_path}/a.jsonl".split()
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr("orlhf_ext.files.journal.Journal.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        logprobs.main(line)
    monkeypatch.setattr("orlhf_ext.models.logprobs.load_model", None)
    logprobs.main(line)
    assert len(next(iter(read_records(tmp_path / "a.jsonl"))).record["logprobs"]) == 2


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        ({"token_ids": [[5, 100_000]]}, "", "line 1 (id 'a') has token_ids that are not ids of this tokenizer"),
        ({"token_ids": [[5], [6]]}, "", "has 2 token_ids for 1 completions"),
        ({"prompt_tokens": 999}, "", "was sampled with 999 prompt tokens"),
        ({}, "--key rewards", "--key rewards is the name of another column"),
        ({}, "--temperature 0", "--temperature 0 is too small; give more than 0"),
        ({}, "--max_len 1", "--max_len 1 is too small"),
        ({}, "--max_len 4096", "--max_len 4096 is more than the 512 positions"),
    ],
)
def test_mistakes_are_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, flags: str, said: str
) -> None:
    write_jsonl(
        tmp_path / "s.jsonl", [{"id": "a", "prompt": PROMPT, "completions": ["x"], "token_ids": [[5]], **change}]
    )
    line = f"--model {tiny_model} --data {tmp_path}/s.jsonl --out {tmp_path}/o.jsonl --max_len 64 {flags}"
    assert said in failing(capsys, logprobs.main, *line.split())
