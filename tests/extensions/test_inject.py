"""Replacing names at their origin: lazily, once, and never half."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import ROOT

from orlhf_ext.backends import machine
from orlhf_ext.cli.errors import UserError
from orlhf_ext.extensions import Extension, inject


class First(Extension):
    name, launchers, replacements = "first", ("train_dpo",), {"pkg.mod:A": "mine:A"}


class Second(Extension):
    name, launchers, replacements = "second", ("train_dpo",), {"pkg.mod:A": "mine:B"}


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process, with the project importable."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={"PYTHONPATH": f"{ROOT}:{cwd}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose module ``origin`` defines A, and whose module ``user`` imports it by name."""
    folder = tmp_path / "openrlhf"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .origin import A\n")
    (folder / "origin.py").write_text("class A:\n    word = 'stock'\n")
    (folder / "user.py").write_text("from openrlhf.origin import A\n")
    (tmp_path / "mine.py").write_text("from openrlhf.origin import A\nclass B(A):\n    word = 'mine'\n")
    return tmp_path


def test_two_claims_on_one_seam_are_an_error() -> None:
    with pytest.raises(UserError, match=r"'first' and 'second' both replace pkg\.mod:A"):
        inject.plan([First(), Second()])


def test_every_importer_sees_the_replacement(package: Path) -> None:
    done = run(
        """
        from orlhf_ext.extensions import inject
        swaps = [inject.Swap("openrlhf.origin:A", "mine:B", "test")]
        inject.install(swaps)
        import openrlhf.user, openrlhf
        inject.verify(swaps)
        print(openrlhf.A.word, openrlhf.user.A.word, openrlhf.origin.A.__mro__[1].word)
        """,
        package,
    )
    assert done.stdout.splitlines() == [
        "[orlhf-ext] openrlhf.origin:A is now mine:B (extension test)",
        "mine mine stock",
    ], done.stderr


def test_a_module_that_kept_the_old_class_is_named(package: Path) -> None:
    done = run(
        """
        import openrlhf.user
        from orlhf_ext.extensions import inject
        swaps = [inject.Swap("openrlhf.origin:A", "mine:B", "test")]
        inject.install(swaps)
        inject.verify(swaps)
        """,
        package,
    )
    assert done.returncode != 0
    assert "openrlhf.user still has" in done.stderr or "openrlhf still holds" in done.stderr


def test_a_swap_that_never_happens_is_an_error(package: Path) -> None:
    done = run(
        """
        from orlhf_ext.extensions import inject
        swaps = [inject.Swap("openrlhf.origin:A", "mine:B", "test")]
        inject.install(swaps)
        inject.verify(swaps)
        """,
        package,
    )
    assert "which the launcher never imported" in done.stderr


def test_a_seam_that_is_not_there_is_an_error(package: Path) -> None:
    done = run(
        """
        from orlhf_ext.extensions import inject
        inject.install([inject.Swap("openrlhf.origin:Gone", "mine:B", "test")])
        import openrlhf.user
        """,
        package,
    )
    assert "which this OpenRLHF does not have" in done.stderr


