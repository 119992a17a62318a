"""What makes a CPU fast enough to train and sample on: torch kernels, and memory that is kept.

torch's own are made for CPUs with bf16 units, and its random numbers for those of one vendor. ``tests/bench`` measures
what each of these brings.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from typing import Any

_libraries: list[Any] = []  # torch forgets kernels when their library is collected


def bf16_units() -> bool:
    """Whether this CPU's vector units know bf16 (AVX-512 or newer); imports torch."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def allow_amx() -> None:
    """Ask the system for this process's use of AMX, where the CPU has it; imports torch. vLLM's attention uses it
    without asking, which is an illegal instruction unless something else has asked before."""
    import torch

    torch.cpu._init_amx()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the kernel after every large tensor.

    A training step on a CPU allocates and frees the same hundreds of megabytes again and again; mapping and clearing
    them anew costs a third of the step. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    # Whole pages (here: huge ones) for large tensors: glibc before 2.38 cannot reuse a freed block for an equal one
    # that is aligned to less. torch asks once, at its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_* of malloc.h
    for parameter, value in ((mmap_threshold, 2**31 - 1), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
        libc.mallopt(parameter, value)


def _replace(torch: Any, name: str, kernel: Callable, with_keyset: bool = False) -> None:
    """Register ``kernel`` for the ATen operator ``name`` on CPUs."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is overridden, which is what we are here for
        library.impl(name, kernel, "CPU", with_keyset=with_keyset, allow_override=True)
    _libraries.append(library)


def multiply_bf16_in_float32(torch: Any) -> None:
    """Multiply bf16 matrices through float32 kernels, on a CPU whose vector units know no bf16 (AVX2 and older).

    There, torch multiplies bf16 with plain loops: a training step of a 135M model takes minutes instead of seconds.
    Operands are widened, multiplied in float32, and the product is rounded once to bf16, as CPUs and GPUs with bf16
    units do; weights, activations and files stay bf16. The same goes for the backward pass of attention.
    """
    for name in ("mm", "addmm", "bmm", "baddbmm"):
        original = torch.library.get_kernel(f"aten::{name}", "CPU")

        def kernel(keys: Any, *operands: Any, _original: Any = original, **options: Any) -> Any:
            if operands[0].dtype is not torch.bfloat16:
                return _original.call_boxed(keys, *operands, **options)
            return _original.call_boxed(keys, *(operand.float() for operand in operands), **options).bfloat16()

        _replace(torch, name, kernel, with_keyset=True)
    attention = "_scaled_dot_product_flash_attention_for_cpu_backward"
    stock = torch.library.get_kernel(f"aten::{attention}", "CPU")

    def backward(keys: Any, gradient: Any, *operands: Any, attn_mask: Any = None, **options: Any) -> Any:
        if gradient.dtype is not torch.bfloat16:
            return stock.call_boxed(keys, gradient, *operands, attn_mask=attn_mask, **options)
        wide = [x.float() if torch.is_tensor(x) else x for x in (gradient, *operands)]
        mask = None if attn_mask is None else attn_mask.float()
        return tuple(x.bfloat16() for x in stock.call_boxed(keys, *wide, attn_mask=mask, **options))

    _replace(torch, attention, backward, with_keyset=True)


def draw_exponentials_from_uniforms(torch: Any) -> None:
    """Draw ``Tensor.exponential_`` as minus the logarithm of uniform numbers.

    vLLM draws one exponential number for each token of the vocabulary to sample one token. torch has a fast path for
    that on one vendor's CPUs; on others it takes half of vLLM's time with a small model. A uniform 0 gives infinity,
    which vLLM divides by: that token is not drawn.
    """

    def exponential_(tensor: Any, lambd: float = 1.0, *, generator: Any = None) -> Any:
        return tensor.uniform_(generator=generator).log_().div_(-lambd)

    _replace(torch, "exponential_", exponential_)
