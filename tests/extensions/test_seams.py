"""Every seam's contract holds for the OpenRLHF that is installed, and a broken one is told."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import operator
import tomllib
from importlib import metadata

import pytest
from helpers import ROOT

from orlhf_ext import backends
from orlhf_ext.extensions import EXTENSIONS, extension, names, seams
from orlhf_ext.extensions.contracts import Seam, problems
from orlhf_ext.extensions.ray_classes import unwrap
from orlhf_ext.extensions.releases import LAUNCHERS, TESTED
from orlhf_ext.extensions.sources import Sources
from orlhf_ext.rewards.extension import Rewards

pytest.importorskip("openrlhf")


SOURCES = Sources()


@pytest.mark.parametrize("seam", seams.SEAMS, ids=lambda seam: seam.target)
def test_contract(seam: Seam) -> None:
    assert problems(seam, SOURCES) == []
    assert seam.why and set(seam.launchers) <= set(LAUNCHERS)


@pytest.mark.parametrize("seam", seams.SEAMS, ids=lambda seam: seam.target)
def test_sources_say_what_is_imported(seam: Seam) -> None:
    """The parameters that are read are those of the object that Python finds under the name."""
    backends.install()
    module, _, attribute = seam.target.partition(":")
    found = inspect.unwrap(unwrap(operator.attrgetter(attribute)(importlib.import_module(module))))
    added = "_ray_trace_ctx"  # by Ray, to an actor's methods
    takes = [name for name in inspect.signature(found).parameters if name != added]
    if dataclasses.is_dataclass(found):
        takes = []  # its parameters are its fields, which the contract names as attributes
    assert problems(dataclasses.replace(seam, parameters=" ".join(takes)), SOURCES) == []
    if seam.target.partition(".")[0] == "openrlhf":
        assert seam.parameters.split() == takes


def test_the_newest_release_is_the_installed_one() -> None:
    assert metadata.version("openrlhf") == TESTED[0]
    assert f"openrlhf=={TESTED[0]}" in (ROOT / "requirements-cpu.txt").read_text().split()


def test_pyproject_asks_for_what_fits() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["openrlhf"] == [f"openrlhf>={TESTED[-1]}"]


def test_extensions_rely_on_seams_of_the_table() -> None:
    items = [Rewards(), *(extension(name) for name in names(EXTENSIONS))]
    mentioned = {target for item in items for target in item.relies_on}
    assert mentioned == {seam.target for seam in seams.SEAMS if seam.by == "import"}


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
    seam = seams.find("openrlhf.trainer.dpo_trainer:DPOTrainer")
    assert seam is not None
    told = problems(dataclasses.replace(seam, **change), SOURCES)
    assert len(told) == 1 and said in told[0]


def test_launchers_exist() -> None:
    from importlib.util import find_spec

    for module in LAUNCHERS.values():
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
