"""Values of growing sequences: equal to a forward pass over each sequence alone, whatever came and went before."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from deadend_q import POSITIONS, V, alone, make
from hypothesis import given, settings
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend.stepper import QStepper


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2-window"])
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def check(model: Any, stepper: QStepper, sequences: list[list[int]]) -> None:
    found = stepper.values(sequences)
    assert found.shape == (len(sequences), V) and found.dtype == torch.float32
    for row, sequence in zip(found, sequences, strict=True):
        torch.testing.assert_close(row, alone(model, sequence), atol=1e-4, rtol=1e-4)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=settings().max_examples // 8)
def test_rows_come_grow_move_fork_and_go(model: Any, seed: int) -> None:
    draw = random.Random(seed)
    stepper, rows = QStepper(model), []

    def some(count: int) -> list[int]:
        return [draw.randrange(V) for _ in range(count)]

    for _ in range(8):
        rows = [row for row in rows if draw.random() < 0.8 and len(row) < POSITIONS - 3]
        grown = []
        for row in rows:
            kind = draw.random()
            grown.append(row + some(1) if kind < 0.8 else row if kind < 0.9 else row + some(3))
        if rows and draw.random() < 0.3:
            grown.append(draw.choice(rows) + some(1))  # a second child
        if grown and draw.random() < 0.3:
            grown.append(list(draw.choice(grown)))  # the same text twice
        rows = grown + [some(draw.randint(1, 12)) for _ in range(draw.randint(0 if grown else 1, 3))]
        draw.shuffle(rows)
        check(model, stepper, rows)


def test_a_step_reads_one_token_of_each_row(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    forward = model.base_model.forward

    def watch(**arguments: Any) -> Any:
        read.append(tuple(arguments["input_ids"].shape))
        return forward(**arguments)

    monkeypatch.setattr(model.base_model, "forward", watch)
    stepper = QStepper(model)
    rows = [[1, 2, 3, 4, 5], [6, 7]]
    stepper.values([*rows, rows[0]])
    assert read == [(2, 5)]  # one padded batch, and equal sequences once
    stepper.values([[*rows[1], 8], [*rows[0], 9], [*rows[0], 10]])
    assert read[1:] == [(3, 1)]
    stepper.values([[*rows[1], 8], [*rows[0], 9]])
    assert len(read) == 2  # nothing new
    assert stepper._rows is not None and stepper._rows.layers[0].get_seq_length() == 6
    stepper.values([[*rows[1], 8, 9]])
    assert stepper._rows.layers[0].get_seq_length() == 4 and read[2:] == [
        (1, 1)
    ]  # the longest has left, and its width with it
    stepper.forget()
    stepper.values([[*rows[1], 8, 9]])
    assert read[3:] == [(1, 4)]


def test_a_text_beyond_the_context_is_refused(model: Any) -> None:
    stepper = QStepper(model)
    check(model, stepper, [[1] * POSITIONS, [2]])
    with pytest.raises(UserError, match=f"{POSITIONS + 1} tokens is longer than the {POSITIONS} positions"):
        stepper.values([[1] * (POSITIONS + 1)])
