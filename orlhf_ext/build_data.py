"""``python -m orlhf_ext.build_data NAME``: turn a raw data set into the files that a recipe reads.

A builder is a class with

- ``name`` and ``help`` (one line),
- ``add_arguments(parser)``: its own options, beside the common ones below; a builder of several steps adds a parser
  for each of them with ``parser.add_subparsers(dest="step")``, and may name one in ``default_step``,
- ``run(args)``: writes the files under ``args.out`` and yields a `data_builders.common.Built` for each as soon as it
  is written. Its sidecar is written here.

Installed packages register theirs under the entry-point group ``orlhf_ext.builders``; any other is named as
``module:attribute``. A builder imports nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import __version__
from .cli.errors import UserError, command
from .cli.flags import COUNT, SEED, Parser, whole
from .cli.user_code import user_code
from .extensions import BUILDERS, names, resolve
from .files.built import Built
from .files.outputs import add_overwrite, builder_guard, check_folder
from .files.records import before_writing, sha256_file, write_json
from .files.sidecars import sidecar_path


@command
def main(argv: list[str] | None = None) -> None:
    """Build one data set, or list the builders."""
    argv = sys.argv[1:] if argv is None else argv
    program = sys.argv[0] if sys.argv[0].startswith("orlhf-ext ") else "python -m orlhf_ext.build_data"
    if not argv or argv[0] in ("-h", "--help"):
        print(listing(program))
        return
    spec, *rest = argv
    builder = load(spec)
    step = getattr(builder, "default_step", None)
    if step and (not rest or rest[0].startswith("-")) and rest[:1] not in (["-h"], ["--help"]):
        rest = [step, *rest]
    with user_code(f"builder {spec} cannot read its options:"):
        parser = make_parser(builder, f"{program} {spec}")
        args = parser.parse_args(rest)
    if args.out != default_out(builder):  # in whose place a builder may put another
        check_folder(args.out)
    guard = before_writing.set(builder_guard(builder.name, args.overwrite))
    try:
        for built in run(builder, args, spec):
            write_sidecar(builder, args, built)
            report(built)
    finally:
        before_writing.reset(guard)


def run(builder: Any, args: argparse.Namespace, spec: str) -> Iterator[Built]:
    """What a builder gives.
    Raises UserError if it needs a package that is not installed, or one that is not of this project fails."""
    ours = type(builder).__module__.partition(".")[0] == "data_builders"
    with contextlib.nullcontext() if ours else user_code(f"builder {spec} raised"):
        try:
            for built in builder.run(args) or ():
                if not isinstance(built, Built):
                    raise UserError(f"builder {spec} gives a {type(built).__name__}; yield data_builders.common.Built")
                yield built
        except ModuleNotFoundError as error:
            raise UserError(f"this needs {error.name}, which is not installed; pip install {error.name}") from error


def load(spec: str) -> Any:
    """Make the builder of a name, or of ``module:attribute``.
    Raises UserError if there is none, or it is not a builder."""
    builder = resolve(BUILDERS, spec)
    lacking = [part for part in ("name", "help", "add_arguments", "run") if not hasattr(builder, part)]
    if lacking:
        raise UserError(
            f"{spec} is not a builder: it lacks {', '.join(lacking)}; see the docstring of orlhf_ext.build_data"
        )
    with user_code(f"builder {spec} cannot be made:"):
        return builder() if isinstance(builder, type) else builder


def listing(program: str) -> str:
    """The installed builders, one line each."""
    lines = [f"{program} NAME [options]", "", "NAME is module:attribute of a builder class, or one of"]
    found = names(BUILDERS)
    for name in sorted(found):
        try:
            line = load(name).help
        except Exception as error:  # another package's builder must not hide the others
            line = f"({found[name]} cannot be loaded: {error})"
        lines.append(f"  {name:<12} {line}")
    return "\n".join([*lines, "", f"{program} NAME --help shows the options of one."])


def default_out(builder: Any) -> Path:
    """``data/NAME``."""
    return Path("data") / builder.name


def make_parser(builder: Any, program: str) -> argparse.ArgumentParser:
    """A builder's own options and the common ones, which each of its steps has."""
    parser = Parser(prog=program, description=builder.help, allow_abbrev=False)
    builder.add_arguments(parser)
    steps = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for one in steps[0].choices.values() if steps else [parser]:
        add_common(one, default_out(builder))
    return parser


def add_common(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add the options that all builders have."""
    common = parser.add_argument_group("common options")
    common.add_argument("--out", type=Path, default=out, metavar="DIR", help="folder to write to (%(default)s)")
    common.add_argument("--seed", type=SEED, default=0, help="seed of every random choice (%(default)s)")
    common.add_argument("--limit", type=COUNT, metavar="N", help="at most N training rows")
    add_overwrite(common)
    common.add_argument("--strict", action="store_true", help="stop at the first broken row instead of counting it")
    common.add_argument(
        "--max_count_of_reported",
        type=whole(),
        default=5,
        metavar="N",
        help="report at most N dropped rows by line number and reason (%(default)s); all are counted",
    )


def write_sidecar(builder: Any, args: argparse.Namespace, built: Built) -> None:
    """Write what made a data file beside it. The same command on the same source writes the same bytes."""
    meta = {
        "builder": builder.name,
        "version": __version__,
        "file": built.path.name,
        "sha256": sha256_file(built.path),
        "arguments": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name != "overwrite"
        },
        "seed": args.seed,
        "sources": [{"file": str(path), "sha256": sha256_file(path)} for path in built.sources],
        "licence": built.licence,
        "counts": built.counts.as_dict(),
        **built.details,
    }
    write_json(sidecar_path(built.path), meta)


def report(built: Built) -> None:
    """Print a file's counts, with the place and reason (never the text) of the first dropped rows."""
    counts = built.counts.as_dict()
    print(f"{built.path}: {counts['kept']} of {counts['read']} rows kept")
    for part, number in counts.get("cut", {}).items():
        print(f"  {part} cut in {number} of them")
    if counts["kept"] == counts["read"]:
        return
    from rich.console import Console
    from rich.table import Table

    for example in built.counts.examples:
        print(f"  dropped {example}")
    table = Table("left out", "rows", box=None, padding=(0, 2))
    for what, number in [*counts["dropped"].items(), ("not drawn", counts["not_drawn"])]:
        if number:
            table.add_row(what, str(number))
    Console().print(table)


if __name__ == "__main__":
    main()
