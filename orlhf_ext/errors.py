"""Mistakes that a user can mend are told in one sentence, without a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake its user can mend.

    The message is one sentence that names the file, line, record or flag, and the way out.
    """


def fail(message: str) -> NoReturn:
    """Print one sentence and leave with exit code 2."""
    print(f"orlhf-ext: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate the ``main`` of a command: a `UserError` or a full disk ends it with one sentence and exit code 2.

    Set ``ORLHF_EXT_TRACEBACK=1`` to see where a user error was raised.
    """

    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            if os.environ.get("ORLHF_EXT_TRACEBACK") == "1":
                raise
            fail(str(error))
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" while writing {error.filename}" if error.filename else ""
            fail(f"the disk is full{where}; free some space and run the same command again: finished work is kept")

    wrapped.__doc__ = main.__doc__
    wrapped.__name__ = main.__name__
    wrapped.__module__ = main.__module__
    return wrapped


def suggest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or the list of all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known)) or 'none'}"
