"""Toxicity scores: those of the model, in place, kept after a kill, and never mistaken for another scorer's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import failing, meta, read, write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend import score, toxicity
from orlhf_ext.files.journal import journal_path

TEXTS = [[" fine day", "  silly, dull and grumpy \n"], [""], [" x" * 30, " fine day", " what?"]]
RECORDS = [
    {"id": i, "prompt": {"text": f"number {i} is"}, "generations": [{"text": t, "token_ids": [5]} for t in row]}
    for i, row in enumerate(TEXTS)
]


def make_classifier(tiny_model: Path, folder: Path, labels: Sequence[str] = ("0", "1"), seed: int = 3) -> Path:
    """A random classifier on the tiny model's shape, whose scores differ well."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(
        tiny_model, num_labels=len(labels), id2label=dict(enumerate(labels)), dtype="float32"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        model.score.weight.data.mul_(10)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tiny_model, tmp_path_factory.mktemp("models") / "rm")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "gens.jsonl", RECORDS)


def by_hand(folder: Path, text: str) -> float:
    """P(label 1) of one text alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"].long()
    if not ids.shape[1]:
        ids = torch.tensor([[tokenizer.pad_token_id]])
    with torch.no_grad():
        return float(AutoModelForSequenceClassification.from_pretrained(folder)(ids).logits.softmax(-1)[0, 1])


def words(model: object, data: Path, *more: object) -> list[str]:
    return [str(word) for word in ("--model_name_or_path", model, "--data_file", data, *more)]


def scores(path: Path, key: str = "toxicity") -> list[list[float]]:
    return [[one[key] for one in record["generations"]] for record in read(path)]


def test_scores_are_the_models_and_stand_in_the_file_itself(model: Path, data: Path, capsys: pytest.CaptureFixture):
    score.main(words(model, data))
    wanted = [[by_hand(model, text.strip()) for text in row] for row in TEXTS]
    found = scores(data)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert len({round(value, 3) for row in wanted for value in row}) == 5  # one text stands twice
    kept = [
        {**r, "generations": [{k: v for k, v in g.items() if k != "toxicity"} for g in r["generations"]]}
        for r in read(data)
    ]
    assert kept == RECORDS
    assert meta(data)["scores"]["toxicity"]["counts"]["empty"] == 1
    assert "6 generations of 3 prompts" in capsys.readouterr().out

    before = data.read_bytes()
    score.main(words(model, data))
    assert ", 0 new" in capsys.readouterr().out and data.read_bytes() == before
    # a generation that came later is scored, the others are kept
    records = read(data)
    records[1]["generations"].append({"text": " later"})
    write(data, records)
    score.main(words(model, data))
    assert ", 1 new" in capsys.readouterr().out
    assert scores(data)[1] == [found[1][0], pytest.approx(by_hand(model, "later"), abs=1e-5)]


def test_another_scorers_scores_are_not_taken_for_ours(
    model: Path, tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other = make_classifier(tiny_model, tmp_path / "other", seed=8)
    score.main(words(model, data))
    before = data.read_bytes()
    for more in ([], ["--score_input", "full"], ["--label", "0"]):
        said = failing(capsys, score.main, *words(other if not more else model, data, *more))
        assert "--rescore" in said and said.count("\n") == 1 and data.read_bytes() == before
    score.main(words(other, data, "--toxicity_type", "second"))
    assert scores(data, "second") != scores(data) and set(meta(data)["scores"]) == {"toxicity", "second"}
    score.main(words(other, data, "--rescore"))
    assert scores(data) == scores(data, "second")
    # without a sidecar nobody knows who scored
    data.with_name("gens.meta.json").unlink()
    assert "--rescore" in failing(capsys, score.main, *words(other, data))


def test_full_input_and_other_files(model: Path, data: Path, tmp_path: Path):
    before = data.read_bytes()
    out = tmp_path / "scored.jsonl"
    score.main(words(model, data, "--save_file", out, "--score_input", "full", "--batch_size", "2"))
    assert data.read_bytes() == before
    assert scores(out)[0][1] == pytest.approx(by_hand(model, "number 0 is  silly, dull and grumpy"), abs=1e-5)
    assert scores(out)[1][0] == pytest.approx(by_hand(model, "number 1 is"), abs=1e-5)
    # several files, with one model
    again, other = (write(tmp_path / f"{name}.jsonl", RECORDS) for name in ("again", "other"))
    score.main(words(model, again, other))
    assert scores(again) == scores(other)
    score.main(
        ["--model_name_or_path", str(model), "--data_file", str(data), "--save_file", str(tmp_path / "third.jsonl")]
    )
    assert scores(tmp_path / "third.jsonl") == scores(again)


def test_a_killed_run_goes_on_and_leaves_the_file_alone(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(score, "_AT_ONCE", 2)
    whole = write(tmp_path / "whole.jsonl", RECORDS)
    score.main(words(model, whole))
    real, asked = toxicity.Classifier.__call__, []

    def dying(self: Any, texts: Sequence[str]) -> list[float]:
        asked.append(list(texts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, texts)

    monkeypatch.setattr(toxicity.Classifier, "__call__", dying)
    before = data.read_bytes()
    with pytest.raises(SystemExit, match="130"):
        score.main(words(model, data))
    assert data.read_bytes() == before and journal_path(data).exists()
    score.main(words(model, data))
    assert data.read_bytes() == whole.read_bytes() and not journal_path(data).exists()
    assert sorted(asked[0]) == ["fine day", "silly, dull and grumpy"] and len(asked) == 3


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.usefixtures("workers")
def test_scores_do_not_depend_on_the_workers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(score, "_AT_ONCE", 50)
    rows = [[" x" * (i % 13), " fine day", f" what {i % 17}?"] for i in range(60)]
    records = [
        {"prompt": {"text": f"number {i} is"}, "generations": [{"text": text} for text in row]}
        for i, row in enumerate(rows)
    ]
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", records)
    score.main(words(model, tmp_path / "a.jsonl", "--batch_size", "8"))
    score.main(words(model, tmp_path / "b.jsonl", "--batch_size", "8", "--workers", "2"))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_the_toxic_label_is_found_or_refused(tiny_model: Path, model: Path, tmp_path: Path):
    def label_of(*names: str, label: str | None = None) -> int:
        folder = tmp_path / "-".join(names)
        if not folder.exists():
            shutil.copytree(model, folder)
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(names))}))
        return toxicity.toxic_label(folder, label)

    assert [label_of("neutral", "toxic"), label_of("Toxic", "non-toxic"), label_of("1", "0")] == [1, 0, 0]
    assert label_of("LABEL_0", "LABEL_1") == 1 and label_of("clean", "obscene", "toxicity") == 2
    assert label_of("hate", "nothate", label="hate") == 0 and label_of("hate", "nothate", label="1") == 1
    for names, label in [
        (("hate", "nothate"), None),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("a", "b"), "2"),
        (("a",), None),
    ]:
        with pytest.raises(UserError, match="label"):
            label_of(*names, label=label)
    swapped = make_classifier(tiny_model, tmp_path / "swapped", ("toxic", "fine"))
    straight = make_classifier(tiny_model, tmp_path / "straight", ("fine", "toxic"))
    one, other = (toxicity.load_scorer(str(folder))(["what?"])[0] for folder in (swapped, straight))
    assert one == pytest.approx(1 - other, abs=1e-6)


def test_a_multi_label_model_gives_the_labels_own_probability(tiny_model: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_classifier(tiny_model, tmp_path / "many", ("insult", "toxic", "threat"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    ids = AutoTokenizer.from_pretrained(folder)("what?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = float(AutoModelForSequenceClassification.from_pretrained(folder)(ids).logits.sigmoid()[0, 1])
    assert toxicity.load_scorer(str(folder))(["what?"]) == [pytest.approx(wanted, abs=1e-6)]


CODE = """
def length(texts):
    return [min(1.0, len(text) / 100) for text in texts]

