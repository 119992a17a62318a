"""Rehydration when things go wrong: real praw against a server with faults, kills, a full disk.

However a run was disturbed, in the end every id has the status that it has in an undisturbed run, its one line in the
journal, and the table has the same bytes. Waiting is recorded, and made short. Each test prints what it counted.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, failing, read
from reddit_server import (
    AT_SERVER,
    CLIENT_ID,
    CLIENT_SECRET,
    RedditServer,
    base36,
    hold_secrets,
    make_world,
    serve,
    write_ids,
)

from data_builders.litbench import reddit
from orlhf_ext.build_data import main

pytest.importorskip("praw", reason="no praw (pip install 'praw>=7.7,<9')")

#: as 250 in batches of 100: three look-ups of comments, two of posts
COMMENTS, BATCH = 60, 24
CSV, REPORT, PROGRESS = "rehydrated_test_data.csv", "rehydrate_report.json", "rehydrate_progress.jsonl"
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
really_sleep = time.sleep


@pytest.fixture(scope="module")
def server() -> Iterator[RedditServer]:
    with serve(make_world(COMMENTS)) as running:
        yield running


@pytest.fixture(autouse=True)
def slept(server: RedditServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A user with credentials for a kind server; the seconds that were to be waited."""
    server.clear()
    monkeypatch.setattr(reddit, "BATCH", BATCH)
    for name in [name for name in os.environ if name.startswith(("REDDIT_", "praw_", "PRAW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REDDIT_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("REDDIT_CLIENT_SECRET", CLIENT_SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in reddit.ENDPOINTS:
        monkeypatch.setitem(reddit.ENDPOINTS, name, server.url)
    write_ids(tmp_path / "ids.csv", COMMENTS)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def command(tmp_path: Path, *words: object) -> list[str]:
    ids, out = tmp_path / "ids.csv", tmp_path / "out"
    return ["litbench", "rehydrate", str(ids), "--keep_incomplete", *map(str, words), "--out", str(out)]


def result(out: Path) -> tuple[bytes, dict[str, Any]]:
    """The table, and what is known of each id but the time; there is one line for each, and no other file."""
    lines = read(out / PROGRESS)
    last = {line["id"]: (line["status"], line["data"]) for line in lines}
    assert len(lines) - len(last) == sum(line["status"] == "error" for line in lines), "a line is doubled or lost"
    assert not list(out.glob(".rehydrated_test_data.csv*")) and len(list(out.glob("[!.]*"))) == 5
    assert json.loads((out / REPORT).read_text())["errors"] == 0
    return (out / CSV).read_bytes(), last


@pytest.fixture(scope="module")
def undisturbed(server: RedditServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    server.clear()  # the tests that ran before have used it, and `slept` comes after this fixture
    write_ids(folder / "ids.csv", COMMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDDIT_CLIENT_ID", CLIENT_ID)
        patch.setenv("REDDIT_CLIENT_SECRET", CLIENT_SECRET)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(reddit, "BATCH", BATCH)
        for name in reddit.ENDPOINTS:
            patch.setitem(reddit.ENDPOINTS, name, server.url)
        main(command(folder))
    assert server.counts == {"log-ins": 1, "look-ups": 5}
    found = result(folder / "out")
    assert [found[1][f"c{base36(number)}"][0] for number in (0, 3, 13, 23, 33, 43)] == [
        *("ok", "deleted", "removed", "removed", "missing", "missing")
    ]
    return found


def tell(capfd: pytest.CaptureFixture, server: RedditServer, *more: object) -> None:
    """Print what was counted."""
    with capfd.disabled():
        counted = ", ".join(f"{number} {what}" for what, number in sorted(server.counts.items()))
        print("\n  ", counted, *more, end=" ", flush=True)


#: the faults of look-ups after the first, and the waits in seconds that each try of ours is to be followed by
FAULTS: dict[str, tuple[list[str | None], list[float]]] = {
    "429": (["429"] * 4, [2, 4, 8, 16]),
    "429 with Retry-After": (["429 7", "429 0"], [7, 0]),
    "429 with a date": (["429 Wed, 21 Oct 2026 07:28:00 GMT"], [2]),
    "500 once": (["500"], []),
    "500": (["500"] * 7, [2, 4]),
    "502": (["502"] * 4, [2]),
    "503": (["503"] * 4, [2]),
    "dropped connections": (["drop"] * 4, [2]),
    "cut replies": (["cut"] * 4, [2]),
    "malformed JSON": (["no json"] * 2, [2, 4]),
    "no listing": (["no listing", "empty"], [2, 4]),
    "expired token": (["expired"], []),
    "401 without a reason": (["401"], []),
    "mixed": (["503", None, "drop", "429 3", None, "no json", "expired"], [3, 2]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass(name: str, tmp_path: Path, server: RedditServer, slept, undisturbed, capfd):
    faults, waits = FAULTS[name]
    server.clear()
    server.plan([None, *faults])
    main(command(tmp_path))
    assert result(tmp_path / "out") == undisturbed
    said = capfd.readouterr()
    told = [line for line in said.err.splitlines() if line.startswith("Reddit: ")]
    assert len(told) == len(waits) and not server.faults
    ours = iter(slept)  # praw's own waits lie between them
    assert all(any(wait <= one <= wait + 1 for one in ours) for wait in waits), slept
    hold_secrets(said.out + said.err, tmp_path)
    tell(capfd, server)


def test_log_ins_that_fail_and_tokens_that_expire(tmp_path: Path, server: RedditServer, undisturbed, capfd):
    server.clear()
    server.token_faults.extend(["503", "drop", "429 5", "no json", None, "502"])
    server.token_lives = 2
    main(command(tmp_path))
    assert result(tmp_path / "out") == undisturbed
    assert server.tokens == 3 and server.counts["fault: expired"] == 2
    said = capfd.readouterr()
    hold_secrets(said.out + said.err, tmp_path)
    tell(capfd, server)


def heal(tmp_path: Path, server: RedditServer, undisturbed: object) -> None:
    """The same command, when all is well again; it asks for nothing that it knows."""
    known = {line["id"] for line in read(tmp_path / "out" / PROGRESS) if line["status"] != "error"}
    server.clear()
    main(command(tmp_path))
    asked = [name.removeprefix("t1_") for names in server.asked for name in names]
    assert known.isdisjoint(asked) and len(asked) == len(set(asked))
    assert result(tmp_path / "out") == undisturbed


@pytest.mark.parametrize(
    ("faults", "look_ups", "what"),
    [
        (["403"], 2, "refuses the request (403)"),
        (["expired"] * 3, 4, "does not accept REDDIT_CLIENT_ID and REDDIT_CLIENT_SECRET (401)"),
        (["401"] * 3, 4, "does not accept REDDIT_CLIENT_ID and REDDIT_CLIENT_SECRET (401)"),
        (["429"] * 10, 11, "keeps failing (status 429); 24 of 60 comments are known and kept"),
        (["drop"] * 30, 31, "keeps failing (no reply); 24 of 60 comments are known and kept"),
        (["503"] * 99, 1 + 2 * (15 + 2 * 3), "keeps failing (status 503); 24 of 60 comments are known and kept"),
    ],
)
def test_faults_that_stop_a_run(
    faults: list[str | None], look_ups: int, what: str, tmp_path: Path, server: RedditServer, undisturbed, capfd
):
    server.clear()
    server.plan([None, *faults])
    said = failing(capfd, main, *command(tmp_path, "--max_workers", 1))
    assert what in said and server.counts["look-ups"] == look_ups
    assert not (tmp_path / "out" / CSV).exists()
    hold_secrets(said, tmp_path)
    tell(capfd, server)
    heal(tmp_path, server, undisturbed)


def test_wrong_credentials(tmp_path: Path, server: RedditServer, capfd, monkeypatch):
    server.clear()
    monkeypatch.setenv("REDDIT_CLIENT_SECRET", wrong := "wrong-secret-2718")
    monkeypatch.setenv("ORLHF_EXT_TRACEBACK", "0")
    said = failing(capfd, main, *command(tmp_path))
    assert "does not accept REDDIT_CLIENT_ID and REDDIT_CLIENT_SECRET (401)" in said and "--dump" in said
    assert server.counts["log-ins"] == 1 and not server.asked
    assert wrong not in said
    hold_secrets(said, tmp_path)


def test_one_bad_id_takes_no_other_along(tmp_path: Path, server: RedditServer, undisturbed, capfd):
    server.clear()
    server.poison = {"t1_c5", "t1_c1a"}
    main(command(tmp_path))
    errors = [line["id"] for line in read(tmp_path / "out" / PROGRESS) if line["status"] == "error"]
    assert sorted(errors) == ["c1a", "c5"]
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["errors"] == 2 == report["comments"]["error"]
    said = capfd.readouterr()
    assert "2 ids ended with an error; run the same command again" in said.out
    tell(capfd, server)
    heal(tmp_path, server, undisturbed)


def test_a_torn_line_is_dropped_and_a_journal_has_one_writer(tmp_path: Path, server: RedditServer, undisturbed, capfd):
    import fcntl

    server.clear()
    main(command(tmp_path))
    path = tmp_path / "out" / PROGRESS
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for name in (CSV, REPORT):
        (tmp_path / "out" / name).unlink()
    with open(path) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "is being written by another process" in failing(capfd, main, *command(tmp_path))
    main(command(tmp_path))
    assert result(tmp_path / "out") == undisturbed


# --- kills -----------------------------------------------------------------------------------------------------------


def kill_when(reached: Callable[[], object], line: list[str], delay: float) -> bool:
    """Run a command in a process of its own, and kill it (-9) at a point; False if it was done before."""
    environment = {**os.environ, "PYTHONPATH": PATH}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not reached():
        really_sleep(0.001)
    really_sleep(delay)
    process.kill()
    assert process.wait(30) in (0, -9)
    return process.returncode == -9


def kills(number: int, again: float, tmp_path: Path, server: RedditServer, undisturbed, capfd, monkeypatch) -> None:
    """Run a command anew each time that it is killed, or with the chance ``again``; when it is done, another one."""
    chance = random.Random()
    monkeypatch.setattr(reddit, "BATCH", 5)
    server.clear()
    killed = rounds = 0
    while killed < number:
        rounds += 1
        out = tmp_path / f"out{rounds}"
        words = [*command(tmp_path)[:-1], str(out)]
        line = [sys.executable, "-c", AT_SERVER, server.url, "5", *words]
        while not out.exists() or chance.random() < again:
            if chance.random() < 0.2:  # Reddit has its own troubles
                server.plan([chance.choice(["503", "429 1", "drop", "expired", "no json"])])
            until = len(server.asked) + chance.randint(0, 4)
            killed += kill_when(lambda until=until: server.wait_for(until, 0.01), line, chance.random() * 0.03)
        for name in (CSV, REPORT):
            killed += kill_when((out / name).exists, line, 0)
        main(words)
        assert result(out) == undisturbed
        hold_secrets(capfd.readouterr().out, out)
    asked = sum(map(len, server.asked))
    tell(capfd, server, f"; {killed} kills, {asked} ids asked for instead of {rounds * len(undisturbed[1])}")


@pytest.mark.launcher
def test_some_kills(tmp_path: Path, server: RedditServer, undisturbed, capfd, monkeypatch):
    kills(2, 0.4, tmp_path, server, undisturbed, capfd, monkeypatch)


@pytest.mark.slow
def test_many_kills(tmp_path: Path, server: RedditServer, undisturbed, capfd, monkeypatch):
    kills(100, 0.8, tmp_path, server, undisturbed, capfd, monkeypatch)


# --- whole commands --------------------------------------------------------------------------------------------------


@pytest.mark.launcher
def test_time_outs_and_no_secret_of_a_whole_command(tmp_path: Path, server: RedditServer, undisturbed, capfd):
    """In a process of its own, since the time-out is fixed when praw is imported."""
    server.clear()
    server.plan(["hang", None, "hang", "hang", "hang", "500", "429 2", "no json"])
    environment = {**os.environ, "PYTHONPATH": PATH, "PRAWCORE_TIMEOUT": "0.4"}
    line = [sys.executable, "-c", AT_SERVER, server.url, "100", *command(tmp_path)]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "out") == undisturbed
    assert done.stderr.count("Reddit: no reply; try 2 of 5") >= 1
    hold_secrets(done.stdout + done.stderr, tmp_path)
    tell(capfd, server)


ON_A_SMALL_DISK = """
import contextlib, glob, os, shutil, subprocess, sys, time
from data_builders.litbench import reddit
from orlhf_ext.build_data import main
url, disk, kept, *words = sys.argv[1:]
reddit.ENDPOINTS.update(reddit_url=url, oauth_url=url)
time.sleep = lambda seconds: None
reddit.BATCH = 24
for size in [*range(8, 100, 12), 10000]:
    subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
    with contextlib.suppress(SystemExit):
        main(words)
        shutil.copytree(words[-1], kept)
        break
    for path in glob.glob(words[-1] + "/*.csv"):  # the table stood, and its report did not find room
        shutil.copy(path, f"{kept}-{size}.csv")
    assert not [name for name in os.listdir(words[-1]) if name.endswith(".tmp")]
"""


@pytest.mark.launcher
def test_a_full_disk(tmp_path: Path, server: RedditServer, undisturbed, capfd):
    """A real file system that is too small, and grows, in a mount namespace of its own."""
    server.clear()
    (tmp_path / "disk").mkdir()
    words = [*command(tmp_path)[:-1], str(tmp_path / "disk" / "out")]
    inner = 'mount -t tmpfs -o size=8k none "$1" && shift && exec "$@"'
    line = ["unshare", "--map-root-user", "--mount", "sh", "-c", inner, "sh", str(tmp_path / "disk"), sys.executable]
    line += ["-c", ON_A_SMALL_DISK, server.url, str(tmp_path / "disk"), str(tmp_path / "out"), *words]
    environment = {**os.environ, "PYTHONPATH": PATH}
    try:
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode and ("mount:" in done.stderr or "unshare:" in done.stderr):
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "the disk is full" in line]
    in_journal = [line for line in said if PROGRESS in line]
    assert len(in_journal) >= 2 and len(said) > len(in_journal), done.stderr
    assert result(tmp_path / "out") == undisturbed
    assert all(path.read_bytes() == undisturbed[0] for path in tmp_path.glob("out-*.csv"))
    tell(capfd, server, f"; {len(said)} times full")
