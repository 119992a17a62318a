"""Code that the user wrote: an extension, a replacement, a reward, a builder, a scorer.

Wherever it fails, also by leaving the process, the run ends with one sentence that names its file and line.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

_ROOT = Path(__file__).parents[2]
_INSTALLED = {"site-packages", "dist-packages"}


@contextlib.contextmanager
def user_code(what: str, refusals: bool = False) -> Iterator[None]:
    """Run what the user wrote; Ctrl-C stays Ctrl-C, and argparse's own exits stay what they are.

    Args:
        what: the beginning of the sentence that reports a failure, "reward 'x' raised" say.
        refusals: whether a `UserError` gets this beginning, too, rather than staying as it is.

    Raises:
        UserError: the code raised anything else, ``SystemExit`` included, or could not be read.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except UserError as error:
        if not refusals:
            raise
        raise UserError(f"{what} {error}") from error
    except BaseException as error:
        if isinstance(error, SystemExit) and not frames(error):
            raise
        raise UserError(f"{what} {describe(error)}{place(error)}") from error


def describe(error: BaseException) -> str:
    """An exception in a few words."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"SystemExit: sys.exit({'' if error.code is None else repr(error.code)})"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    words = " ".join(text.split())[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def place(error: BaseException) -> str:
    """Where the user's code failed, as `` (FILE line N)``, or nothing if none of it took part.

    This is the innermost line that belongs neither to this project nor to Python or OpenRLHF, and not to an installed
    package, unless there are no others.
    """
    return shown(frames(error))


def shown(found: list[tuple[str, int]]) -> str:
    """The one of these calls (`frames`) that `place` writes, in its form."""
    found = [line for line in found if not _passed_over(line[0])]
    own = [line for line in found if not _INSTALLED & set(Path(line[0]).parts)]
    if not found:
        return ""
    file, number = own[-1] if own else found[0]
    with contextlib.suppress(ValueError):
        file = str(Path(file).relative_to(Path.cwd()))
    return f" ({file} line {number})"


def frames(error: BaseException) -> list[tuple[str, int]]:
    """File and line of each call that led to an exception, outermost first, without those of this project, of Python
    and of OpenRLHF. Of what cannot be read, the last one is the line that is wrong."""
    found = [(line.filename, line.lineno or 0) for line in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        found.append((error.filename, error.lineno or 0))
    return [(file, number) for file, number in found if not _passed_over(file)]


@functools.cache
def _passed_over(file: str) -> bool:
    path = Path(file)
    if file.startswith("<") or any(path.is_relative_to(_ROOT / part) for part in ("orlhf_ext", "data_builders")):
        return True
    if any(path.is_relative_to(folder) for folder in _openrlhf()):
        return True
    return path.is_relative_to(sysconfig.get_path("stdlib")) and not _INSTALLED & set(path.parts)


@functools.cache
def _openrlhf() -> tuple[str, ...]:
    spec = importlib.util.find_spec("openrlhf")
    return tuple(spec.submodule_search_locations or ()) if spec else ()
