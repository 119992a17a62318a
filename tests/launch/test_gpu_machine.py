"""What is found out about a machine with GPUs, from files and programs that stand for its own: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, run_python

from orlhf_ext.backends import compiler, cpu, machine
from orlhf_ext.commands import doctor


def toolkit(folder: Path, release: str, headers: bool = True) -> Path:
    """A folder with an nvcc that says its version."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    nvcc.chmod(0o755)
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    return folder


def pip_layout(site: Path, release: str) -> Path:
    """What the wheels of nvcc and the runtime leave in site-packages."""
    home = toolkit(site / "nvidia" / f"cu{release.partition('.')[0]}", release)
    (home / "nvvm").mkdir()
    (home / "lib").mkdir()
    for name in ("libcudart.so.13", "libcurand.so.10", "libcudart_static.a"):
        (home / "lib" / name).write_text(name)
    return home


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a toolkit: neither variables nor programs of one."""
    for name in ("CUDA_HOME", "CUDA_PATH", "VLLM_USE_FLASHINFER_SAMPLER", compiler.CHOSEN):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what is set below goes away afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("c++", "ninja"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler, "MACHINE", tmp_path / "usr-local-cuda")
    monkeypatch.setattr(compiler, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(compiler, "pip_home", lambda torch: None)
    return tmp_path


@pytest.mark.parametrize(
    ("nvcc", "torch", "fits"),
    [("13.0", "13.0", True), ("13.5", "13.0", False), ("12.9", "13.0", False), ("12.4", "12.8", True)],
)
def test_deepspeed_agrees_on_what_fits(nvcc: str, torch: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = pytest.importorskip("deepspeed.ops.op_builder.builder")
    assert compiler.fits(compiler.to_version(nvcc), compiler.to_version(torch)) is fits
    monkeypatch.setattr(builder, "installed_cuda_version", lambda name="": compiler.to_version(nvcc))
    monkeypatch.setattr(builder.torch.version, "cuda", torch)
    monkeypatch.delenv("DS_SKIP_CUDA_CHECK", raising=False)
    if fits:
        assert builder.assert_no_cuda_mismatch()
    else:
        with pytest.raises(builder.CUDAMismatchException):
            builder.assert_no_cuda_mismatch()


def test_the_lock_pins_one_cuda() -> None:
    """nvcc and its parts are of the version of the runtime that torch brings."""
    lines = (line.strip() for line in (ROOT / "requirements-gpu.txt").read_text().splitlines() if "==" in line)
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    runtime = compiler.to_version(pins["nvidia-cuda-runtime"])
    for part in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl", "cuda-toolkit"):
        assert compiler.to_version(pins[part]) == runtime, part


def test_the_machines_own_toolkit_comes_first(bare: Path, capsys: pytest.CaptureFixture) -> None:
    home = toolkit(compiler.MACHINE, "13.0")
    compiler.provide()
    assert os.environ["CUDA_HOME"] == str(home) and not (bare / "cache").exists()
    assert capsys.readouterr().out == ""


def test_the_users_choice_is_the_only_one(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit(compiler.MACHINE, "13.0")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(bare / "mine", "12.8")))
    found = compiler.choose((13, 0))
    assert found.home is None and found.why_not == f"{bare / 'mine'} has CUDA 12.8"


@pytest.mark.parametrize("machines", [None, "13.5", "12.8"])
def test_pips_compiler_gets_the_layout_of_a_toolkit(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, machines: str | None
) -> None:
    """The machine's other one is left alone."""
    if machines:
        toolkit(compiler.MACHINE, machines)
    home = pip_layout(bare / "site", "13.0")
    monkeypatch.setattr(compiler, "pip_home", lambda torch: home)
    for _ in range(2):
        os.environ.pop(compiler.CHOSEN, None)
        os.environ.pop("CUDA_HOME", None)
        compiler.provide()
        found = Path(os.environ["CUDA_HOME"])
        assert found.parent == bare / "cache" / "orlhf-ext"
        assert compiler.compiler_version(found) == (13, 0) and (found / "nvvm").is_dir()
        assert (found / "lib64" / "libcudart.so").read_text() == "libcudart.so.13"
        assert (found / "lib" / "libcurand.so").read_text() == "libcurand.so.10"
        assert "the compiler that pip installed beside torch" in capsys.readouterr().out
    (home / "lib" / "libcurand.so.10").rename(home / "lib" / "libcurand.so.11")  # pip has updated it
    assert (compiler.make_links(home) / "lib64" / "libcurand.so").read_text() == "libcurand.so.10"
    compiler.provide()  # a process that this one starts
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", ["nothing", "other version", "no host compiler", "no headers"])
def test_without_a_compiler_nothing_is_compiled(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, wrong: str
) -> None:
    """One line says so; DeepSpeed gets torch's optimizer, vLLM its own sampler."""
    if wrong == "other version":
        monkeypatch.setattr(compiler, "pip_home", lambda torch: pip_layout(bare / "site", "13.5"))
    if wrong == "no host compiler":
        toolkit(compiler.MACHINE, "13.0")
        (bare / "programs" / "c++").unlink()
    if wrong == "no headers":
        toolkit(compiler.MACHINE, "13.0", headers=False)
    later: dict[str, Any] = {}
    monkeypatch.setattr(compiler, "on_import", later.__setitem__)
    compiler.provide()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("[orlhf-ext] no CUDA 13.0 compiler (")
    assert {"other version": "has CUDA 13.5", "no host compiler": "g++"}.get(wrong, "none is installed") in said
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0" and "CUDA_HOME" not in os.environ
    ((name, patch),) = later.items()
    module = SimpleNamespace(get_train_ds_config=lambda: {"optimizer": {"type": "Adam", "params": {"lr": 1}}})
    assert name == "openrlhf.utils.deepspeed.deepspeed_utils"
    patch(module)
    params = module.get_train_ds_config()["optimizer"]["params"]
    assert params == {"lr": 1, "torch_adam": True, "fused": True}


