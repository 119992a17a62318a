"""Comments and posts from Reddit through praw, a hundred in each request.

One client asks in one thread: praw is not made for several, and waits by itself as Reddit's rate limit asks. It is
given all of its settings here; no ``praw.ini`` is read. The credentials come from the environment alone, and no text of
praw's errors is shown, since it may quote what was sent.
"""

from __future__ import annotations

import configparser
import contextlib
import logging
import os
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from orlhf_ext import __version__
from orlhf_ext.cli.errors import UserError

from .progress import COMMENT, POST, TEXT, Answer, Failure

CREDENTIALS = ("REDDIT_CLIENT_ID", "REDDIT_CLIENT_SECRET")
APPS = "https://www.reddit.com/prefs/apps"
OR_DUMP = "or read a local dump with --dump"
ENDPOINTS = {"reddit_url": "https://www.reddit.com", "oauth_url": "https://oauth.reddit.com"}
#: names in a request, the most that Reddit takes
BATCH = 100
#: tries of a request, each of them up to three requests of praw's own
TRIES = 5
#: seconds before the second try; twice as many before each further one, and up to one at random
BASE_DELAY = 2.0
#: the longest wait in seconds that Reddit can ask for
LONGEST_WAIT = 3600.0
FIELDS = {COMMENT: ("body", "score", "created_utc", "link_id"), POST: ("title",)}


def credentials() -> tuple[str, str]:
    """The client's id and secret.

    Raises:
        UserError: one of them is missing, or can be none.
    """
    found = [os.environ.get(name, "").strip() for name in CREDENTIALS]
    if missing := [name for name, value in zip(CREDENTIALS, found, strict=True) if not value]:
        raise UserError(f"set {' and '.join(missing)} in the environment (of an app made at {APPS}), {OR_DUMP}")
    for name, value in zip(CREDENTIALS, found, strict=True):
        if not value.isascii() or not value.isprintable() or " " in value:
            raise UserError(f"{name} has characters that no credential has; copy it again from {APPS}, {OR_DUMP}")
    return found[0], found[1]


class Unreadable(Exception):
    """A reply that is not what was asked for."""


class Reddit:
    """Looks up comments and posts by id.

    Args:
        user_agent: how the program names itself to Reddit.
        max_halvings: how often a batch that keeps failing is halved while nothing at all comes back.

    Raises:
        UserError: no credentials, or no praw.
    """

    def __init__(self, user_agent: str | None, max_halvings: int) -> None:
        client_id, client_secret = credentials()
        self.max_halvings = max_halvings
        user_agent = user_agent or os.environ.get("REDDIT_USER_AGENT") or f"python:orlhf-ext.litbench:{__version__}"
        if len(user_agent) < 7 or not user_agent.isascii() or not user_agent.isprintable():
            raise UserError(
                "--user_agent (or REDDIT_USER_AGENT) is to be at least 7 plain characters, such as "
                "'linux:my-app:1.0 (by /u/name)'"
            )
        try:
            import praw  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(f"asking Reddit needs praw; pip install 'praw>=7.7,<9', {OR_DUMP}") from error
        for name in ("praw", "prawcore"):  # without a handler its warnings would go to the terminal
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._client: Any = _make_client(
            client_id=client_id, client_secret=client_secret, user_agent=user_agent, **ENDPOINTS
        )

    def look_up(self, kind: str, ids: Sequence[str]) -> Iterator[dict[str, Answer]]:
        """The answers for comments or posts, by id, a batch at a time.

        Raises:
            UserError: Reddit accepts the credentials, or the client, no more.
        """
        for start in range(0, len(ids), BATCH):
            yield self._batch(kind, ids[start : start + BATCH])

    def _batch(self, kind: str, ids: Sequence[str]) -> dict[str, Answer]:
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: _status(error) not in (401, 403, 404)),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=_wait,
            before_sleep=_print_wait,
            reraise=True,
        )
        try:
            return retrying(self._ask, kind, ids)
        except Exception as error:
            answer = _settle(error)
            # a request that does not get through says nothing of the ids in it
            if len(ids) > 1 and _status(error) != 429 and not _is_transport(error):
                return self._by_halves(kind, ids)
            return dict.fromkeys(ids, answer)

    def _by_halves(self, kind: str, ids: Sequence[str]) -> dict[str, Answer]:
        """Ask for a batch in ever smaller parts, so that what fails in it takes no other id along."""
        found: dict[str, Answer] = {}
        answered, why = False, Failure("")
        parts = deque((half, 1) for half in _halves(ids))
        while parts:
            part, depth = parts.popleft()
            if depth > self.max_halvings and not answered:
                found.update(dict.fromkeys(part, why))
                continue
            try:
                found.update(self._ask(kind, part))
                answered = True
            except Exception as error:
                answer, why = _settle(error), Failure(_reason(error))
                if len(part) == 1:
                    found[part[0]] = answer
                else:
                    parts.extend((half, depth + 1) for half in _halves(part))
        return {name: found[name] for name in ids}

    def _ask(self, kind: str, ids: Sequence[str]) -> dict[str, Answer]:
        """One request, and praw's own repetitions of it."""
        found: dict[str, Answer] = dict.fromkeys(ids)
        for item in self._client.info(fullnames=[f"{kind}_{name}" for name in ids]):
            fields = vars(item)  # of an attribute that is missing praw would make another request
            if not isinstance(fields.get(TEXT[kind]), str):
                raise Unreadable
            if fields["id"] in found:
                author = fields.get("author")
                kept = {name: fields.get(name) for name in FIELDS[kind]}
                found[fields["id"]] = {**kept, "author": author.name if author else None}
        return found