class Service:
    version = 2
    def __call__(self, texts):
        return length(texts)

def short(texts):
    return [0.5]

def logit(texts):
    return [-3.0 for _ in texts]

value = 3
"""


def test_a_scorer_of_ones_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "my_scorers.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    score.main(words("my_scorers:Service", data, "--batch_size", "2"))
    assert scores(data) == [[len(text.strip()) / 100 for text in row] for row in TEXTS]
    assert meta(data)["scores"]["toxicity"]["by"]["version"] == "2"
    assert "--rescore" in failing(capsys, score.main, *words("my_scorers:length", data))
    for spec, wanted in [
        ("my_scorers:short", "1 scores for"),
        ("my_scorers:logit", "-3.0"),
        ("my_scorers:value", "cannot be called"),
        ("my_scorers:lenght", "length"),
        ("no_such_module:x", "no_such_module"),
    ]:
        *_, said = failing(capsys, score.main, *words(spec, data, "--rescore")).splitlines()
        assert said.startswith("orlhf-ext: error: ") and wanted in said
    assert "--label" in failing(capsys, score.main, *words("my_scorers:length", data, "--label", "1"))


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"prompt": {"text": "a"}}, ["line 2", "no generations"]),
        ({"prompt": {"text": "a"}, "generations": ["b"]}, ["line 2", "generation 1"]),
        ({"prompt": {"text": "a"}, "generations": [{"text": "b", "toxicity": "high"}]}, ["line 2", "'high'"]),
    ],
)
def test_bad_records_are_one_sentence(
    record: dict, wanted: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = write(tmp_path / "bad.jsonl", [RECORDS[0], record])
    said = failing(capsys, score.main, *words(model, path))
    assert said.count("\n") == 1 and all(word in said for word in wanted), said


def test_bad_flags_are_one_sentence(
    model: Path, tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    empty = write(tmp_path / "empty.jsonl", [])
    assert "no generation" in failing(capsys, score.main, *words(model, empty))
    assert "not a sequence classifier" in failing(capsys, score.main, *words(tiny_model, data))
    assert "--toxicity_type text" in failing(capsys, score.main, *words(model, data, "--toxicity_type", "text"))
    assert "must end in .jsonl or .json" in failing(
        capsys, score.main, *words(model, data, "--save_file", tmp_path / "x.csv")
    )
    assert "names a file twice" in failing(capsys, score.main, *words(model, data, data))
    assert "as many" in failing(capsys, score.main, *words(model, data, "--save_file", "a.jsonl", "b.jsonl"))
    assert "--max_length 600" in failing(capsys, score.main, *words(model, data, "--max_length", "600"))
    assert "Perspective is asked by one process" in failing(
        capsys, score.main, *words("perspective", data, "--workers", "2")
    )
    assert read(data) == RECORDS
