"""``build_data story``: chapters, splits, prompts, labels, and what bad input says."""

from __future__ import annotations

import gzip
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, build_light, failing, meta, read, write
from hypothesis import given
from hypothesis import strategies as st

from data_builders.story import Builder, generated
from data_builders.story.books import _value, find_chapters, first_words, last_words, read_book
from data_builders.story.prompts import from_chapter, from_messages
from data_builders.story.sources import BUNDLED, SPLITS, Division
from orlhf_ext.build_data import main, make_parser
from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Reject
from orlhf_ext.vrcli.labels import scoring_messages, with_system

SAMPLE = ROOT / "data_builders" / "samples" / "stories"
NOVELS = {"emma": 55, "prideprejudice": 61, "sensesensibility": 50, "mansfieldpark": 48, "northangerabbey": 31}


def build(*options: object) -> None:
    main(["story", *map(str, options)])


def refused(capsys: pytest.CaptureFixture, *options: object) -> str:
    """The one sentence that a command ends with."""
    said = failing(capsys, main, "story", *options)
    assert said.count("\n") == 1, said
    return said


def splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the three files; what must hold for all rows is checked here."""
    rows = {split: read(folder / f"{split}.jsonl") for split in SPLITS}
    everything = [row for split in SPLITS for row in rows[split]]
    assert all(rows.values()) and len({row["id"] for row in everything}) == len(everything)
    for row in everything:
        assert set(row) == {"id", "datasource", "prompt", "label"} and isinstance(row["label"], str)
        label = json.loads(row["label"])
        assert set(label) == {"v", "id", "adapter", "gold", "messages", "plan"} and label["v"] == 1
        assert label["id"] == row["id"] and label["adapter"] in ("generic", "ncp")
        assert row["prompt"][-1]["role"] == label["messages"][-1]["role"] == "user"
        assert "In summary:" in row["prompt"][-1]["content"]
        gold = " ".join(label["gold"].split())
        texts = [" ".join(message["content"].split()) for message in (*row["prompt"], *label["messages"])]
        assert gold and not any(gold in text for text in texts)
    counts = [meta(folder / f"{split}.jsonl")["counts"] for split in SPLITS]
    assert [one["kept"] for one in counts] == [len(rows[split]) for split in SPLITS]
    assert all(one["read"] == one["kept"] + one["not_drawn"] + sum(one["dropped"].values()) for one in counts)
    return rows


def joke(name: object) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "You are funny."},
            {"role": "user", "content": f"Why did number {name} cross the road?"},
            {"role": "assistant", "content": f"To count the other {name} sides."},
        ]
    }


def chapter(story: str, index: int, **fields: Any) -> dict[str, Any]:
    body = " ".join(f"{story}{index}word{place}" for place in range(250))
    return {
        "story_id": story,
        "chapter_index": index,
        "next_chapter_header": f"Chapter {index + 1}",
        "next_chapter": f"Chapter {index + 1}\n\n{body}",
        "story_text": f"{story} so far, up to {index}.",
        "prior_plot_summary": "Things happened.",
        "high_level_plot_summary": "All of it happens.",
        "character_sheets": {"Ann": "Ann is brave.", "Bob": "Bob is not.", "Cid": None},
        "next_chapter_synopsis": f"In {index} more happens.",
        "last_n_chapters": 1,
        **fields,
    }


def book(name: str, chapters: int = 3) -> str:
    texts = [f"{name} did thing {n} today. Then {name} slept." for n in range(1, chapters + 1)]
    return f"{name.upper()}\n\n" + "\n\n".join(f"CHAPTER {n}\n\n{text}" for n, text in enumerate(texts, 1))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of four small books."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("ann", "bob", "cid", "dan"):
        (folder / f"{name}.txt").write_text(book(name))
    return folder


# --- chapters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOVELS)
def test_chapters_of_real_novels(shared_data: Path, name: str):
    path = shared_data / "stories" / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"../shared/data/stories/{name}.txt is absent")
    chapters = find_chapters(read_book(path))
    assert len(chapters) == NOVELS[name]
    assert min(len(one.text.split()) for one in chapters) > 600
    assert not any(re.search(r"(?m)^(chapter|volume) ", one.text, re.I) for one in chapters)
    text = "".join(path.read_text(encoding="utf-8").split())
    assert all("".join(one.text.split()) in text for one in chapters)  # nothing is lost or changed within one
    if name == "emma":
        assert [one.heading for one in chapters[17:20]] == ["CHAPTER XVIII", "CHAPTER I", "CHAPTER II"]
        assert chapters[0].text.startswith("Emma Woodhouse, handsome, clever, and rich, with a comfortable home and ")
        assert chapters[-1].text.endswith("in the perfect happiness of the union.")  # and no FINIS


def test_chapters_of_the_bundled_stories():
    stories = sorted(SAMPLE.glob("*.txt"))
    assert len(stories) >= 7
    headings = set()
    for path in stories:
        chapters = find_chapters(read_book(path))
        assert len(chapters) == 5, path
        assert all(250 <= len(one.text.split()) <= 450 for one in chapters), path
        headings.add(re.sub(r"\W.*", "", chapters[1].heading.replace("hapter ", "hapter_").replace("R ", "R_")))
    assert len(headings) >= 4  # several styles of heading


ALICE = """The Project Gutenberg eBook of Alice

