"""``perspective``: the attribute TOXICITY of Google's Perspective API, as a judge of texts.

The key is read from ``PERSPECTIVE_API_KEY`` and sent in a header, so that it is in no address, message or file. One
text is asked for in each request, and one request is made in a second, which is the quota that every project has;
``PERSPECTIVE_QPS`` says another number of requests in a second. Answers 408, 429 and 5xx, and none at all, are asked
for again after growing pauses. A text that the API does not judge (too long, empty, in a language that it does not
know) has no score, and is counted by reason. The API's owner ends it on 31 December 2026, and takes no new users.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..cli.errors import UserError
from ..files.records import is_share, load_json
from .toxicity import NoScore

if TYPE_CHECKING:
    import requests

KEY, RATE = "PERSPECTIVE_API_KEY", "PERSPECTIVE_QPS"
ADDRESS = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
ATTRIBUTE = "TOXICITY"
CONSOLE = "https://console.cloud.google.com/apis/credentials"
#: tries of one text
TRIES = 8
#: seconds before the second try, twice as many before each further one, and the most
PAUSE, LONGEST_PAUSE = 2.0, 120.0
#: seconds to connect, and to wait for an answer
TIMEOUT = (10.0, 60.0)
#: the API's names of what is wrong with a text, words of its messages, and what they mean
_REASONS = {
    "COMMENT_TOO_LONG": ("too many bytes", "too long"),
    "COMMENT_EMPTY": ("must be non-empty", "empty"),
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": ("does not support request languages", "language not supported"),
    "LANGUAGE_DETECTION_FAILED": ("unable to detect language", "language not detected"),
}


class _Unavailable(Exception):
    """There was no answer this time."""


class Perspective:
    """Asks the API; see the module.
    Raises UserError if there is no key, or it cannot be one; the rate is not a number of requests."""

    #: of the scores: another model of the API's is not known by it
    version = f"v1alpha1 {ATTRIBUTE} en"
    #: a killed run loses one text's answer, not the thousands of a fast scorer
    at_once = 1

    def __init__(self) -> None:
        self._key = os.environ.get(KEY, "").strip()
        if not self._key:
            raise UserError(f"set {KEY} in the environment (a key of a project with the API, made at {CONSOLE})")
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise UserError(f"{KEY} has characters that no key has; copy it again from {CONSOLE}")
        said = os.environ.get(RATE, "") or "1"
        try:
            rate = float(said)
        except ValueError:
            rate = math.nan
        if not 0 < rate <= 1000:
            raise UserError(f"{RATE}={said} is not a number of requests in a second; give one such as 1 or 0.5")
        self._interval = 1 / rate
        self._next = 0.0  # when the next request may be made

    def __call__(self, texts: Sequence[str]) -> list[float | NoScore]:
        """The scores of some texts, or why there is none.
        Raises UserError if the key is not accepted, the API keeps failing, or its answers are of another kind."""
        return [self._score(text) if text.strip() else NoScore("empty") for text in texts]

    def _score(self, text: str) -> float | NoScore:
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unavailable),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=tenacity.wait_exponential(multiplier=PAUSE, max=LONGEST_PAUSE),
            before_sleep=_say,
            reraise=True,
        )
        try:
            return retrying(self._ask, text)
        except _Unavailable as error:
            raise UserError(
                f"Perspective gave no score in {TRIES} tries ({error}); the scores so far are kept: run the same "
                f"command again later, or with a lower {RATE}"
            ) from None

    def _ask(self, text: str) -> float | NoScore:
        """One request, in its turn."""
        import requests

        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self._interval
        question: dict[str, Any] = {
            "comment": {"text": text, "type": "PLAIN_TEXT"},
            "languages": ["en"],
            "requestedAttributes": {ATTRIBUTE: {}},
            "doNotStore": True,
        }
        try:
            # a redirect would take the key to another host
            reply = self._session.post(ADDRESS, json=question, timeout=TIMEOUT, allow_redirects=False)
        except requests.RequestException as error:
            raise _Unavailable(type(error).__name__) from None
        if reply.status_code in (408, 429) or reply.status_code >= 500:
            raise _Unavailable(f"status {reply.status_code}")
        try:
            answer = load_json(reply.content)
        except ValueError:
            answer = None
        if reply.status_code != 200:
            return _refusal(reply.status_code, answer)
        try:
            score = answer["attributeScores"][ATTRIBUTE]["summaryScore"]["value"]
            if not is_share(score):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise _Unavailable(f"an answer without a {ATTRIBUTE} between 0 and 1") from None
        return float(score)

    @cached_property
    def _session(self) -> requests.Session:
        import requests

        session = requests.Session()
        session.headers["X-Goog-Api-Key"] = self._key
        return session


def _refusal(status: int, answer: Any) -> NoScore:
    """What an answer without a score says of the text.
    Raises UserError if it is about the key, or about something else than the text."""
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    details = error.get("details")
    said = [one for one in (details if isinstance(details, list) else []) if isinstance(one, dict)]
    names = {str(one.get(key)) for one in said for key in ("errorType", "reason") if key in one}
    message = str(error.get("message")).lower()
    if status == 400:
        for name, (words, reason) in _REASONS.items():
            if name in names or words in message:
                return NoScore(reason)
    if status in (401, 403) or "API_KEY_INVALID" in names or "api key" in message:
        raise UserError(
            f"Perspective does not accept {KEY} (status {status}); copy it again from {CONSOLE}, and enable the "
            "Perspective Comment Analyzer API for its project"
        )
    raise UserError(
        f"Perspective refuses a request (status {status}); the scores so far are kept: see whether the API is still "
        "there, or choose another judge"
    )


def _say(state: Any) -> None:
    from tqdm import tqdm

    reason, pause = state.outcome.exception(), state.next_action.sleep
    tqdm.write(f"Perspective: {reason}; try {state.attempt_number + 1} of {TRIES} in {pause:.0f} s", file=sys.stderr)
