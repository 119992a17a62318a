"""What a generative judge of two stories reads, and what it answers. Pure functions of text.

The order of the parts is that of LitBench (Fein et al., 2025, arXiv 2507.00769): an instruction, ``Story A:``,
``Story B:``, and a block that says how to answer; the wording is this project's own.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Label = Literal["A", "B"]
LABELS: tuple[Label, Label] = ("A", "B")

#: the line before the answer, where no chat template marks it
MARKER = "### Assistant:"
PREFERRED = "Preferred: "
REASONING = "Reasoning: "


class Wording(NamedTuple):
    """What comes before the two stories and, if anything, after them."""

    before: str
    after: str = ""


TEMPLATES = {
    "short": Wording(
        "Below are two stories that answer the same writing prompt. Decide which one is the better piece of creative "
        "writing. Weigh five aspects: originality, imagery, emotional impact, coherence, and technical skill."
    ),
    "popularity": Wording(
        "Below are two stories that were posted under the same writing prompt in a community such as r/WritingPrompts. "
        "Predict which one its readers gave more upvotes. Readers there tend to reward:\n"
        "- ideas that they have not met before\n"
        "- a voice and a pace that keep them reading\n"
        "- feelings that stay with them\n"
        "- a twist, or an ending that pays off\n"
        "- clean, skilful prose",
        "What counts is the choice of those readers, even where your own would differ.",
    ),
}
DIRECT = f"Answer with this one line and nothing else:\n{PREFERRED}[A or B]"
REASONED = f"Answer in this form, and stop after the second line:\n{REASONING}[what decides it]\n{PREFERRED}[A or B]"


def judging_input(
    story_a: str, story_b: str, prompt: str | None = None, reasons: bool = False, template: str = "short"
) -> str:
    """The user's turn: instruction, stories, format block; it ends without a line break.

    Args:
        story_a: the first story.
        story_b: the second one.
        prompt: the writing prompt, to be shown before the stories; LitBench does not show it.
        reasons: whether the answer has reasoning before the verdict.
        template: a key of `TEMPLATES`.
    """
    wording = TEMPLATES[template]
    parts = [wording.before]
    if prompt is not None:
        parts.append(f"Writing prompt:\n{prompt.strip()}")
    parts += [f"Story A:\n{story_a.strip()}", f"Story B:\n{story_b.strip()}"]
    if wording.after:
        parts.append(wording.after)
    parts.append(REASONED if reasons else DIRECT)
    return "\n\n".join(parts)


def marked(text: str) -> str:
    """A judging input with the marker line, without the line break between it and the answer."""
    return f"{text}\n\n{MARKER}"


def answer(label: Label, rationale: str | None = None) -> str:
    """``Preferred: A``, with a rationale in a paragraph ``Reasoning: ...`` before it."""
    verdict = f"{PREFERRED}{label}"
    if rationale is None:
        return verdict
    rationale = rationale.strip()
    if not rationale.lower().startswith(REASONING.strip().lower()):
        rationale = REASONING + rationale
    return f"{rationale}\n{verdict}"


def other(label: Label) -> Label:
    """B for A, and A for B."""
    return "B" if label == "A" else "A"


def fill(rationale: str, label: Label) -> str:
    """A rationale about ``{chosen}`` and ``{rejected}``, where the chosen story is at ``label``."""
    return rationale.replace("{chosen}", f"Story {label}").replace("{rejected}", f"Story {other(label)}")


#: how a rationale names a story, the letter in group 2
_NAME = re.compile(r"\b((?i:story|response|text|piece|entry|submission)\s+[\"'\u201c\u2018*_(\[]*)([AB])\b")
_LETTER = re.compile(r"\b[AB]\b")
#: "A" as the article that begins a sentence. What follows may be a verb (A shows ..., A is ...): no word in -s, and
#: none of these
_NO_NOUN = (
    "and|or|but|then|also|over|in|on|by|for|to|with|while|where|when|because|was|were|had|did|can|could|may|might|will"
    "|would|should|must|made|gave|felt|won|lost|kept|took|told|went"
)
_ARTICLE = re.compile(rf'(?:^|[.!?:;\n]|["\u201c(*-])\s*A (?!(?:{_NO_NOUN})\b)(?=[a-z-]+(?<!s)\b)')


def exchange(rationale: str) -> str | None:
    """A rationale with Story A and Story B exchanged, or None if it cannot be done safely.

    It can if every A and B that stands alone is part of a name such as "Story A", or is an A that is clearly the
    article at the beginning of a sentence.
    """
    rest = _ARTICLE.sub(" ", _NAME.sub(" ", rationale))
    if _LETTER.search(rest):
        return None
    return _NAME.sub(lambda match: match[1] + ("B" if match[2] == "A" else "A"), rationale)


def names_stories(rationale: str) -> bool:
    """Whether a rationale speaks of Story A or Story B."""
    return bool(_NAME.search(rationale))
