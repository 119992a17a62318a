"""LitBench's ids into a table: real praw against a local server, dumps, what is kept, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import failing, meta, read, write
from reddit_server import CLIENT_ID, CLIENT_SECRET, RedditServer, hold_secrets, make_world, serve, write_ids

from data_builders.litbench import dump, reddit
from data_builders.litbench.progress import judge
from data_builders.litbench.rehydrate import HEADER, clean_text
from orlhf_ext.build_data import main
from orlhf_ext.cli.errors import UserError

WORLD = make_world(250)
CSV, REPORT, PROGRESS = "rehydrated_test_data.csv", "rehydrate_report.json", "rehydrate_progress.jsonl"


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without credentials or settings of praw's."""
    for name in [name for name in os.environ if name.startswith(("REDDIT_", "praw_", "PRAW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedditServer]:
    pytest.importorskip("praw", reason="no praw (pip install 'praw>=7.7,<9')")
    monkeypatch.setenv("REDDIT_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("REDDIT_CLIENT_SECRET", CLIENT_SECRET)
    with serve(WORLD) as running:
        monkeypatch.setitem(reddit.ENDPOINTS, "reddit_url", running.url)
        monkeypatch.setitem(reddit.ENDPOINTS, "oauth_url", running.url)
        yield running


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """A list of 60 pairs of the world's first 60 comments."""
    write_ids(tmp_path / "ids.csv", 60)
    return tmp_path / "ids.csv"


def build(out: Path, *words: object) -> None:
    main(["litbench", "rehydrate", *map(str, words), "--out", str(out)])


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / CSV).read_bytes().decode())))


def dumps(folder: Path) -> list[Path]:
    """The world as a dump of comments and one of posts, with what else is in dumps."""
    others = [{"id": "zzz", "body": "another", "link_id": "t3_zz"}, {"id": "c0", "title": "a post with a comment's id"}]
    comments = [{**thing, "created_utc": str(int(thing["created_utc"]))} for thing in WORLD.values() if "body" in thing]
    posts = [thing for thing in WORLD.values() if "title" in thing]
    random.Random(0).shuffle(comments)
    return [write(folder / "RC.jsonl", [*others, *comments]), write(folder / "RS.jsonl", posts)]


# --- Reddit ----------------------------------------------------------------------------------------------------------


def test_batches_order_and_what_is_written(tmp_path: Path, ids: Path, server: RedditServer, capfd):
    out = tmp_path / "out"
    write_ids(ids, 250)
    build(out, ids, "--keep_incomplete")
    sizes = [(names[0][:3], len(names)) for names in server.asked]
    assert sizes == [("t1_", 100), ("t1_", 100), ("t1_", 50), ("t3_", 100), ("t3_", 25)]
    assert sum(map(len, server.asked)) == len({name for names in server.asked for name in names})
    said = capfd.readouterr()
    hold_secrets(said.out + said.err, out)
    assert "orlhf-ext.litbench" in server.agents.pop()

    rows = table(out)
    assert (
        (out / CSV)
        .read_text()
        .startswith(
            "prompt,chosen_story,rejected_story,chosen_comment_id,rejected_comment_id,chosen_comment_score,"
            "rejected_comment_score,chosen_username,rejected_username,chosen_timestamp,rejected_timestamp\n"
        )
    )
    assert len(rows) == 250
    first, second, third = rows[:3]
    assert first["prompt"] == '[WP] Title "0", with a comma'
    assert (first["chosen_comment_id"], first["rejected_comment_id"]) == ("c0", "c1")
    assert first["chosen_story"] == WORLD["t1_c0"]["body"] and first["rejected_story"] == WORLD["t1_c1"]["body"]
    assert first["chosen_timestamp"] == "1672531200.0" and first["chosen_username"] == "author_0"
    assert second["rejected_username"] == third["chosen_username"] == ""  # deleted authors
    assert third["chosen_story"] and not third["rejected_story"]  # a deleted comment

    report = json.loads((out / REPORT).read_text())
    assert report["comments"] == {"ok": 225, "deleted": 5, "removed": 10, "missing": 10}
    assert report["posts"] == {"ok": 122, "deleted": 3}
    assert (report["rows"], report["complete"], report["written"], report["errors"]) == (250, 200, 250, 0)
    assert report["rate"] == 0.8 and report["libraries"]["praw"] and report["source"]["sha256"]
    assert meta(out / CSV)["comments"] == report["comments"]
    assert meta(out / CSV)["arguments"]["dump"] is None

    lines = read(out / PROGRESS)
    assert len(lines) == len({line["id"] for line in lines}) == 250 + 125
    assert set(lines[0]) == {"id", "status", "data", "fetched_at"}
    assert {line["id"]: line["status"] for line in lines}["c3"] == "deleted"