def _make_client(**settings: Any) -> Any:
    """A client of praw's with these settings and no others, which refuses a reply that is not a listing."""
    import praw

    defaults = configparser.ConfigParser(interpolation=None)
    defaults.read_string(resources.files("praw").joinpath("praw.ini").read_text(encoding="utf-8"))
    praw.config.Config.CONFIG = defaults  # or a praw.ini here or at home could name another host

    class Client(praw.Reddit):
        def get(self, *args: Any, **kwargs: Any) -> Any:
            reply = super().get(*args, **kwargs)
            if not isinstance(reply, praw.models.Listing):  # an empty one would look as if there were no comments
                raise Unreadable
            return reply

    others = dict.fromkeys(("username", "password", "refresh_token", "redirect_uri"))
    return Client("DEFAULT", check_for_updates=False, **others, **settings)


def _halves(ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    return ids[: len(ids) // 2], ids[len(ids) // 2 :]


# --- what an error means; its own text is never used ------------------------------------------------------------------


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error is about."""
    from prawcore.exceptions import OAuthException

    if isinstance(error, OAuthException):
        return 401
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], int):
        return error.args[0]  # prawcore looks up what a 401 without an explanation means, in vain
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transport(error: BaseException) -> bool:
    from prawcore.exceptions import RequestException

    return isinstance(error, RequestException)


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status and status >= 400:
        return f"status {status}"
    return "no reply" if _is_transport(error) else "an unreadable reply"


def _settle(error: BaseException) -> Failure | None:
    """The answer for ids whose request failed for good: there is no such thing, or an error.

    Raises:
        UserError: Reddit does not let the client in, so that no other request will succeed.
    """
    status = _status(error)
    if status == 401:
        raise UserError(
            f"Reddit does not accept {' and '.join(CREDENTIALS)} (401); copy them again from {APPS}, {OR_DUMP}"
        ) from None
    if status == 403:
        raise UserError(
            "Reddit refuses the request (403): this app, address or user agent is not let in; ask Reddit for access, "
            f"give another --user_agent, {OR_DUMP}"
        ) from None
    return None if status == 404 else Failure(_reason(error))


def _wait(state: Any) -> float:
    """Seconds to wait after a failed try: as many as Reddit asks for, or more each time."""
    error = state.outcome.exception()
    delay = BASE_DELAY * 2 ** (state.attempt_number - 1)
    if _status(error) == 429 and hasattr(error, "response"):
        with contextlib.suppress(ValueError):
            delay = min(max(float(error.response.headers.get("retry-after", "")), 0.0), LONGEST_WAIT)
    return delay + random.random()


def _print_wait(state: Any) -> None:
    from tqdm import tqdm

    reason = _reason(state.outcome.exception())
    tqdm.write(
        f"Reddit: {reason}; try {state.attempt_number + 1} of {TRIES} in {state.next_action.sleep:.0f} s",
        file=sys.stderr,
    )
