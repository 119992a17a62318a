"""The verdict in a generative reward model's answer: a line such as ``Preferred: A``."""

from __future__ import annotations

import re

from .prompts import Label

# There may be any number of opening and closing marks, as in Markdown. What follows the letter tells a
# verdict from an article ("a story"), from the prompt's own words ("[A or B]") and from a longer word ("Apple").
_VERDICT = re.compile(
    r"""[\s*]* preferred [\s*]* : [\s*\[({<"'`\u201c\u2018]* ([ab]) [\s*\])}>"'`\u201d\u2019]* (?:$|[.,;:!?])""",
    re.IGNORECASE | re.VERBOSE,
)


def parse_verdict(text: str) -> Label | None:
    """The letter of the last verdict in an answer, or None if there is none.

    A verdict begins a line (``*`` may come before it): ``preferred``, a colon, and A or B in either case, perhaps in
    quotes, brackets or asterisks. Behind it the line ends, or one of ``. , ; : ! ?`` follows. So ``[A or B]``, echoed
    from the prompt, ``neither`` and ``a better story`` are none.
    """
    for line in reversed(text.splitlines()):
        if match := _VERDICT.match(line):
            return "A" if match[1] in "aA" else "B"
    return None