def test_a_second_run_costs_nothing_and_needs_no_credentials(tmp_path: Path, ids: Path, server: RedditServer, capfd):
    out = tmp_path / "out"
    build(out, ids)
    stand = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir() if "meta" not in path.name}
    asked = dict(server.counts)
    for name in reddit.CREDENTIALS:
        os.environ.pop(name)
    capfd.readouterr()
    build(out, "--source", ids)
    said = capfd.readouterr().out
    assert "is finished, and left as it is" in said and "48 of 60 rows kept" in said
    assert stand == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stand}
    build(out, ids, "--overwrite", "--clean", "basic")  # all is known, so that nothing is asked for
    assert table(out)[0]["chosen_story"] == WORLD["t1_c0"]["body"].strip()
    (out / CSV).unlink()
    build(out, ids)
    assert (out / CSV).read_bytes() == stand[out / CSV][0]
    assert dict(server.counts) == asked


def test_the_bytes_are_those_of_pandas(tmp_path: Path, ids: Path, server: RedditServer):
    pandas = pytest.importorskip("pandas", reason="no pandas")
    for options in ([], ["--keep_incomplete"]):
        out = tmp_path / f"out{len(options)}"
        build(out, ids, *options)
        known = {line["id"]: line for line in read(out / PROGRESS)}
        rows = []
        for chosen, rejected in ((row["chosen_comment_id"], row["rejected_comment_id"]) for row in table(out)):
            sides = [known[name]["data"] or {} for name in (chosen, rejected)]
            titles = [(known.get(f"t3_{side.get('post')}") or {}).get("data") for side in sides]
            prompt = next((title["title"] for title in titles if title and title["title"]), None)
            cells = [prompt, *(side.get("story") for side in sides), chosen, rejected]
            cells += [side.get(field) for field in ("score", "author", "timestamp") for side in sides]
            rows.append(cells)
        stream = io.StringIO()
        pandas.DataFrame(rows, columns=HEADER).to_csv(stream, index=False)
        assert (out / CSV).read_bytes() == stream.getvalue().encode()
        assert len(rows) == (60 if options else 48)
        assert rows[0][5] == -5 and (",-5.0," if options else ",-5,") in (out / CSV).read_text()


def test_a_praw_ini_is_not_read(tmp_path: Path, ids: Path, server: RedditServer, nobody: Path, monkeypatch):
    planted = "[DEFAULT]\noauth_url=http://127.0.0.1:9\nreddit_url=http://127.0.0.1:9\nusername=u\npassword=p\n"
    (nobody / "praw.ini").write_text(planted)
    (nobody / ".config").mkdir()
    (nobody / ".config" / "praw.ini").write_text("no ini file at all")
    for name in ("site", "username", "password", "refresh_token", "client_secret"):
        monkeypatch.setenv(f"praw_{name}", "planted")
    monkeypatch.setenv("REDDIT_USER_AGENT", "linux:tests:1 (by /u/nobody)")
    build(tmp_path / "out", ids, "--limit", 10)
    assert server.counts["log-ins"] == 1 and server.agents.pop().startswith("linux:tests:1 (by /u/nobody)")


