"""The verdict in an answer: a table, and what holds for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.litbench.verdict import parse_verdict

TABLE = {
    # plain, and with what people and models put around a letter
    "Preferred: A": "A",
    "Preferred: B": "B",
    "preferred : **B**": "B",
    "PREFERRED:A": "A",
    "preferred: b": "B",
    "  Preferred: A  ": "A",
    "Preferred:\tA": "A",
    "**Preferred: A**": "A",
    "**Preferred:** A": "A",
    "**Preferred**: A": "A",
    "* Preferred: B": "B",
    "Preferred: [A]": "A",
    "Preferred: (B)": "B",
    "Preferred: <A>": "A",
    'Preferred: "B"': "B",
    "Preferred: 'B'.": "B",
    "Preferred: \u201cA\u201d": "A",
    "Preferred: `A`": "A",
    "Preferred: *A*": "A",
    # what may stand behind it
    "Preferred: A.": "A",
    "Preferred: A, because it moves.": "A",
    "Preferred: B; its end is earned": "B",
    "Preferred: A: the first": "A",
    "Preferred: A!": "A",
    "Preferred: A?": "A",
    "Preferred: **A**. Its end is earned.": "A",
    # the last one counts, and only at the beginning of a line
    "Reasoning: Preferred: A?\nPreferred: B": "B",
    "Preferred: A\nPreferred: B": "B",
    "Preferred: B\r\nPreferred: A\r\n": "A",
    "Preferred: A\n\nPreferred: neither": "A",
    "Reasoning: the second one drags.\nPreferred: A\n": "A",
    "Reasoning: Preferred: A": None,
    "I preferred: A": None,
    "Not preferred: A": None,
    # no verdict
    "": None,
    "\n \n": None,
    "Preferred:": None,
    "Preferred:\nA": None,
    "Preferred A": None,
    "A": None,
    "Preferred: [A or B]": None,
    "Preferred: A or B": None,
    "Preferred: A|B": None,
    "Preferred: A/B": None,
    "Preferred: [A] or [B]": None,
    "Preferred: neither": None,
    "Preferred: both": None,
    "Preferred: Apple": None,
    "Preferred: AB": None,
    "Preferred: B2": None,
    "Preferred: A_": None,
    "Preferred: C": None,
    "Preferred: a story with an end": None,
    "Preferred: b is the better one": None,
    "Preferred: a-ha": None,
    "Preferred: \u00c4": None,
    "Unpreferred: A": None,
    "Preferreds: A": None,
}


@pytest.mark.parametrize(("text", "verdict"), TABLE.items())
def test_the_table(text: str, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


letters = st.sampled_from("AaBb")
stars = st.sampled_from(["", "*", "**", "* ", " "])
openings = st.sampled_from(["", "[", "(", '"', "'", "**", "`", "**[", '("'])
closings = st.sampled_from(["", "]", ")", '"', "'", "**", "`", "]**", '")'])
ends = st.sampled_from(["", " ", ".", ",", ";", ":", "!", "?", ". It was clear.", ", by far"])
names = st.sampled_from(["Preferred", "preferred", "PREFERRED", "preferred "])
verdicts = st.tuples(stars, names, st.sampled_from([":", ": ", ":  ", ":\t"]), openings, letters, closings, ends)
#: texts without the word
others = st.text(max_size=20).filter(lambda text: "preferred" not in text.lower())


@given(st.lists(others, max_size=3), verdicts, st.lists(others, max_size=3))
def test_a_verdict_is_found_whatever_stands_around_it(
    before: list[str], verdict: tuple[str, ...], after: list[str]
) -> None:
    assert parse_verdict("\n".join([*before, "".join(verdict), *after])) == verdict[4].upper()


@given(st.lists(verdicts, min_size=1, max_size=4))
def test_the_last_verdict_counts(found: list[tuple[str, ...]]) -> None:
    assert parse_verdict("\n".join("".join(verdict) for verdict in found)) == found[-1][4].upper()


@given(others)
def test_without_the_word_there_is_none(text: str) -> None:
    assert parse_verdict(text) is None


@given(st.text(alphabet="preferdPABab :*[]()\n.,?", max_size=60) | st.builds("Preferred:{}".format, st.text()))
def test_it_treats_a_and_b_alike(text: str) -> None:
    swapped = parse_verdict(text.translate(str.maketrans("ABab", "BAba")))
    assert swapped == {"A": "B", "B": "A", None: None}[parse_verdict(text)]


@given(letters, st.text(min_size=1).filter(str.isalnum))
def test_a_letter_of_a_word_or_before_one_is_none(letter: str, word: str) -> None:
    assert parse_verdict(f"Preferred: {letter}{word}") is None
    assert parse_verdict(f"Preferred: {letter} {word}") is None


def test_long_lines_take_no_time() -> None:
    for text in ("Preferred: " + "*" * 200_000, " " * 200_000 + "x", "Preferred: A" + "] " * 100_000 + "x"):
        assert parse_verdict(text) is None
