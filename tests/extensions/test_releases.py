"""Other releases of OpenRLHF than the one that is installed: what fits is told from their sources, and is so."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import ray_runs
import releases as other
from helpers import failing, launch, scalars, write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import doctor
from orlhf_ext.extensions import extension, fit
from orlhf_ext.extensions.contracts import problems
from orlhf_ext.extensions.releases import TESTED
from orlhf_ext.extensions.seams import SEAMS, find
from orlhf_ext.extensions.sources import Sources

pytest.importorskip("openrlhf")
OLDEST = TESTED[-1]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    return {version: other.wheel(version, folder / version) for version in TESTED}


def package(folder: Path, **modules: str) -> Sources:
    """Sources of a small OpenRLHF."""
    for name, text in {"__init__": "", **modules}.items():
        path = folder / "openrlhf" / (name.replace("__", "/") + ".py" if name != "__init__" else "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Sources(folder)


# ---- what a contract is compared with


FUNCTION = "openrlhf.models.utils:log_probs_from_logits"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def log_probs_from_logits(logits, labels, temperature=1.0):\n  logits.div_(  temperature)", ""),
        ("def log_probs_from_logits(logits, labels, temperature=1.0, more=2):\n  logits.div_(\n\ttemperature)", ""),
        ("def log_probs_from_logits(logits, labels, temperature=1.0, *, more):\n  logits.div_(temperature)", "takes"),
        ("def log_probs_from_logits(labels, logits, temperature=1.0):\n  logits.div_(temperature)", "takes"),
        ("def log_probs_from_logits(logits, labels):\n  logits.div_(temperature)", "takes (logits labels), not"),
        ("def log_probs_from_logits(logits, labels, temperature=1.0):\n  pass", "has no 'logits.div_(temperature)'"),
        ("from .other import log_probs as log_probs_from_logits", ""),
        ("try:\n  from .other import log_probs as log_probs_from_logits\nexcept ImportError:\n  pass", ""),
        ("log_probs_from_logits = None", "is missing"),
    ],
)
def test_a_contract(tmp_path: Path, source: str, told: str) -> None:
    other = "def log_probs(logits, labels, temperature):\n  logits.div_(temperature)"
    sources = package(tmp_path, models__utils=source, models__other=other)
    seam = find(FUNCTION)
    assert seam is not None
    found = problems(seam, sources)
    assert (len(found) == 1 and told in found[0]) if told else not found


def test_any_of_several_forms_will_do(tmp_path: Path) -> None:
    seam = find("openrlhf.trainer.sft_trainer:SFTTrainer")
    assert seam is not None
    forms = [form for form in seam.relies_on if isinstance(form, tuple)]
    assert forms
    for old_or_new in range(2):
        lines = [form if isinstance(form, str) else form[old_or_new] for form in seam.relies_on]
        names = [line for line in lines if line.isidentifier()]
        body = "".join(f"    def {name}(self): ...\n" for name in names)
        text = "    '''" + "\n".join(line for line in lines if not line.isidentifier()) + "'''\n"
        init = f"    def __init__(self, {seam.parameters.replace(' ', ', ')}): ...\n"
        source = f"class Base:\n{body}class SFTTrainer(Base):\n{init}{text}"
        assert problems(seam, package(tmp_path / str(old_or_new), trainer__sft_trainer=source)) == []


def test_a_run_is_refused_for_what_it_uses_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sentence names release, seam and extension; another extension's seam refuses nobody."""
    monkeypatch.setattr(fit, "installed", lambda: "0.12.0")
    monkeypatch.setattr(fit, "problems", lambda seam, _: ["X has no 'y'"] if seam.target.endswith("SFTTrainer") else [])
    said: list[str] = []
    fit.check("train_sft", [], ["cpu"], said.append)
    fit.check("train_dpo", [extension("exo")], [], said.append)
    assert len(said) == 2 and all("OpenRLHF 0.12.0 was not tested (0.10.4 to 0.11.2 were)" in line for line in said)
    with pytest.raises(UserError) as error:
        fit.check("train_sft", [extension("dead-end")], [], said.append)
    assert str(error.value) == (
        "OpenRLHF 0.12.0: X has no 'y', which extension 'dead-end' relies on; pip install openrlhf==0.11.2, or leave "
        "--ext.use dead-end out"
    )