def test_the_rate_limit_is_waited_for(tmp_path: Path, ids: Path, server: RedditServer, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    server.remaining = (0, 37)
    build(tmp_path / "out", ids, "--limit", 10)
    assert 36 < max(slept) <= 37


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ({}, "set REDDIT_CLIENT_ID and REDDIT_CLIENT_SECRET in the environment"),
        ({"REDDIT_CLIENT_ID": CLIENT_ID}, "set REDDIT_CLIENT_SECRET in"),
        ({"REDDIT_CLIENT_ID": CLIENT_ID, "REDDIT_CLIENT_SECRET": f"{CLIENT_SECRET}\nx"}, "REDDIT_CLIENT_SECRET has"),
    ],
)
def test_credentials_are_looked_at_before_anything_else(tmp_path: Path, capfd, monkeypatch, planted: dict, what: str):
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    said = failing(capfd, main, "litbench", "rehydrate", "--out", tmp_path / "out")
    assert what in said and "--dump" in said and CLIENT_ID not in said and CLIENT_SECRET not in said
    assert not (tmp_path / "out").exists()


def test_no_praw_and_a_bad_user_agent(tmp_path: Path, ids: Path, server: RedditServer, capfd, monkeypatch):
    assert "at least 7 plain characters" in failing(
        capfd, main, "litbench", "rehydrate", ids, "--user_agent", "x", "--out", tmp_path / "out"
    )
    monkeypatch.setitem(sys.modules, "praw", None)
    said = failing(capfd, main, "litbench", "rehydrate", ids, "--out", tmp_path / "out")
    assert "pip install 'praw>=7.7,<9'" in said and CLIENT_SECRET not in said


# --- dumps -----------------------------------------------------------------------------------------------------------


def packed(path: Path, kind: str) -> Path:
    """The file as it is, or gzipped, or as zstd in two frames with a window of 128 MiB."""
    data = path.read_bytes()
    if kind == "gz":
        (target := path.with_suffix(".jsonl.gz")).write_bytes(gzip.compress(data))
        return target
    if kind == "zst":
        zstandard = pytest.importorskip("zstandard", reason="no zstandard")
        wide = zstandard.ZstdCompressionParameters(window_log=27)
        frames = [zstandard.ZstdCompressor(compression_params=wide).compress(part) for part in (data[:999], data[999:])]
        (target := path.with_suffix(".zst")).write_bytes(b"".join(frames))
        return target
    return path


@pytest.mark.parametrize("kind", ["plain", "gz", "zst"])
def test_a_dump_gives_what_reddit_gives(
    tmp_path: Path, ids: Path, server: RedditServer, kind: str, monkeypatch: pytest.MonkeyPatch
):
    build(tmp_path / "reddit", ids, "--keep_incomplete")
    monkeypatch.setattr(dump, "_PIECE", 1000)
    monkeypatch.setattr(dump, "_PACKED", 7)
    monkeypatch.setattr(dump, "_BATCH", 30)
    files = [packed(path, kind) for path in dumps(tmp_path)]
    build(tmp_path / "dump", ids, "--keep_incomplete", "--dump", *files)
    assert (tmp_path / "dump" / CSV).read_bytes() == (tmp_path / "reddit" / CSV).read_bytes()
    reports = [json.loads((tmp_path / name / REPORT).read_text()) for name in ("dump", "reddit")]
    assert reports[0]["comments"] == reports[1]["comments"] and reports[0]["posts"] == reports[1]["posts"]
    assert reports[0]["answers"][0] == {"file": files[0].name, "bytes": files[0].stat().st_size}


def test_of_several_records_the_first_with_a_text_counts(tmp_path: Path, capfd):
    thing = {"id": "c0", "link_id": "t3_p0", "author": "a", "score": 1, "created_utc": 5}
    rows = [{**thing, "body": "[deleted]"}, {**thing, "body": "first"}, {**thing, "body": "second"}]
    path = write(tmp_path / "d.jsonl", [*rows, {**thing, "id": "c1", "body": "other \ud83d half"}])
    with open(path, "a") as stream:
        stream.write('{"id": "p0", "title": 3}\n{"id": "p0", "tit\n{"id": "p0", "title": "T", "selftext": ""}')
    ids = tmp_path / "ids.jsonl"
    write(ids, [{"chosen_comment_id": "c0", "rejected_comment_id": "c1"}])
    build(tmp_path / "out", ids, "--dump", path)
    (row,) = table(tmp_path / "out")
    assert (row["prompt"], row["chosen_story"], row["rejected_story"]) == ("T", "first", "other \ufffd half")
    assert "1 lines of the dump name an id of the list and are not JSON" in capfd.readouterr().out


