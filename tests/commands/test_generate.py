"""Sampling with real engines on a tiny model: vLLM's CPU build in processes of its own, Hugging Face in this one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import failing, read
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.backends.resources import kv_bytes_per_token
from orlhf_ext.commands import generate
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.files.records import write_jsonl
from orlhf_ext.models import samplers
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.prompts import encode_prompts
from orlhf_ext.models.samplers import derive_seed
from orlhf_ext.models.texts import read_prompts

WORDS = ("hello", "how are", "you", "fine")
RECORDS = [
    {
        "id": f"q{i}",
        "prompt": f"\n\nHuman: {' '.join(WORDS[: i % 4 + 1])} {i}?\n\nAssistant:",
        "chosen": "x",
        "label": 7,
    }
    for i in range(12)
]
MAX_NEW, MAX_LEN = 12, 64


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", RECORDS)
    return tmp_path / "prompts.jsonl"


def arguments(model: Path, data: Path, out: Path, *more: str, completions: int = 2) -> list[str]:
    line = f"--model {model} --data {data} --out {out} --num_completions {completions} --max_len {MAX_LEN}"
    return [*line.split(), "--max_new_tokens", str(MAX_NEW), *more]


def command_line(argv: list[str]) -> list[str]:
    return [sys.executable, "-m", "orlhf_ext", "generate", *argv]


def run(argv: list[str]) -> subprocess.CompletedProcess:
    done = subprocess.run(command_line(argv), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def check_samples(records: list[dict], ids: list[str], completions: int = 2) -> None:
    assert [record["id"] for record in records] == ids
    for record in records:
        assert set(record) == {"id", "prompt", "completions", "token_ids", "finish_reasons", "prompt_tokens"}
        assert len(record["completions"]) == completions
        for text, tokens, reason in zip(
            record["completions"], record["token_ids"], record["finish_reasons"], strict=True
        ):
            assert isinstance(text, str) and "</s>" not in text
            assert 1 <= len(tokens) <= MAX_NEW
            assert (reason == "stop") == (tokens[-1] == 1) and 1 not in tokens[:-1]  # EOS is kept, and is the last
            assert reason == "stop" or len(tokens) == MAX_NEW


def half_done(argv: list[str], ids: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave the journal that a run leaves which is killed after ``ids``, with a torn line; texts are marked."""

    def stop(_units: object, _samples: object, _load: object, journal: Journal, *_: object) -> None:
        assert not journal.done
        for identifier in ids:
            piece = {"completions": ["kept", "kept"], "token_ids": [[5, 1], [6, 1]], "finish_reasons": ["stop", "stop"]}
            journal.add(identifier, {**piece, "prompt_tokens": 3, "prompt_cut": False})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(generate, "sample_all", stop)
        generate.main(argv)
    path = journal_path(argv[argv.index("--out") + 1])
    with open(path, "ab") as stream:
        stream.write(b'{"key": "q11", "value": {"comple')
    return path


