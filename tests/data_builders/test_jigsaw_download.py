"""Jigsaw's files from Kaggle: the real client against a local server, and archives that nobody should trust."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, failing, meta, read
from kaggle_server import KEY, SECRETS, TOKEN, TOXIC, UNINTENDED, USER, KaggleServer, serve, zipped

import data_builders.jigsaw.download as download
from data_builders.jigsaw.download import unpack
from orlhf_ext.build_data import main
from orlhf_ext.cli.errors import UserError

COLUMNS = ("comment_text", "toxic")
TOXIC_CSV = "id,comment_text,toxic\n" + "".join(f'{n},"good, {n}",{n % 2}\n' for n in range(40))
UNINTENDED_CSV = "id,target,comment_text\n" + "".join(f"{n},{n % 2}.0,words {n}\n" for n in range(40))
TEST_CSV = "id,comment_text\n"
FILES = {
    TOXIC: zipped({"test.csv.zip": zipped({"test.csv": TEST_CSV}), "train.csv.zip": zipped({"train.csv": TOXIC_CSV})}),
    UNINTENDED: zipped({"test.csv": TEST_CSV, "train.csv": UNINTENDED_CSV}),
}
#: runs a command with the client's address book pointing to a local server
AT_SERVER = """
import runpy, sys
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = sys.argv.pop(1)
runpy.run_module("orlhf_ext.build_data", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without credentials, and without a network."""
    for name in [name for name in os.environ if name.startswith("KAGGLE_") or name == "XDG_CONFIG_HOME"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    pytest.importorskip("kaggle", reason="no kaggle client (pip install kaggle six)")
    from kagglesdk import kaggle_env

    with serve(dict(FILES)) as running:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, running.url)
        yield running


def build(out: Path, *words: object) -> None:
    main(["jigsaw", *map(str, words), "--out", str(out)])


def refused(capfd: pytest.CaptureFixture, out: Path, *words: object) -> str:
    """The one sentence that the builder ends with; nothing is written under its final name, and no secret shown."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        build(out, *words)
    assert stop.value.code == 2
    said = capfd.readouterr()
    assert said.err.count("\n") == 1, said.err
    assert not list(out.glob("*.json*")) and not list(out.rglob("*.csv"))
    hold_secrets(said.out + said.err, out)
    return said.err


def hold_secrets(said: str, *folders: Path) -> None:
    """Hold that no planted credential is in a text or in any file."""
    texts = [said.encode(), *(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())]
    for secret in SECRETS:
        assert not any(secret.encode() in text for text in texts), secret


# --- Kaggle ----------------------------------------------------------------------------------------------------------


def test_both_competitions_with_a_token(tmp_path: Path, server: KaggleServer, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    out = tmp_path / "out"
    build(out, "--max_len", 0)
    assert (out / "raw" / TOXIC / "train.csv").read_text() == TOXIC_CSV
    assert (out / "raw" / UNINTENDED / "train.csv").read_text() == UNINTENDED_CSV
    assert not list(out.rglob("*.zip"))
    assert {path.name for path in out.rglob(".*")} == {".built.json"}
    assert read(out / "rm_train.json")[0]["text"].startswith("good, ")
    assert meta(out / "prompts.jsonl")["licence"] == "CC0-1.0"
    said = capfd.readouterr()
    hold_secrets(said.out + said.err, out)
    server.paths.clear()
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    build(out, "--max_len", 0)  # what is there is not fetched again, and needs no credentials
    assert not server.paths


def test_only_what_the_step_needs_is_fetched(tmp_path: Path, server: KaggleServer, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    build(tmp_path / "out", "reward")
    assert server.paths == ["/v1/competitions.CompetitionApiService/DownloadDataFiles", f"/files/{TOXIC}.zip"]
    assert sorted(path.name for path in (tmp_path / "out" / "raw").iterdir()) == [TOXIC]


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (401, "does not accept the credentials (401); make a new token at https://www.kaggle.com/settings/api"),
        (403, f"https://www.kaggle.com/competitions/{TOXIC}/rules"),
        (404, f"no competition {TOXIC} (404)"),
        (429, "no more requests at the moment (429); wait some minutes"),
        (503, "answers with status 503; try again later"),
    ],
)
def test_refusals(tmp_path: Path, server: KaggleServer, monkeypatch, capfd, status: int, what: str):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.setenv("VERBOSE", "1")  # the client then prints what it sends
    server.status = status
    said = refused(capfd, tmp_path / "out", "reward")
    assert what in said and "--raw_dir" in said


def test_credentials_that_are_wrong(tmp_path: Path, server: KaggleServer, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "no-such-token")
    assert "no credentials that Kaggle accepts" in refused(capfd, tmp_path / "out", "reward")
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", "wrong")
    assert "(401)" in refused(capfd, tmp_path / "out", "reward")
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{TOKEN}\nx")  # no header can hold it: requests quotes it in its error
    assert "check the credentials" in refused(capfd, tmp_path / "out", "reward")


def test_no_network(tmp_path: Path, server: KaggleServer, monkeypatch, capfd):
    from kagglesdk import kaggle_env

    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    assert "cannot be reached; check the network" in refused(capfd, tmp_path / "out", "reward")


def test_a_broken_download_is_not_taken_for_a_finished_one(tmp_path: Path, server: KaggleServer, monkeypatch, capfd):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    server.files[TOXIC] = FILES[TOXIC][:-30]
    said = refused(capfd, tmp_path / "out", "reward")
    assert "is truncated or not a readable zip" in said and "run the same command again" in said
    server.files[TOXIC] = zipped({"train.csv": "id,text\n"})
    assert "no CSV file with the columns comment_text and toxic" in refused(capfd, tmp_path / "out", "reward")
    server.files[TOXIC] = FILES[TOXIC]
    build(tmp_path / "out", "reward")
    assert read(tmp_path / "out" / "rm_train.json")


@pytest.mark.launcher
def test_a_whole_command_shows_no_credentials(tmp_path: Path, server: KaggleServer, nobody: Path):
    """In a process of its own, with the key in Kaggle's file and a traceback asked for."""
    (nobody / ".kaggle").mkdir()
    (nobody / ".kaggle" / "kaggle.json").write_text(f'{{"username": "{USER}", "key": "{KEY}"}}')
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VERBOSE": "true", "ORLHF_EXT_TRACEBACK": "1"}
    command = [sys.executable, "-c", AT_SERVER, server.url, "jigsaw", "reward", "--out", str(out)]
    for status, code in ((403, 1), (0, 0)):
        server.status = status
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        hold_secrets(done.stdout + done.stderr, out)
    assert "rm_train.json" in done.stdout and "Authentication" not in done.stdout


# --- credentials -----------------------------------------------------------------------------------------------------


def test_without_credentials(tmp_path: Path, server: KaggleServer, capfd):
    said = refused(capfd, tmp_path / "out", "reward")
    assert "finds no credentials that Kaggle accepts; set KAGGLE_API_TOKEN" in said and "--raw_dir" in said
    assert not server.paths


def test_without_the_client(tmp_path: Path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)
    monkeypatch.setitem(sys.modules, "kaggle", None)
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    said = failing(capfd, main, "jigsaw", "--out", tmp_path / "out")
    assert "pip install kaggle six" in said and TOKEN not in said


# --- archives --------------------------------------------------------------------------------------------------------


def bad(tmp_path: Path, data: bytes) -> str:
    """What is said about an archive; nothing of it is left."""
    archive = tmp_path / "a.zip"
    archive.write_bytes(data)
    with pytest.raises(UserError) as error:
        unpack(archive, tmp_path / "raw" / "jigsaw", COLUMNS)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.zip"]
    return str(error.value)


def test_both_levels_and_any_names(tmp_path: Path):
    archive = tmp_path / "a.zip"
    for data in (
        FILES[TOXIC],
        zipped({"data/": b"", "data/comments.csv": b"\xef\xbb\xbf" + TOXIC_CSV.encode(), "data/notes.txt": "x"}),
    ):
        archive.write_bytes(data)
        found = unpack(archive, tmp_path / "raw", COLUMNS)
        assert found and found.parent == tmp_path / "raw" and TOXIC_CSV in found.read_text(encoding="utf-8-sig")
        assert len(list((tmp_path / "raw").iterdir())) == 1
        found.unlink()
    assert unpack(archive, tmp_path / "raw", ("nothing",)) is None


@pytest.mark.parametrize(
    "name", ["../train.csv", "/etc/train.csv", "a/../../train.csv", "..\\train.csv", "C:/train.csv"]
)
def test_paths_that_point_outside(tmp_path: Path, name: str):
    """Nothing is written but the file, in the folder and under the last part of its name."""
    archive = tmp_path / "a.zip"
    target = tmp_path / "raw" / "jigsaw" / "train.csv"
    for data in (zipped({name: TOXIC_CSV}), zipped({f"{name}.zip": zipped({name: TOXIC_CSV})})):
        archive.write_bytes(data)
        assert unpack(archive, target.parent, COLUMNS) == target and target.read_text() == TOXIC_CSV
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file() and path != archive) == [target]
        target.unlink()