def test_ninja_beside_python_is_found(bare: Path) -> None:
    """A virtual environment that is not activated has its programs on no PATH."""
    (bare / "programs" / "ninja").unlink()
    compiler.provide()
    beside = Path(sys.executable).parent
    assert (str(beside) in os.environ["PATH"].split(os.pathsep)) is (beside / "ninja").exists()


@pytest.mark.parametrize(
    ("line", "version"),
    [("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.8'", "12.8"), ("cuda: Optional[str] = None", "")],
)
def test_torchs_version_file_is_read(line: str, version: str) -> None:
    assert machine.parse_torch_cuda(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n") == version


def test_torchs_build_is_known_without_importing_it() -> None:
    import torch

    assert machine.torch_cuda() == (torch.version.cuda or "")
    code = "import sys; from orlhf_ext.backends import machine; machine.gpu_present(); sys.exit('torch' in sys.modules)"
    assert run_python("-c", code).returncode == 0


VISIBLE = [
    (None, None),
    ("", []),
    ("-1", []),
    ("-1,0", []),
    ("0,-1,1", ["0"]),
    ("0, 1", ["0", "1"]),
    ("GPU-8a", ["GPU-8a"]),
]


@pytest.mark.parametrize(("given", "devices"), VISIBLE)
def test_recipes_and_package_read_visible_devices_alike(
    given: str | None, devices: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA does, which ends the list at the first that is none."""
    assert machine.visible_devices(given) == devices
    monkeypatch.delenv(machine.GPUS_HIDDEN, raising=False)
    monkeypatch.delenv(machine.RAY_JOB, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    hidden = devices == []
    assert machine.gpus_hidden() is hidden
    bash = ["bash", "-c", "source recipes/setup.sh; gpus_hidden"]
    assert (subprocess.run(bash, cwd=ROOT).returncode == 0) is hidden


def test_ray_starts_with_hidden_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to count more GPUs than are visible."""
    from orlhf_ext.launch import ray_setup

    for given in ("", "-1", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        monkeypatch.setenv(machine.GPUS_HIDDEN, "1")
        ray_setup.count_no_devices()
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_build_of_torch_for_cpus_beside_a_gpu_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for built, present in (("13.0", True), ("", False), (None, True)):  # None: no torch, so nothing of a run yet
        monkeypatch.setattr(machine, "device_there", lambda: True)
        monkeypatch.setattr(machine, "torch_cuda", lambda built=built: built)
        assert machine.gpu_present() is present


def test_devices_are_not_looked_for_in_a_run_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """That would start CUDA, and vLLM could no longer fork."""
    import torch

    def asked() -> bool:
        raise AssertionError("torch.cuda.is_available was called")

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr(cpu, "gpu_present", lambda: True)
    cpu.without_cuda(lambda module: pytest.fail("patched"))(torch)


@pytest.mark.parametrize("kind", ["flash-attn 2", "namespace", "none"])
def test_a_namespace_is_not_flash_attn(kind: str, tmp_path: Path) -> None:
    """flash-attn 4 leaves ``flash_attn/cute``, with nothing that OpenRLHF and transformers import."""
    folder = tmp_path / "flash_attn"
    if kind == "namespace":
        (folder / "cute").mkdir(parents=True)
        (folder / "cute" / "__init__.py").touch()
    if kind == "flash-attn 2":
        folder.mkdir()
        (folder / "__init__.py").write_text("raise SystemExit('it was imported')")
        (folder / "bert_padding.py").touch()
    code = "from orlhf_ext.backends import machine; print(machine.flash_attn_present())"
    done = run_python("-c", code, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout == f"{kind == 'flash-attn 2'}\n", done.stderr


def whole_machine(**changes: Any) -> doctor.Machine:
    """A machine on which nothing is missing, but for the changes."""
    whole: dict[str, Any] = {"device": True, "driver": "580.65.06", "torch_cuda": "13.0", "flash_attn": True}
    return doctor.Machine(**{**whole, "compiler": compiler.Choice(Path("/cuda")), **changes})


def test_doctor_finds_nothing_missing_where_all_is_there() -> None:
    assert doctor.lacks_for_gpus(whole_machine()) == []
    assert doctor.lacks_for_gpus(whole_machine(driver=None)) == []  # it cannot be read everywhere
    assert doctor.lacks_for_gpus(whole_machine(torch_cuda="12.8", driver="525.60.13")) == []


OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (root@host)\nGCC: 12.3\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 02:08:33 UTC 2026\nGCC version: 12.3\n"


@pytest.mark.parametrize(("text", "version"), [(OPEN, "580.82.07"), (CLOSED, "570.124.06"), ("?", None), (None, None)])
def test_the_drivers_version(
    text: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert doctor.driver_version(tmp_path / "version") == version
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 555.42.02\necho 555.42.02\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert doctor.driver_version(tmp_path / "version") == (version or "555.42.02")
