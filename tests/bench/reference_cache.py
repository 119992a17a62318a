"""What ``--exo.cache_reference`` saves.

``python tests/bench/reference_cache.py [--model DIR] [--rows 48] [--pairs 3]``

The cached side finds its cache filled, as every run after the first does; the first run's extra seconds are told apart.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import Run, interleave, ratio, run, small_llama, spread
from exo_vs_trl import MICRO, THREADS, parse, prepare


def main() -> None:
    """Measure and print."""
    args = parse(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        args.model = args.model or small_llama(Path(temporary))
        model = args.model.resolve()
        data = Path(temporary) / "pairs.jsonl"
        prepare(model, data, args.rows)

        def side(out: Path, *more: str | Path) -> Run:
            flags = [
                *("--model.model_name_or_path", model, "--ref.model_name_or_path", model, "--data.dataset", data),
                *("--data.max_len", "256", "--train.batch_size", MICRO, "--train.micro_batch_size", MICRO),
                *("--exo.loss_type", "exo-pref", "--logger.tensorboard_dir", out / "tb"),
                *("--ckpt.output_dir", out / "model", "--ckpt.path", out / "ckpt"),
            ]
            words = [sys.executable, "-m", "orlhf_ext.launch", "train_dpo", "--ext.use", "exo", *flags, *more]
            return run(words, out, **THREADS)

        cache = Path(temporary) / "cache"
        first = side(Path(temporary) / "first", "--exo.cache_reference", cache)
        pairs = interleave(lambda out: side(out, "--exo.cache_reference", cache), side, args.pairs)
    spread("step, cached", [a.step for a, _ in pairs], "s")
    spread("step, reference in the loop", [b.step for _, b in pairs], "s")
    ratio("step time, cached / in the loop", [a.step / b.step for a, b in pairs])
    ratio("whole process, cached / in the loop", [a.wall / b.wall for a, b in pairs])
    ratio("peak memory, cached / in the loop", [a.peak_mib / b.peak_mib for a, b in pairs])
    spread("peak memory, cached", [a.peak_mib for a, _ in pairs], "MiB")
    spread("peak memory, in the loop", [b.peak_mib for _, b in pairs], "MiB")
    print(f"the run that filled the cache took {first.wall:.1f} s")


if __name__ == "__main__":
    main()
