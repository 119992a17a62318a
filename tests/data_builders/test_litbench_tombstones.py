"""Texts that are gone: one rule for whoever reads comments, and stories that only speak of removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import meta, read, write

from data_builders.litbench.progress import NAME, Progress, judge
from data_builders.litbench.sources import Pair, as_pair
from data_builders.litbench.tombstones import status_of
from orlhf_ext.build_data import main
from orlhf_ext.files.built import Reject

GONE = {
    "[deleted]": "deleted",
    " [deleted]\n": "deleted",
    "[ Deleted ]": "deleted",
    "\\[deleted\\]": "deleted",
    "**[deleted]**": "deleted",
    "(deleted)": "deleted",
    "[deleted by user]": "deleted",
    "[ deleted  by\u00a0the author ]": "deleted",
    "[Comment deleted by user.]": "deleted",
    "Comment deleted by user": "deleted",
    "[this comment has been deleted]": "deleted",
    "[removed]": "removed",
    "[REMOVED]": "removed",
    "\u200b[removed]\u200b": "removed",
    "&#91;removed&#93;": "removed",
    "[removed.]": "removed",
    "[removed by moderators]": "removed",
    "[removed by mod team]": "removed",
    "[Removed by AutoModerator]": "removed",
    "[removed by admin]": "removed",
    "Removed by moderator": "removed",
    "[Removed by Reddit]": "removed",
    "[ Removed by Reddit ]": "removed",
    "[ Removed by Reddit\u2019s spam filter ]": "removed",
    "[ Removed by reddit in response to a copyright notice. ]": "removed",
    "[ Removed by Reddit in response to a copyright notice ]": "removed",
    "[ Removed by Reddit in response to a DMCA notice. ]": "removed",
    "[ Removed by Reddit on account of violating the [content policy](/help/contentpolicy). ]": "removed",
    "[ Removed by Reddit on account of violating the content policy. ]": "removed",
    "[ Removed by Reddit&#39;s Legal Operations team due to a legal request ]": "removed",
    "[unavailable]": "missing",
    "": "missing",
    "&amp;#x200B;": "missing",
    " &#x200B;\n": "missing",
    "&#x200B;\n\n" * 60: "missing",
    "\u200b" * 400: "missing",
}
STORIES = [
    "a story",
    "Removed.",
    "Deleted",
    "He was removed by the guards.",
    "The comment was removed by moderators, and then the town went silent.",
    "[deleted scene] It rained.",
    "[removed] and more",
    'She read the screen. "[removed]", it said.',
    "[removed]\n\n[deleted]\n\nThree more names went dark before dawn.",
    "[Removed by the wind]",
    "[Deleted by the machine, she thought, and so was I.]",
    "[Removed by Reddit for being too honest, wrote the last human.]",
    "[Removed by Reddit in response to a copyright notice.] That was the sign above the gate [still lit].",
    "[ Removed by Reddit ] " + "The lamp went out, and she counted the steps down to the water. " * 8,
    "[removed by moderator] was all that the tablet showed.",
    "Memory removed by user",
]


@pytest.mark.parametrize("text", GONE, ids=range(len(GONE)))
def test_what_is_no_text(text: str):
    """The one rule holds for comments and titles of any source, and for stories and prompts of tables."""
    assert status_of(text) == GONE[text]
    for kind, field in (("t1", "body"), ("t3", "title")):
        found = judge(kind, {field: text})
        assert found.status == GONE[text] and not any((found.data or {}).values())
    for side in ("chosen_story", "rejected_story", "prompt"):
        row = {"prompt": "[WP] A", "chosen_story": "one two", "rejected_story": "three four", side: text}
        assert isinstance(as_pair(row), Reject)


@pytest.mark.parametrize("text", STORIES, ids=range(len(STORIES)))
def test_what_is_a_text(text: str):
    assert status_of(text) == "ok"
    assert judge("t1", {"body": text}).data["story"] == text  # type: ignore[index]
    assert judge("t3", {"title": text}).data == {"title": text}
    found = as_pair({"prompt": text, "chosen_story": text, "rejected_story": "another"})
    assert isinstance(found, Pair) and (found.prompt, found.chosen) == (text, text)


def test_from_a_dump_to_pairs(tmp_path: Path):
    gone = ["[ Removed by reddit in response to a copyright notice. ]", "[ Removed by Reddit ]", "[deleted by user]"]
    bodies = {f"a{n}": f"The lamp went out {n} times, and she counted the steps down to the water." for n in range(8)}
    bodies |= {"a1": gone[0], "a2": gone[1], "a4": gone[2]}
    rows = [{"id": name, "body": body, "author": "x", "score": 1, "link_id": "t3_z"} for name, body in bodies.items()]
    dump = write(tmp_path / "dump.jsonl", [*rows, {"id": "z", "title": "[WP] A lighthouse."}])
    pairs = [{"chosen_comment_id": f"a{n}", "rejected_comment_id": f"a{n + 1}"} for n in range(0, 8, 2)]
    words = ["--source", write(tmp_path / "ids.jsonl", pairs), "--dump", dump, "--out", tmp_path / "out"]
    main(["litbench", "rehydrate", *map(str, words)])
    report = json.loads((tmp_path / "out" / "rehydrate_report.json").read_text())
    assert report["complete"] == 1 and report["comments"] == {"ok": 5, "removed": 2, "deleted": 1}

    train = [
        {"prompt": f"[WP] {n}", "chosen_story": f"night {n} by the river", "rejected_story": f"a lamp in the {n} mill"}
        for n in range(12)
    ]
    for row, text in zip(train, gone, strict=False):
        row["rejected_story"] = text
    main(["litbench", "pairs", str(write(tmp_path / "train.jsonl", train)), "--out", str(tmp_path / "out")])
    counts = meta(tmp_path / "out" / "pairs_train.jsonl")["counts"]
    assert counts["dropped"] == {"deleted or removed story": 3}
    assert [row["id"] for row in read(tmp_path / "out" / "pairs_test.jsonl")] == ["a6-a7"]


def test_what_is_known_is_judged_by_the_rule_again(tmp_path: Path):
    texts = {
        "a1": {"story": "[ Removed by Reddit ]", "score": 1},
        "a2": {"story": "A lamp."},
        "t3_z": {"title": "(deleted)"},
    }
    lines = [{"id": name, "status": "ok", "data": data} for name, data in texts.items()]
    (tmp_path / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / NAME).with_suffix(".meta.json").write_text('{"origin": 1}')
    with Progress(tmp_path, 1) as progress:
        assert progress.known == {
            "a1": ("removed", {"story": None, "score": 1}),
            "a2": ("ok", {"story": "A lamp."}),
            "t3_z": ("deleted", {"title": None}),
        }
