"""Gold traits and their command, with real, tiny models, against transformers' own classes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, failing, meta, read, write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.groups import score
from orlhf_ext.groups.traits import ModelTrait, Traits, TraitSpec, conciseness, parse_traits
from orlhf_ext.models.batches import cut_batches
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.texts import read_samples

PROMPT = "\n\nHuman: hello?\n\nAssistant:"
RESPONSES = [" fine", " no idea\n", " fine, and you? ", " hello" * 20, ""]
NEEDS_VADER = "positiveness needs vaderSentiment, which is not installed"


@pytest.fixture(scope="module")
def gpt2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 classifier with 48 positions and no padding token in config or tokenizer, as the gold models are."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tokenizer = load_tokenizer(tiny_model)
    size: dict[str, Any] = {"n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "num_labels": 1}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), **size, **ends)
    torch.manual_seed(3)
    model = GPT2ForSequenceClassification(config).to(torch.bfloat16)
    model.score.weight.data.normal_()
    model.save_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


def own_scores(folder: Path, texts: list[str]) -> list[float]:
    """What transformers' class gives, text by text, of the last tokens that it has positions for."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    positions = model.config.max_position_embeddings
    with torch.inference_mode():
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-positions:] for text in texts]
        return [model(torch.tensor([row])).logits.float().item() for row in ids]


def test_specs() -> None:
    found = parse_traits(["positive=positiveness", "short = conciseness:40", "long=conciseness", "a=org/model=x"])
    assert found == [
        TraitSpec("positive", "positiveness"),
        TraitSpec("short", "conciseness", words=40),
        TraitSpec("long", "conciseness"),
        TraitSpec("a", "model", model="org/model=x"),
    ]
    assert parse_traits([str(spec) for spec in found]) == found
    assert Traits(["a=conciseness"]).holds_models is False and Traits(["a=some/model"]).holds_models is True


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["positiveness"], "--trait positiveness must be NAME=KIND"),
        (["=positiveness"], "must be NAME=KIND"),
        (["a="], "must be NAME=KIND"),
        (["a=conciseness:0"], "must give a number of words after the colon"),
        (["a=conciseness:"], "must give a number of words after the colon"),
        (["a=conciseness:ten"], "must give a number of words after the colon"),
        (["a=conciseness", "a=positiveness"], "--trait names 'a' twice"),
        ([], "--trait names no trait"),
    ],
)
def test_wrong_specs(specs: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_traits(specs)


def test_conciseness() -> None:
    assert [conciseness(text, 4) for text in ("", "one", " one\n two ", "a b c d", "a b c d e f")] == [
        1,
        0.75,
        0.5,
        0,
        0,
    ]
    found = Traits(["short=conciseness:4", "default=conciseness"]).score(["p"] * 2, ["one", "a b c d e"])
    assert found == {"short": [0.75, 0.0], "default": [0.99, 0.95]}


def test_positiveness() -> None:
    vader = pytest.importorskip("vaderSentiment.vaderSentiment", reason=NEEDS_VADER)
    texts = ["What a wonderful, happy day!", "", "This is horrible and sad.", "The table has four legs."]
    found = Traits(["p=positiveness"]).score(["ignored"] * 4, texts)["p"]
    compound = vader.SentimentIntensityAnalyzer().polarity_scores
    assert found == [(compound(text)["compound"] + 1) / 2 for text in texts]
    assert 1 >= found[0] > 0.75 and found[1] == found[3] == 0.5 and 0 <= found[2] < 0.25


def test_without_vader_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UserError, match=r'pip install "orlhf-ext\[groups\]"'):
        Traits(["p=positiveness"]).check()


