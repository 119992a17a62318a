"""Plain-text books: chapters by their headings, and pieces of text of a given length."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.patterns import Pattern

_SMALL = (
    "one first", "two second", "three third", "four fourth", "five fifth", "six sixth", "seven seventh",
    "eight eighth", "nine ninth", "ten tenth", "eleven eleventh", "twelve twelfth", "thirteen thirteenth",
    "fourteen fourteenth", "fifteen fifteenth", "sixteen sixteenth", "seventeen seventeenth",
    "eighteen eighteenth", "nineteen nineteenth",
)  # fmt: skip
_TENS = (
    "twenty twentieth", "thirty thirtieth", "forty fortieth", "fifty fiftieth", "sixty sixtieth",
    "seventy seventieth", "eighty eightieth", "ninety ninetieth",
)  # fmt: skip
VALUES = {word: value for value, words in enumerate(_SMALL, 1) for word in words.split()}
VALUES |= {word: 10 * value for value, words in enumerate(_TENS, 2) for word in words.split()}

_WORD = "|".join(sorted(VALUES, key=len, reverse=True))
_ROMAN = r"(?=[ivxlc])c{0,3}(?:xc|xl|l?x{0,4})(?:ix|iv|v?i{0,4})"
_NUMBER = rf"(?:\d+|{_ROMAN}|(?:the\s+)?(?:(?:{_WORD})(?:[-\s](?:{_WORD}))?|last))"


def _heading(words: str) -> re.Pattern[str]:
    """A line such as ``CHAPTER I``, ``Chapter 1: Title`` or ``## Chapter the Second``."""
    return re.compile(rf"[\s#*_=\[-]*(?:{words})\s+(?P<number>{_NUMBER})(?P<rest>(?:[^\w\n].*|_.*)?)", re.I)


CHAPTER = _heading(r"chapter|chap\.")
VOLUME = _heading(r"volume|vol\.|book|part")
END_OF_VOLUME = re.compile(r"\W*end of (?:the )?(?:\w+ )?(?:volume|vol\.|book|part)\b.{0,20}", re.I)
THE_END = re.compile(r"\W*(?:the end|finis|end)\W*", re.I)

#: Project Gutenberg's notices. The text before the first and after the last is not the book.
GUTENBERG_START = re.compile(r"^\*\*\* ?START OF .*$|^\*END\*THE SMALL PRINT!.*$", re.M)
GUTENBERG_END = re.compile(r"^(?:\*\*\* ?END OF .*|End of (?:the |this )?Project Gutenberg.*)$", re.M)
ILLUSTRATION = re.compile(r"\[Illustration(?:[^\[\]]|\[[^\[\]]*\])*\]")

MOST_TITLE_WORDS = 14
#: how long the words under a heading may be in a table of contents
MOST_CONTENTS_WORDS = 15

SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?][\"'\u201d\u2019)\]_*]*(?=\s|\Z)"  # not after an initial
)


class Chapter(NamedTuple):
    """One chapter. ``text`` is what is below the heading, each paragraph on one line."""

    heading: str
    text: str


class _Head(NamedTuple):
    """A line that looks like a heading: where it is, what it counts, whether it is set apart as headings are."""

    line: int
    key: int | str
    heading: str
    bare: bool
    apart: bool


