"""How the tests run recipes: without a user's own variables, killed when asked to, and what is read back."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers import ROOT
from helps import help_of


def load(name: str) -> Any:
    """A program of the recipes as a module."""
    if str(ROOT / "recipes") not in sys.path:  # as for a program that is run
        sys.path.append(str(ROOT / "recipes"))
    return importlib.import_module(name)


def pages(*recipes: str) -> str:
    """What the documentation says about all recipes, and about those that are named."""
    names = ["recipes", *dict.fromkeys(f"methods/{load('settings').PAGES[recipe]}" for recipe in recipes)]
    return "".join((ROOT / "docs" / f"{name}.md").read_text() for name in names)


def variable_names() -> set[str]:
    """Every variable that a recipe reads."""
    documented = pages(*load("settings").PAGES)
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+)", documented, flags=re.M)
    known = {name for names in rows for name in re.findall(r"[A-Z_]+", names)}
    assert {"PROFILE", "LOSS", "STORIES", "OUT", "SFT_ARGS", "RL_ARGS", "DRY_RUN"} <= known
    return known


def environment(**variables: str) -> dict[str, str]:
    """This environment without anything that a recipe reads, and with ``variables``."""
    known = variable_names()
    return {
        **{name: value for name, value in os.environ.items() if name not in known},
        "ORLHF_EXT_PYTHON": sys.executable,
        "VERBOSE": "1",
        **variables,
    }


def recipe(
    name: str, root: Path = ROOT, words: Iterable[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a recipe to its end."""
    return subprocess.run(
        ["bash", str(root / "recipes" / f"{name}.sh"), *words],
        env=environment(**variables), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/",
    )  # fmt: skip


def finished(name: str, words: Iterable[str] = (), **variables: str) -> str:
    """What a recipe printed that ended well."""
    result = recipe(name, words=words, **variables)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout


def started(name: str, **variables: str) -> subprocess.Popen[str]:
    """A recipe that runs, with its output in a pipe."""
    return subprocess.Popen(
        ["bash", str(ROOT / "recipes" / f"{name}.sh")], env=environment(**variables),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
    )  # fmt: skip


def commands(output: str) -> dict[str, list[str]]:
    """Stage -> its command, from what a recipe printed; without the report, which always runs and comes last."""
    found = re.findall(r"^# --- (\S+)\n(.*)$", output, flags=re.M)
    return {stage: shlex.split(command) for stage, command in found if stage not in ("cards", "report")}


def redone(output: str) -> set[str]:
    """The stages that were run, without cards and report."""
    return set(re.findall(r"^# (\S+): done in", output, flags=re.M)) - {"cards", "report"}


def skipped(output: str) -> set[str]:
    """The stages that were done already."""
    return set(re.findall(r"^# (\S+): already done", output, flags=re.M))


def dry(name: str, words: Iterable[str] = (), **variables: str) -> dict[str, list[str]]:
    """The commands that a recipe would run."""
    return commands(finished(name, words, DRY_RUN="1", **variables))


def asked(name: str, root: Path = ROOT, words: Iterable[str] = (), **variables: str) -> list[str]:
    """What a recipe asks of settings.py before all else."""
    with tempfile.TemporaryDirectory() as folder:
        python, found = Path(folder) / "python", Path(folder) / "found"
        python.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >{found}\nexit 1\n")
        python.chmod(0o755)
        recipe(name, root, words, **variables, ORLHF_EXT_PYTHON=str(python))
        tool, *given = found.read_text().split("\0")[:-1]
    assert tool == "recipes/settings.py"
    return given


@contextlib.contextmanager
def called(**variables: str) -> Iterator[None]:
    """A recipe's folder and environment, for a program of the recipes in this process."""
    with contextlib.chdir(ROOT), mock.patch.dict(os.environ, environment(**variables), clear=True):
        yield


def refused(name: str, variables: dict[str, str], root: Path = ROOT, words: Iterable[str] = ()) -> str:
    """The one sentence that a recipe ends with, from its settings.py in this process."""
    variables = {"PROFILE": "smoke", "DRY_RUN": "1", **variables}
    given, errors = asked(name, root, words, **variables), io.StringIO()
    with called(**variables), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as stop:
        load("settings").main(given)
    assert stop.value.code == 2
    (line,) = errors.getvalue().splitlines()
    assert line.startswith("recipe: error: ")
    return line


