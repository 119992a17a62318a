"""Stories that are scored alone: by ``score``, by the reward ``model``, and over HTTP by OpenRLHF's server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, failing, free_port, meta, openrlhf_rewards, read, write

from orlhf_ext import backends
from orlhf_ext.commands import logprobs, score
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.logprobs import encode_rows as logprobs_rows
from orlhf_ext.models.logprobs import load_model
from orlhf_ext.models.reward_models import encode_rows
from orlhf_ext.models.texts import read_samples
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet
from orlhf_ext.rewards.http import HTTP
from orlhf_ext.rewards.model import Model

PROMPT = "A lighthouse keeper finds a door below the lamp."
STORIES = [
    "The door had no handle. She knocked, and the sea answered.\n\nIt was polite.",
    " It was a door. He opened it.\n",
    "Rain. " * 40,
    "She wrote </s>",
]
PAIRS = [
    {"id": "a", "prompt": PROMPT, "chosen": STORIES[0], "rejected": STORIES[1]},
    {"id": "b", "prompt": PROMPT, "chosen": STORIES[2], "rejected": STORIES[3]},
]
MAX_LEN = 96


def scored(model: Path, data: Path, *more: str) -> list[dict]:
    out = data.with_name(f"scored_{data.name}")
    score.main([*f"--model {model} --data {data} --out {out} --max_len {MAX_LEN} --batch_tokens 2".split(), *more])
    return read(out)


def test_stories_alone_are_scored_as_train_rm_reads_them(reward_model: Path, tmp_path: Path) -> None:
    ids, rewards = openrlhf_rewards(reward_model, PAIRS, MAX_LEN, prompt_key=None)
    pairs = write(tmp_path / "pairs.jsonl", PAIRS)
    encoded = encode_rows(read_samples(pairs), load_tokenizer(reward_model), MAX_LEN, no_prompt=True)
    assert [row.ids for row in encoded.rows] == ids and encoded.truncated == 1
    found = scored(reward_model, pairs, "--no_prompt")
    assert [row["rewards"] for row in found] == rewards and len({x for row in rewards for x in row}) == 4
    assert found[0]["prompt"] == PROMPT  # it is not read, and not lost
    assert meta(tmp_path / "scored_pairs.jsonl")["arguments"]["no_prompt"] is True
    with_prompt = scored(reward_model, pairs)
    assert all(
        a != b
        for row, other in zip(found, with_prompt, strict=True)
        for a, b in zip(row["rewards"], other["rewards"], strict=True)
    )
    # a single story, with an empty prompt and with none
    one = [{"prompt": "", "completions": STORIES[:1]}, {"id": "s", "completions": STORIES[1:]}]
    alone = scored(reward_model, write(tmp_path / "stories.jsonl", one), "--no_prompt")
    assert [value for row in alone for value in row["rewards"]] == [value for row in rewards for value in row]
    assert [row["id"] for row in alone] == ["line-000001", "s"]


def test_messages_alone_are_scored_as_train_rm_reads_them(reward_model: Path, tmp_path: Path) -> None:
    keys = ("chosen", "rejected")
    pairs = [{**row, **{key: row[key].strip() for key in keys}} for row in PAIRS]
    chats = [{**row, **{key: [{"role": "assistant", "content": row[key]}] for key in keys}} for row in pairs]
    ids, _ = openrlhf_rewards(reward_model, chats, MAX_LEN, chat=True, prompt_key=None)
    tokenizer = load_tokenizer(reward_model)
    by_messages = read_samples(write(tmp_path / "chats.jsonl", chats))
    assert [row.ids for row in encode_rows(by_messages, tokenizer, MAX_LEN, no_prompt=True).rows] == ids
    by_flag = read_samples(write(tmp_path / "pairs.jsonl", pairs))
    assert [row.ids for row in encode_rows(by_flag, tokenizer, MAX_LEN, True, True).rows] == ids


def test_without_the_flag_a_prompt_is_needed(reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--model", reward_model, "--max_len", "9", "--out", tmp_path / "out.jsonl", "--data"]
    for row, said in (({"prompt": ""}, "line 1 has an empty prompt"), ({}, "line 1 has no 'prompt'")):
        data = write(tmp_path / "stories.jsonl", [{**row, "completions": STORIES}])
        assert said in failing(capsys, score.main, *words, data)
    bad = write(tmp_path / "bad.jsonl", [{"prompt": 3, "completions": STORIES}])
    assert "line 1 has a prompt that is neither" in failing(capsys, score.main, *words, bad, "--no_prompt")


def rewards_of(reward: Any, batch: RewardBatch) -> list[float]:
    rewards = RewardSet([reward])
    rewards.setup(RewardContext())
    return rewards.score(batch).rewards


def test_the_reward_model_reads_the_response_alone(reward_model: Path) -> None:
    _, rewards = openrlhf_rewards(reward_model, PAIRS, MAX_LEN, prompt_key=None)
    wanted = [value for row in rewards for value in row]
    # a prompt that would fill --model.max_len by itself
    batch = RewardBatch([Rollout(f"r{i}", PROMPT * 20, story) for i, story in enumerate(STORIES)])
    reward = Model(str(reward_model), max_len=MAX_LEN, no_prompt=True, batch_tokens=2)
    assert rewards_of(reward, batch) == wanted
    with pytest.raises(ValueError, match=r"--model\.no_prompt"):
        Model(str(reward_model), chat=True, no_prompt=True)


def test_two_verdicts_differ_in_their_last_token_alone(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    judged = {"id": "p/AB", "prompt": "Which?\n\n### Assistant:\n", "completions": ["Preferred: A", "Preferred: B"]}
    (sample,) = read_samples(write(tmp_path / "t.jsonl", [judged]))
    a, b = logprobs_rows([sample], tokenizer, 64, no_eos=True).rows
    assert a.ids[:-1] == b.ids[:-1] and [tokenizer.decode(row.ids)[-3:] for row in (a, b)] == [": A", ": B"]
    line = f"--model {tiny_model} --data {tmp_path}/t.jsonl --out {tmp_path}/l.jsonl --max_len 64 --dtype float32"
    logprobs.main([*line.split(), "--no_eos"])
    (row,) = read(tmp_path / "l.jsonl")
    import torch

    model = load_model(tiny_model, "float32", "sdpa")
    with torch.inference_mode():
        last = model(torch.tensor([a.ids[:-1]])).logits[0, -1].log_softmax(-1)
    wanted = (last[a.ids[-1]] - last[b.ids[-1]]).item()
    assert row["logprobs"][0] - row["logprobs"][1] == pytest.approx(wanted, abs=1e-5) and abs(wanted) > 1e-3
    logprobs.main(line.split())  # what an untrained model expects behind a letter makes it another difference
    (row,) = read(tmp_path / "l.jsonl")
    assert abs(row["logprobs"][0] - row["logprobs"][1] - wanted) > 1e-3


@pytest.mark.launcher
def test_a_served_model_scores_as_the_command_does(reward_model: Path, tmp_path: Path) -> None:
    import requests

    port = free_port()
    words = ["-m", "orlhf_ext.launch", "serve_rm", "--reward.model_name_or_path", str(reward_model)]
    words += ["--data.max_len", str(MAX_LEN), "--batch_size", "1", "--host", "127.0.0.1", "--port", port]
    data = write(tmp_path / "stories.jsonl", [{"completions": STORIES[:2]}])
    (row,) = scored(reward_model, data, "--no_prompt")
    log = tmp_path / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=stream,
        )
    url = f"http://127.0.0.1:{port}/get_reward"
    try:
        for _ in range(600):
            if server.poll() is not None or "Uvicorn running on" in log.read_text():
                break
            time.sleep(0.1)
        assert server.poll() is None and "Uvicorn running on" in log.read_text(), log.read_text()[-3000:]
        queries = [f"{story.rstrip()} </s>" for story in STORIES[:2]]
        answer = requests.post(url, json={"query": queries}, timeout=60).json()
        assert answer["rewards"] == answer["scores"] == pytest.approx(row["rewards"], abs=1e-6)
        batch = RewardBatch([Rollout(f"r{i}", "", query) for i, query in enumerate(queries)])
        assert rewards_of(HTTP([url]), batch) == answer["rewards"]
        without_end = requests.post(url, json={"query": STORIES[:1]}, timeout=60).json()
        assert without_end["rewards"] != row["rewards"][:1]  # the server adds no EOS
    finally:
        server.terminate()
        server.wait(30)


def test_the_loss_is_bradley_terrys():
    backends.install()
    import torch
    from openrlhf.models import PairWiseLoss

    chosen, rejected = torch.tensor([[1.5, 0.5], [-0.25, 0.75], [0, 0], [3, -1]], dtype=torch.float64).T
    wanted = [0.31326168751822286, 1.3132616875182228, 0.6931471805599453, 0.018149927917809738]
    found = [PairWiseLoss()(a[None], b[None]).item() for a, b in zip(chosen, rejected, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-12)
    assert PairWiseLoss()(chosen, rejected).item() == pytest.approx(0.5844551208785502, abs=1e-12)
