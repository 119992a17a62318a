"""What likelihoods cost: ``python tests/bench/likelihood_cost.py [--steps 24]``.

One ``train_ppo_ray`` of the smoke recipe's size (``ncp_vrcli.sh``: the tiny model, 8 prompts of 1000 tokens and 4
samples a step) with three rewards on the same labels: ``vrcli``, and ``likelihood`` under the reference and under the
policy. Each logs its own seconds for every batch, and so a step has one of each. A step's time is that between
TensorBoard's events, without what the other two take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, ratio, run, scalar_events, spread, step_seconds

sys.path.append(str(ROOT / "tests/support"))
from ray_runs import flags

NAMES = ("vrcli", "reference", "policy")
SAMPLES = 4


def make_data(folder: Path) -> None:
    """The model, and records with gold texts and baselines."""
    from orlhf_ext.models.small_models import make_tiny

    make_tiny(folder / "model", positions=2048)
    data = "story sample --out data --limit 16 --shuffle --context_words 40 --gold_words 20 --tokenizer model"
    room = "--max_prompt_tokens 1384 --max_tokens 1900"
    base = "--model model --data data/train.jsonl --out base/train.jsonl"
    for words in (f"orlhf_ext.build_data {data} {room}", f"orlhf_ext.vrcli.baseline {base}"):
        run([sys.executable, "-m", *words.split()], folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="of the run, two of which warm up (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder)
        words = [word for name in NAMES for word in ("--ext.reward", f"likelihood_cost_rewards:{name.title()}")]
        for name in NAMES[1:]:
            words += [f"--{name}.model", name, f"--{name}.cut", "none", f"--{name}.least_spread", "0"]
        changes = {
            "data.prompt_dataset": folder / "base/train.jsonl",
            "data.apply_chat_template": True,
            "data.max_len": 1400,
            "rollout.batch_size": 8,
            "rollout.n_samples_per_prompt": SAMPLES,
            "train.batch_size": 16,
            "train.num_episodes": args.steps // 2,
            "actor.adam.lr": 1e-7,  # responses stay as long as they are
            "logger.tensorboard_dir": folder / "tb",
        }
        launch = ["-m", "orlhf_ext.launch", "train_ppo_ray", *words]
        run([sys.executable, *launch, *flags(folder / "model", **changes)], folder)
        steps = step_seconds(folder / "tb", "train/rollout/reward_mean")[2:]
        seconds = {
            name: [event.value for event in scalar_events(folder / "tb", f"train/{name}/seconds")][3:] for name in NAMES
        }
        rows = next((folder / "out/rollouts").glob("*.jsonl")).read_bytes().splitlines()
        tokens = statistics.mean(len(json.loads(row)["token_ids"]) for row in rows)
        print(f"{len(steps)} steps of {len(rows)} samples, {tokens:.0f} tokens each")
        for name, values in seconds.items():
            spread(f"seconds of {name}", values, "s")
        plain = [step - sum(values) for step, *values in zip(steps, *seconds.values(), strict=True)]
        spread("step without rewards", plain, "s")
        vrcli, reference, policy = seconds.values()
        ratio("likelihood under the reference / vrcli", [a / b for a, b in zip(reference, vrcli, strict=True)])
        with_policy = [(step + mine) / (step + other) for step, mine, other in zip(plain, policy, vrcli, strict=True)]
        ratio("step with likelihood under the policy / step with vrcli", with_policy)
        alone = [(step + mine) / step for step, mine in zip(plain, policy, strict=True)]
        ratio("step with likelihood under the policy / step without a reward", alone)


if __name__ == "__main__":
    main()
