"""Groups that nobody named: the E-step, and annotators with opposed tastes told apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from helpers import failing, meta, read, write

from orlhf_ext.groups import em
from orlhf_ext.models.head_settings import HeadSettings

torch = pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)


# ---- the E-step


def test_golden_of_one_annotator() -> None:
    """The specification's, to the printed digits: two pairs of one annotator, two heads."""
    chosen = torch.tensor([[1.0, 0.2], [0.5, 0.0]], dtype=torch.float64)
    rejected = torch.tensor([[0.0, 0.4], [0.1, 0.3]], dtype=torch.float64)
    annotators = torch.zeros(2, dtype=torch.long)
    found = em.log_likelihoods(chosen - rejected, annotators)
    assert found.tolist() == [pytest.approx([-0.8262769399, -1.6524941139], abs=5e-11)]
    assert em.e_step(chosen - rejected, annotators).tolist() == [0]


def test_choices_decide_and_not_the_texts() -> None:
    """The same texts with chosen and rejected swapped: the other head."""
    generator = torch.Generator().manual_seed(0)
    taste = torch.randn(40, 2, generator=generator)  # of each pair's two texts; head 0 likes it, head 1 does not
    scores = torch.stack([taste, -taste], 2)
    annotators = torch.arange(40) % 5
    swap = (taste[:, 0] > taste[:, 1]) != (annotators < 2)  # the first two annotators choose as head 0 does
    scores[swap] = scores[swap].flip(1)
    margins = scores[:, 0] - scores[:, 1]
    assert em.e_step(margins, annotators).tolist() == [0, 0, 1, 1, 1]
    assert em.e_step(-margins, annotators).tolist() == [1, 1, 0, 0, 0]