def values(name: str, **variables: str) -> Any:
    """The values of a recipe's run, from its settings.py in this process."""
    _, recipe, caller, gpu, _, *blocks, _ = asked(name, **variables)
    with called(**variables):
        return load("settings").values(recipe, Path(caller), gpu == "1", blocks, [])


def run_stage(words: list[str]) -> None:
    """``stage.py`` in this process, which does not die with its parent."""
    tool = load("stage")
    with mock.patch.object(tool, "die_with_parent", lambda: None):
        tool.main(words)


@dataclass
class Call:
    """What a recipe asks stage.py to do: the stage, the paths behind each of its flags, the command."""

    name: str
    flags: dict[str, list[str]]
    command: list[str]


def stage_calls(name: str, root: Path, **variables: str) -> list[Call]:
    """What a recipe would ask of stage.py; ``root`` is an empty folder for a copy of the recipes."""
    if not (root / "recipes").exists():
        shutil.copytree(ROOT / "recipes", root / "recipes")
        with (root / "recipes" / "common.sh").open("a") as script:
            script.write('stage() { printf \'%s\\0\' "$@" >>"$CALLS"; printf \'\\0\' >>"$CALLS"; }\n')
    calls = root / "calls"
    calls.unlink(missing_ok=True)
    done = recipe(name, root, DRY_RUN="1", CALLS=str(calls), **variables)
    assert done.returncode == 0, done.stderr
    found = []
    for text in calls.read_text().split("\0\0")[:-1]:
        stage, *words = text.split("\0")
        cut = words.index("--")
        flags: dict[str, list[str]] = {}
        for word in words[:cut]:
            if word.startswith("--"):
                flags[word] = []
            else:
                flags[list(flags)[-1]].append(word)
        found.append(Call(stage, flags, words[cut + 1 :]))
    return found


def following(command: list[str], flag: str) -> str:
    """The word behind a flag."""
    return command[command.index(flag) + 1]


def check_flags(found: Iterable[list[str]], folder: Path = ROOT) -> int:
    """Every flag of the commands is in the help of what they start in ``folder``; returns the number of programs."""
    seen: dict[tuple[str, ...], set[str]] = {}
    for command in found:
        words = list(itertools.takewhile(re.compile(r"[a-z][\w.-]*").fullmatch, command[2:]))
        for flag, value in itertools.pairwise(command):
            words += [flag, value] if flag in ("--ext.use", "--ext.reward") else []
        seen.setdefault(tuple(words), set()).update(word for word in command if word.startswith("--"))
    for program, flags in seen.items():
        unknown = flags - set(re.findall(r"--[\w.]+", help_of(program, folder)))
        assert not unknown, f"{program}: {unknown}"
    return len(seen)


def check_pages(name: str, stages: Iterable[str], *scripts: str) -> None:
    """Every variable of a recipe (or of those that share a page), and every stage, is in its documentation."""
    scripts = scripts or (name,)
    text = pages(*scripts)
    for script in scripts:
        text_of = (ROOT / "recipes" / f"{script}.sh").read_text()
        blocks = text_of[text_of.index("every=(") : text_of.index("settings ")]
        variables = set(re.findall(r'(?<=[\s("])([A-Z_]+)(?==)', blocks))
        assert len(variables) > 10
        for variable in variables:
            assert f"`{variable}`" in text, variable
    for stage in stages:
        named = re.sub("(step|round)[0-9]+", r"\1N", re.sub(r"(?<=[/-])(exo|dpo)-(rw|pref)", "LOSS", stage))
        assert f"`{named}`" in text, stage


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def weights(folder: Path) -> str:
    """A hash of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def kill(process: subprocess.Popen[str], out: Path) -> None:
    """kill -9 of the recipe's shell alone: what it started must go with it, and let its output folder go."""
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while subprocess.run(["flock", "-n", str(out / ".lock"), "true"]).returncode:
        assert time.monotonic() < deadline, "a killed recipe left a process that holds its output folder"
        time.sleep(0.1)
