"""Write docs/flags.md, what every command and every part of a run says about its flags: ``python docs/flags.py``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(COLUMNS="100", NO_COLOR="1", PYTHON_COLORS="0")

from orlhf_ext.__main__ import COMMANDS, main  # noqa: E402
from orlhf_ext.build_data import load, make_parser  # noqa: E402
from orlhf_ext.extensions import BUILDERS, REWARDS, names, resolve  # noqa: E402

HEAD = """# Commands and flags

Made by `python docs/flags.py` from the parsers. `orlhf-ext LAUNCHER --help` shows them together
with OpenRLHF's own.
"""


def text_of(*words: str) -> str:
    """The help of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def section(title: str, text: str) -> str:
    """A heading with a help text below it."""
    return f"### {title}\n\n```text\n{text}\n```\n"


def steps(name: str) -> Iterator[list[str]]:
    """The builders and their steps, and the ready-made rewards."""
    if name == "build_data":
        for builder in sorted(names(BUILDERS)):
            made = load(builder)
            if type(made).__module__.startswith("data_builders."):
                yield [name, builder]
                for action in make_parser(made, builder)._actions:
                    if isinstance(action, argparse._SubParsersAction):
                        yield from ([name, builder, step] for step in action.choices)
    elif name == "check":
        yield [name, "reward"]
        for reward in sorted(names(REWARDS)):
            if resolve(REWARDS, reward).__module__.startswith("orlhf_ext."):
                yield [name, "reward", reward]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for heading, commands in COMMANDS.items():
        parts.append(f"## {heading[0].upper()}{heading[1:]}\n")
        for name in commands:
            for words in [name.split(), *steps(name)]:
                text, title = text_of(*words), " ".join(["orlhf-ext", *words])
                if words[:2] == ["check", "reward"] and len(words) == 3:
                    text, title = text[text.index(f"reward {words[2]}:") :], f"reward {words[2]}"
                parts.append(section(title, text))
    return "\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/flags.md")
    out = parser.parse_args().out
    out.with_suffix(".tmp").write_text(page(), encoding="utf-8")
    out.with_suffix(".tmp").replace(out)