*** START OF THE PROJECT GUTENBERG EBOOK ALICE ***

[Illustration: [_Copyright 1900._]
CHAPTER IX.]

ALICE

CONTENTS

 CHAPTER I.     Down the Hole
 CHAPTER II.    The Pool
 CHAPTER III.   A Race

PREFACE

This is a preface of some length, and it says how the book came to be written, by whom it was, and for which child.

CHAPTER I.
Down the Hole

Alice sat on the bank. See
Chapter 2, and
Chapter 3 of the other book.

Chapter 7 of that book was dull.

CHAPTER II.
The Pool


"Curiouser!" she cried.

PART THE SECOND. MORE OF IT.

CHAPTER III.
Who Ran the Race?

They ran.
  So fast
  they ran.

Chapter IV

They rested.

THE END

Transcriber's note

*** END OF THE PROJECT GUTENBERG EBOOK ALICE ***
CHAPTER V
Licence.
"""


def test_contents_notices_titles_and_volumes_are_no_chapters(tmp_path: Path):
    (tmp_path / "alice.txt").write_bytes(b"\xef\xbb\xbf" + ALICE.replace("\n", "\r\n").encode())
    assert find_chapters(read_book(tmp_path / "alice.txt")) == [
        (
            "CHAPTER I. Down the Hole",
            "Alice sat on the bank. See\nChapter 2, and\nChapter 3 of the other book.\n\n"
            "Chapter 7 of that book was dull.",
        ),
        ("CHAPTER II. The Pool", '"Curiouser!" she cried.'),
        ("CHAPTER III. Who Ran the Race?", "They ran.\nSo fast\nthey ran."),
        ("Chapter IV", "They rested."),
    ]


@pytest.mark.parametrize(
    ("one", "two", "first"),
    [
        ("CHAPTER I", "CHAPTER II", "CHAPTER I"),
        ("Chapter 1", "Chapter 2", "Chapter 1"),
        ("Chapter I. The Start", "Chapter II. The End of It", "Chapter I. The Start"),
        ("CHAPTER 1: The Start", "CHAPTER 2: More", "CHAPTER 1: The Start"),
        ("Chapter One", "Chapter Twenty-Second", "Chapter One"),
        ("CHAPTER THE FIRST.", "CHAPTER THE LAST.", "CHAPTER THE FIRST."),
        ("## Chapter 1 - A", "## Chapter 2 - B", "Chapter 1 - A"),
        ("  CHAPTER I.--_In Which_", "  CHAPTER II.--_More_", "CHAPTER I.--_In Which"),
        ("**Chapter 1**", "**Chapter 2**", "Chapter 1"),
        ("Chap. 1", "Chap. 2", "Chap. 1"),
        ("Chapter 1 The Start", "Chapter 2 The Rest", "Chapter 1 The Start"),
    ],
)
def test_forms_of_headings(one: str, two: str, first: str):
    chapters = find_chapters(f"Title\n\n{one}\n\nA cat sat.\n\n{two}\n\nA dog ran.\n")
    assert [chapter.text for chapter in chapters] == ["A cat sat.", "A dog ran."]
    assert chapters[0].heading == first
    bare = find_chapters("CHAPTER I\nA cat sat.\nCHAPTER II\nIt ran.\n\nVOLUME II\nCHAPTER I\nThen we read Chapter 3.")
    assert [chapter.text for chapter in bare] == ["A cat sat.", "It ran.", "Then we read Chapter 3."]


def test_a_form_of_headings_of_ones_own():
    text = "A\n\n1.\n\nOne cat.\n\n2.\n\nTwo cats, 2.\nand\n3.\n\nThree.\n"
    chapters = find_chapters(text, re.compile(r"\d+\."))
    assert [(one.heading, one.text) for one in chapters] == [
        ("1.", "One cat."),
        ("2.", "Two cats, 2.\nand"),
        ("3.", "Three."),
    ]


def roman(value: int) -> str:
    steps = [(100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")]
    return next((mark + roman(value - size) for size, mark in steps if size <= value), "")


def test_numbers_of_chapters():
    for value in range(1, 400):
        assert _value(roman(value).upper()) == _value(str(value)) == value
    words = {"one": 1, "the First": 1, "Twelve": 12, "twenty": 20, "Thirty-Third": 33, "the ninety ninth": 99}
    assert {word: _value(word) for word in words} == words


WORD = st.sampled_from(["cat", "dog", "house", "river", "walked", "under", "Tuesday"])
SENTENCES = st.lists(WORD, min_size=3, max_size=30).map(lambda words: "He " + " ".join(words) + ".")
TEXTS = st.lists(st.lists(SENTENCES, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=3).map("\n\n".join)


@pytest.mark.launcher
@given(
    volumes=st.lists(st.lists(TEXTS, min_size=2, max_size=4), min_size=1, max_size=3),
    style=st.sampled_from(["CHAPTER {roman}", "Chapter {n}", "Chapter {n}: The {n}th Day", "CHAPTER {roman}\nA Title"]),
    contents=st.booleans(),
    gutenberg=st.booleans(),
    wrap=st.sampled_from([None, 60, 72]),
)
def test_a_book_gives_back_the_chapters_that_it_was_made_of(
    tmp_path_factory, volumes, style, contents, gutenberg, wrap
):
    import textwrap

    def heading(number: int) -> str:
        return style.format(n=number, roman=roman(number).upper())

    parts = ["THE BOOK\n\nBy Somebody"]
    if contents:
        parts.append("\n".join(heading(n) for volume in volumes for n in range(1, len(volume) + 1)))
    for number, volume in enumerate(volumes, 1):
        if len(volumes) > 1:
            parts.append(f"VOLUME {roman(number).upper()}")
        for place, text in enumerate(volume, 1):
            if wrap:
                text = "\n\n".join(textwrap.fill(paragraph, wrap) for paragraph in text.split("\n\n"))
            parts += [heading(place), text]
    if gutenberg:
        parts = ["A notice", "*** START OF THIS BOOK ***", *parts, "THE END", "*** END OF THIS BOOK ***", "CHAPTER 99"]
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("\n\n\n".join(parts))
    chapters = find_chapters(read_book(path))
    wanted = [" ".join(text.split()) for volume in volumes for text in volume]
    assert [" ".join(one.text.split()) for one in chapters] == wanted


@given(text=TEXTS, most=st.integers(1, 120))
def test_pieces_of_a_text(text: str, most: int):
    beginning, end = first_words(text, most), last_words(text, most)
    assert text.startswith(beginning) and text.endswith(end)
    for piece in (beginning, end):
        count = len(piece.split())
        assert min(most, len(text.split())) / 3 <= count <= most or count == len(text.split()) <= most
    if len(text.split()) <= most:
        assert beginning == end == text


def test_pieces_end_and_start_with_sentences():
    text = "Mr. Bennet was here. He sat down. Then he spoke to J. Smith and went."
    assert first_words(text, 8) == "Mr. Bennet was here. He sat down."
    assert first_words(text, 3) == "Mr. Bennet was"
    assert last_words(text, 9) == "Then he spoke to J. Smith and went."
    assert last_words(text, 10) == "Then he spoke to J. Smith and went."
    assert last_words(text, 6) == "spoke to J. Smith and went."


# --- books to rows -------------------------------------------------------------------------------------------------


def test_the_bundled_stories_are_the_default(tmp_path: Path):
    build("--out", tmp_path)
    rows = splits(tmp_path)
    assert {split: len(some) for split, some in rows.items()} == {"train": 24, "val": 4, "test": 4}
    row = rows["test"][0]
    stem, number = row["id"].rsplit("-", 1)
    chapters = find_chapters(read_book(SAMPLE / f"{stem}.txt"))
    label = json.loads(row["label"])
    assert number == "002" and label["adapter"] == "ncp" and row["datasource"] == "books"
    assert chapters[1].text.startswith(label["gold"]) and 100 <= len(label["gold"].split()) <= 200
    assert chapters[0].text in row["prompt"][-1]["content"]
    assert chapters[1].heading in row["prompt"][-1]["content"]
    sidecar = meta(tmp_path / "test.jsonl")
    assert sidecar["licence"] == "Apache-2.0" and sidecar["next_chapters"] == {stem: 4}
    assert sidecar["sources"][0]["file"] == str(SAMPLE / f"{stem}.txt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    build("--out", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.launcher
def test_real_novels(tmp_path: Path, shared_data: Path):
    if not (shared_data / "stories").is_dir():
        pytest.skip("../shared/data/stories is absent")
    options = ("--context_words", 300, "--gold_words", 120)
    build(shared_data / "stories", "--out", tmp_path, *options)
    rows = splits(tmp_path)
    books = {split: {row["id"].rsplit("-", 1)[0] for row in some} for split, some in rows.items()}
    assert [len(books[split]) for split in SPLITS] == [3, 1, 1]
    assert set.union(*books.values()) == set(NOVELS)
    assert sum(map(len, rows.values())) == sum(NOVELS.values()) - len(NOVELS)
    for split, some in rows.items():
        for row in some:
            label = json.loads(row["label"])
            assert len(label["gold"].split()) <= 120
            assert len(row["prompt"][-1]["content"].split()) < 300 + 120
        assert meta(tmp_path / f"{split}.jsonl")["counts"]["dropped"] == {}
    build(
        shared_data / "stories", "--out", tmp_path / "other", "--limit", 10, "--shuffle", "--limit_val", 3, "--seed", 5
    )
    other = splits(tmp_path / "other")
    assert len(other["train"]) == 10 and len(other["val"]) == 3
    assert len({row["id"].rsplit("-", 1)[0] for row in other["train"]}) > 1


def test_no_book_is_in_two_splits(tmp_path: Path, shelf: Path):
    seen = set()
    for seed in range(6):
        build(shelf, "--out", tmp_path / "out", "--seed", seed)
        books = {split: {row["id"][:3] for row in some} for split, some in splits(tmp_path / "out").items()}
        assert [len(books[split]) for split in SPLITS] == [2, 1, 1] and len(set.union(*books.values())) == 4
        seen.add(str(sorted(books["test"])))
    assert len(seen) > 1  # the seed decides
    build(shelf, "--out", tmp_path / "out", "--test_size", 0.5)
    assert len({row["id"][:3] for row in splits(tmp_path / "out")["test"]}) == 2


@given(
    names=st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=60),
    val=st.floats(0.01, 0.3),
    test=st.floats(0.01, 0.3),
)
def test_a_division_leaves_no_split_empty(names: set[int], val: float, test: float):
    division = Division(names, val, test, "x", "books")
    sizes = {split: sum(division(name) == split for name in names) for split in SPLITS}
    assert sizes == division.sizes and min(sizes.values()) >= 1 and sum(sizes.values()) == len(names)
    assert abs(sizes["val"] - val * len(names)) <= 1
    shuffled = random.Random(0).sample(sorted(names), len(names))
    assert [Division(shuffled, val, test, "x", "books")(name) for name in names] == [division(name) for name in names]
    with pytest.raises(UserError, match="x has 2 books, and train, val and test need one each"):
        Division([1, 2, 2], val, test, "x", "books")


# --- prompts and labels --------------------------------------------------------------------------------------------


def test_conversations(tmp_path: Path):
    for split, names in (("train", range(5)), ("val", range(5, 7)), ("test", range(7, 9))):
        write(tmp_path / "in" / f"story_dataset_{split}.jsonl", [joke(name) for name in names])
    build("--data_dir", tmp_path / "in", "--dataset_name", "story_dataset", "--out", tmp_path)
    rows = splits(tmp_path)
    assert [len(rows[split]) for split in SPLITS] == [5, 2, 2]
    row = rows["val"][1]
    label = json.loads(row["label"])
    assert row["id"] == "val-000002" and row["datasource"] == "messages" and label["adapter"] == "generic"
    assert label["gold"] == "To count the other 6 sides."
    assert label["messages"] == joke(6)["messages"][:-1]
    question = label["messages"][-1]["content"]
    assert row["prompt"][0] == label["messages"][0]
    assert row["prompt"][-1]["content"].startswith(question + "\n\n")
    assert scoring_messages(label) == scoring_messages(label, "") == scoring_messages(label, " \n") == label["messages"]
    planned = scoring_messages(label, " Be literal. ")
    assert planned[-1]["content"].startswith(question + "\n\n") and planned[-1]["content"].endswith(":\nBe literal.")
    assert planned[0] == label["messages"][0] and label["messages"][-1]["content"] == question  # not changed
    # the seed's own command, found in the folder or as SOURCE
    build(tmp_path / "in", "--out", tmp_path / "again", "--instruction", "Say why. In summary: first.")
    assert splits(tmp_path / "again")["val"][1]["prompt"][-1]["content"] == f"{question}\n\nSay why. In summary: first."


def test_system_messages():
    chat = joke(1)["messages"]
    assert with_system(chat, "keep") == chat
    assert with_system(chat, "drop") == chat[1:]
    assert with_system(chat, "merge")[0] == {"role": "user", "content": f"You are funny.\n\n{chat[1]['content']}"}
    assert chat == joke(1)["messages"]
    for how, roles in (("keep", ["system", "user"]), ("drop", ["user"]), ("merge", ["user"])):
        for record, make in ((joke(1), from_messages), (chapter("s", 3), from_chapter)):
            task = make(record, how, None)
            for messages in (task.prompt, task.messages, scoring_messages(task.label("x"), "PLAN")):
                assert [message["role"] for message in messages] == roles
            assert "PLAN" in scoring_messages(task.label("x"), "PLAN")[-1]["content"]
    merged = from_chapter(chapter("s", 3), "merge", None)
    assert merged.messages[0]["content"].startswith("You help a novelist")


def test_next_chapter_rows(tmp_path: Path):
    rows = [chapter(story, index) for story in "abcd" for index in (2, 3, 4)]
    extra = [
        chapter("a", 1),
        chapter("a", 5, next_chapter="word " * 199 + "word"),
        chapter("b", 5, next_chapter="word " * 5000),
        chapter("c", 5, story_text="word " * 5000),
        chapter("d", 5, high_level_plot_summary="word " * 10000),
    ]
    write(tmp_path / "all.jsonl", rows + extra)
    build(tmp_path / "all.jsonl", "--out", tmp_path / "out")
    built = splits(tmp_path / "out")
    stories = {
        split: {json.loads(row["label"])["gold"].split("word")[0][-2] for row in some} for split, some in built.items()
    }
    assert [len(stories[split]) for split in SPLITS] == [2, 1, 1] and len(set.union(*stories.values())) == 4
    dropped = [meta(tmp_path / "out" / f"{split}.jsonl")["counts"]["dropped"] for split in SPLITS]
    assert {reason for one in dropped for reason in one} == {
        "chapter of 200 words or fewer",
        "chapter of 5000 words or more",
        "story text of 5000 words or more",
        "prompt of 10000 words or more",
        "one of the first two chapters",
    }
    build(tmp_path / "all.jsonl", "--out", tmp_path / "more", "--unfiltered")
    assert sum(map(len, splits(tmp_path / "more").values())) == 17
    assert "2 of 4 groups" in meta(tmp_path / "out" / "train.jsonl")["split"]

    task = from_chapter(rows[0], "keep", None)
    assert task.gold == rows[0]["next_chapter"] and task.adapter == "ncp"
    user = task.messages[-1]["content"]
    names = re.findall(r"^### (.*): ###$", user, re.M)
    assert names == [
        "Summary of the Whole Story",
        "Summary of the Chapters So Far",
        "Character Sheets",
        "Previous Chapters",
        "Next Chapter Synopsis",
        "Next Chapter Header",
        "Instructions",
    ]
    assert "Ann:\nAnn is brave.\n\nBob:\nBob is not." in user and "Cid" not in user
    assert task.prompt[-1]["content"].partition("### Instructions")[0] == user.partition("### Instructions")[0]
    assert "<citation>" in task.prompt[-1]["content"]
    label = task.label("x")
    planned = scoring_messages(label, "Ann wins.")[-1]["content"]
    head, _, tail = planned.partition("\n\n### Detailed Plan for the Next Chapter: ###\nAnn wins.")
    assert user.startswith(head) and head.endswith("### Next Chapter Header: ###\nChapter 3")
    assert tail.startswith("\n\n### Instructions: ###\n") and "thoughts above" in tail
    assert scoring_messages(label, "")[-1]["content"] == head + tail  # upstream's: the instruction still differs
    same = from_chapter(rows[0], "keep", None, same=True)
    assert same.messages == task.messages == scoring_messages(same.label("x"), "")
    assert scoring_messages(same.label("x"), "P")[-1]["content"].endswith(user[len(head) :])
    # absent inputs are left out of the preamble too
    less = from_chapter({"next_chapter": "N", "story_text": "So far."}, "drop", None)
    assert less.messages[0]["content"].startswith(
        "Here is a story in the making. You are given the chapters before the next one.\n\n"
        "### Previous Chapters: ###\nSo far."
    )
    assert "Start with its text." in less.messages[0]["content"]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=40).filter(str.strip)


@given(system=WORDS, user=WORDS, gold=WORDS, plan=st.text(max_size=40), how=st.sampled_from(["keep", "drop", "merge"]))
def test_labels_survive_json_and_never_leak(system: str, user: str, gold: str, plan: str, how: str):
    chat = [{"role": role, "content": text} for role, text in (("system", system), ("user", user), ("assistant", gold))]
    fields = {"story_text": system, "next_chapter_header": user, "next_chapter": gold}
    for task, same in (
        (from_messages({"messages": chat}, how, None), True),
        (from_chapter(fields, how, None), False),
        (from_chapter(fields, how, None, same=True), True),
    ):
        if isinstance(task, Reject):
            assert task.reason == "the gold text stands in the prompt"
            continue
        assert not any(gold in message["content"] for message in (*task.prompt, *task.messages))
        label = json.loads(json.dumps(task.label("x"), ensure_ascii=False))
        assert label["gold"] == gold and scoring_messages(label) == task.messages
        splice, planned = label["plan"], scoring_messages(label, plan)
        content = task.messages[splice["message"]]["content"]
        body = splice["before"] + plan.strip() + splice["after"] if plan.strip() else splice["empty"]
        assert planned[splice["message"]]["content"] == content[: splice["start"]] + body + content[splice["end"] :]
        assert planned[:-1] == task.messages[:-1]
        if same and not plan.strip():
            assert planned == task.messages


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "messages that are not a list"),
        ({"messages": "text"}, "messages that are not a list"),
        ({"messages": [{"role": "user"}]}, "messages that are not a list"),
        ({"messages": joke(1)["messages"][:-1]}, "the last message is not an assistant's text"),
        ({"messages": [*joke(1)["messages"][:-1], {"role": "assistant", "content": " \n"}]}, "the last message is not"),
        ({"messages": joke(1)["messages"][2:]}, "the message before the last is not the user's"),
        ({"messages": [*joke(1)["messages"], joke(1)["messages"][-1]]}, "the message before the last is not"),
        (
            {"messages": [{"role": "user", "content": "<image> What?"}, joke(1)["messages"][-1]]},
            "an image in the prompt",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A"}]},
            "an image in the prompt",
        ),
        ({**joke(1), "images": ["x.png"]}, "an image in the prompt"),
        (
            {
                "messages": [
                    {"role": "user", "content": "Say  hello\nyou"},
                    {"role": "assistant", "content": " hello you"},
                ]
            },
            "the gold text stands in the prompt",
        ),
    ],
)
def test_conversations_that_are_no_task(record: dict, reason: str):
    task = from_messages(record, "keep", None)
    assert isinstance(task, Reject) and task.bad and task.reason.startswith(reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"next_chapter": " "}, "next_chapter is not a text"),
        ({"next_chapter": 3}, "next_chapter is not a text"),
        ({"story_text": ["a"]}, "a field of the next chapter that is not text"),
        ({"character_sheets": {"Ann": 1}}, "a field of the next chapter that is not text"),
        ({"story_text": "See <image>."}, "an image in the prompt"),
    ],
)
def test_next_chapters_that_are_no_task(fields: dict, reason: str):
    task = from_chapter(chapter("s", 3, **fields), "keep", None)
    assert isinstance(task, Reject) and task.bad and task.reason.startswith(reason)
    alone = from_chapter({"next_chapter": "N", "next_chapter_header": "Chapter 2"}, "keep", None)
    assert isinstance(alone, Reject) and alone.reason == "nothing that comes before the next chapter"
    leak = chapter("s", 3)
    leak["prior_plot_summary"] = leak["next_chapter"].replace("\n", " ")
    assert from_chapter(leak, "keep", None) == Reject("the gold text stands in the prompt", bad=True)


def test_one_file_of_conversations_is_divided_by_prompt(tmp_path: Path):
    rows = [joke(n % 10) for n in range(30)] + [{"text": "x"}]
    (tmp_path / "all.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))
    build(tmp_path / "all.jsonl.gz", "--out", tmp_path / "out")
    built = splits(tmp_path / "out")
    assert {split: len(some) for split, some in built.items()} == {"train": 24, "val": 3, "test": 3}
    assert meta(tmp_path / "out" / "train.jsonl")["counts"]["dropped"] == {"neither messages nor next_chapter": 1}
    build(tmp_path / "all.jsonl.gz", "--out", tmp_path / "out", "--val_size", 0.3)
    assert len(splits(tmp_path / "out")["val"]) == 9


def test_counts_ids_and_prompts_seen_before(tmp_path: Path, capsys: pytest.CaptureFixture):
    secret = "SECRET"
    write(tmp_path / "in" / "train.jsonl", [{"id": "a", **joke(1)}, {"id": "a", **joke(2)}, {"id": 7, **joke(3)}])
    with (tmp_path / "in" / "train.jsonl").open("a") as stream:
        stream.write(f'{{"messages": "{secret}\n')
    write(tmp_path / "in" / "validation.jsonl", [joke(1), joke(4)])
    write(tmp_path / "in" / "test.jsonl", [joke(5), {"messages": [{"role": "user", "content": secret}]}])
    build(tmp_path / "in", "--out", tmp_path)
    rows = splits(tmp_path)
    assert [[row["id"] for row in rows[split]] for split in SPLITS] == [["a", "7"], ["val-000002"], ["test-000001"]]
    dropped = [meta(tmp_path / f"{split}.jsonl")["counts"]["dropped"] for split in SPLITS]
    assert dropped == [
        {"id of an earlier row": 1, "not JSON": 1},
        {"prompt also in the training rows": 1},
        {"the last message is not an assistant's text": 1},
    ]
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err
    assert f"dropped {tmp_path}/in/test.jsonl line 2: the last message is not" in captured.out
    said = refused(capsys, tmp_path / "in", "--out", tmp_path, "--strict")
    assert "train.jsonl line 2: id of an earlier row; fix or remove that row" in said


def test_lengths(tmp_path: Path, tiny_model: Path, shelf: Path, capsys: pytest.CaptureFixture):
    import shutil

    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    tokenizer.chat_template = template
    (shelf / "dan.txt").write_text(book("dan", 4).replace("thing 4", "thing " + "4 " * 100))
    out = tmp_path / "out"
    build(shelf, "--out", out, "--tokenizer_name", model)
    rows = splits(out)
    sizes = {}
    for split, some in rows.items():
        counts = []
        for row in some:
            label = json.loads(row["label"])
            scored = [*scoring_messages(label, "-"), {"role": "assistant", "content": label["gold"]}]
            counts.append(
                (
                    len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]),
                    len(tokenizer.apply_chat_template(scored)["input_ids"]),
                )
            )
            sizes[row["id"]] = counts[-1]
        for place, name in enumerate(("prompt", "scored")):
            column = [one[place] for one in counts]
            wanted = {"mean": round(sum(column) / len(column), 1), "max": max(column)}
            assert meta(out / f"{split}.jsonl")["tokens"][name] == wanted
    most = sizes.pop("dan-004")[1] - 1
    build(shelf, "--out", out, "--tokenizer", model, "--max_tokens", most)
    assert {row["id"] for some in splits(out).values() for row in some} == set(sizes)
    said = refused(capsys, shelf, "--out", out, "--tokenizer", model, "--max_prompt_tokens", 5)
    assert re.search(r"none of the (\d) rows of .* \(\1 of them: prompt longer than 5 tokens\)", said)
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert "has no chat template; choose a chat model's" in refused(capsys, shelf, "--out", out, "--tokenizer", model)


@pytest.mark.launcher
def test_memory_does_not_grow_with_the_input(tmp_path: Path):
    def peak(count: int) -> int:
        """Bytes that Python holds at most while building from one file of ``count`` rows of 3 kB."""
        rows = [joke(f"{number} {'word ' * 600}") for number in range(count)]
        source = write(tmp_path / f"{count}.jsonl", rows)
        args = make_parser(Builder(), "story").parse_args([str(source), "--out", str(tmp_path / "out")])
        del rows
        tracemalloc.start()
        assert sum(built.counts.kept for built in Builder().run(args)) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)
    small, large = peak(100), peak(700)
    # 600 more rows: hashes of their prompts and ids are all that may grow
    assert large - small < 600 * 400


# --- bad input: one sentence, exit code 2 --------------------------------------------------------------------------


def test_bad_books(tmp_path: Path, shelf: Path, capsys: pytest.CaptureFixture):
    out = ("--out", tmp_path / "out")
    odd = shelf / "odd.txt"
    odd.write_text("No headings here.\n\nChapter 4 of it was dull, said he.")
    said = refused(capsys, shelf, *out)
    assert f"{odd} has no chapter headings such as CHAPTER I or Chapter 1: Title; add them, remove the book" in said
    assert f"{shelf}/ann.txt has no chapter headings that match --heading X+" in refused(
        capsys, shelf, *out, "--heading", "X+"
    )
    assert "--heading: ( is not a regular expression" in refused(capsys, shelf, *out, "--heading", "(")
    odd.write_text("CHAPTER I\n\nOnly one.")
    assert f"{odd} has one chapter ('CHAPTER I'), and a next chapter takes two" in refused(capsys, shelf, *out)
    odd.write_bytes(book("Zo\u00eb").encode("latin1"))
    assert f"{odd} is not UTF-8 text" in refused(capsys, shelf, *out)
    odd.write_text(book("ann"))
    assert f"{shelf}/ann.txt and {odd} are the same book" in refused(capsys, shelf, *out)
    odd.write_text("CHAPTER I\n\nOdd.\n\nCHAPTER II\n\nCHAPTER III\n\nOdder.")
    build(shelf, *out)
    dropped = [meta(tmp_path / "out" / f"{split}.jsonl")["counts"]["dropped"] for split in SPLITS]
    assert {"a chapter without text": 1} in dropped
    for name in ("odd", "cid", "dan"):
        (shelf / f"{name}.txt").unlink()
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert f"{shelf} has 2 books (.txt), and train, val and test need one each" in refused(capsys, shelf, *out)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before
    assert "ann.txt is one book" in refused(capsys, shelf / "ann.txt", *out)
    (tmp_path / "void").mkdir()
    assert "void has no books (.txt) and no train.jsonl" in refused(capsys, tmp_path / "void", *out)
    assert f"nothere: {tmp_path}/nothere does not exist" in refused(capsys, tmp_path / "nothere", *out)


def test_bad_files_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    folder = tmp_path / "in"
    out = ("--out", tmp_path / "out")
    write(folder / "a_train.jsonl", [joke(1)])
    write(folder / "a_test.jsonl", [joke(2)])
    assert "in has no a_val.jsonl; add what is missing, or give one file" in refused(capsys, folder, *out)
    write(folder / "a_val.jsonl", [])
    assert f"{folder}/a_val.jsonl has no row for val.jsonl; give a file with records" in refused(capsys, folder, *out)
    write(folder / "a_val.jsonl", [joke(1)])
    said = refused(capsys, folder, *out)
    assert "none of the 1 rows of" in said and "val.jsonl (1 of them: prompt also in the training rows)" in said
    write(folder / "b_train.jsonl", [joke(1)])
    assert "has several data sets (a, b); choose one with --dataset_name" in refused(capsys, folder, *out)
    assert "has no c_train.jsonl and c_val.jsonl and c_test.jsonl" in refused(
        capsys, "--data_dir", folder, "--dataset_name", "c", *out
    )
    one = write(tmp_path / "one.jsonl", [joke(1), joke(2), joke(2)])
    assert "one.jsonl has 2 stories or prompts, and train, val and test need one each" in refused(capsys, one, *out)
    write(one, [joke(n) for n in range(4)])
    said = refused(capsys, one, *out, "--val_size", 0.5, "--test_size", 0.6)
    assert "--val_size and --test_size take 2 and 2 of the 4 stories or prompts" in said
    # upstream's command, whose data_dir is where it writes
    (tmp_path / "rl_data").mkdir()
    monkeypatch.chdir(folder)
    said = refused(capsys, "--data_dir", tmp_path / "rl_data", "--dataset_name", "a", *out)
    assert "they are in the working folder: leave out --data_dir" in said
    write(folder / "a_val.jsonl", [joke(3)])
    build("--dataset_name", "a", *out)
    assert len(splits(tmp_path / "out")["val"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "x", "y"], "are both given; leave one out"),
        (["sample", "--data_dir", "x"], "SOURCE is sample; leave one out"),
        (["--shuffle"], "add --limit N"),
        (["--max_tokens", "5"], "add --tokenizer"),
        (["--unfiltered"], "--unfiltered is for next-chapter rows, but SOURCE has books"),
        (["--same_instruction"], "--same_instruction is for next-chapter rows"),
        (["{rows}", "--gold_words", "5"], "--gold_words cuts books, but"),
        (["{rows}", "--test_size", "0.2"], "--test_size divides books or one file, but"),
        (["{rows}/train.jsonl", "--heading", "x"], "--heading cuts books, but SOURCE is a file of rows"),
        (["{rows}/train.jsonl", "--data_dir", "x"], "is a file; leave them out"),
    ],
)
def test_options_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str):
    for number, split in enumerate(SPLITS):
        write(tmp_path / "rows" / f"{split}.jsonl", [joke(number)])
    given = [option.format(rows=tmp_path / "rows") for option in options]
    assert message in refused(capsys, "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_help_and_building_load_nothing_heavy(tmp_path: Path):
    listed, shown, built = build_light(["--help"], ["story", "--help"], ["story", "--out", str(tmp_path)])
    assert re.search(r"^  story +" + re.escape(Builder.help) + "$", listed, re.M)
    for flag in ("SOURCE", "--data_dir", "--dataset_name", "--system", "--context_words", "--strict", "(data/story)"):
        assert flag in shown
    assert "24 of 24 rows kept" in built


def test_the_generated_stories_are_those_of_the_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "FOLDER", tmp_path)
    generated.main()
    told: dict[str, set[str]] = {}
    for name in generated.COUNTS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (BUNDLED["generated"] / f"{name}.jsonl").read_bytes()
        for row in read(tmp_path / f"{name}.jsonl"):
            for kind in (generated.THINGS, generated.PLACES):  # once before the next chapter, and again in it
                (here,) = [one for one in kind if one in row["text_before"]]
                assert here in row["next_chapter"] and row["text_before"].count(here) == 1
                told.setdefault(name, set()).add(here)
    assert not told["train"] & told["test"] and not told["val"] & (told["train"] | told["test"])
    plans = [(row["plan"], row["text_before"]) for row in read(tmp_path / "train.jsonl")]
    for kind in (generated.THINGS, generated.PLACES):  # this story's in about one of two
        named = [next(one for one in kind if one in plan) in before for plan, before in plans]
        assert 0.4 < sum(named) / len(named) < 0.6
    main(["story", "generated", "--unfiltered", "--same_instruction", "--out", str(tmp_path / "out")])
    assert {name: len(read(tmp_path / "out" / f"{name}.jsonl")) for name in generated.COUNTS} == generated.COUNTS
    assert meta(tmp_path / "out" / "test.jsonl")["licence"] == "Apache-2.0"
    rows = read(tmp_path / "out" / "train.jsonl")
    assert [row["plan"] for row in rows] == [[{"role": "assistant", "content": plan}] for plan, _ in plans]


@pytest.mark.parametrize("plan", ["", 7, ["In summary: no."]])
def test_a_plan_that_comes_along_is_text(tmp_path: Path, plan: Any) -> None:
    for number, split in enumerate(SPLITS):
        write(tmp_path / f"{split}.jsonl", [joke(number), joke(number + 10) | {"plan": plan}])
    main(["story", str(tmp_path), "--out", str(tmp_path / "out")])
    assert [("plan" in row) for row in read(tmp_path / "out" / "train.jsonl")] == [False]
    assert meta(tmp_path / "out" / "train.jsonl")["counts"]["dropped"] == {"a plan that is not text": 1}
