"""What a judge is asked before a run: pairs of which anyone can tell the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..cli.errors import UserError
from ..extensions.inject import say
from . import tournament
from .local import Answer, Two
from .tournament import Game

_PROMPT = "Write two sentences about rain in a city."
_GOOD = (
    "Rain came down the avenue like a curtain being drawn, and the taxis put on their lamps. By noon each gutter was a "
    "small river, carrying yesterday's headlines to the sea.",
    "She counted the umbrellas from the fourth floor: black, black, black, one yellow. When the yellow one stopped "
    "below her window, she was already on the stairs.",
    "The rain had been falling since Tuesday, and the city had stopped complaining about it. Old men played chess "
    "under the bridge, moving their pieces between two drips.",
)
_BAD = ("rain rain rain rain rain rain rain rain rain rain rain rain", "asdf jkl; qwer 0000 zxcv ;;;; lkjh", "no")

#: better texts against worse ones
PAIRS = [
    Two("a pair that every judge is asked first", _PROMPT, good, bad) for good, bad in zip(_GOOD, _BAD, strict=True)
]
_NOTHING = 1e-6  # nats


def check_judge(compare: Callable[[Sequence[Two]], list[Answer]], letters: bool) -> None:
    """Ask a judge about `PAIRS`, and say what came out.

    Args:
        compare: the judge.
        letters: whether it writes letters.

    Raises:
        UserError: it has no verdict on any of them, or the same one whatever it is shown.
    """
    answers = compare(PAIRS)
    games = [Game(0, 1, answer.leans) for answer in answers]
    calls = 2 * len(games)
    if tournament.unreadable(games) == 1:
        written = next((text for answer in answers for text in answer.texts if text.strip()), "")
        told = f"{' '.join(written.split())[:80]!r}, say" if written else "nothing"
        raise UserError(
            f"the judge never answers: it has no verdict in {calls} calls about plain cases, and writes {told}; show "
            "it how to answer in --judge.template, or take another --judge.model"
        )
    share = tournament.share_a(games)
    if letters and share in (0.0, 1.0):
        raise UserError(
            f"the judge always says {'A' if share else 'B'}, in {calls} calls about plain cases in both orders; take "
            "another --judge.model, or give --judge.verdict logprob, which cancels a leaning to a letter"
        )
    if not letters and all(abs(tournament.difference(game)) < _NOTHING for game in games):
        raise UserError(
            f"the judge does not read what it is shown: in {calls} calls about plain cases its leaning to A is always "
            "the same; take another --judge.model"
        )
    right = sum(tournament.points(game, letters) > 0.5 for game in games)
    lean = tournament.bias(games)
    leaning = "" if letters or lean is None else f", and leans to {'A' if lean > 0 else 'B'} by {abs(lean):.2f} nats"
    say(f"judge: it prefers the better text in {right} of {len(games)} plain cases{leaning}")