def read_book(path: Path) -> str:
    """The text of a UTF-8 file, without Project Gutenberg's notices and marks of illustrations.

    Raises:
        UserError: the file is not UTF-8 text, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); re-encode it, for one with iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    starts = list(GUTENBERG_START.finditer(text))
    if starts:
        text = text[starts[-1].end() :]
    if end := GUTENBERG_END.search(text):
        text = text[: end.start()]
    return ILLUSTRATION.sub("", text)


def find_chapters(text: str, heading: re.Pattern[str] | Pattern | None = None) -> list[Chapter]:
    """The chapters of a book, in order. The text before the first heading (title, contents, preface) is left out.

    Numbers may start again in every volume; a table of contents is known by that too: its headings have next to
    nothing below them, and the book's own begin with the same number after it.

    Args:
        text: the whole book.
        heading: what a whole heading line matches, instead of the usual ``CHAPTER I`` or ``Chapter 1. Title``.
    """
    lines = text.split("\n")
    heads = list(_headings(lines, heading))
    heads = [head for head in heads[_contents(heads, lines) :] if head.apart]
    places = [*(head.line for head in heads), len(lines)]
    return [_chapter(head, lines[head.line + 1 : end]) for head, end in zip(heads, places[1:], strict=True)]


def _headings(lines: Sequence[str], custom: re.Pattern[str] | Pattern | None) -> Iterator[_Head]:
    for place, line in enumerate(lines):
        line = line.strip()
        if custom:
            if line and custom.fullmatch(line):
                yield _Head(place, line.casefold(), line, False, True)
            continue
        match = CHAPTER.fullmatch(line)
        title = _title(match) if match else None
        if not match or title is None:
            continue
        before = lines[place - 1].strip() if place else ""
        blank_above = not before or bool(VOLUME.fullmatch(before))
        blank_below = place + 1 == len(lines) or not lines[place + 1].strip()
        if not title:  # nothing but the number: no blank line is needed where a sentence has just ended
            apart = blank_above or (line[0].isupper() and _ends_sentence(before))
        else:  # words behind the number, with no point or colon between, may be the beginning of a sentence
            marked = match["rest"].lstrip()[0] in ".:)]-\u2013\u2014"
            apart = blank_above and (blank_below or marked)
        yield _Head(place, _value(match["number"]), line.strip("#*_=[] \t"), not title, apart)


def _title(match: re.Match[str]) -> str | None:
    """The title behind a number, ``""`` if there is none, or ``None`` if what follows is prose."""
    rest = match["rest"].rstrip("#*_=] \t")
    title = rest.lstrip(" \t.:)]-\u2013\u2014_*")
    if len(title.split()) > MOST_TITLE_WORDS or (title and title[0].islower()) or title.endswith((",", ";")):
        return None
    return title


def _value(number: str) -> int | str:
    """A number in digits, Roman numerals or words."""
    number = number.lower()
    if number.isdigit():
        return int(number)
    words = re.sub(r"^the\s+", "", number).replace("-", " ").split()
    if all(word in VALUES for word in words):
        return sum(VALUES[word] for word in words)
    if words == ["last"]:
        return "last"
    digits = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}[letter] for letter in number]
    return sum(-one if one < two else one for one, two in zip(digits, [*digits[1:], 0], strict=True))


def _contents(heads: Sequence[_Head], lines: Sequence[str]) -> int:
    """How many of the headings, from the first, are a table of contents."""
    run = 0
    for head, following in itertools.pairwise(heads):
        below = " ".join(lines[head.line + 1 : following.line]).strip()
        if len(below.split()) > MOST_CONTENTS_WORDS or _ends_sentence(below):
            break
        run += 1
    if run < 2:
        return 0
    # the last entry may have a preface below it
    return next((size for size in (run, run + 1) if size < len(heads) and heads[size].key == heads[0].key), 0)


def _chapter(head: _Head, lines: Sequence[str]) -> Chapter:
    heading, blocks = head.heading, _blocks(lines)
    if head.bare and blocks and _is_title(blocks[0][0]) and (len(blocks[0]) == 1 or lines[0].strip()):
        # a title below the number: one line, or all lines of a short block
        whole = " ".join(line.strip() for line in blocks[0])
        taken = len(blocks[0]) if _is_title(whole) else 1
        rest = [block for block in (blocks[0][taken:], *blocks[1:]) if block]
        if rest:
            title = whole if taken > 1 else blocks[0][0].strip()
            heading, blocks = f"{heading.rstrip('.:')}. {title}", rest
    return Chapter(heading, "\n\n".join(_without_end([unwrap(block) for block in blocks])))


def _is_title(line: str) -> bool:
    """Whether a line reads as a title: short, no sentence (but it may ask), its longer words with capitals."""
    line = line.strip().rstrip("?")
    words = line.split()
    longer = [word.strip("\"'\u201c\u2018(_*") for word in words if len(word) > 4]
    return (
        0 < len(words) <= MOST_TITLE_WORDS
        and line[0].isupper()
        and not line.endswith((",", ";", ":", "-", '"', "\u201d"))
        and (line.isupper() or not SENTENCE_END.search(line))
        and all(word[:1].isupper() or not word[:1].isalpha() for word in longer)
    )


def _without_end(paragraphs: list[str]) -> list[str]:
    """The paragraphs without ``THE END`` and what follows it, and without the next volume's heading."""
    for place, paragraph in enumerate(paragraphs):
        if THE_END.fullmatch(paragraph):
            paragraphs = paragraphs[:place]
            break
    while paragraphs:
        if _is_volume(paragraphs[-1]):
            paragraphs = paragraphs[:-1]
        elif len(paragraphs) > 1 and _is_volume(paragraphs[-2]) and _is_title(paragraphs[-1]):
            paragraphs = paragraphs[:-2]
        else:
            break
    return paragraphs


def _is_volume(paragraph: str) -> bool:
    first, *others = paragraph.split("\n")
    match = VOLUME.fullmatch(first)
    if match:
        title = _title(match)
        return title is not None and all(map(_is_title, filter(None, [title, *others])))
    return bool(END_OF_VOLUME.fullmatch(paragraph))


def _blocks(lines: Sequence[str]) -> list[list[str]]:
    """Runs of lines between blank lines."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return blocks if blocks[-1] else blocks[:-1]


def unwrap(lines: Sequence[str]) -> str:
    """A paragraph on one line, unless its lines are short or indented, as those of verse are."""
    verse = max(map(len, lines)) < 50 or any(line[0].isspace() for line in lines[1:])
    return "\n".join(line.strip() for line in lines) if verse else " ".join(line.strip() for line in lines)


def _ends_sentence(text: str) -> bool:
    end = text.rstrip()[-12:]
    return any(match.end() == len(end) for match in SENTENCE_END.finditer(end))


def first_words(text: str, most: int) -> str:
    """The beginning of a text: at most ``most`` words, up to the end of a sentence if one ends in their second half."""
    words = list(re.finditer(r"\S+", text))
    if len(words) <= most:
        return text.strip()
    piece = text[words[0].start() : words[most - 1].end()]
    ends = [match.end() for match in SENTENCE_END.finditer(piece) if match.end() >= len(piece) / 2]
    return piece[: ends[-1]] if ends else piece


def last_words(text: str, most: int) -> str:
    """The end of a text: at most ``most`` words, from the start of a sentence if one starts in their first half."""
    words = list(re.finditer(r"\S+", text))
    if len(words) <= most:
        return text.strip()
    start = words[-most].start()
    before, piece = text[:start], text[start:].rstrip()
    if before.endswith("\n\n") or _ends_sentence(before):
        return piece
    end = SENTENCE_END.search(piece)
    return piece[end.end() :].lstrip() if end and end.end() <= len(piece) / 2 else piece


def text_before(chapters: Sequence[Chapter], place: int, most: int) -> str:
    """The last ``most`` words at most of the text before chapter ``place`` (from 0), headings included."""
    pieces: list[str] = []
    found = 0
    while place and found < most:
        place -= 1
        pieces[:0] = [chapters[place].heading, chapters[place].text]
        found += len(chapters[place].text.split())
    return last_words("\n\n".join(pieces), most)
