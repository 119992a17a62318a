"""What injection costs: a null extension against the launcher with the backend alone.

``python tests/bench/null_run.py [--pairs 12]`` prints the ratio per step and the difference in start-up seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import Run, ratio, run, side_by_side, spread, tiny_model, tiny_pairs

STEPS = 128


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = tiny_model(Path(temporary))
        data = tiny_pairs(Path(temporary) / "pairs.jsonl", 8 * STEPS)

        def flags(out: Path) -> list[str | Path]:
            return [
                *("--model.model_name_or_path", model, "--ref.model_name_or_path", model, "--data.dataset", data),
                *("--data.prompt_key", "prompt", "--data.max_len", "96", "--train.batch_size", "8"),
                *("--train.micro_batch_size", "8", "--ckpt.output_dir", out / "model", "--ckpt.path", out / "ckpt"),
                *("--logger.tensorboard_dir", out / "tb", "--ds.attn_implementation", "sdpa"),
            ]

        here = Path(__file__).parent

        def injected(out: Path, core: int) -> Run:
            words = ["-m", "orlhf_ext.launch", "train_dpo", "--ext.use", "null_extension:Null"]
            return run([sys.executable, *words, *flags(out)], out, core)

        def alone(out: Path, core: int) -> Run:
            words = [here / "backend_alone.py", "openrlhf.cli.train_dpo"]
            return run([sys.executable, *words, *flags(out)], out, core)

        pairs = side_by_side(injected, alone, args.pairs)
    spread("step, injected", [a.step for a, _ in pairs], "s")
    spread("step, backend alone", [b.step for _, b in pairs], "s")
    ratio("step time, injected / alone", [a.step / b.step for a, b in pairs])
    start = [(a.wall - sum(a.steps)) - (b.wall - sum(b.steps)) for a, b in pairs]
    spread("start-up, injected - alone", start, "s")


if __name__ == "__main__":
    main()