def test_a_link(tmp_path: Path):
    """It is a file with a path in it, and no CSV with these columns."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        link = zipfile.ZipInfo("train.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        stream.writestr(link, "/etc/passwd")
    assert unpack(archive, tmp_path / "raw", COLUMNS) is None
    assert not list((tmp_path / "raw").iterdir())


def test_nested_too_deep(tmp_path: Path):
    inner = zipped({"train.csv": TOXIC_CSV})
    for _ in range(2):
        inner = zipped({"train.csv.zip": inner})
    assert "nested too deep" in bad(tmp_path, inner)


def test_absurd_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bomb = zipped({"train.csv": b"comment_text,toxic\n" + b"0" * (66 << 20)})
    assert len(bomb) < 100_000 and "do not use it" in bad(tmp_path, bomb)
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    assert "do not use it" in bad(tmp_path, zipped({"train.csv": os.urandom(600), "test.csv": os.urandom(600)}))


def with_size(data: bytes, size: int) -> bytes:
    """A zip with one member whose unpacked size is told wrongly, in both places."""
    data = bytearray(data)
    for magic, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(magic) + place
        data[start : start + 4] = size.to_bytes(4, "little")
    return bytes(data)


def test_a_size_that_is_a_lie(tmp_path: Path):
    """A member that unpacks to more than it declares."""
    data = zipped({"train.csv": TOXIC_CSV + "x" * (1 << 20)})
    assert "is truncated or not a readable zip" in bad(tmp_path, with_size(data, 500))
    assert "is truncated or not a readable zip" in bad(tmp_path, zipped({"train.csv.zip": with_size(data, 500)}))


def test_broken_archives(tmp_path: Path):
    good = FILES[TOXIC]
    for data in (b"", b"no zip", good[:200], good[:-10], zipped({"train.csv.zip": b"no zip"})):
        assert "is truncated or not a readable zip" in bad(tmp_path, data)
    flipped = bytearray(zipped({"train.csv": TOXIC_CSV}))
    flipped[60] ^= 255
    assert "is truncated or not a readable zip" in bad(tmp_path, bytes(flipped))
    encrypted = bytearray(zipped({"train.csv": TOXIC_CSV}))
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    assert "is encrypted" in bad(tmp_path, bytes(encrypted))


def test_zips_in_the_raw_folder(tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, data in FILES.items():
        (raw / f"{name}.zip").write_bytes(data)
    options: list[Any] = ["--raw_dir", raw, "--max_len", 0]
    build(tmp_path / "out", *options)
    assert len(read(tmp_path / "out" / "prompts.jsonl")) >= 20
    assert sorted(path.name for path in raw.iterdir()) == sorted(f"{name}.zip" for name in FILES)