def test_a_fix_is_left_out_where_its_bug_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from orlhf_ext.openrlhf_fixes.where import when_there

    module = types.ModuleType("openrlhf.trainer.dpo_trainer")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    done: list[object] = []
    when_there(module.__name__, done.append)
    assert done == [module]
    monkeypatch.setattr(fit, "installed", lambda: "0.12.0")
    when_there(module.__name__, done.append)  # not tested, and as it was
    assert len(done) == 2
    monkeypatch.setattr(fit, "problems", lambda seam, _: [f"{seam.target} has no 'start_epoch = …'"])
    when_there(module.__name__, done.append)
    assert len(done) == 2 and "a fix of openrlhf.trainer.dpo_trainer is left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("latest", "--openrlhf latest is no version, no wheel and no folder"),
        ("{folder}", "has no package openrlhf"),
        ("{folder}/text.whl", "neither a folder of packages nor a wheel"),
    ],
)
def test_what_is_no_release(tmp_path: Path, capsys: Any, release: str, said: str) -> None:
    (tmp_path / "text.whl").write_text("no wheel")
    assert said in failing(capsys, doctor.main, "--openrlhf", release.format(folder=tmp_path))


# ---- real releases


@pytest.mark.launcher
@pytest.mark.parametrize("version", TESTED)
def test_a_tested_release_fits(version: str, wheels: dict[str, Path], capsys: Any) -> None:
    sources = Sources(wheels[version])
    assert [told for seam in SEAMS if seam.target.startswith("openrlhf") for told in problems(seam, sources)] == []
    doctor.main(["--openrlhf", str(wheels[version])])
    printed = capsys.readouterr().out
    assert "dead-end (train_sft): fits" in printed and "refused" not in printed


@pytest.fixture(scope="session")
def oldest(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with the oldest tested release."""
    return other.overlay([wheels[OLDEST]], tmp_path_factory.mktemp("oldest") / "venv")


@pytest.mark.launcher
def test_exo_trains_alike_on_the_oldest_release(oldest: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Its loss divides by a temperature that OpenRLHF once applied in another place: no contract of names sees that."""
    records = [
        {
            "id": f"r{i}",
            "prompt": f"\n\nHuman: say {i}\n\nAssistant:",
            "completions": [f" the {'cat ' * (i + 1)}sat", " a pear", f" {i} apples, please", " help " * 5],
            "rewards": [0.1 * i, 1.0, -0.5, 0.3],
        }
        for i in range(8)
    ]
    losses = []
    for python in (oldest, Path(sys.executable)):
        folder = tmp_path / f"run{len(losses)}"
        data = write(folder / "data.jsonl", records)
        logs = ("--logger.tensorboard_dir", str(folder / "tb"), "--logger.wandb.run_name", "run")
        launch(folder, tiny_model, data, "--exo.loss_type", "exo-rw", "--exo.temperature", "0.8", *logs, python=python)
        losses.append(scalars(folder)["train/kwise/loss"])
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.launcher
def test_rewards_on_the_oldest_release(oldest: Path, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    ray_runs.write_inputs(tmp_path)
    words = ray_runs.flags(tiny_model, data__max_samples=16)
    ray_runs.launch(tmp_path, "--ext.reward", "length", "--length.target", "8", *words, python=oldest)
    rows = [json.loads(line) for path in (tmp_path / "out/rollouts").glob("*.jsonl") for line in path.open()]
    assert len(rows) == 64 and all(0 <= row["reward"] <= 1 for row in rows)


@pytest.mark.launcher
def test_an_evaluation_without_a_batch_is_refused_before_training(
    oldest: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """That release leaves out a last part of a batch, and divides by the number of batches once training is over."""
    record = {"prompt": "say it", "completions": [" a", " b"], "rewards": [0.0, 1.0]}
    data = write(tmp_path / "data.jsonl", [{**record, "id": f"r{i}"} for i in range(8)])
    rest = write(tmp_path / "rest.jsonl", [record])
    said = launch(
        tmp_path, tiny_model, data, "--eval.dataset", str(rest), "--eval.split", "train", python=oldest, status=2
    )
    assert "--eval.dataset has 1 records, of which this OpenRLHF makes no batch" in said.splitlines()[-1]
    assert not list((tmp_path / "model").rglob("*.safetensors"))
