"""The CPU's kernels, each held against torch's own in a process of its own (they stay registered)."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.launcher
def test_bf16_products_and_attention_are_those_of_float32_rounded_once() -> None:
    run(
        """
        import torch
        from orlhf_ext.backends import kernels
        torch.manual_seed(0)
        a, b, c = torch.randn(5, 7), torch.randn(7, 3), torch.randn(3)
        q, k, v = (torch.randn(2, 3, 6, 4) for _ in range(3))
        mask = torch.zeros(2, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))

        def gradients(dtype, mask):
            leaves = [x.bfloat16().to(dtype).requires_grad_() for x in (q, k, v)]
            causal = {"is_causal": True} if mask is None else {"attn_mask": mask.to(dtype)}
            out = torch.nn.functional.scaled_dot_product_attention(*leaves, **causal)
            return torch.autograd.grad(out, leaves, torch.ones_like(out))

        exact = [gradients(torch.float32, m) for m in (None, mask)]
        x, y, z = a.bfloat16(), b.bfloat16(), c.bfloat16()
        wanted = [x.float() @ y.float(), torch.addmm(z.float(), x.float(), y.float())]
        plain = a @ b
        kernels.multiply_bf16_in_float32(torch)
        for got, want in zip([x @ y, torch.addmm(z, x, y)], wanted):
            assert got.dtype is torch.bfloat16 and torch.equal(got, want.bfloat16())
        batched = torch.bmm(x[None], y[None])
        assert torch.equal(batched[0], wanted[0].bfloat16())
        assert torch.equal(a @ b, plain) and (a @ b).dtype is torch.float32
        for want, m in zip(exact, (None, mask)):
            for got, one in zip(gradients(torch.bfloat16, m), want):
                assert got.dtype is torch.bfloat16
                torch.testing.assert_close(got.float(), one, rtol=2e-2, atol=2e-2)
            for got, one in zip(gradients(torch.float32, m), want):
                assert torch.equal(got, one)
        """
    )


@pytest.mark.launcher
def test_exponentials_from_uniforms_are_exponential() -> None:
    run(
        """
        import torch
        from scipy import stats
        from orlhf_ext.backends import kernels
        kernels.draw_exponentials_from_uniforms(torch)


        def draw(seed, lambd):
            return torch.empty(3, 20000)[1].exponential_(lambd, generator=torch.Generator().manual_seed(seed))

        assert torch.equal(draw(1, 1.0), draw(1, 1.0)) and not torch.equal(draw(1, 1.0), draw(2, 1.0))
        assert (draw(3, 1.0) > 0).all()
        assert stats.kstest(draw(4, 1.0).numpy(), "expon").pvalue > 1e-3
        assert stats.kstest(draw(5, 2.5).numpy(), "expon", args=(0, 1 / 2.5)).pvalue > 1e-3
        assert stats.kstest(draw(5, 2.5).numpy(), "expon").pvalue < 1e-6  # the test can fail
        """
    )


@pytest.mark.launcher
def test_freed_memory_is_used_again() -> None:
    out = run(
        """
        import ctypes, resource
        import torch
        from orlhf_ext.backends import kernels
        if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
            print("no glibc")
            raise SystemExit
        kernels.keep_freed_memory()
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        x = torch.ones(8_000_000)
        counts = []
        for _ in range(6):
            before = faults()
            y = x.sqrt()
            counts.append(faults() - before)
            del y
        assert max(counts[2:]) < 100, counts  # 32 MB are 7813 small pages
        """
    )
    if "no glibc" in out:
        pytest.skip("another C library than glibc")
