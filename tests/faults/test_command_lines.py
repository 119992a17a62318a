"""Command lines that hold bytes which are no text: no sidecar could say them again."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write

COMMANDS = [
    "build_data story sample --out {}",
    "build_data hh {}",
    "build_data litbench pairs sample --test_file {}",
    "build_data litbench rehydrate --dump {}",
    "deadend.evaluate {}=g.jsonl --save_file s.json",
    "deadend.score --model_name_or_path {} --data_file g.jsonl",
    "deadend.continuations --model_name_or_path m --data_file g.jsonl --save_file {}.jsonl",
    "evaluate --sft {}.jsonl --out s.json",
    "groups.evaluate --policy {}=g.jsonl --out s.json",
    "litbench.evaluate --pairs {} --out s.json",
    "vrcli.baseline --model m --data {} --out o.jsonl",
    "generate --model m --data {} --out o.jsonl --max_new_tokens 3 --max_len 9",
    "score --model {} --data g.jsonl --out o.jsonl",
    "logprobs --model {} --data g.jsonl --out o.jsonl",
    "export --model m --out {}",
    "launch train_dpo --data.dataset {}",
    "check reward {}",
]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.partition(" --")[0])
def test_bytes_that_are_no_text(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "g.jsonl", [{"prompt": {"text": "a"}, "generations": [{"text": "b", "toxicity": 0.5}]}])
    fault(
        *line.format("n\udcff").split(), says=r"error: 'n.udcff(=g)?(\.jsonl)?' on the command line is not UTF-8 text"
    )
