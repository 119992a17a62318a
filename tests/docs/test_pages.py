"""What the documentation shows works: commands, files, flags and links (directives: support/doc_pages.py)."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import doc_pages
import pytest
import recipe_runs
from doc_pages import TESTED, Fence, fences, pages
from helpers import ROOT

from orlhf_ext.__main__ import main
from orlhf_ext.extensions.releases import LAUNCHERS

KINDS = ("run", "output", "file", "dry-run", "parse", "skip")
ALL = [fence for page in pages() for fence in fences(page)]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def having(kind: str, word: str | None = None) -> list[Path]:
    found = [one.page for one in ALL if one.directive[:1] == [kind] and (word is None or word in one.directive)]
    return list(dict.fromkeys(found))


def test_nothing_is_shown_without_a_test() -> None:
    assert len(ALL) > 30
    assert [one.where for one in ALL if one.language in TESTED and not one.directive] == []
    assert [one.where for one in ALL if one.directive and one.directive[0] not in KINDS] == []
    assert [one.where for one in ALL if one.directive in (["skip"], ["file"])] == []
    indented = re.compile(r"^[ >]+```", re.MULTILINE)  # which would not be seen
    assert [named(page) for page in pages() if indented.search(page.read_text(encoding="utf-8"))] == []


def run(steps: list[Fence], folder: Path, tiny: Path | None = None) -> None:
    """Go through a page's steps in ``folder``; hidden ones may take the tiny model from ``$TINY``."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**recipe_runs.environment(), "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "ROOT": str(ROOT)}
    env |= {"TINY": str(tiny)} if tiny else {}
    printed = ""
    for step in steps:
        if step.directive[0] == "file":
            (folder / step.directive[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / step.directive[1]).write_text(step.text, encoding="utf-8")
            continue
        if step.directive[0] == "output":
            missing = [line for line in step.text.splitlines() if " ".join(line.split()) not in printed]
            assert not missing, (step.where, missing, printed[-3000:])
            continue
        program = [sys.executable, "-c"] if step.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*program, step.text], cwd=folder, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
        )  # fmt: skip
        assert bool(done.returncode) == ("fails" in step.directive), (step.where, done.stdout[-4000:])
        printed = " ".join(done.stdout.split())


def steps_of(page: Path, launcher: bool) -> list[Fence]:
    """What is done of a page: without ``launcher``, nothing that is marked so, and not what that printed."""
    found, skipped = [], False
    for fence in (one for one in ALL if one.page == page and one.directive[:1]):
        if fence.directive[0] == "run":
            skipped = not launcher and "launcher" in fence.directive
        if fence.directive[0] == "file" or (fence.directive[0] in ("run", "output") and not skipped):
            found.append(fence)
    return found


@pytest.mark.launcher
@pytest.mark.parametrize("page", having("run"), ids=named)
def test_commands(page: Path, tmp_path: Path) -> None:
    run(steps_of(page, launcher=False), tmp_path)


@pytest.mark.launcher
@pytest.mark.parametrize("page", having("run", "launcher"), ids=named)
def test_commands_that_train(page: Path, tmp_path: Path, tiny_model: Path) -> None:
    run(steps_of(page, launcher=True), tmp_path, tiny_model)


@pytest.mark.launcher
@pytest.mark.parametrize("page", having("dry-run"), ids=named)
def test_recipes(page: Path) -> None:
    for fence in (one for one in ALL if one.page == page and one.directive == ["dry-run"]):
        env = recipe_runs.environment(DRY_RUN="1", HF_TOKEN="none")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", fence.text], cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and "# --- " in done.stdout, (fence.where, done.stderr)


def flags() -> dict[bool, list[tuple[str, list[str]]]]:
    """Place and words of the commands whose flags are looked at: those that start a launcher, and the others."""
    found: dict[bool, list[tuple[str, list[str]]]] = {True: [], False: []}
    for fence in ALL:
        if fence.directive == ["parse"]:
            given = list(doc_pages.commands(fence.text))
            assert given, f"{fence.where} has no command"
            for words in given:
                found[bool(set(words) & set(LAUNCHERS))].append((fence.where, words))
    return found


def test_flags() -> None:
    for where, words in flags()[False]:
        module, *rest = words[2:]
        name = [module.removeprefix("orlhf_ext.").removesuffix(".launcher")] if module != "orlhf_ext" else []
        leading = [*name, *rest]
        end = next((i for i, word in enumerate(leading) if word.startswith("-")), len(leading))
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            main([*leading[:end], "--help"])
        unknown = {word for word in rest if word.startswith("--")} - set(re.findall(r"--[\w.]+", printed.getvalue()))
        assert not unknown, (where, unknown, printed.getvalue()[:400])


@pytest.mark.launcher
def test_flags_of_launchers(tmp_path: Path) -> None:
    run([one for one in ALL if one.directive[:1] == ["file"]], tmp_path)
    assert recipe_runs.check_flags((words for _, words in flags()[True]), tmp_path) >= 4


def test_links() -> None:
    broken = []
    for page in pages():
        for path, anchor in doc_pages.links(page):
            target = (page.parent / path).resolve() if path else page
            wrong = not target.exists() or (anchor and anchor not in doc_pages.anchors(target))
            if wrong:
                broken.append(f"{named(page)}: {path}#{anchor}")
    assert broken == []