@pytest.mark.launcher
def test_vllm_goes_on_where_it_was_cut_short(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "samples.jsonl"
    argv = arguments(tiny_model, prompts, out, "--temperature", "1.0")
    part = half_done(argv, ["q3", "q0", "q7"], monkeypatch)
    run(argv)
    records = read(out)
    assert [r["id"] for r in records if r["completions"][0] == "kept"] == ["q0", "q3", "q7"]
    check_samples([{**r, "prompt_tokens": 3} for r in records], [r["id"] for r in RECORDS])
    texts = [text for r in records if r["completions"][0] != "kept" for text in r["token_ids"]]
    assert len({tuple(ids) for ids in texts}) == len(texts) == 18  # no two completions drew the same numbers
    tokenizer = load_tokenizer(tiny_model)
    for record in records:
        if record["completions"][0] != "kept":
            wanted = tokenizer(record["prompt"], add_special_tokens=False)["input_ids"]
            assert record["prompt_tokens"] == min(len(wanted), MAX_LEN - MAX_NEW)
            for text, ids in zip(record["completions"], record["token_ids"], strict=True):
                decoded = tokenizer.decode(ids, skip_special_tokens=True)
                assert text.rstrip("\ufffd") == decoded.rstrip("\ufffd")  # vLLM drops half a character at the end
    assert not part.exists()
    meta = json.loads((tmp_path / "samples.meta.json").read_text())
    assert meta["counts"]["completions"] == 24 and meta["arguments"]["temperature"] == 1.0
    assert meta["counts"]["tokens"] == sum(len(ids) for r in records for ids in r["token_ids"])


@pytest.mark.slow
def test_vllm_is_killed_and_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    many = [{**record, "id": f"{record['id']}-{i}"} for i in range(60) for record in RECORDS]
    write_jsonl(tmp_path / "many.jsonl", many)
    out = tmp_path / "samples.jsonl"
    argv = arguments(tiny_model, tmp_path / "many.jsonl", out)
    process = subprocess.Popen(command_line(argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = journal_path(out)
    deadline = time.monotonic() + 240
    while not (part.exists() and part.read_bytes().count(b"\n") > 20):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line) for line in part.read_bytes().split(b"\n")[1:-1]]
    assert 20 <= len(kept) < len(many) and not out.exists()
    run(argv)
    records = read(out)
    check_samples(records, [record["id"] for record in many])
    found = {record["id"]: record for record in records}
    for piece in kept:
        assert found[piece["key"]]["token_ids"] == piece["value"]["token_ids"]
    again = tmp_path / "again.jsonl"
    run(arguments(tiny_model, tmp_path / "many.jsonl", again, "--seed", "1", "--limit", "12"))
    assert [r["token_ids"] for r in read(again)] != [r["token_ids"] for r in records[:12]]


@pytest.mark.launcher
@pytest.mark.usefixtures("workers")
def test_two_workers_share_the_work(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "samples.jsonl"
    half_done(arguments(tiny_model, prompts, out), ["q1", "q2"], monkeypatch)
    run(arguments(tiny_model, prompts, out, "--workers", "2"))
    records = read(out)
    check_samples([{**r, "prompt_tokens": 3} for r in records], [r["id"] for r in RECORDS])
    assert [r["id"] for r in records if r["completions"][0] == "kept"] == ["q1", "q2"]
    texts = [tuple(ids) for r in records if r["completions"][0] != "kept" for ids in r["token_ids"]]
    assert len(set(texts)) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "samples.jsonl", "samples.meta.json"]


@pytest.mark.launcher
@pytest.mark.usefixtures("workers")
def test_what_is_sampled_does_not_depend_on_the_workers(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "_HF_TOKENS", 400)  # several batches
    outs = [tmp_path / f"{count}.jsonl" for count in (1, 2)]
    for count, out in enumerate(outs, 1):
        generate.main(arguments(tiny_model, prompts, out, "--backend", "hf", "--workers", str(count)))
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert outs[0].with_suffix(".meta.json").read_bytes() == outs[1].with_suffix(".meta.json").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_workers_that_fail_and_a_command_that_is_killed(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    # vLLM's CPU attention takes no head dimension of 16: no worker can do it, and the command says why
    small = tmp_path / "small"
    subprocess.run(["cp", "-r", str(tiny_model), str(small)], check=True)
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.head_dim = 16
    AutoModelForCausalLM.from_config(config).save_pretrained(small)
    done = subprocess.run(
        command_line(arguments(small, prompts, out, "--workers", "2")),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2 and not out.exists()
    last = done.stderr.strip().splitlines()[-1]
    assert "vLLM failed (Unsupported CPU attention" in last and "finished records are kept" in last, last
    # a command that is killed takes its workers along, and goes on where it stopped
    many = [{**record, "id": f"{record['id']}-{i}"} for i in range(200) for record in RECORDS]
    write_jsonl(tmp_path / "many.jsonl", many)
    line = arguments(tiny_model, tmp_path / "many.jsonl", out, "--workers", "2")
    command = subprocess.Popen(command_line(line), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    journal = journal_path(out)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    below = psutil.Process(command.pid).children(recursive=True)
    assert sum("ray::_Worker" in " ".join(one.cmdline()) for one in below) == 2
    command.kill()
    command.wait()
    assert not psutil.wait_procs(below, 60)[1]
    run(line)
    check_samples(read(out), [record["id"] for record in many])


@pytest.mark.launcher
def test_hugging_face_goes_on_to_the_very_same_samples(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(samplers, "_HF_TOKENS", 400)  # several batches
    flags = ("--backend", "hf", "--temperature", "1.0")
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    generate.main(arguments(tiny_model, prompts, whole, *flags))
    check_samples(read(whole), [record["id"] for record in RECORDS])
    drawn = [tuple(ids) for record in read(whole) for ids in record["token_ids"]]
    assert len(set(drawn)) == 24
    tokenizer = load_tokenizer(tiny_model)
    for record in read(whole):
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in record["token_ids"]]
        assert record["completions"] == decoded

    add, kept = Journal.add, []

    def cut_short(journal: Journal, key: str, value: dict) -> None:
        if len(kept) == 5:  # in the middle of a batch
            raise KeyboardInterrupt
        add(journal, key, value)
        kept.append(key)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Journal, "add", cut_short)
        generate.main(arguments(tiny_model, prompts, cut, *flags))
    computed: list[str] = []
    monkeypatch.setattr(Journal, "add", lambda journal, key, value: (computed.append(key), add(journal, key, value)))
    generate.main(arguments(tiny_model, prompts, cut, *flags))
    assert cut.read_bytes() == whole.read_bytes()
    assert len(computed) == 7 and not set(computed) & set(kept)
    other = tmp_path / "other.jsonl"
    generate.main(arguments(tiny_model, prompts, other, *flags, "--seed", "1"))
    assert all(a["token_ids"] != b["token_ids"] for a, b in zip(read(whole), read(other), strict=True))


def test_greedy_samples_are_the_likeliest_tokens(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out = tmp_path / "greedy.jsonl"
    flags = ("--backend", "hf", "--temperature", "0", "--limit", "1", "--dtype", "float32")
    generate.main(arguments(tiny_model, prompts, out, *flags, completions=1))
    (record,) = read(out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = load_tokenizer(tiny_model)(record["prompt"], add_special_tokens=False)["input_ids"]
    for token in record["token_ids"][0]:
        assert model(torch.tensor([ids])).logits[0, -1].argmax().item() == token
        ids.append(token)


@pytest.fixture
def opinionated(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with sampling defaults in its folder, as instruct models have them."""
    folder = shutil.copytree(tiny_model, tmp_path / "opinionated")
    defaults = {"do_sample": True, "repetition_penalty": 1.3, "min_p": 0.2, "no_repeat_ngram_size": 2, "top_k": 5}
    defaults |= {"temperature": 0.7, "top_p": 0.8, "max_length": 9, "suppress_tokens": [152], "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


@pytest.mark.parametrize("temperature", ["0", "1.0"])
def test_sampling_is_what_the_flags_say(
    tiny_model: Path, opinionated: Path, prompts: Path, tmp_path: Path, temperature: str
) -> None:
    flags = ("--backend", "hf", "--temperature", temperature, "--dtype", "float32")
    outs = []
    for model in (tiny_model, opinionated):
        outs.append(tmp_path / f"{model.name}.jsonl")
        generate.main(arguments(model, prompts, outs[-1], *flags, completions=1))
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.launcher
def test_sampling_of_vllm_is_what_the_flags_say(
    tiny_model: Path, opinionated: Path, prompts: Path, tmp_path: Path
) -> None:
    outs = []
    for model in (tiny_model, opinionated):
        outs.append(tmp_path / f"{model.name}.jsonl")
        run(arguments(model, prompts, outs[-1], "--temperature", "0", "--limit", "4", completions=1))
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_text_ends_with_the_tokens_that_the_folder_names(opinionated: Path, prompts: Path, tmp_path: Path) -> None:
    """Chat models name several; vLLM takes them from the same file."""
    path, out = opinionated / "generation_config.json", tmp_path / "out.jsonl"
    flags = ("--backend", "hf", "--temperature", "0", "--dtype", "float32", "--limit", "1")
    generate.main(arguments(opinionated, prompts, out, *flags, completions=1))
    (record,) = read(out)
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, record["token_ids"][0][2]]}))
    out = tmp_path / "short.jsonl"
    generate.main(arguments(opinionated, prompts, out, *flags, completions=1))
    (short,) = read(out)
    assert short["finish_reasons"] == ["stop"] and len(short["token_ids"][0]) <= 3


def test_chats_are_answered_with_messages(tiny_model: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello"}]
    write_jsonl(tmp_path / "chat.jsonl", [{"id": 5, "prompt": chat}, {"prompt": [*chat, *chat]}])
    out = tmp_path / "out.jsonl"
    generate.main(arguments(tiny_model, tmp_path / "chat.jsonl", out, "--backend", "hf"))
    first, second = read(out)
    assert (first["id"], second["id"]) == ("5", "line-000002")
    assert first["prompt"] == chat
    assert [len(message) for message in first["completions"]] == [1, 1]
    assert {message[0]["role"] for message in first["completions"]} == {"assistant"}
    write_jsonl(tmp_path / "text.jsonl", [{"id": 5, "prompt": "hello"}])
    generate.main(
        arguments(tiny_model, tmp_path / "text.jsonl", out, "--backend", "hf", "--apply_chat_template", "--limit", "1")
    )
    (by_flag,) = read(out)
    assert by_flag["prompt_tokens"] == first["prompt_tokens"] and isinstance(by_flag["completions"][0], str)


def test_samples_say_how_their_prompt_was_rendered(tiny_model: Path, tmp_path: Path) -> None:
    """Without their style, build_data hh-groups does not take them."""
    from orlhf_ext import build_data
    from orlhf_ext.groups import score as groups_score

    records = [{"id": f"q{i}", "prompt": f"\n\nHuman: hello {i}\n\nAssistant:", "style": "hh"} for i in range(24)]
    write_jsonl(tmp_path / "p.jsonl", records)
    out = tmp_path / "out.jsonl"
    generate.main(arguments(tiny_model, tmp_path / "p.jsonl", out, "--backend", "hf"))
    assert {record["style"] for record in read(out)} == {"hh"}
    groups_score.main(f"--data {out} --out {tmp_path}/scored.jsonl --trait conciseness=conciseness".split())
    (tmp_path / "groups.yaml").write_text(
        "groups:\n"
        "- {name: short, proportion: 0.5, weights: {conciseness: 1}}\n"
        "- {name: other, proportion: 0.5, weights: {conciseness: 1}}\n"
    )
    build_data.main(f"hh-groups {tmp_path}/scored.jsonl --groups {tmp_path}/groups.yaml --out {tmp_path}/pairs".split())
    assert {record["style"] for path in (tmp_path / "pairs").glob("*.jsonl") for record in read(path)} == {"hh"}


def test_prompts_are_cut_on_the_left(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "you " * 40 + "fine"}, {"prompt": "fine"}])
    samples = read_prompts(tmp_path / "p.jsonl")
    long, short = encode_prompts(samples, tiny_model, 7, chat=False)
    whole = load_tokenizer(tiny_model)(samples[0].prompt, add_special_tokens=False)["input_ids"]
    assert long.ids == whole[-7:] and long.cut and not short.cut
    assert (long.id, short.id) == ("line-000001", "line-000002")


@pytest.mark.launcher
@given(st.integers(0, 2**31), st.text(min_size=1), st.integers(0, 9))
def test_seeds_follow_from_id_and_number(seed: int, identifier: str, number: int) -> None:
    found = derive_seed(seed, identifier, number)
    assert 0 <= found < 2**63
    assert found == derive_seed(seed, identifier, number)
    others = [(seed + 1, identifier, number), (seed, identifier + "x", number), (seed, identifier, number + 1)]
    assert found not in [derive_seed(*other) for other in others]


def test_seeds_do_not_change_between_versions() -> None:
    assert derive_seed(0, "q0", 1) == 2483869624634932491


def test_memory_of_keys_and_values(tiny_model: Path) -> None:
    from transformers import AutoConfig, GPT2Config

    assert kv_bytes_per_token(AutoConfig.from_pretrained(tiny_model)) == 2 * 2 * 2 * 32 * 2
    assert kv_bytes_per_token(GPT2Config(n_layer=3, n_head=4, n_embd=64)) == 2 * 3 * 64 * 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--temperature 0", "--temperature 0 makes all completions of a prompt equal"),
        ("--temperature -1", "--temperature -1 is too small; give at least 0"),
        ("--top_p 0", "--top_p 0 is too small; give more than 0"),
        ("--num_completions 0", "--num_completions 0 is too small; give at least 1"),
        ("--limit 0", "--limit 0 is too small; give at least 1"),
        ("--max_len 12", "leaves no room for a prompt"),
        ("--max_len 1000", "--max_len 1000 is more than the 512 positions"),
        ("--out x.json", "must end in .jsonl"),
        ("--tensor_parallel_size 2 --backend hf", "--tensor_parallel_size is for vLLM"),
        ("--model /nowhere", "--model /nowhere is not a folder"),
        ("--data /nowhere.jsonl", "/nowhere.jsonl does not exist"),
    ],
)
def test_mistakes_are_named(
    tiny_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: str, said: str
) -> None:
    assert said in failing(
        capsys, generate.main, *arguments(tiny_model, prompts, tmp_path / "out.jsonl", *flags.split())
    )


def test_without_vllm_the_fallback_is_named(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # what a machine without it does: ImportError
    said = failing(capsys, generate.main, *arguments(tiny_model, prompts, tmp_path / "out.jsonl"))
    assert "vLLM cannot be imported" in said and "--backend hf" in said


@pytest.mark.parametrize(
    ("record", "said"),
    [({"id": "x"}, "line 1 has no 'prompt'"), ({"prompt": " "}, "line 1 has an empty prompt")],
)
def test_bad_prompts_are_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, record: dict, said: str
) -> None:
    write_jsonl(tmp_path / "p.jsonl", [record])
    assert said in failing(capsys, generate.main, *arguments(tiny_model, tmp_path / "p.jsonl", tmp_path / "out.jsonl"))


def test_a_tokenizer_without_template_is_named(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plain = tmp_path / "plain"
    subprocess.run(["cp", "-r", str(tiny_model), str(plain)], check=True)
    (plain / "chat_template.jinja").unlink()
    write_jsonl(tmp_path / "p.jsonl", [{"id": "c", "prompt": [{"role": "user", "content": "hello"}]}])
    said = failing(
        capsys, generate.main, *arguments(plain, tmp_path / "p.jsonl", tmp_path / "out.jsonl", "--backend", "hf")
    )
    assert "(id 'c') is a chat, and the model's tokenizer has no chat template" in said
