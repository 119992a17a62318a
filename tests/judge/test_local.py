"""A judge with a model of its own, against transformers' own class, on real, tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.judge.local import ByLogprob, ByText, Reader, Style, Two
from orlhf_ext.judge.template import read_template
from orlhf_ext.litbench.prompts import judging_input, marked
from orlhf_ext.models.folder import load_tokenizer

PAIRS = [Two(f"pair {i}", "say", "a red hen" * i, "fine, thanks" * (5 - i)) for i in range(1, 5)]


def reader(folder: Path, style: Style = "chat", max_len: int = 2048, room: int = 0) -> Reader:
    return Reader(load_tokenizer(folder), read_template("short", False), style, max_len, room)


def margins(folder: Path, texts: Sequence[str], opening: str, dtype: Any) -> list[float]:
    """By transformers alone: one text at a time, its whole logits."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    found = []
    for text in texts:
        a, b = (tokenizer(f"{text}{opening}{x}", add_special_tokens=False)["input_ids"] for x in "AB")
        with torch.inference_mode():
            logits = model(torch.tensor([a[:-1]])).logits[0, -1].double()
        found.append((logits[a[-1]] - logits[b[-1]]).item())
    return found


@pytest.mark.parametrize("style", ["chat", "marker", "plain"])
def test_margins_are_those_of_transformers(long_model: Path, style: Style) -> None:
    import torch

    judge = ByLogprob(reader(long_model, style), long_model, "Preferred: ", "float32", "sdpa", 4096)
    answers = judge.compare(PAIRS)
    tokenizer = load_tokenizer(long_model)

    def text(a: str, b: str) -> str:
        question = judging_input(a, b)
        if style == "chat":
            chat = [{"role": "user", "content": question}]
            return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        return marked(question) + "\n" if style == "marker" else question

    for place in (0, 1):  # the order of the two
        texts = [text(*((two.first, two.second), (two.second, two.first))[place]) for two in PAIRS]
        wanted = margins(long_model, texts, "Preferred: ", torch.float32)
        assert [answer.leans[place] for answer in answers] == pytest.approx(wanted, abs=1e-4)
    assert len({answer.leans for answer in answers}) == len(PAIRS) and all(answer.calls == 2 for answer in answers)


def test_bf16_margins_are_finer_than_bf16(long_model: Path) -> None:
    """Two logits of bf16 would differ by a multiple of their own step."""
    judge = ByLogprob(reader(long_model), long_model, "Preferred: ", "bfloat16", "sdpa", 4096)
    exact = ByLogprob(reader(long_model), long_model, "Preferred: ", "float32", "sdpa", 4096)
    for one, other in zip(judge.compare(PAIRS), exact.compare(PAIRS), strict=True):
        assert one.leans == pytest.approx(other.leans, abs=0.02)


def test_both_responses_are_cut_alike_and_nothing_else(long_model: Path) -> None:
    long = Two("pair 9", "", "a " * 900, "b " * 300)
    short = Two("pair 1", "", "a", "b")
    one = reader(long_model, "plain", max_len=1600, room=16)
    whole = reader(long_model, "plain", max_len=2048)
    (a, b, *rest), cut = one.read([long, short], "")
    assert cut == [True, False] and rest == whole.read([short], "")[0]
    assert 1600 - 16 - 8 <= len(a) <= 1600 - 16 and len(a) == len(b)
    text = load_tokenizer(long_model).decode(a)
    assert text.endswith("[A or B]") and text.count("b ") > 290  # the shorter one is whole
    with pytest.raises(
        UserError, match=r"^the question about pair 9 leaves no room .* 300 tokens; raise --judge.max_len"
    ):
        reader(long_model, "plain", max_len=300).read([long], "")


def test_a_judge_without_a_chat_template(long_model: Path) -> None:
    tokenizer = load_tokenizer(long_model)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template; give --judge.style marker"):
        Reader(tokenizer, read_template("short", False), "chat", 2048, 0)


def test_letters_that_are_no_token_of_their_own(long_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orlhf_ext.judge import local

    monkeypatch.setattr(local, "LABELS", ("AA", "BB"))  # in bytes, each is two
    with pytest.raises(UserError, match=r"does not write A and B behind --judge.opening 'x' with one token each"):
        ByLogprob(reader(long_model), long_model, "x", "float32", "sdpa", 4096)


def test_what_a_model_writes_is_read(long_model: Path) -> None:
    """A random model writes no verdict: each question is asked as often as it may be."""
    judge = ByText(reader(long_model, room=8), long_model, "hf", "bfloat16", "sdpa", 0.5, 1, 2, seed=3)
    answers = judge.compare(PAIRS[:2])
    assert [answer.leans for answer in answers] == [(None, None)] * 2
    assert [answer.calls for answer in answers] == [6, 6] and all(answer.texts[0] for answer in answers)


@pytest.mark.launcher
def test_vllm_writes_as_transformers_does(long_model: Path) -> None:
    """Greedily; a random model writes no verdict, so that the questions come a second time, at another temperature."""
    pytest.importorskip("vllm")

    def judged(backend: Any) -> list[Any]:
        return ByText(reader(long_model, room=8), long_model, backend, "float32", "sdpa", 0.5, 1, 0, seed=3).compare(
            PAIRS
        )

    ours, theirs = judged("hf"), judged("vllm")
    assert [answer.texts for answer in ours] == [answer.texts for answer in theirs]
    again = ByText(reader(long_model, room=8), long_model, "auto", "float32", "sdpa", 0.5, 1, 1, seed=3)
    assert again._vllm
    answers = again.compare(PAIRS)
    assert [answer.calls for answer in answers] == [4] * 4
    assert [answer.texts for answer in answers] != [answer.texts for answer in ours]
