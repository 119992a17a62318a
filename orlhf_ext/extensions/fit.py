"""Whether the OpenRLHF that is installed, or another release, fits a run: every seam that the run uses holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from importlib import metadata

from ..cli.errors import UserError
from . import Extension
from .contracts import Seam, problems
from .releases import TESTED
from .seams import SEAMS
from .sources import Sources


def installed() -> str:
    """The version of OpenRLHF. Raises UserError if there is none."""
    try:
        return metadata.version("openrlhf")
    except metadata.PackageNotFoundError:
        raise UserError("OpenRLHF is not installed; run `bash recipes/setup.sh`, or pip install openrlhf") from None


def check(
    launcher: str, extensions: Iterable[Extension], backends: Collection[str], say: Callable[[str], object]
) -> None:
    """Compare the seams that a run uses with what is installed; a line is said for a release that nobody has tried.

    Args:
        launcher, extensions, backends: as in `used`.
        say: prints a line.

    Raises:
        UserError: one does not hold; it names who relies on it. What other extensions rely on refuses nobody.
    """
    version, sources = installed(), Sources()
    seams = used(launcher, extensions, backends)
    for seam, owner in seams:
        if wrong := [] if seam.by == "fix" and left_out(seam, sources) else problems(seam, sources):
            without = f", or leave --ext.use {owner} out" if owner else ""
            who = (
                f"extension {owner!r}" if owner else f"the {seam.by} backend" if seam.by in backends else "this project"
            )
            raise UserError(
                f"OpenRLHF {version}: {wrong[0]}, which {who} relies on; pip install openrlhf=={TESTED[0]}{without}"
            )
    if version not in TESTED:
        say(
            f"OpenRLHF {version} was not tested ({TESTED[-1]} to {TESTED[0]} were); "
            f"the {len(seams)} seams of this run hold"
        )


def used(launcher: str, extensions: Iterable[Extension], backends: Collection[str] = ()) -> list[tuple[Seam, str]]:
    """The seams that a run uses, each with the extension that does, or "".

    Args:
        launcher: of the run.
        extensions: that are switched on.
        backends: that this machine needs.
    """
    owners = {target: item.name for item in extensions for target in (*item.replacements, *item.relies_on)}
    found = []
    for seam in SEAMS:
        if launcher not in seam.launchers:
            continue
        always = seam.by in ("launch", "fix", *backends)
        if always or (seam.by in ("extension", "import") and seam.target in owners):
            found.append((seam, owners.get(seam.target, "")))
    return found


def left_out(seam: Seam, sources: Sources) -> str:
    """Why a fix does not apply, or "": what it fixes is gone, or was mended in another way."""
    return next(
        (wrong for wrong in problems(seam, sources) if " has no " in wrong or wrong.endswith(" is missing")), ""
    )


def unfit(module: str) -> str:
    """Why the fixes of a module do not apply to what is installed, or "". Releases that were tested are not read."""
    if installed() in TESTED:
        return ""
    sources = Sources()
    mine = [seam for seam in SEAMS if seam.by == "fix" and seam.module == module]
    return next((why for seam in mine if (why := left_out(seam, sources))), "")
