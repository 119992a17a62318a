"""Prompts that are held out: never on both sides, the same for one seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import failing, read, write

from orlhf_ext.deadend import hold_out


def test_no_text_is_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [{"prompt": {"text": f"text {i % 15}"}, "row": i} for i in range(20)]
    data = write(tmp_path / "prompts.jsonl", rows)
    found = []
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        hold_out.main(f"--data_file {data} --num 6 --save_dir {tmp_path / out} --seed {seed}".split())
        held, rest = (read(tmp_path / out / f"{name}.jsonl") for name in ("held_out", "prompts"))
        texts = {row["prompt"]["text"] for row in held}
        assert len(held) == len(texts) == 6 and not texts & {row["prompt"]["text"] for row in rest}
        assert rest == [row for row in rows if row["prompt"]["text"] not in texts]
        found.append(texts)
    assert found[0] == found[1] != found[2]
    assert "--num 15" in failing(
        capsys, hold_out.main, *f"--data_file {data} --num 15 --save_dir {tmp_path / 'd'}".split()
    )
    assert "--out" in failing(capsys, hold_out.main, *f"--data_file {data} --num 5 --save_dir {tmp_path}".split())
    assert read(data) == rows and not (tmp_path / "d").exists()
