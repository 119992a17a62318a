"""Try a part of your own before a run: ``python -m orlhf_ext.check reward SPEC``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .errors import UserError, command, suggest

KINDS = {"reward": "orlhf_ext.rewards.check"}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Hand the command line to the check of that kind."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("orlhf-ext check reward SPEC ...   a reward on sample rollouts, without Ray or a GPU")
        return
    kind, *rest = argv
    if kind not in KINDS:
        raise UserError(f"nothing to check is called {kind!r}{suggest(kind, list(KINDS))}")
    importlib.import_module(KINDS[kind]).main(rest)


if __name__ == "__main__":
    main()
