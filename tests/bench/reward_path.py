"""Our reward path against OpenRLHF's own: ``python tests/bench/reward_path.py [--pairs 3] [--steps 32]``.

Both sides are ``train_ppo_ray`` on the tiny model with the same reward: ``--ext.reward`` here, ``--reward.remote_url
FILE.py`` there, which scores each sample as soon as it is generated, in a thread. Ours scores a batch when all of it is
there. Once with a reward that takes no time, and once with one that waits 50 ms a sample; ours then waits for all
samples at the same time, theirs for as many as asyncio has threads. The step time is that between TensorBoard's events.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, Run, interleave, ratio, run, scalar_events, spread, step_seconds, tiny_model

sys.path.append(str(ROOT / "tests/support"))
from ray_runs import flags, write_inputs

PROMPTS, SAMPLES = 8, 4  # of a step, and of a prompt
SIDES: dict[str, dict[str, Any]] = {
    "ours": {"ext.reward": "reward_path_rewards:Letters"},
    "theirs": {"reward.remote_url": Path(__file__).with_name("reward_path_rewards.py")},
}


def make_side(name: str, folder: Path, steps: int, wait: float, generation: list[float]) -> Callable[[Path], Run]:
    """What runs one side; the seconds of its generations, rewards included, are added to a list."""

    def side(out: Path) -> Run:
        changes = {
            "data.prompt_dataset": folder / "prompts.jsonl",
            "rollout.batch_size": PROMPTS,
            "rollout.n_samples_per_prompt": SAMPLES,
            "actor.adam.lr": 1e-7,  # responses stay as long as they are
            "ext.rollouts_dir": None,
            "logger.tensorboard_dir": out / "tb",
        }
        words = ["-m", "orlhf_ext.launch", "train_ppo_ray", *flags(folder / "tiny", **changes, **SIDES[name])]
        done = run([sys.executable, *words], out, ORLHF_EXT_BENCH_SECONDS=str(wait / 1000))
        seconds = step_seconds(out / "tb", "train/rollout/reward_mean")
        assert len(seconds) == steps - 1, f"{len(seconds) + 1} steps instead of {steps}"
        generation.extend(event.value for event in scalar_events(out / "tb", "train/timing/generation")[3:])
        return Run(done.wall, seconds, done.peak_mib, out)

    return side


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="of runs with each reward (%(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="of a run (%(default)s)")
    parser.add_argument("--waits", type=float, nargs="+", default=[0, 50], metavar="MS", help="a sample (0 50)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny_model(folder)
        write_inputs(folder, PROMPTS * args.steps)
        for wait in args.waits:
            generation: dict[str, list[float]] = {name: [] for name in SIDES}
            ours, theirs = (make_side(name, folder, args.steps, wait, generation[name]) for name in SIDES)
            pairs = interleave(ours, theirs, args.pairs, warm_up=False)
            print(f"a reward that waits {wait:g} ms a sample; steps of {PROMPTS * SAMPLES} samples, {args.steps} a run")
            spread("step, --ext.reward", [a.step for a, _ in pairs], "s")
            spread("step, --reward.remote_url", [b.step for _, b in pairs], "s")
            ratio("step time, ours / theirs", [a.step / b.step for a, b in pairs])
            for name, values in generation.items():
                spread(f"generation with its rewards, {name}", values, "s")


if __name__ == "__main__":
    main()