def test_a_gpt2_classifier_scores_as_its_own_class(gpt2: Path) -> None:
    wanted = own_scores(gpt2, [PROMPT + text.rstrip() for text in RESPONSES])
    assert len(load_tokenizer(gpt2)(PROMPT + RESPONSES[3])["input_ids"]) >= 30 and max(wanted) - min(wanted) > 0.2
    alone = Traits([f"h={gpt2}"], batch_tokens=2).score([PROMPT] * 5, RESPONSES)["h"]
    assert alone == pytest.approx(wanted, abs=0.02)
    batched = Traits([f"h={gpt2}"]).score([PROMPT] * 5, RESPONSES)["h"]  # padded with EOS, on the left
    assert batched == pytest.approx(wanted, rel=0.02, abs=0.03)  # a few steps of bf16; other kernels, other steps


def test_long_texts_keep_their_answer(gpt2: Path) -> None:
    prompt = "\n\nHuman:" + " how are you?" * 60 + "\n\nAssistant:"
    found = Traits([f"h={gpt2}"], batch_tokens=2).score([prompt] * 3, [" fine", " no", " fine" * 80])["h"]
    assert found == pytest.approx(own_scores(gpt2, [prompt + " fine", prompt + " no", " fine" * 80]), abs=0.02)
    assert found[0] != found[1]
    short = Traits([f"h={gpt2}"], max_len=8, batch_tokens=2)
    (first, second) = short.score([prompt, "\n\nHuman: hello" + prompt], [" fine", " fine"])["h"]
    assert first == second  # what differs lies before the last 8 tokens


