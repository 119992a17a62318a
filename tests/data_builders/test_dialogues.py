"""The rules that make a pair of an HH line: ours, and upstream's with its quirks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.hh.dialogues import Pair, Turn, as_chat, make_compat_pair, make_pair, split_turns
from orlhf_ext.files.built import Reject

Q = "\n\nHuman: Name a fruit\n\nAssistant:"


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


SAME, EMPTY = "chosen and rejected do not differ", "empty response"
NO_ANSWER = "the first difference is not in an Assistant turn"
NO_HUMAN, NO_BLANK = "does not begin with a Human turn", "does not begin with a blank line"

# what it shows, chosen, rejected, what upstream's rules give, what ours give; a string: dropped for that reason
RULES: list[tuple[str, str, str, Any, Any]] = [
    ("plain", Q + " Apple", Q + " No", (Q, " Apple", " No"), ...),
    (
        "equal turns go to the prompt",
        f"{Q} Apple\n\nHuman: Why?\n\nAssistant: Red.",
        f"{Q} Apple\n\nHuman: Why?\n\nAssistant: Eh.",
        (f"{Q} Apple\n\nHuman: Why?\n\nAssistant:", " Red.", " Eh."),
        ...,
    ),
    (
        "what follows the first difference is left out",
        f"{Q} Apple\n\nHuman: Why?\n\nAssistant: Red.",
        f"{Q} Pear\n\nHuman: So?\n\nAssistant: Eh.",
        (Q, " Apple", " Pear"),
        ...,
    ),
    ("blank lines inside a turn", Q + " A\n\nB\n\n\n\nC", Q + " No", (Q, " A\n\nB\n\n\n\nC", " No"), ...),
    ("Humans", Q.replace("Human", "Humans") + " a", Q + " b", (Q, " a", " b"), ...),
    ("inline Human in an answer", Q + " a\nHuman: x", Q + " b Humans: y", (Q, " a\n x", " b  y"), ...),
    ("same", Q + " Apple", Q + " Apple", SAME, ...),
    ("one ends first", Q + " Apple", f"{Q} Apple\n\nHuman: Why?\n\nAssistant: x", SAME, ...),
    ("empty chosen", Q + " ", Q + " No", EMPTY, ...),
    ("empty rejected", Q + " Apple", Q + " ", EMPTY, ...),
    ("text before the first blank line", "Human: q\n\nAssistant: a", "Human: q\n\nAssistant: b", NO_BLANK, ...),
    ("difference in a human turn", dialogue("q", "a"), dialogue("p", "a"), NO_ANSWER, ...),
    ("no turns", "text", "text", NO_BLANK, NO_HUMAN),
    ("nothing", "", "", SAME, NO_HUMAN),
    ("no human turn", "\n\nAssistant: a", "\n\nAssistant: b", ("\n\nAssistant:", " a", " b"), NO_HUMAN),
    ("other text first", "\n\nx" + Q + " a", "\n\nx" + Q + " b", ("\n\nx" + Q, " a", " b"), NO_HUMAN),
    # quirk a: an earlier turn that only has one more space makes a pair that nobody preferred
    (
        "two spaces in an earlier turn",
        f"{Q}  x\n\nHuman: Why?\n\nAssistant: Red.",
        f"{Q}  x\n\nHuman: Why?\n\nAssistant: Eh.",
        (Q, " x", "  x"),
        (f"{Q} x\n\nHuman: Why?\n\nAssistant:", " Red.", " Eh."),
    ),
    # quirk b: "Assistant:" without a space opens no turn upstream, and the whole file crashes there
    ("empty turn without a space", Q, Q + " No", NO_ANSWER, EMPTY),
    (
        "empty earlier turn without a space",
        f"{Q}\n\nHuman: So?\n\nAssistant: a",
        f"{Q}\n\nHuman: So?\n\nAssistant: b",
        (f"{Q}\n\nHuman: So?\n\nAssistant:", " a", " b"),
        ...,
    ),
    ("answer without a space", Q + "a", Q + " b", NO_ANSWER, (Q, " a", " b")),
    # quirk c: the rejected side keeps its white space
    ("two spaces", Q + "  a", Q + "  b", (Q, " a", "  b"), (Q, " a", " b")),
    ("only white space differs", Q + " a", Q + "   a", (Q, " a", "   a"), SAME),
    ("trailing white space", Q + " a \n", Q + " b\n\n", (Q, " a \n", " b\n\n"), (Q, " a", " b")),
    ("Windows line ends", Q.replace("\n", "\r\n") + " a", Q + " b", NO_BLANK, (Q, " a", " b")),
]
# without a blank line in front, ours reads the dialogue all the same
OURS = {"text before the first blank line": (dialogue("q", "")[:-1], " a", " b")}


def outcome(result: Pair | Reject) -> Any:
    return result.reason if isinstance(result, Reject) else tuple(result[:3])


@pytest.mark.parametrize(("name", "chosen", "rejected", "upstream", "ours"), RULES, ids=[rule[0] for rule in RULES])
def test_rules_for_a_line(name: str, chosen: str, rejected: str, upstream: Any, ours: Any):
    assert outcome(make_compat_pair(chosen, rejected)) == upstream
    assert outcome(make_pair(chosen, rejected)) == OURS.get(name, upstream if ours is ... else ours)


def test_only_broken_rows_are_errors_under_strict():
    for first in (make_pair, make_compat_pair):
        rejects = {r.reason: r.bad for _, c, j, *_ in RULES if isinstance(r := first(c, j), Reject)}
        assert rejects.pop(SAME) is rejects.pop(EMPTY) is False
        assert rejects and all(rejects.values())


labels = st.sampled_from(["\n\n", "\n", "Human: ", "Humans: ", "Assistant: ", "Assistant:", " ", "a", "\r\n"])
noisy = st.lists(labels | st.text(max_size=3), max_size=12).map("".join)
plain = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: text == text.strip() and not re.search(r"Humans?:|Assistant:|\r", text)
)
well_formed = st.lists(plain, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)


@given(noisy | st.just(Q), noisy, noisy)
def test_no_text_crashes_and_no_pair_is_without_a_preference(start: str, chosen: str, rejected: str):
    for rule in (make_pair, make_compat_pair):
        pair = rule(start + chosen, start + rejected)
        if isinstance(pair, Pair):
            assert pair.chosen != pair.rejected and pair.chosen.strip() and pair.rejected.strip()
            assert pair.prompt.endswith("\n\nAssistant:")
    pair = make_pair(start + chosen, start + rejected)
    if isinstance(pair, Pair):  # a built pair, read again, is itself
        assert make_pair(pair.prompt + pair.chosen, pair.prompt + pair.rejected) == pair


@given(well_formed, plain, plain, st.lists(plain, max_size=2))
def test_prompt_and_response_are_the_start_of_a_well_formed_dialogue(turns, good, bad, more):
    speakers = ("Human", "Assistant")
    text = "".join(f"\n\n{speakers[place % 2]}: {turn}" for place, turn in enumerate(turns))
    after = "".join(f"\n\n{speakers[place % 2]}: {turn}" for place, turn in enumerate(more))
    chosen, rejected = f"{text}\n\nAssistant: {good}{after}", f"{text}\n\nAssistant: {bad}"
    pair = make_pair(chosen, rejected)
    if good == bad:
        assert outcome(pair) == SAME
        return
    assert isinstance(pair, Pair)
    assert chosen.startswith(pair.prompt + pair.chosen)
    assert rejected == pair.prompt + pair.rejected
    assert make_compat_pair(chosen, rejected)[:3] == pair[:3]
    chat = as_chat(pair)
    assert isinstance(chat, dict)
    assert [message["role"] for message in chat["prompt"]] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    assert [message["content"] for message in chat["prompt"]] == turns
    assert (chat["chosen"], chat["rejected"]) == tuple([{"role": "assistant", "content": text}] for text in (good, bad))


def test_a_chat_merges_neighbours_and_needs_a_question():
    pair = make_pair(dialogue("a", "")[:-13] + dialogue("b", "x"), dialogue("a", "")[:-13] + dialogue("b", "y"))
    assert isinstance(pair, Pair) and pair.turns == (Turn("Human", "a"), Turn("Human", "b"))
    assert as_chat(pair)["prompt"] == [{"role": "user", "content": "a\n\nb"}]
    pair = make_pair(f"{Q} a\n\nAssistant: b", f"{Q} a\n\nAssistant: c")
    assert as_chat(pair).reason == "the prompt does not end with a Human turn, as a chat must"
    assert split_turns("\n\nHuman:\n\nAssistant:") == [Turn("Human", ""), Turn("Assistant", "")]
