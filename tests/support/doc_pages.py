"""The documentation as the tests read it: pages, and what stands in their fences.

An HTML comment above a fence says how it is tested::

    <!-- test: run -->            bash or Python, in a folder that all fences of the page share, in their order
    <!-- test: run launcher -->   the same, among the tests that start launchers
    <!-- test: output -->         each line of the fence is in what the last command printed
    <!-- test: run fails -->      it ends with an error
    <!-- test: file NAME -->      written into that folder
    <!-- test: dry-run -->        recipes: every command is printed, none is run
    <!-- test: parse -->          commands: their flags are in the help of what they call; ... stands for more flags
    <!-- test: skip REASON -->    needs a GPU, a hub or credentials

``<!-- test: hidden`` and ``<!-- test: hidden launcher`` hold commands between themselves and ``-->`` that a page needs
and does not show.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

#: languages that are never shown without a test
TESTED = ("bash", "python", "toml", "yaml", "json", "jsonl")
_PART = re.compile(
    r"^<!-- test: hidden(?P<level> launcher)?\n(?P<hidden>.*?)^-->"
    r"|(?:^<!-- test: (?P<directive>[^\n]*?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Fence:
    """What stands in a fence or in a hidden comment, and how it is tested."""

    page: Path
    line: int
    language: str
    directive: list[str]
    text: str

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every Markdown file of the project, but for the generated one."""
    folders = ("docs", "recipes", "data_builders", "patches", "tests", "examples")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    return sorted(path for path in found if path.name != "flags.md")


def fences(page: Path) -> Iterator[Fence]:
    """The fences of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["hidden"] is not None:
            yield Fence(page, line, "bash", ["run", *(part["level"] or "").split()], part["hidden"])
        else:
            yield Fence(page, line, part["language"], (part["directive"] or "").split(), part["text"])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours in a piece of shell script, without what stands before its program."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if "orlhf-ext" in words:
            words = ["python", "-m", "orlhf_ext", *words[words.index("orlhf-ext") + 1 :]]
        elif any(word.startswith("orlhf_ext.") for word in words):
            start = next(i for i, word in enumerate(words) if word.startswith("orlhf_ext."))
            words = ["python", "-m", *words[start:]]
        else:
            continue
        yield [word for word in words if word != "..."]


def slug(heading: str) -> str:
    """The anchor that GitHub and MkDocs make of a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip())


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Target and anchor of each link and picture of a page that is not on the web."""
    text = _PART.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, anchor = (target[0] or target[1]).partition("#")
        if "://" not in path:
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
