"""Work by several workers on a real Ray of this machine, and by one without Ray."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pool_work
import psutil
import pytest
from helpers import write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import logprobs, score
from orlhf_ext.models import ray_workers
from orlhf_ext.models.pool import Pool
from orlhf_ext.models.reward_models import load_scorer

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("workers")

UNITS = [(f"k{i}", {"number": i}) for i in range(60)]
RESULTS = {key: pool_work.value(payload) for key, payload in UNITS}


def run(workers: int, load: Callable[[], Any], units: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    with Pool(workers) as pool:
        return list(pool.run(load, iter(units), lambda key: f"data.jsonl line {key[1:]}"))


@pytest.mark.parametrize("load", [pool_work.load_calls, pool_work.load_engine])
def test_one_worker_is_this_process(load: Callable[[], Any]) -> None:
    found = run(1, load, UNITS)
    assert len(found) == len(UNITS) and dict(found) == RESULTS


def test_one_worker_does_without_ray() -> None:
    code = (
        "import sys, pool_work\nfrom orlhf_ext.models.pool import Pool\n"
        "assert len(list(Pool().run(pool_work.load_calls, [('a', {}), ('b', {})]))) == 2\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_processed_is_named() -> None:
    with pytest.raises(UserError, match=r"^data.jsonl line 3 cannot be processed \(ValueError: no such word\)"):
        run(1, pool_work.load_calls, [*UNITS[:3], ("k3", {"bad": True})])


@pytest.mark.launcher
def test_several_workers_do_the_same(capsys: pytest.CaptureFixture) -> None:
    with Pool(2) as pool:
        for load in (partial(pool_work.load_calls, 0.02), partial(pool_work.load_engine)):
            found = list(pool.run(load, iter(UNITS)))
            assert len(found) == len(UNITS) and dict(found) == RESULTS
        assert list(pool.run(load, [])) == []
    assert capsys.readouterr().out.count("loaded with a remark") == 1  # though both said so
    assert not ray.is_initialized()


@pytest.mark.launcher
def test_numbers_do_not_depend_on_the_workers(tiny_model: Path, reward_model: Path, tmp_path: Path) -> None:
    words = ["hello", "how", "are", "you", "fine"]
    records = [
        {"id": f"q{i}", "prompt": " ".join(words[i % 5 :] * (i % 7 + 1)), "completions": [" fine" * (i % 9 + 1), " x"]}
        for i in range(80)
    ]
    data = write(tmp_path / "s.jsonl", records)
    outs: dict[str, list[bytes]] = {}
    for workers in ("1", "2"):
        for main, model in ((score.main, reward_model), (logprobs.main, tiny_model)):
            out = tmp_path / f"{main.__module__}{workers}.jsonl"
            line = f"--model {model} --data {data} --out {out} --max_len 128 --batch_tokens 200 --workers {workers}"
            main(line.split())
            outs.setdefault(workers, []).extend(path.read_bytes() for path in (out, out.with_suffix(".meta.json")))
    assert outs["1"] == outs["2"]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def actors(pid: int) -> set[int]:
    """The workers of a command, loaded or not."""
    below = psutil.Process(pid).children(recursive=True)
    found = set()
    for one in below:
        with contextlib.suppress(psutil.Error):
            if "ray::_Worker" in " ".join(one.cmdline()):
                found.add(one.pid)
    return found


@pytest.mark.launcher
def test_what_a_killed_worker_had_goes_to_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    units = [(key, {**payload, **({"once": str(tmp_path / key)} if key == "k7" else {})}) for key, payload in UNITS]
    found = run(2, partial(pool_work.load_calls, 0.02), units)
    assert len(found) == len(units) and dict(found) == {key: pool_work.value(payload) for key, payload in units}
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is lost (its process or machine died, pid " in line and "unfinished pieces go to others" in line


@pytest.mark.launcher
def test_a_piece_that_kills_three_workers_is_named(capsys: pytest.CaptureFixture) -> None:
    units = [*UNITS[:20], ("k20", {"kills": True}), *UNITS[21:40]]
    with pytest.raises(UserError, match=r"^data.jsonl line 20 cannot be processed \(3 workers died of it: ") as error:
        run(2, partial(pool_work.load_calls, 0.01), units)
    assert "\n" not in str(error.value) and capsys.readouterr().err.count("is lost") == 2


@pytest.mark.launcher
def test_a_piece_that_fails_in_a_worker_is_named() -> None:
    with pytest.raises(UserError, match=r"^data.jsonl line 20 cannot be processed \(ValueError: no such word\)"):
        run(2, partial(pool_work.load_calls, 0.01), [*UNITS[:20], ("k20", {"bad": True})])


@pytest.mark.launcher
def test_no_worker_outlives_the_command(tmp_path: Path) -> None:
    code = (
        "import pool_work\nfrom functools import partial\nfrom orlhf_ext.models.pool import Pool\n"
        "with Pool(2) as pool:\n"
        "    units = ((str(i), {}) for i in range(10**9))\n"
        "    for n, _ in enumerate(pool.run(partial(pool_work.load_calls, 0.1), units)):\n"
        "        n or print('begun', flush=True)"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    try:
        while "begun" not in command.stdout.readline():
            assert command.poll() is None
        there, workers = psutil.Process(command.pid).children(recursive=True), actors(command.pid)
        assert len(workers) == 2
    finally:
        command.kill()
        command.wait()
    end = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert not psutil.wait_procs(there, 60)[1]


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:1"}, r"no Ray listens at \S+:1 \(Connection refused\)"),
        ({"RAY_ADDRESS": "ray://127.0.0.1:1"}, "is a Ray Client's; give the head's HOST:PORT"),
        ({"RAY_TMPDIR": "/proc/nowhere"}, "Ray cannot be started .* leave --workers out"),
    ],
)
def test_a_ray_that_cannot_be_used(environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as error:
        run(2, pool_work.load_calls, UNITS)
    assert "\n" not in str(error.value)


def test_without_ray_the_flag_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--workers 2 needs Ray .* leave --workers out"):
        run(2, pool_work.load_calls, UNITS)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "found"),
    [
        ([{"CPU": 8, "GPU": 4}], 4, 1, {"num_gpus": 1, "num_cpus": 1}),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}], 2, 4, {"num_gpus": 4, "num_cpus": 1}),
        ([{"CPU": 2}], 2, 1, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}),
        ([{"CPU": 16}, {"CPU": 3}], 3, 1, {"num_cpus": 5, "scheduling_strategy": "SPREAD"}),
        ([{"CPU": 2}], 4, 1, {"num_cpus": 0.5, "scheduling_strategy": "SPREAD"}),
    ],
)
def test_what_workers_ask_for(nodes: list[dict], workers: int, gpus: int, found: dict[str, Any]) -> None:
    assert ray_workers._options(nodes, workers, gpus, hidden=False) == found


def test_too_few_gpus() -> None:
    with pytest.raises(UserError, match=r"--workers 3 with 2 GPUs each on one machine find too few: Ray has 3 \+ 2;"):
        ray_workers._options([{"CPU": 9, "GPU": 3}, {"GPU": 2}], 3, 2, hidden=False)
    assert "num_gpus" not in ray_workers._options([{"CPU": 9, "GPU": 3}], 5, 1, hidden=True)


def test_both_versions_are_told() -> None:
    """From Ray's own words."""
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError, match="Version mismatch") as error:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.9.1"}, "here", raise_on_mismatch=True)
    here = f"{ray.__version__} and {platform.python_version()} here"
    assert ray_workers._versions(error.value) == f"Ray 2.1.0 and Python 3.9.1 there, {here}"


@pytest.mark.launcher
def test_a_model_that_a_worker_does_not_find(reward_model: Path, tmp_path: Path) -> None:
    load = partial(load_scorer, str(reward_model), "0" * 64, "bfloat16", "sdpa")
    with pytest.raises(UserError, match=r"^on the machine \S+: --model .* is another model than on the command's"):
        run(2, load, UNITS)
