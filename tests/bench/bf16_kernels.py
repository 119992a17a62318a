"""What the CPU backend gains: ``python tests/bench/bf16_kernels.py [--repeats 3]``.

One forward and backward pass of SmolLM2-135M-Instruct in bf16 over 4 x 64 tokens: torch as it is, with the float32
kernels for bf16 products and attention, and with those and the allocator settings. A CPU with bf16
units does not use the kernels.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from common import ROOT

PASS = """
import sys, time
import torch
from orlhf_ext.backends import kernels
if "kernels" in sys.argv[1]: kernels.multiply_bf16_in_float32(torch)
if "allocator" in sys.argv[1]: kernels.keep_freed_memory()
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.bfloat16, attn_implementation="sdpa")
ids = torch.randint(0, 49000, (4, 64), generator=torch.Generator().manual_seed(0))
times = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    model(ids).logits.float().logsumexp(-1).mean().backward()
    times.append(time.perf_counter() - start)
print(sorted(times)[len(times) // 2])
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    from orlhf_ext.models.small_models import make_smollm2

    model = make_smollm2(ROOT / "models" / "smollm2-135m-instruct")
    sides: dict[str, list[float]] = {"torch": [], "kernels": [], "kernels+allocator": []}
    for _ in range(args.repeats):
        for side, times in sides.items():
            passes = "1" if side == "torch" else "4"
            words = [sys.executable, "-c", PASS, side, str(model), passes]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
            times.append(float(done.stdout))
    for side, times in sides.items():
        print(f"{side}: median {statistics.median(times):.2f} s (min {min(times):.2f}, max {max(times):.2f})")


if __name__ == "__main__":
    main()
