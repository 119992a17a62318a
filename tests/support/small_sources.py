"""A small source for every builder, with the command that reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from helpers import ROOT, write

from orlhf_ext.files.csv_files import format_csv

Rows = list[dict[str, Any]]


class Source(NamedTuple):
    """A builder's command but for ``--out``, and the file that it reads."""

    words: list[object]
    path: Path


def pair(number: int) -> dict[str, Any]:
    return {
        "prompt": f"[WP] Lamp number {number}",
        "chosen_story": f"The lamp went out {number} times before she counted the steps down to the water.",
        "rejected_story": f"A tale of {number} mills, and of a wind that would not come.",
        "rationale": "Story A is bolder.",
        "preferred": "A",
    }


def hh(folder: Path) -> Source:
    talk = "\n\nHuman: What is {0}?\n\nAssistant: It is {1}."
    rows = [{"chosen": talk.format(n, n), "rejected": talk.format(n, -n - 1)} for n in range(8)]
    write(folder / "test.jsonl", [{key: text.replace("What", "Where") for key, text in row.items()} for row in rows])
    return Source(["hh", folder], write(folder / "train.jsonl", rows))


def hh_pairs(folder: Path) -> Source:
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(8)]
    path = write(folder / "pairs.jsonl", rows)
    return Source(["hh", "--from_pairs", path], path)


def hh_prompts(folder: Path) -> Source:
    write(folder / "test.jsonl", [{"id": "t", "prompt": "where?"}])
    path = write(folder / "train.jsonl", [{"id": f"{n}", "prompt": f"what is {n}?"} for n in range(8)])
    sizes = ["--num_prompts", 2, "--num_rl", 2, "--num_test", 1, "--style", "hh"]
    return Source(["hh-prompts", folder, *sizes], path)


def hh_groups(folder: Path) -> Source:
    traits = {"helpful": [0.5, 1.0], "harmless": [2.0, 1.0]}
    texts = {"style": "hh", "completions": ["yes", "no"], "traits": traits}
    rows = [{"id": f"{n}", "prompt": f"{n}?", "group_id": n % 2, **texts} for n in range(12)]
    path = write(folder / "scored.jsonl", rows)
    return Source(["hh-groups", path, "--groups", ROOT / "recipes/groups/hh.yaml"], path)


def jigsaw_value(folder: Path) -> Source:
    generations = [{"text": " fine", "toxicity": 0.9}, {"text": " day", "toxicity": 0.1}]
    path = write(folder / "gens.jsonl", [{"prompt": {"text": f"{n}"}, "generations": generations} for n in range(8)])
    return Source(["jigsaw", "value", "-f", path], path)


def litbench_pairs(folder: Path) -> Source:
    held_out = write(folder / "held_out.jsonl", [pair(n) for n in range(100, 104)])
    path = write(folder / "pairs.jsonl", [pair(n) for n in range(12)])
    return Source(["litbench", "pairs", path, "--test_file", held_out], path)


def litbench_rationales(folder: Path) -> Source:
    (_, _, *rest), path = litbench_pairs(folder)
    return Source(["litbench", "rationales", *rest], path)


def litbench_ids(folder: Path) -> Source:
    story = "The lamp went out, and she counted the steps down to the water."
    comments = [{"id": f"a{n}", "body": f"{story} {n}", "author": "x", "score": 1, "link_id": "t3_z"} for n in range(9)]
    dump = write(folder / "dump.jsonl", [*comments, {"id": "z", "title": "[WP] A lighthouse."}])
    pairs = [{"chosen_comment_id": f"a{n}", "rejected_comment_id": f"a{n + 1}"} for n in range(8)]
    path = write(folder / "ids.jsonl", pairs)
    return Source(["litbench", "rehydrate", "--source", path, "--dump", dump], path)


def story(folder: Path) -> Source:
    def talk(number: int) -> dict[str, Any]:
        turns = (("user", f"Why did hen {number} cross?"), ("assistant", "The road was there."))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    path = write(folder / "talks.jsonl", [talk(n) for n in range(12)])
    return Source(["story", path], path)


def as_csv(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(format_csv([list(rows[0]), *(list(row.values()) for row in rows)]), newline="")
    return path


def csv_reward(folder: Path) -> Source:
    path = as_csv(folder / "a.csv", [{"id": n, "comment_text": f"words {n}", "toxic": n % 2} for n in range(20)])
    return Source(["jigsaw", "reward", "-f", path], path)


def csv_prompts(folder: Path) -> Source:
    path = as_csv(folder / "a.csv", [{"id": n, "comment_text": f"words {n}", "target": 0.9} for n in range(20)])
    return Source(["jigsaw", "prompts", "-f", path, "--max_len", 0], path)


def csv_pairs(folder: Path) -> Source:
    (*_, held_out), _ = litbench_pairs(folder)
    path = as_csv(folder / "a.csv", [pair(n) for n in range(12)])
    return Source(["litbench", "pairs", path, "--test_file", held_out], path)


def csv_test_pairs(folder: Path) -> Source:
    (*words, _), _ = litbench_pairs(folder)
    path = as_csv(folder / "a.csv", [pair(n) for n in range(100, 112)])
    return Source([*words, path], path)


def csv_ids(folder: Path) -> Source:
    (*_, dump), path = litbench_ids(folder)
    path = as_csv(folder / "a.csv", [json.loads(line) for line in path.read_bytes().splitlines()])
    return Source(["litbench", "rehydrate", "--source", path, "--dump", dump], path)
