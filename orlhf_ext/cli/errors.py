"""One sentence, without a traceback, for mistakes a user can fix and for what the operating system refuses."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

#: error of the operating system -> what it means for the file it is about, and the way out
_REFUSALS = {
    errno.EACCES: "may not be read or written by this user; change its permissions, or give another path",
    errno.EPERM: "may not be changed, not even by its owner; give another path",
    errno.EROFS: "is on a file system that can only be read; give another path",
    errno.EISDIR: "is a folder, where a file is expected; name a file",
    errno.ENOTDIR: "has a file among its folders; correct the path",
    errno.ENOENT: "does not exist; correct the path",
    errno.EEXIST: "exists already, as something else; remove it, or give another path",
    errno.ENOTEMPTY: "is a folder that is not empty; remove it, or give another path",
    errno.ENAMETOOLONG: "has a name that is too long for the file system; shorten it",
    errno.ELOOP: "is a link that leads back to itself; remove it",
    errno.EFBIG: "would be larger than a file may be here; raise the limit (ulimit -f), or use another file system",
    errno.EMFILE: "is one file too many for this process; raise the limit (ulimit -n)",
    errno.EIO: "cannot be read or written: the disk or the network drive fails; use another one",
    errno.ESTALE: "is gone from its network drive; mount the drive again",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORN = (
    "PyTorch could not write a file: the disk is full, or the file larger than it may be (ulimit -f); free some space, "
    "and go on from the last whole checkpoint with --ckpt.load_enable"
)


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one sentence that names the file, line, record or flag, and the way out.
    """


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one sentence and leave with that exit code."""
    print(f"orlhf-ext: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate the ``main`` of a command, so that it ends in one sentence.

    Exit code 2 follows a `UserError` and an error of the operating system, 130 follows Ctrl-C. What is kept then is
    said by the notes of the ``KeyboardInterrupt``, which `orlhf_ext.files.journal` and the launcher add. Set
    ``ORLHF_EXT_TRACEBACK=1`` to see where an error was raised.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            check_text(args[0] if args and args[0] is not None else sys.argv[1:])
            main(*args, **kwargs)
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except KeyboardInterrupt as stop:
            kept = "; ".join(getattr(stop, "__notes__", ()))
            fail(f"interrupted; {kept or 'finished files are kept, unfinished ones are not'}", 130)
        except Exception as error:
            system = as_os_error(error)
            if os.environ.get("ORLHF_EXT_TRACEBACK") == "1" or not (system or isinstance(error, UserError)):
                raise
            fail(f"error: {os_sentence(system) if system else error}")

    return wrapped


def check_text(words: Iterable[str]) -> None:
    """Check that all words of a command line are text, which sidecars, tables and stamps can repeat.
    Raises UserError if one has bytes that are not UTF-8."""
    for word in words:
        if isinstance(word, str) and not word.isascii():
            try:
                word.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{word!a} on the command line is not UTF-8 text; rename the file, or give a link to it"
                ) from None


def as_os_error(error: BaseException) -> OSError | None:
    """The error of the operating system behind an exception, if there is one.

    Libraries written in Rust (safetensors, tokenizers) have exceptions of their own, which end in ``(os error 28)``;
    PyTorch, which writes DeepSpeed's checkpoints, does not name the cause.
    """
    if isinstance(error, OSError):
        return error
    if not isinstance(error, UserError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, RuntimeError) and re.search(r"unexpected pos \d+ vs|PytorchStreamWriter", str(error)):
        return error.__context__ if isinstance(error.__context__, OSError) else OSError(_TORN)
    return None


def os_sentence(error: OSError) -> str:
    """One sentence with the file, the cause, and the way out."""
    name = error.filename2 or error.filename
    file = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    if error.errno in _FULL:
        where = f" while writing {file}" if file else ""
        return f"the disk is full{where}; free some space and run the same command again: finished work is kept"
    if error.errno in _REFUSALS:
        return f"{file or 'a file'} {_REFUSALS[error.errno]} ({error.strerror})"
    reason = error.strerror or " ".join(str(error).split())[:300] or type(error).__name__
    return f"{file}: {reason}" if file else reason


def brief(error: BaseException) -> str:
    """The beginning of an exception's text on one line, or its class where it has none."""
    return " ".join(str(error).split())[:200].rstrip(" .") or type(error).__name__


def suggest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or the list of all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known)) or 'none'}"