def test_registering_imports_nothing_heavy(tmp_path: Path) -> None:
    """What every Ray worker pays for."""
    done = run(
        """
        import sys
        from orlhf_ext import backends
        from orlhf_ext.extensions import inject
        backends.install()
        inject.install([inject.Swap("openrlhf.trainer.dpo_trainer:DPOTrainer", "orlhf_ext.exo.trainer:T", "exo")])
        heavy = {"torch", "transformers", "ray", "vllm", "deepspeed", "numpy", "openrlhf"} & set(sys.modules)
        print(sorted(heavy))
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_one_module_may_replace_two_seams(tmp_path: Path) -> None:
    """Importing it for the first seam imports the second seam's module: that swap waits, and nobody keeps the old."""
    folder = tmp_path / "openrlhf"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text("class A: ...\n")
    (folder / "second.py").write_text("class B: ...\n")
    (folder / "third.py").write_text("from openrlhf.second import B\n")
    (tmp_path / "both.py").write_text(
        "from openrlhf.first import A\nfrom openrlhf.second import B\nimport openrlhf.third\n"
        "class NewA(A): ...\nclass NewB(B): ...\n"
    )
    done = run(
        """
        from orlhf_ext.extensions import inject
        swaps = [inject.Swap("openrlhf.first:A", "both:NewA", "x"), inject.Swap("openrlhf.second:B", "both:NewB", "x")]
        inject.install(swaps)
        import openrlhf.first, openrlhf.second, openrlhf.third
        inject.verify(swaps)
        print(openrlhf.first.A.__name__, openrlhf.second.B.__name__, openrlhf.third.B.__name__)
        """,
        tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "NewA NewB NewB", done.stderr


def test_surroundings_are_closed_when_the_import_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('no')\n")
    done = run(
        """
        import contextlib
        from orlhf_ext.extensions import inject
        @contextlib.contextmanager
        def around():
            print("open")
            try:
                yield
            finally:
                print("closed")
        inject.during_import("broken", around)
        try:
            import broken
        except ValueError:
            print("failed")
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["open", "closed", "failed"], done.stderr


def test_swaps_travel_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    swaps = [inject.Swap("a:B", "c:D", "e")]
    monkeypatch.setenv(inject.ENVIRONMENT, "[]")
    inject.to_environment(swaps)
    assert inject.from_environment() == swaps


def test_flash_attn_stands_in_for_one_import_only() -> None:
    pytest.importorskip("openrlhf")
    from orlhf_ext import backends

    if machine.flash_attn_present():
        pytest.skip("flash-attn is installed")
    backends.install()
    import openrlhf.models.ring_attn_utils as ring

    assert "flash_attn" not in sys.modules and not machine.flash_attn_present()
    with pytest.raises(RuntimeError, match="flash-attn is not installed"):
        ring.unpad_input()


def test_cpu_device_is_a_device_and_a_number() -> None:
    import torch

    from orlhf_ext import backends

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    backends.install()
    device = torch.cuda.current_device()
    assert torch.zeros(1).to(device).device.type == "cpu" and f"cuda:{device}" == "cuda:0"


@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm"])
def test_bf16_products_are_those_of_float32_rounded_once(name: str) -> None:
    import torch

    from orlhf_ext import backends

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    backends.install()
    generator = torch.Generator().manual_seed(0)
    batch = (3,) if "b" in name[:2] else ()
    a, b = (torch.randn(*batch, *shape, generator=generator) for shape in ((5, 64), (64, 7)))
    c = torch.randn(*batch, 5, 7, generator=generator)
    operands = (c, a, b) if "add" in name else (a, b)
    call = getattr(torch, name)
    options = {"beta": 0.5, "alpha": 2.0} if "add" in name else {}
    narrow = [operand.bfloat16() for operand in operands]
    exact = call(*(operand.double() for operand in narrow), **options)
    product = call(*narrow, **options)
    assert product.dtype is torch.bfloat16
    # one rounding to eight significant bits, and float32's own error
    torch.testing.assert_close(product.double(), exact, rtol=2**-8, atol=1e-4)
    wide = call(*(operand.double() for operand in operands), **options)  # float32 products are left alone
    torch.testing.assert_close(call(*operands, **options).double(), wide, rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_bf16_products() -> None:
    import torch

    from orlhf_ext import backends

    backends.install()
    layer = torch.nn.Linear(16, 8, dtype=torch.bfloat16)
    x = torch.randn(4, 16, dtype=torch.bfloat16, requires_grad=True)
    layer(x).float().pow(2).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    expected = (2 * layer(x).float()).bfloat16().float() @ layer.weight.float()
    torch.testing.assert_close(x.grad.float(), expected, rtol=0.02, atol=0.02)
