"""Work by several workers on a real Ray of this machine, and by one without Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pool_work
import pytest
from helpers import write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import logprobs, score
from orlhf_ext.models.pool import Pool

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