def test_memory_does_not_grow_with_the_dump(tmp_path: Path, ids: Path):
    """60 MB in lines that are packed to a few KB, and a line that would not fit."""
    zstandard = pytest.importorskip("zstandard", reason="no zstandard")
    path = tmp_path / "d.zst"
    line = (json.dumps({"id": "zzz", "body": "x" * 2000}) + "\n").encode()
    with open(path, "wb") as stream, zstandard.ZstdCompressor().stream_writer(stream) as writer:
        for _ in range(30):
            writer.write(line * 1000)
    tracemalloc.start()
    found = list(dump.Dump([str(path)]).look_up("t1", ["c0"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [{"c0": None}] and peak < 30e6
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"[" + b"1," * (33 << 20))
    with pytest.raises(UserError, match="a line of more than 64 MiB"):
        list(dump.Dump([str(path)]).look_up("t1", ["c0"]))


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_broken_dumps(tmp_path: Path, ids: Path, capfd, kind: str):
    path = packed(dumps(tmp_path)[0], kind)
    whole = path.read_bytes()
    for data, what in (
        (whole[:-9], "truncated"),
        (b"neither" * 9, "broken gzip" if kind == "gz" else "not a readable zstd file"),
    ):
        path.write_bytes(data)
        said = failing(capfd, main, "litbench", "rehydrate", ids, "--dump", path, "--out", tmp_path / "out")
        assert what in said and str(path) in said
    path.write_bytes(b"")
    words = ["litbench", "rehydrate", ids, "--dump", path, "--out", tmp_path / "none"]
    assert "none of the 60 pairs is complete (60 of them: chosen story missing)" in failing(capfd, main, *words)
    assert not (tmp_path / "none" / CSV).exists() and not (tmp_path / "out" / CSV).exists()
    path.write_bytes(whole)
    build(tmp_path / "other", ids, "--dump", path)
    path.unlink()
    said = failing(capfd, main, "litbench", "rehydrate", ids, "--dump", path, "--out", tmp_path / "out")
    assert "does not exist" in said


def test_answers_of_two_sources_are_not_mixed(tmp_path: Path, ids: Path, server: RedditServer, capfd):
    out = tmp_path / "out"
    build(out, ids, "--limit", 20)
    words: list[Any] = ["litbench", "rehydrate", ids, "--dump", *dumps(tmp_path), "--out", out]
    assert "--overwrite" in failing(capfd, main, *words)
    said = failing(capfd, main, *words, "--overwrite")
    assert "has answers from another source" in said and "--no-resume" in said
    main([*map(str, words), "--overwrite", "--no-resume"])
    assert len(table(out)) == 48


def test_another_list_uses_what_is_known_and_says_so(tmp_path: Path, ids: Path, server: RedditServer, capfd):
    out = tmp_path / "out"
    build(out, ids)
    before = (out / CSV).read_bytes()
    assert "--overwrite" in failing(capfd, main, "litbench", "rehydrate", ids, "--limit", 20, "--out", out)
    assert (out / CSV).read_bytes() == before
    asked = len(server.asked)
    build(out, ids, "--limit", 20, "--overwrite")
    assert "has 39 comments of another list too" in capfd.readouterr().out
    assert len(server.asked) == asked and len(table(out)) == 16


def test_a_table_that_someone_else_made_is_not_replaced(tmp_path: Path, ids: Path, server: RedditServer, capfd):
    out = tmp_path / "out"
    build(out, ids)
    good = (out / CSV).read_bytes()
    for data in (b"mine", good):
        (out / CSV).write_bytes(data)
        (out / REPORT).unlink(missing_ok=True)
        if data == b"mine":
            assert "--overwrite" in failing(capfd, main, "litbench", "rehydrate", ids, "--out", out)
        else:  # as a kill between the table and its report leaves it
            build(out, ids)
        assert (out / CSV).read_bytes() == data
    (out / PROGRESS).unlink()
    (out / REPORT).unlink()
    asked = len(server.asked)
    assert "--overwrite" in failing(capfd, main, "litbench", "rehydrate", ids, "--out", out)
    assert len(server.asked) == asked


# --- lists of ids, texts ---------------------------------------------------------------------------------------------


def test_every_kind_of_list(tmp_path: Path, server: RedditServer, capfd):
    good = [{"chosen_comment_id": "t1_c0", "rejected_comment_id": " C1 "}]
    bad: list[dict] = [
        {"chosen_comment_id": "c0", "rejected_comment_id": None},
        {"chosen_comment_id": "t3_p0", "rejected_comment_id": "c1"},
        {"chosen_comment_id": "c0"},
    ]
    made = [write(tmp_path / "a.jsonl", good + bad), tmp_path / "b.json", tmp_path / "c.parquet", tmp_path / "d.csv"]
    made[1].write_text(json.dumps(good + bad))
    made[3].write_text("\ufeffn,chosen_comment_id,rejected_comment_id\n0,t1_c0,C1\n1,c0,\n2,c0,c1,c2\n3,t3_p0,c0\n")
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(good + bad), made[2])
    for path in made:
        build(out := tmp_path / path.suffix[1:], path)
        assert [row["rejected_comment_id"] for row in table(out)] == ["c1"]
        counts = meta(out / CSV)["counts"]
        assert (counts["read"], counts["kept"], sum(counts["dropped"].values())) == (4, 1, 3)
        said = failing(capfd, main, "litbench", "rehydrate", path, "--strict", "--out", tmp_path / "strict")
        assert "line 3" in said or "line 2" in said or "record 2" in said


def test_lists_that_are_none(tmp_path: Path, ids: Path, server: RedditServer, capfd, monkeypatch):
    out = ["--out", tmp_path / "out"]
    command = ["litbench", "rehydrate"]
    said = failing(capfd, main, *command, write(tmp_path / "a.jsonl", [{"id": "c0"}]), *out)
    assert "no columns chosen_comment_id and rejected_comment_id (it has id)" in said and "--source" in said
    said = failing(capfd, main, *command, write(tmp_path / "b.jsonl", []), *out)
    assert "has no row with two ids" in said
    assert "does not exist" in failing(capfd, main, *command, tmp_path / "nothing.csv", *out)
    assert "are both given" in failing(capfd, main, *command, ids, "--source", ids, *out)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "--source FILE" in failing(capfd, main, *command, *out)
    assert not server.asked
    (tmp_path / "out").mkdir(exist_ok=True)
    own = (tmp_path / "out" / CSV).write_bytes(ids.read_bytes()) and tmp_path / "out" / CSV
    assert "is the list of ids itself" in failing(capfd, main, *command, own, "--overwrite", *out)
    assert own.read_bytes() == ids.read_bytes()


def test_the_published_list_is_found_in_the_hubs_cache(tmp_path: Path, server: RedditServer, monkeypatch, capfd):
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "datasets--SAA-Lab--LitBench-Test"
    (folder / "snapshots" / revision / "data").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    rows = [{"chosen_comment_id": "c0", "rejected_comment_id": "c1"}]
    name = folder / "snapshots" / revision / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    build(tmp_path / "out")
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["source"]["revision"] == revision and report["source"]["source"] == "SAA-Lab/LitBench-Test"
    assert "has 1 pairs; 2381 were published" in capfd.readouterr().out


def test_what_answers_mean():
    assert clean_text("\n&amp;lt; a\r\nb &#x200B;\n\n&#x200B;") == "&lt; a\nb"
    assert judge("t1", {"id": "x"}).status == "error"
    odd = judge("t1", {"body": "b", "score": "7", "created_utc": "nan", "author": None, "link_id": 3})
    assert odd.data == {"story": "b", "score": 7, "author": None, "timestamp": None, "post": None}
