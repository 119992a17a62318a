"""Rectified decoding in Hugging Face's generate, and the commands continuations and decode."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deadend_q import make_q
from helpers import meta, read, write

from orlhf_ext.deadend import continuations, decode_prompts
from orlhf_ext.files.journal import Journal, journal_path

WORDS = ("hello", "how are", "you", "fine")
RECORDS = [
    {"prompt": {"text": f"Human: {' '.join(WORDS[: i % 4 + 1])} {i}?", "toxicity": 0.1}, "kept": i} for i in range(9)
]
NEW = 12


@pytest.fixture(scope="module")
def q_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_q(tmp_path_factory.mktemp("q") / "q", tiny_model)


@pytest.fixture(scope="module")
def models(tiny_model: Path, q_folder: Path) -> tuple[Any, Any, Any]:
    from orlhf_ext.deadend.model import load_q_model
    from orlhf_ext.models.folder import load_tokenizer
    from orlhf_ext.models.logprobs import load_model

    return load_model(tiny_model, "float32", "sdpa"), load_q_model(q_folder), load_tokenizer(tiny_model)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", RECORDS)


def formula(models: tuple, ids: list[int], epsilon: float) -> Any:
    """The rectified logits behind a text, by whole forward passes over it alone."""
    import torch

    from orlhf_ext.deadend.decoding import rectify

    model, q_model, _ = models
    with torch.inference_mode():
        whole = torch.tensor([ids])
        q_values = q_model.q_head(q_model.base_model(whole).last_hidden_state[:, -1])
        return rectify(model(whole).logits[:, -1], q_values, epsilon)[0]


@pytest.mark.launcher
@pytest.mark.parametrize("pad", [2, 0])
def test_generate_under_caps(models: tuple, pad: int) -> None:
    import torch

    from orlhf_ext.deadend.hf import RectifiedLogitsProcessor

    model, q_model, _ = models
    processor = RectifiedLogitsProcessor(q_model, 0.1, pad_token_id=pad, eos_token_id=1)
    steps = 0
    for texts in ([[0, 5, 6, 7], [9], [0, 8]], [[0, 4, 4, 9, 30], [7, 7]]):  # two calls, with one processor
        width = max(map(len, texts))
        ids = torch.tensor([[pad] * (width - len(text)) + text for text in texts])
        mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
        processors = [processor.for_batch(mask) if pad == 0 else processor]  # only the mask tells pads from text
        torch.manual_seed(1)
        out = model.generate(
            ids,
            attention_mask=mask,
            logits_processor=processors,
            do_sample=True,
            top_k=0,
            num_return_sequences=2,
            max_new_tokens=NEW,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for row, sequence in enumerate(out.sequences[:, width:].tolist()):
            for step, token in enumerate(sequence):
                wanted = formula(models, texts[row // 2] + sequence[:step], 0.1)
                torch.testing.assert_close(out.scores[step][row].softmax(-1), wanted.softmax(-1), atol=1e-4, rtol=1e-3)
                steps += 1
                if token == 1:
                    break
    assert processor.steps == steps and 0 < processor.infeasible_steps < steps


def test_beams(models: tuple) -> None:
    import torch

    from orlhf_ext.deadend.hf import RectifiedLogitsProcessor

    class Check(RectifiedLogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            from orlhf_ext.deadend.decoding import rectify

            found = super().__call__(input_ids, scores)
            out = models[1].q_head(models[1].base_model(input_ids).last_hidden_state[:, -1])
            torch.testing.assert_close(found.exp(), rectify(scores, out, 0.1).exp(), atol=1e-5, rtol=1e-3)
            return found

    processor = Check(models[1], 0.1)
    models[0].generate(
        torch.tensor([[0, 5, 6], [3, 9, 9]]), num_beams=3, max_new_tokens=5, logits_processor=[processor]
    )
    assert processor.steps == 30


def test_a_smaller_vocabulary_is_refused(models: tuple, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from orlhf_ext.cli.errors import UserError
    from orlhf_ext.deadend.hf import RectifiedLogitsProcessor
    from orlhf_ext.deadend.model import load_q_model

    small = load_q_model(make_q(tmp_path / "q", tiny_model, vocab_size=20))
    ids, scores = torch.tensor([[3]]), torch.zeros(1, 30)
    with pytest.raises(UserError, match="knows 20 tokens and the language model has 30"):
        RectifiedLogitsProcessor(small)(ids, scores)
    padded = RectifiedLogitsProcessor(small, vocab_size=20)(ids, scores)
    assert (padded[0, 20:] == 0).all() and (padded[0, :20] < 0).any()


def line(model: Path, data: Path, out: Path, *more: object) -> list[str]:
    flags = f"--model_name_or_path {model} --data_file {data} --save_file {out} --max_new_tokens {NEW} --backend hf"
    return [*flags.split(), "--dtype", "float32", *map(str, more)]


@pytest.mark.launcher
@pytest.mark.parametrize("plain", [True, False])
def test_sampling_is_what_the_flags_say(
    tiny_model: Path, q_folder: Path, prompts: Path, tmp_path: Path, plain: bool
) -> None:
    """Nothing of what the model's folder has in generation_config.json."""
    other = shutil.copytree(tiny_model, tmp_path / "other")
    defaults = {
        "do_sample": True,
        "repetition_penalty": 1.5,
        "min_p": 0.5,
        "no_repeat_ngram_size": 2,
        "eos_token_id": 1,
    }
    (other / "generation_config.json").write_text(json.dumps(defaults))
    found = []
    for model in (tiny_model, other):
        out = tmp_path / f"{model.name}.jsonl"
        if plain:
            continuations.main(line(model, prompts, out, "--num_returns", 2))
        else:
            decode_prompts.main(line(model, prompts, out, "--q_model_name_or_path", q_folder, "--num_returns", 2))
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_continuations(models: tuple, tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "gens.jsonl"
    argv = line(tiny_model, prompts, out, "--num_returns", 3, "--batch_size", 4)
    continuations.main(argv)
    records = read(out)
    assert [{key: record[key] for key in ("prompt", "kept")} for record in records] == RECORDS
    tokenizer = models[2]
    for record in records:
        assert len(record["generations"]) == 3
        for one in record["generations"]:
            assert set(one) == {"text", "token_ids"} and 1 <= len(one["token_ids"]) <= NEW
            assert one["text"] == tokenizer.decode(one["token_ids"], skip_special_tokens=True)
    counts = meta(out)["counts"]
    assert counts["completions"] == 27 and "steps" not in counts
    assert counts["tokens"] == sum(len(one["token_ids"]) for record in records for one in record["generations"])
    drawn = tmp_path / "drawn.jsonl"
    for seed in (1, 1, 2):
        continuations.main([*argv, "--save_file", str(drawn), "--sample_size", "4", "--seed", str(seed)])
    kept = [record["kept"] for record in read(drawn)]
    assert len(kept) == 4 and kept == sorted(kept)
    assert meta(drawn)["arguments"]["top_k"] == 50


def stopped_after(count: int, main: Callable, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command that is cut short when ``count`` prompts are kept, in the middle of a batch."""
    add, kept = Journal.add, []

    def stop(self: Journal, key: str, value: Any) -> None:
        if len(kept) == count:
            raise KeyboardInterrupt
        kept.append(key)
        add(self, key, value)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Journal, "add", stop)
        main(argv)


@pytest.mark.launcher
def test_a_resumed_run_writes_what_an_uninterrupted_one_does(
    tiny_model: Path, q_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[Callable, list[object]]] = [
        (continuations.main, []),
        (decode_prompts.main, ["--q_model_name_or_path", q_folder, "--epsilon", 0.1]),
    ]
    for number, (main, more) in enumerate(cases):
        whole, cut = tmp_path / f"whole{number}.jsonl", tmp_path / f"cut{number}.jsonl"
        flags = ["--num_returns", 2, "--batch_size", 4, "--min_new_tokens", 2, *more]
        main(line(tiny_model, prompts, whole, *flags))
        argv = line(tiny_model, prompts, cut, *flags)
        stopped_after(5, main, argv, monkeypatch)
        assert journal_path(cut).exists() and not cut.exists()
        main(argv)
        assert cut.read_bytes() == whole.read_bytes() and not journal_path(cut).exists()


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.usefixtures("workers")
def test_what_is_sampled_does_not_depend_on_the_workers(
    tiny_model: Path, q_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{count}.jsonl" for count in (1, 2)]
    for count, out in enumerate(outs, 1):
        flags = ["--num_returns", 2, "--batch_size", 2, "--min_new_tokens", 2, "--epsilon", 0.1, "--workers", count]
        decode_prompts.main(line(tiny_model, prompts, out, "--q_model_name_or_path", q_folder, *flags))
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert meta(outs[0]) == meta(outs[1]) and meta(outs[0])["counts"]["steps"] > 0


@pytest.mark.launcher
def test_decode(models: tuple, tiny_model: Path, q_folder: Path, prompts: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "rectified.jsonl", tmp_path / "plain.jsonl"
    common = ["--num_returns", 2, "--min_new_tokens", NEW, "--num_samples_for_eval", 5]
    decode_prompts.main(line(tiny_model, prompts, out, "--q_model_name_or_path", q_folder, "--epsilon", 0.1, *common))
    decode_prompts.main(line(tiny_model, prompts, plain, "--plain", *common))
    assert [r["kept"] for r in read(out)] == [r["kept"] for r in read(plain)]
    assert [r["generations"] for r in read(out)] != [r["generations"] for r in read(plain)]
    counts = meta(out)["counts"]
    assert counts["tokens"] == 5 * 2 * NEW == counts["steps"]
    assert 0 < counts["infeasible_steps"] < counts["steps"] and "steps" not in meta(plain)["counts"]
    greedy = tmp_path / "greedy.jsonl"
    flags = ["--num_returns", 1, "--min_new_tokens", 0, "--no-do_sample", "--passes", 0, "--infeasible", "fallback"]
    decode_prompts.main(line(tiny_model, prompts, greedy, "--q_model_name_or_path", q_folder, *flags))
    from orlhf_ext.deadend.hf import RectifiedLogitsProcessor

    model, q_model, tokenizer = models
    import torch

    for record in read(greedy)[:3]:
        ids = tokenizer(record["prompt"]["text"], add_special_tokens=False)["input_ids"]
        processor = RectifiedLogitsProcessor(q_model, passes=None, infeasible="fallback")
        wanted = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, logits_processor=[processor])
        assert record["generations"][0]["token_ids"] == wanted[0, len(ids) :].tolist()


@pytest.mark.launcher
def test_decode_with_vllm(tiny_model: Path, q_folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "rectified.jsonl"
    argv = line(tiny_model, prompts, out, "--q_model_name_or_path", q_folder, "--num_returns", 3, "--backend", "vllm")
    words = [
        sys.executable,
        "-m",
        "orlhf_ext.deadend.decode_prompts",
        *argv,
        "--min_new_tokens",
        "5",
        "--epsilon",
        "0.1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    records = read(out)
    assert [record["kept"] for record in records] == list(range(9))
    lengths = [len(one["token_ids"]) for record in records for one in record["generations"]]
    assert len(lengths) == 27 and min(lengths) >= 5 and max(lengths) <= NEW
    counts = meta(out)["counts"]
    assert counts["steps"] == counts["tokens"] == sum(lengths) and 0 < counts["infeasible_steps"] < counts["steps"]
    assert f"at {counts['infeasible_steps']} of {counts['steps']} steps" in done.stdout


def test_mistakes(
    tiny_model: Path, q_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.jsonl"

    def told(main: Callable, *more: object, data: Path = prompts, words: tuple[str, ...]) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(line(tiny_model, data, out, *more))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and all(word in said for word in words), said
        assert not out.exists()

    q_flags = ("--q_model_name_or_path", q_folder)
    told(decode_prompts.main, words=("give either --q_model for", "--plain"))
    told(decode_prompts.main, *q_flags, "--plain", words=("give either",))
    told(decode_prompts.main, *q_flags, "--epsilon", 2, words=("--epsilon 2 is too large; give at most 1",))
    told(decode_prompts.main, *q_flags, "--no-do_sample", words=("greedy", "--num_returns 1"))
    told(decode_prompts.main, "--q_model_name_or_path", tiny_model, words=("is not a value function",))
    told(decode_prompts.main, *q_flags, "--max_new_tokens", 5, words=("--min_new_tokens 10 is more than --max_new_t",))
    told(continuations.main, "--sample_size", 0, words=("--sample_size 0", "or -1"))
    told(continuations.main, "--max_new_tokens", 512, words=("--max_new_tokens 513 is more than the 512 positions",))
    told(continuations.main, "--save_file", prompts, words=("is also an input",))
    small = make_q(tmp_path / "small", tiny_model, vocab_size=20)
    flags = ("--min_new_tokens", 0, "--q_model_name_or_path")
    told(decode_prompts.main, *flags, small, words=("knows 20 tokens", "one tokenizer"))
    short = make_q(tmp_path / "short", tiny_model, positions=10)
    told(decode_prompts.main, *flags, short, words=("is more than the 10 positions of", "short"))
    for bad, words in (
        ([], ("has no record",)),
        ([{"prompt": {"texts": "x"}}], ("line 1 has no prompt {",)),
        ([{"prompt": "x"}, {"prompt": ""}], ("line 2 has an empty prompt; remove the record",)),
        ([{"id": 1, "prompt": "x"}, {"id": "1", "prompt": "y"}], ("line 2 has the id '1'",)),
    ):
        told(continuations.main, data=write(tmp_path / "bad.jsonl", bad), words=words)