@pytest.mark.parametrize("pads_with_eos", [True, False])
def test_a_classifier_does_not_pool_at_the_end_that_it_takes_for_padding(
    gpt2: Path, tmp_path: Path, pads_with_eos: bool
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(gpt2, folder)
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"] if pads_with_eos else None
    (folder / "config.json").write_text(json.dumps(config))
    wanted = own_scores(folder, [f"{PROMPT}{text.rstrip()} </s>" for text in RESPONSES])
    found = Traits([f"h={folder}"], eos="append", batch_tokens=2).score([PROMPT] * 5, RESPONSES)["h"]
    assert found == pytest.approx(wanted, abs=0.02)
    if not pads_with_eos:
        assert found != pytest.approx(Traits([f"h={folder}"]).score([PROMPT] * 5, RESPONSES)["h"], abs=0.05)


def test_a_model_of_train_rm_scores_as_score_does(reward_model: Path, tmp_path: Path) -> None:
    from orlhf_ext.commands import score as plain

    write(tmp_path / "in.jsonl", [{"id": "a", "prompt": PROMPT, "completions": RESPONSES}])
    paths = f"--model {reward_model} --data {tmp_path}/in.jsonl --out {tmp_path}/out.jsonl"
    plain.main(f"{paths} --max_len 64 --batch_tokens 2".split())
    (record,) = read(tmp_path / "out.jsonl")
    found = Traits([f"h={reward_model}"], max_len=64, eos="append", batch_tokens=2).score([PROMPT] * 5, RESPONSES)
    assert found["h"] == record["rewards"]


def test_models_that_do_not_fit(gpt2: Path, tiny_model: Path, tmp_path: Path) -> None:
    for traits, said in (
        (Traits([f"h={tmp_path}/none"]), "--trait h: .*none is not a folder"),
        (Traits([f"h={tiny_model}"]), "--trait h: .*is not a reward model: its weights have no score.weight"),
        (Traits([f"h={gpt2}"], max_len=49), "--max_len 49 is more than the 48 positions"),
        (Traits([f"h={tmp_path}/none"], flag="--groups.traits"), "--groups.traits h: "),
    ):
        with pytest.raises(UserError, match=said):
            traits.check()
        with pytest.raises(UserError, match=said):
            traits.score([PROMPT], [" fine"])


SAMPLES = [
    {"id": "s", "prompt": PROMPT, "completions": RESPONSES, "finish_reasons": ["stop"] * 5, "traits": {"old": [0] * 5}},
    {"id": "long", "prompt": PROMPT * 12, "completions": [" fine", " fine" * 90]},
]
PAIRS = [{"id": "a", "prompt": PROMPT, "chosen": " fine", "rejected": " no idea", "group_id": 1}]


def run(gpt2: Path, tmp_path: Path, name: str, *more: str) -> list[Path]:
    """Samples and pairs, with two traits."""
    data = [write(tmp_path / "samples.jsonl", SAMPLES), write(tmp_path / "pairs.jsonl", PAIRS)]
    out = [tmp_path / f"{name}{i}.jsonl" for i in range(2)]
    words = ["--data", *data, "--out", *out, "--trait", f"helpful={gpt2}", "--trait", "short=conciseness:20", *more]
    score.main([str(word) for word in words])
    return out


def test_the_command_adds_traits(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    samples, pairs = run(gpt2, tmp_path, "out", "--batch_tokens", "2")
    traits = Traits([f"h={gpt2}"], batch_tokens=2)
    records = read(samples)
    for record, sample in zip(records, SAMPLES, strict=True):
        helpful = traits.score([record["prompt"]] * len(record["completions"]), record["completions"])["h"]
        short = [conciseness(text, 20) for text in record["completions"]]
        assert record == {**sample, "traits": {**sample.get("traits", {}), "helpful": helpful, "short": short}}
    (pair,) = read(pairs)
    assert pair["completions"] == [" fine", " no idea"] and pair["group_id"] == 1 and "chosen" not in pair
    assert pair["traits"] == {
        "helpful": [records[0]["traits"]["helpful"][0], pair["traits"]["helpful"][1]],
        "short": [0.95, 0.9],
    }
    told = capsys.readouterr().out
    assert "helpful: 2 texts are cut on the left at the model's positions, 1 of them with nothing left" in told
    assert "mean helpful" in told and f"{pairs}: " in told
    side = meta(samples)
    assert side["counts"] == {
        "records": 2,
        "completions": 7,
        "cut": {"helpful": {"truncated": 2, "prompt_lost": 1}, "short": {}},
    }
    assert side["traits"]["short"] == {"spec": "short=conciseness:20", "kind": "conciseness", "words": 20}
    assert side["means"]["short"] == pytest.approx(sum(sum(r["traits"]["short"]) for r in records) / 7)


def test_a_run_that_goes_on_gives_the_same_bytes(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [path.read_bytes() for path in run(gpt2, tmp_path, "whole", "--batch_tokens", "60")]
    lengths = [len(row.ids) for row in rows_of(gpt2, tmp_path / "samples.jsonl")]
    assert len(cut_batches(lengths, 60)) > 3
    add, kept = Journal.add, []

    def cut_short(journal: Journal, key: str, value: list[float]) -> None:
        add(journal, key, value)
        kept.append(key)
        if len(kept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", cut_short)
    with pytest.raises(SystemExit, match="130"):
        run(gpt2, tmp_path, "cut", "--batch_tokens", "60")
    part = journal_path(tmp_path / "cut0.jsonl")
    part.write_bytes(part.read_bytes()[:-3])  # torn, too: the third batch is lost
    again: list[str] = []
    monkeypatch.setattr(Journal, "add", lambda journal, key, value: (again.append(key), add(journal, key, value)))
    assert [path.read_bytes() for path in run(gpt2, tmp_path, "cut", "--batch_tokens", "60")] == wanted
    assert kept == ["helpful/0", "helpful/1", "helpful/2"] and again[0] == "helpful/2"
    assert not part.exists()


@pytest.mark.slow
@pytest.mark.launcher
def test_numbers_do_not_depend_on_the_workers(gpt2: Path, tmp_path: Path, workers: None) -> None:
    """Two traits of two files; the weights stay in the workers."""
    found = [
        [path.read_bytes() for path in run(gpt2, tmp_path, f"w{n}", "--batch_tokens", "60", "--workers", n)]
        for n in ("1", "2")
    ]
    assert found[0] == found[1]


def rows_of(gpt2: Path, path: Path) -> list[Any]:
    model = Traits([f"h={gpt2}"]).models["h"]
    return model.encode([(str(s.prompt), str(t), 0, 0) for s in read_samples(path) for t in s.completions]).rows


def test_models_are_loaded_once_and_only_if_something_is_left(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orlhf_ext.models import weights

    loaded: list[Path] = []
    load = weights.load_reward

    def counted(make: Any, folder: Path, *more: Any) -> Any:
        loaded.append(folder)
        return load(make, folder, *more)

    monkeypatch.setattr(weights, "load_reward", counted)
    run(gpt2, tmp_path, "out")
    assert loaded == [gpt2]
    # a run that was killed after its last batch has nothing left to compute
    monkeypatch.setattr(Journal, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit, match="130"):
        run(gpt2, tmp_path, "late")
    monkeypatch.undo()
    monkeypatch.setattr(weights, "load_reward", counted)
    write(tmp_path / "samples.jsonl", SAMPLES)
    words = f"--data {tmp_path}/samples.jsonl --out {tmp_path}/late0.jsonl --trait helpful={gpt2}"
    score.main([*words.split(), "--trait", "short=conciseness:20"])
    assert loaded == [gpt2, gpt2]
    assert read(tmp_path / "late0.jsonl") == read(tmp_path / "out0.jsonl")


def test_nan_names_the_record(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    weights = load_file(broken / "model.safetensors")
    weights["transformer.wpe.weight"][40:] = 3e38  # finite; only long texts come so far, and overflow
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit):
        run(broken, tmp_path, "out", "--batch_tokens", "2")
    assert "(id 'long'): completion 1 got a helpful score of nan" in capsys.readouterr().err
    assert not (tmp_path / "out0.jsonl").exists() and journal_path(tmp_path / "out0.jsonl").exists()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": [{"role": "user", "content": "p"}], "completions": ["x"]}, "has messages, and traits are scored"),
        ({"prompt": "p", "completions": [[{"role": "assistant", "content": "x"}]]}, "build text prompts"),
        ({"prompt": "p", "completions": ["x"], "traits": {"old": [1, 2]}}, "traits that are not one number"),
        ({"prompt": "p"}, "line 2 has neither 'completions' nor"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, capsys: pytest.CaptureFixture, record: dict, said: str) -> None:
    data = write(tmp_path / "bad.jsonl", [PAIRS[0], record])
    error = failing(capsys, score.main, "--data", data, "--out", tmp_path / "o.jsonl", "--trait", "a=conciseness")
    assert said in error and "line 2" in error and error.count("\n") == 1


def test_wrong_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write(tmp_path / "d.jsonl", PAIRS)
    words = ["--data", data, "--out", tmp_path / "o.jsonl", "--trait"]
    assert "must be NAME=KIND" in failing(capsys, score.main, *words, "conciseness")
    assert "--max_len 1 is too small" in failing(capsys, score.main, *words, "a=conciseness", "--max_len", 1)
    assert "names 1 files and --out 2" in failing(capsys, score.main, *words[:4], "x.jsonl", "--trait", "a=conciseness")


def test_traits_of_words_load_no_model_library(tmp_path: Path) -> None:
    kinds = ["--trait", "short=conciseness"]
    if importlib.util.find_spec("vaderSentiment"):
        kinds += ["--trait", "positive=positiveness"]
    words = ["--data", str(write(tmp_path / "d.jsonl", PAIRS)), "--out", str(tmp_path / "o.jsonl"), *kinds]
    code = "import sys; from orlhf_ext.groups import evaluate, score; score.main(sys.argv[1:])\n"
    code += "heavy = {'torch', 'transformers', 'ray', 'vllm', 'deepspeed'} & set(sys.modules); assert not heavy, heavy"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=env, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert list(read(tmp_path / "o.jsonl")[0]["traits"]) == [kind.partition("=")[0] for kind in kinds[1::2]]


def test_a_trait_of_a_model_is_made_for_other_rewards_too(gpt2: Path) -> None:
    """The parts of `Traits` that are used one by one."""
    traits = Traits([f"h={gpt2}", "c=conciseness"])
    assert traits.names == ["h", "c"] and list(traits.models) == ["h"]
    assert isinstance(traits.models["h"], ModelTrait) and len(traits.models["h"].identity) == 64
    assert traits.score([], []) == {"h": [], "c": []}
