"""Every seam's contract holds for the OpenRLHF that is installed, and a broken one is told."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from helpers import ROOT

from orlhf_ext import backends
from orlhf_ext.extensions import seams

pytest.importorskip("openrlhf")


@pytest.mark.parametrize("seam", seams.SEAMS, ids=lambda seam: seam.target)
def test_contract(seam: seams.Seam) -> None:
    backends.install()
    assert seams.problems(seam) == []
    assert seam.why and set(seam.launchers) <= set(seams.LAUNCHERS)


def test_version_is_the_installed_one() -> None:
    from importlib import metadata

    assert metadata.version("openrlhf") == seams.OPENRLHF_VERSION


def test_pyproject_asks_for_the_version_that_fits() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["openrlhf"] == [f"openrlhf=={seams.OPENRLHF_VERSION}"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "openrlhf.trainer.dpo_trainer:Gone"}, "is missing"),
        ({"parameters": "model ref_model"}, "takes (model ref_model strategy"),
        ({"relies_on": ("no_such_method",)}, "has no 'no_such_method'"),
        ({"relies_on": ("self.gone(",)}, "has no 'self.gone('"),
    ],
)
def test_a_broken_contract_is_told(change: dict, said: str) -> None:
    backends.install()
    seam = seams.find("openrlhf.trainer.dpo_trainer:DPOTrainer")
    assert seam is not None
    told = seams.problems(dataclasses.replace(seam, **change))
    assert len(told) == 1 and said in told[0]


def test_launchers_exist() -> None:
    from importlib.util import find_spec

    for module in seams.LAUNCHERS.values():
        assert find_spec(module) is not None


def test_each_patch_of_the_cpu_backend_is_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module that the backend waits for, and the class that it gives vLLM by name, is in the table."""
    from orlhf_ext.backends import cpu, cpu_rollouts

    patched = {cpu_rollouts._UPSTREAM.rpartition(".")[0]}
    for backend in (cpu, cpu_rollouts):
        monkeypatch.setattr(backend, "on_import", lambda module, callback: patched.add(module))
        backend.install()
    patched.remove("torch")  # its functions for CUDA alone: no seam of OpenRLHF
    assert patched == {seam.target.partition(":")[0] for seam in seams.SEAMS if seam.by == "cpu"}