def test_a_sum_over_pairs_decides_not_their_number() -> None:
    margins = torch.tensor([[0.1, -0.1], [0.1, -0.1], [-3.0, 3.0]])
    assert em.e_step(margins, torch.tensor([0, 0, 0])).tolist() == [1]
    assert em.e_step(margins, torch.tensor([1, 1, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="not \\(P, U\\)"):
        em.e_step(margins, torch.tensor([0, 1]))


def test_an_emptied_head_gets_those_that_fit_worst(capsys: pytest.CaptureFixture) -> None:
    likelihoods = torch.tensor([[-1.0, -2.0], [-9.0, -10.0], [-3.0, -4.0], [-2.0, -5.0]])
    assert em._reseed(likelihoods.argmax(1), likelihoods, 3).tolist() == [0, 1, 0, 0]
    assert capsys.readouterr().out == "round 3: group 1 lost all annotators; it goes on with the 1 that fit worst\n"
    assert em._reseed(torch.tensor([0, 1, 0, 1]), likelihoods, 3).tolist() == [0, 1, 0, 1]
    assert capsys.readouterr().out == ""


def test_groups_are_named_by_size() -> None:
    assert em.by_size(torch.tensor([2, 0, 0, 1, 0, 1]), 3).tolist() == [0, 2, 2, 1, 2, 1]
    assert em.by_size(torch.tensor([1, 0]), 2).tolist() == [0, 1]


@pytest.mark.parametrize("head, k", [("independent", None), ("shared", 4)])
def test_opposed_tastes_in_a_table(head: str, k: int | None) -> None:
    """3 of 12 annotators choose by -x, the others by x; every head keeps somebody, and likelihoods grow."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(240, 2, 8, generator=generator)
    annotators = torch.arange(240) % 12
    taste = torch.where(annotators < 3, -1.0, 1.0)
    swap = (hidden[:, 0, 0] - hidden[:, 1, 0]) * taste < 0
    hidden[swap] = hidden[swap].flip(1)
    fitted = em.EM(HeadSettings(["a", "b"], head, k, "identity"), lr=2e-2, epochs=10)
    chosen, fits = fitted.best(hidden, annotators, seed=0, restarts=3)
    best = fits[chosen]
    assert em.by_size(best.assignment, 2).tolist() == [0] * 3 + [1] * 9
    assert best.settled and best.log_likelihood == max(fit.log_likelihood for fit in fits)
    assert all(set(fit.assignment.tolist()) == {0, 1} for fit in fits)
    again = fitted.fit(hidden, annotators, seed=0)
    assert again.rounds == fits[0].rounds and torch.equal(again.assignment, fits[0].assignment)


# ---- the command


def pairs(annotators: int, each: int, rare: int) -> list[dict[str, Any]]:
    """The first ``rare`` annotators like what says yes, the others what says no."""
    generator = random.Random(3)
    rows = []
    for number in range(annotators * each):
        who = number % annotators
        texts = [" yes" * generator.randint(1, 6), " no" * generator.randint(1, 6)]
        chosen, rejected = texts if who < rare else texts[::-1]
        prompt = f"\n\nHuman: are you {generator.randint(0, 99)}?\n\nAssistant:"
        rows.append(
            {"id": f"p-{number}", "prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator_id": f"w{who}"}
        )
    return rows


def test_annotators_with_opposed_tastes(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From text to groups with a real backbone; the pairs come out whole, a second run computes no hidden state, and
    says the same."""
    rows = pairs(10, 12, rare=3)
    data, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "grouped.jsonl"
    words = [
        "--model",
        tiny_model,
        "--data",
        data,
        "--out",
        out,
        "--lr",
        "1e-2",
        "--batch_size",
        "16",
        "--max_len",
        "64",
    ]
    words += ["--restarts", "2", "--cache", tmp_path / "kept"]
    em.main([str(word) for word in words])
    printed = capsys.readouterr().out
    assert "start 2 of 2: log-likelihood -" in printed
    assert f"{out}: annotators of group_0 3 (36 pairs), group_1 7 (84 pairs)" in printed
    found = read(out)
    for row, new in zip(rows, found, strict=True):
        group = 0 if int(row["annotator_id"][1:]) < 3 else 1
        assert new == {**row, "style": "hh", "group_id": group, "group": f"group_{group}"}
    note = meta(out)
    assert note["assignment"] == {f"w{who}": f"group_{int(who >= 3)}" for who in range(10)}
    assert note["counts"]["groups"]["group_0"] == {"annotators": 3, "pairs": 36}
    assert note["log_likelihood"][-1] == max(note["starts"]) and len(note["log_likelihood"]) <= 10

    from orlhf_ext.groups import features

    monkeypatch.setattr(features, "load_reward", None)  # computing would fail
    em.main([str(word) for word in words])
    assert read(out) == found and meta(out) == note
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows if row["annotator_id"] == "w9"
    ]
    kept = [row for row in rows if row["annotator_id"] != "w9"]
    write(data, kept + swapped)
    em.main([str(word) for word in words])
    assert meta(out)["assignment"]["w9"] == "group_0"  # with those who choose as he does now


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.usefixtures("workers")
def test_groups_do_not_depend_on_the_workers(tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(6, 12, rare=2))
    outs = [tmp_path / f"{count}.jsonl" for count in (1, 2)]
    for count, out in enumerate(outs, 1):
        words = f"--model {tiny_model} --data {data} --out {out} --max_len 64 --batch_tokens 300 --workers {count}"
        em.main([*words.split(), "--restarts", "1", "--rounds", "2"])
    assert outs[0].read_bytes() == outs[1].read_bytes() and meta(outs[0]) == meta(outs[1])


@pytest.mark.parametrize(
    "change, flags, said",
    [
        ({"annotator_id": None}, [], "pairs.jsonl line 2 has no annotator_id; say who chose"),
        ({"annotator_id": [1.5]}, [], "line 2 has no annotator_id"),
        ({"chosen": [{"role": "assistant", "content": "x"}]}, [], "line 2 has no text as its chosen"),
        ({"style": "chat"}, ["--style", "hh"], "line 2 has the style 'chat', not 'hh'"),
        ({}, ["--num_groups", "4"], "has 3 annotators, fewer than --num_groups 4; give fewer groups"),
        ({}, ["--num_groups", "1"], "--num_groups 1 is too small; give at least 2"),
        ({}, ["--k", "4"], "--k is the width of a shared head's layer"),
        ({}, ["--out", "pairs.json"], "--out pairs.json must end in .jsonl"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict[str, Any], flags: list[str], said: str
) -> None:
    rows = pairs(3, 2, rare=1)
    rows[1] |= change
    data = write(tmp_path / "pairs.jsonl", rows)
    words = ["--model", tmp_path, "--data", data, "--out", tmp_path / "out.jsonl", *flags]
    assert said in failing(capsys, em.main, *words)
    assert not (tmp_path / "out.jsonl").exists()
