"""What a judge is asked of two texts, and the texts as it is shown them. Pure functions of text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..cli.errors import UserError
from ..litbench.prompts import DIRECT, MARKER, PREFERRED, REASONED, TEMPLATES, judging_input
from ..litbench.verdict import parse_verdict

_ANY = (
    "Below are a prompt and two responses to it. Decide which response is the better one. Weigh how well it does what "
    "was asked, whether it is right, and how clearly it is written; neither its length nor its place counts.\n\n"
    "Prompt:\n{prompt}\n\nResponse A:\n{a}\n\nResponse B:\n{b}"
)
#: ready-made: any prompt and its responses, and LitBench's wordings about two stories
READY_MADE = ("response", *TEMPLATES)

_PLACES = re.compile(r"\{(a|b|prompt)\}")
_SPECIAL = re.compile(r"<\|[^<>|\n]{1,40}\|>")  # as most chat templates write their tokens
_VERDICT_LINE = re.compile(rf"^[\s*#>]*{PREFERRED.strip(': ')}[\s*]*:", re.IGNORECASE)
_LONE = re.compile(r"\W*([AB])\W*")


class Template:
    """A text with the places ``{a}`` and ``{b}`` and, perhaps, ``{prompt}``.

    Args:
        text: it.
        where: what it is called in messages.

    Raises:
        UserError: a place is missing, or there twice.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text.strip("\n")
        found = _PLACES.findall(self.text)
        for place in ("a", "b"):
            if found.count(place) != 1:
                how = "no place" if place not in found else f"{found.count(place)} places"
                raise UserError(
                    f"{where} has {how} {{{place}}} for a response; write {{a}} and {{b}} once each, where the two "
                    "responses go (and {prompt}, if the prompt is to be shown)"
                )
        self.shows_prompt = "prompt" in found
        lines = [line.strip() for line in self.text.splitlines()]
        heads = {lines[i - 1] for i, line in enumerate(lines) if i and _PLACES.fullmatch(line)}
        #: lines that a response must not have, since they would pass for the template's own
        self.marks = {_plain(head) for head in (*heads, MARKER)} - {""}

    def fill(self, a: str, b: str, prompt: str) -> str:
        """The question about two texts, which are put in as they are."""
        texts = {"a": a, "b": b, "prompt": prompt}
        return _PLACES.sub(lambda match: texts[match[1]], self.text)

    def clean(self, text: str, tokens: Iterable[str] = ()) -> tuple[str, bool]:
        """A response as it is shown, and whether it tried to pass for something else.

        What is taken out: special tokens (``tokens``, and all like ``<|this|>``), lines that are the template's own,
        and lines that begin as a verdict does.
        """
        shown = text
        for token in tokens:
            shown = shown.replace(token, "")
        shown = _SPECIAL.sub("", shown)
        kept = [line for line in shown.splitlines() if _plain(line) not in self.marks and not _VERDICT_LINE.match(line)]
        return "\n".join(kept).strip(), shown != text or len(kept) < len(shown.splitlines())


def _plain(line: str) -> str:
    """A line without Markdown's marks and case, to be compared."""
    return line.strip(" \t*#>_").lower()


def read_template(name: str, reasons: bool, flag: str = "--judge.template") -> Template:
    """A ready-made template, or a file's.

    Args:
        name: one of `READY_MADE`, or a path.
        reasons: whether the judge is asked for its reasoning, where the template is ready-made.
        flag: how the user gave it.

    Raises:
        UserError: the file is none, cannot be read, or has not both places.
    """
    if name in TEMPLATES:
        return Template(judging_input("{a}", "{b}", None, reasons, name), f"{flag} {name}")
    if name == "response":
        return Template(f"{_ANY}\n\n{REASONED if reasons else DIRECT}", f"{flag} {name}")
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{flag} {name} is neither a file nor one of {', '.join(READY_MADE)}; correct it")
    try:
        return Template(path.read_text(encoding="utf-8"), f"{flag} {name}")
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {name} is not UTF-8 text; save it as that") from error


def read_verdict(answer: str) -> float | None:
    """1 for A and -1 for B, of the last line that is a verdict (``Preferred: A``), or of an answer that is a letter and
    nothing else; None where there is neither."""
    letter = parse_verdict(answer)
    if letter is None and (match := _LONE.fullmatch(answer)):
        letter = "A" if match[1] == "A" else "B"
    return None if letter is None else 1.0 if letter == "A" else -1.0


def behind(text: str, mark: str) -> str:
    """What follows the last ``mark``, such as ``</think>``: nothing, where there is none. All, without a mark."""
    if not mark:
        return text
    _, found, rest = text.rpartition(mark)
    return rest if found else ""
