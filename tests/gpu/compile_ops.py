"""Compile and load what a run on GPUs compiles at its first step: DeepSpeed's FusedAdam and CPUAdam, vLLM's sampler.

    python tests/gpu/compile_ops.py             with the compiler that a run would choose
    python tests/gpu/compile_ops.py --pip       with the one of requirements-gpu.txt, also where the machine has another

No GPU is needed: without one, code for an H100 (``TORCH_CUDA_ARCH_LIST``, 9.0) is made, and an empty library stands for
the driver's. Everything is made in a temporary folder; it takes some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orlhf_ext.backends import compiler, machine


def stand_in_for_the_driver(folder: Path) -> None:
    """An empty libcuda.so.1, which the linker and the loader are content with."""
    library = folder / "libcuda.so.1"
    words = ["-shared", "-x", "c", "/dev/null", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([compiler.host_compiler() or "c++", *words], check=True)
    (folder / "libcuda.so").symlink_to(library.name)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    os.environ["FLASHINFER_EXTRA_LDFLAGS"] = f"-L{folder}"


def fused_adam() -> Any:
    """DeepSpeed's optimizer on GPUs, OpenRLHF's default."""
    from deepspeed.ops.op_builder import FusedAdamBuilder

    return FusedAdamBuilder().load()


def cpu_adam() -> Any:
    """DeepSpeed's optimizer with ``--ds.adam_offload``."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    return CPUAdamBuilder().load()


def sampler() -> Any:
    """FlashInfer's top-k and top-p sampling, which vLLM warms up at every start."""
    from flashinfer.jit.sampling import gen_sampling_module

    return gen_sampling_module().build_and_load()


PARTS: dict[str, tuple[Callable[[], Any], str]] = {
    "FusedAdam": (fused_adam, "multi_tensor_adam"),
    "CPUAdam": (cpu_adam, "adam_update"),
    "sampler": (sampler, "top_k_sampling_from_probs"),
}


def main() -> None:
    """Build each, and say what was found in it and how long it took; exit code 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pip", action="store_true", help="take pip's compiler")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, if none is named")
    args = parser.parse_args()
    if not (built := machine.torch_cuda()):
        sys.exit(f"{sys.executable} has no torch with CUDA; install requirements-gpu.txt")
    if args.pip:
        home = compiler.pip_home(compiler.to_version(built)) or sys.exit("pip has installed no CUDA compiler here")
        os.environ["CUDA_HOME"] = str(compiler.make_links(home))
    compiler.provide()
    if os.environ[compiler.CHOSEN] == compiler.NONE:
        sys.exit(1)
    home = Path(os.environ["CUDA_HOME"])
    print(f"torch {built}, {home}: nvcc {'.'.join(map(str, compiler.compiler_version(home) or ()))}", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TORCH_EXTENSIONS_DIR": f"{folder}/torch", "FLASHINFER_WORKSPACE_BASE": folder}
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0")
            os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", os.environ["TORCH_CUDA_ARCH_LIST"])
            os.environ["DS_ACCELERATOR"] = "cuda"
            stand_in_for_the_driver(Path(folder))
            torch.cuda.is_available = lambda: True
        for name in args.parts or PARTS:
            build, function = PARTS[name]
            start = time.monotonic()
            try:
                getattr(build(), function)
                print(f"{name}: compiled, loaded, has {function} ({time.monotonic() - start:.0f} s)", flush=True)
            except Exception as error:
                failed.append(name)
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
        for library in sorted(Path(folder).rglob("*.so")):
            if library.name != "libcuda.so":
                found = subprocess.run(["ldd", str(library)], capture_output=True, text=True).stdout
                cuda = [line.strip() for line in found.splitlines() if "cuda" in line or "curand" in line]
                print(f"{library.name} is linked with: {'; '.join(cuda)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
