"""Special tokens at the ends of texts: none is the tokenizer's own, and EOS comes once.

What a tokenizer adds by itself (BOS, EOS, both) depends on its files; a policy is sampled without it, so that all is
read without it, and EOS is put where a text ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orlhf_ext.deadend import rows as value_rows
from orlhf_ext.exo.rows import Rules
from orlhf_ext.files.records import write_jsonl
from orlhf_ext.groups import render
from orlhf_ext.models import logprobs
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.reward_models import encode_rows
from orlhf_ext.models.texts import Sample, encode, read_samples, with_end, with_end_text

pytest.importorskip("torch", reason="no torch")

ADDS = {"none": "$A", "BOS": "<s> $A", "EOS": "$A </s>", "both": "<s> $A </s>"}
#: completions, one of which ends with EOS already
TEXTS = [" fine", " no </s>", " well\n", ""]
PROMPT = "how are you?"


@pytest.fixture(params=ADDS)
def tokenizers(request: pytest.FixtureRequest, tiny_model: Path) -> tuple[Any, Any]:
    """A tokenizer that adds special tokens by itself, and one that does not."""
    from tokenizers.processors import TemplateProcessing

    adds, plain = load_tokenizer(tiny_model), load_tokenizer(tiny_model)
    special = [(token, adds.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    adds._tokenizer.post_processor = TemplateProcessing(
        single=ADDS[request.param], pair="$A $B", special_tokens=special
    )
    extra = len(adds(PROMPT)["input_ids"]) - len(plain(PROMPT, add_special_tokens=False)["input_ids"])
    assert extra == {"none": 0, "BOS": 1, "EOS": 1, "both": 2}[request.param]
    return adds, plain


def samples_of(folder: Path) -> list[Sample]:
    write_jsonl(folder / "s.jsonl", [{"id": "a", "prompt": PROMPT, "completions": TEXTS}])
    return read_samples(folder / "s.jsonl")


def exo_rows(tokenizer: Any, folder: Path) -> list[list[int]]:
    from orlhf_ext.exo.dataset import Encoder

    encoder = Encoder(tokenizer, Rules("exo-rw", 2), 64, 0)
    columns = {"prompt": [PROMPT], "completions": [TEXTS[:2]], "rewards": [[1.0, 0.0]]}
    found = encoder(columns, [0])
    (ids,), (lengths,) = found["ids"], found["lengths"]
    return [ids[: lengths[0]], ids[lengths[0] :]]


def value_data(append_eos: bool) -> Callable[[Any, Path], list[list[int]]]:
    texts = [PROMPT + text.rstrip() for text in TEXTS[::2]]
    return lambda tokenizer, folder: value_rows.encode(tokenizer, texts, 64, append_eos).rows


def group_rows(eos: render.Eos) -> Callable[[Any, Path], list[list[int]]]:
    pairs = [(PROMPT, text) for text in TEXTS]
    return lambda tokenizer, folder: [one.ids for one in render.encode(tokenizer, pairs, eos, 64)]


READERS: dict[str, tuple[Callable[[Any, Path], list[list[int]]], bool]] = {
    "score": (lambda t, folder: [row.ids for row in encode_rows(samples_of(folder), t, 64).rows], True),
    "no prompt": (
        lambda t, folder: [row.ids for row in encode_rows(samples_of(folder), t, 64, no_prompt=True).rows],
        True,
    ),
    "logprobs": (lambda t, folder: [row.ids for row in logprobs.encode_rows(samples_of(folder), t, 64).rows], True),
    "beginnings": (
        lambda t, folder: [row.ids for row in logprobs.encode_rows(samples_of(folder), t, 64, no_eos=True).rows][::2],
        False,
    ),
    "generate": (lambda t, folder: encode(t, [PROMPT]), False),
    "EXO": (exo_rows, True),
    "value data with EOS": (value_data(True), True),
    "value data": (value_data(False), False),
    "groups with EOS": (group_rows("append"), True),
    "groups": (lambda t, folder: group_rows("none")(t, folder)[::2], False),
}


@pytest.mark.parametrize("reader", READERS)
def test_texts_end_once_and_begin_with_themselves(tokenizers: tuple[Any, Any], tmp_path: Path, reader: str) -> None:
    adds, plain = tokenizers
    read, ends = READERS[reader]
    rows = read(adds, tmp_path)
    assert rows == read(plain, tmp_path)
    bos, eos = plain.bos_token_id, plain.eos_token_id
    assert all(bos not in ids for ids in rows)
    assert [ids.count(eos) for ids in rows] == [int(ends)] * len(rows)
    assert all((ids[-1] == eos) == ends for ids in rows)


@pytest.mark.parametrize(
    ("ids", "ended"), [([5], [5, 1]), ([5, 1], [5, 1]), ([], [1]), ([1], [1]), ([1, 5], [1, 5, 1])]
)
def test_ids_end_once(ids: list[int], ended: list[int]) -> None:
    assert with_end(ids, 1) == ended == with_end(with_end(ids, 1), 1)


@pytest.mark.parametrize("text", ["a", "a </s>", "a</s>", "", "</s> a"])
def test_texts_end_once(text: str) -> None:
    found = with_end_text(text, "</s>")
    assert found.startswith(text) and found == with_end_text(found, "</s>")
    assert found.endswith("</s>") and not found.removesuffix("</s>").rstrip().endswith("</s>")
