"""Does it matter for EXO who samples: the model at the start, the policy of the last round, or the policy itself?

``python studies/online_exo.py [--seeds 5] [--out TABLE.md] [--plot FRONTIER.svg] [--json FILE]``

The task is that of `likelihood_forms`: two digits and three keys, a response that reasons and answers; here the gold
reward is known, 1 for the right answer and 0 for any other. All begin with one model, which is right in about two of
five, and use equally many samples: 60 steps of 16 prompts with 8 samples each.

- ``offline``: EXO on samples of the model at the start, as ``train_dpo --ext.use exo``.
- ``semi-online``: the same in three rounds of 20 steps, each on samples of the policy that it begins with, as
  ``ROUNDS=3 bash recipes/hh_exo.sh``.
- ``online``: each step on samples of the policy as it is, as ``train_ppo_ray --ext.use online-exo``. The tests of
  `orlhf_ext.exo` show that OpenRLHF's own loss has this loss's gradient there.
- ``online dpo-rw``: the same with the other loss.
- ``grpo``: OpenRLHF's `PolicyLoss` with advantages as ``group_norm`` has them, and the penalty ``k3``.

EXO and DPO have beta_pi 0.1 and beta_r 0.5, and GRPO's penalty is their product. The reference is the model at the
start. What is not real: sampling is by transformers, in this process and in float32, without Ray, vLLM and DeepSpeed.

Said before any of it was run. Every ten steps the accuracy on 1000 new prompts is measured, sampled at temperature 1,
and the KL to the reference on these samples; accuracies are compared at one KL, the largest that all methods of a seed
have reached, on the straight lines between measurements. *For* sampling from the policy counts that ``online`` is
above ``offline`` there over five seeds with a 95 % interval above 0, *against* it an interval that includes 0; the same
of ``semi-online``. Online EXO is *as good as* GRPO if the interval of their difference includes 0 and is within 0.05.

Each method has the learning rate of `RATES` with the highest accuracy after 60 steps on a seed (100) that is none of
the five (``--tune`` prints them all).
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import TUNED_ON, add_outputs, add_workers, interval, write_outputs
from likelihood_forms import (
    PROMPTS,
    RESPONSE,
    SAMPLES,
    STEPS,
    Policy,
    draw,
    group_norm,
)

BETA_PI, BETA_R = 0.1, 0.5
EVERY, TEST_PROMPTS = 10, 1000
ROUNDS = {"offline": 1, "semi-online": 3, "online": STEPS, "online dpo-rw": STEPS, "grpo": STEPS}
RATES = (1e-4, 3e-4, 1e-3)
#: what ``--tune`` found
LR = {"offline": 1e-4, "semi-online": 3e-4, "online": 3e-4, "online dpo-rw": 3e-4, "grpo": 3e-4}


def sample(policy: Policy, generator: random.Random, prompts: int, samples: int) -> tuple[Any, Any, Any]:
    """Prompts ``(B, T)``, responses ``(B, RESPONSE)`` and gold rewards ``(B,)``, the samples of a prompt in a row."""
    import torch

    problems = [draw(generator, 0)[0] for _ in range(prompts)]
    ids = policy.encode([one.prompt for one in problems]).repeat_interleave(samples, 0)
    responses = policy.sample(ids)
    texts = policy.tokenizer.batch_decode(responses)
    right = [text.partition("=")[2] == problems[i // samples].gold for i, text in enumerate(texts)]
    return ids, responses, torch.tensor(right, dtype=torch.float32)


def measure(policy: Policy, reference: Policy, seed: int) -> tuple[float, float]:
    """Accuracy on new prompts, and the KL to the reference in nats a response."""
    import torch

    ids, responses, right = sample(policy, random.Random(f"test {seed}"), TEST_PROMPTS, 1)
    with torch.no_grad():
        ratios = (policy.logprobs(ids, responses) - reference.logprobs(ids, responses)).sum(1)
    return right.mean().item(), ratios.mean().item()


def loss_of(method: str, policy: Policy, batch: tuple[Any, Any, Any, Any]) -> Any:
    """The loss of a step, whose batch has the reference's log-probabilities behind the rewards."""
    import torch
    from openrlhf.models.loss import PolicyLoss

    from orlhf_ext.exo.losses import kwise_loss

    ids, responses, rewards, reference = batch
    logprobs = policy.logprobs(ids, responses)
    if method == "grpo":
        advantages = group_norm(rewards.tolist())[:, None].expand(-1, RESPONSE)
        apart = reference - logprobs
        penalty = (apart.exp() - 1 - apart).mean()
        return PolicyLoss()(logprobs, logprobs.detach(), advantages, torch.ones_like(logprobs))[0] + (
            BETA_PI * BETA_R * penalty
        )
    sums = (tensor.view(-1, SAMPLES) for tensor in (logprobs.sum(1), reference.sum(1), rewards))
    return kwise_loss(*sums, "dpo-rw" if method == "online dpo-rw" else "exo-rw", BETA_PI, BETA_R)


def train(method: str, policy: Policy, reference: Policy, seed: int, lr: float) -> list[tuple[float, float]]:
    """Accuracy and KL at the start and after every ten steps."""
    import torch

    generator = random.Random(f"train {seed}")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.0)
    found = [measure(policy, reference, seed)]
    batches: list[tuple[Any, Any, Any, Any]] = []
    for step in range(STEPS):
        if step % (STEPS // ROUNDS[method]) == 0:  # a round begins
            for _ in range(STEPS // ROUNDS[method]):
                ids, responses, rewards = sample(policy, generator, PROMPTS, SAMPLES)
                with torch.no_grad():
                    batches.append((ids, responses, rewards, reference.logprobs(ids, responses)))
        loss_of(method, policy, batches[step]).backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0:
            found.append(measure(policy, reference, seed))
    return found


def study(seed: int, rates: dict[str, Sequence[float]]) -> dict[str, Any]:
    """One seed: every method, at each of its rates, from the same start."""
    from orlhf_ext import backends

    backends.install()  # OpenRLHF's loss is imported without flash-attn
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"seed": seed, "curves": {}}
    with tempfile.TemporaryDirectory() as temporary:
        policy = Policy(Path(temporary) / "tiny", seed, 0)
        policy.begin(random.Random(f"first {seed}"))
        reference = copy.copy(policy)
        reference.model = copy.deepcopy(policy.model)
        for method, some in rates.items():
            for lr in some:
                policy.model.load_state_dict(reference.model.state_dict())
                torch.manual_seed(seed)
                curve = train(method, policy, reference, seed, lr)
                found["curves"][method if len(some) == 1 else f"{method} {lr:g}"] = curve
                words = ", ".join(f"{right:.3f} at {kl:.2f}" for right, kl in curve[:: len(curve) - 1])
                print(f"seed {seed} {method} {lr:g}: {words} nats", file=sys.stderr, flush=True)
    return found


def at_kl(curve: Sequence[tuple[float, float]], kl: float) -> float:
    """Accuracy at a KL that the curve reaches, the first time that it does."""
    for (right, here), (later, there) in pairwise(curve):
        if there >= kl > here:
            return right + (later - right) * (kl - here) / (there - here)
    return curve[0][0] if kl <= curve[0][1] else curve[-1][0]


def compare(results: Sequence[dict[str, Any]]) -> tuple[list[float], dict[str, list[float]]]:
    """Of each seed, the largest KL that all methods reach, and their accuracies there."""
    levels = [min(max(kl for _, kl in curve) for curve in one["curves"].values()) for one in results]
    return levels, {
        method: [at_kl(one["curves"][method], kl) for one, kl in zip(results, levels, strict=True)] for method in LR
    }


def verdict(method: str, difference: tuple[float, float]) -> str:
    """What the study said beforehand of a difference from ``offline``, or of GRPO's from ``online``."""
    mean, half = difference
    if method == "grpo":
        return "as good" if abs(mean) <= half and abs(mean) + half <= 0.05 else "not as good, or undecided"
    return "for" if mean - half > 0 else "against"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracies at one KL, their differences from ``offline`` and ``online``, and those of the last step."""
    levels, at_level = compare(results)
    start = interval([one["curves"]["offline"][0][0] for one in results])
    lines = [
        f"{len(results)} seeds, mean ± half of the 95 % interval. At the start: {start[0]:.3f} ± {start[1]:.3f}. "
        f"Compared at {', '.join(f'{kl:.2f}' for kl in levels)} nats.",
        "",
        "| method | accuracy at that KL | minus offline | minus online | at the end | KL there |",
        "|---|---|---|---|---|---|",
    ]
    for method, values in at_level.items():
        cells = [interval(values)]
        cells += [
            interval([a - b for a, b in zip(values, at_level[other], strict=True)]) for other in ("offline", "online")
        ]
        ends = [interval([one["curves"][method][-1][i] for one in results]) for i in (0, 1)]
        told = [f"{cells[0][0]:.3f} ± {cells[0][1]:.3f}", *(f"{mean:+.3f} ± {half:.3f}" for mean, half in cells[1:])]
        told += [f"{ends[0][0]:.3f} ± {ends[0][1]:.3f}", f"{ends[1][0]:.2f}"]
        if method in ("semi-online", "online"):
            told[1] += f", {verdict(method, cells[1])}"
        if method == "grpo":
            told[2] += f", {verdict(method, cells[2])}"
        lines.append(f"| {method} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Accuracy against KL, a line for each method, means over seeds of the measurements: an SVG file."""
    import altair as alt
    import pandas as pd

    rows = []
    for method in LR:
        curves = [one["curves"][method] for one in results]
        for step, points in enumerate(zip(*curves, strict=True)):
            right, kl = (sum(values) / len(values) for values in zip(*points, strict=True))
            rows.append({"method": method, "step": step * EVERY, "accuracy": right, "KL (nats a response)": kl})
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(strokeWidth=1.8, point=True)
        .encode(
            x=alt.X("KL (nats a response):Q"),
            y=alt.Y("accuracy:Q", scale=alt.Scale(zero=False)),
            order="step:Q",
            color=alt.Color("method:N", sort=list(LR), scale=alt.Scale(scheme="tableau10")),
        )
        .properties(width=480, height=280)
        .configure(background="white")
    )
    chart.save(str(out))


def main() -> None:
    """Run all, two seeds at a time; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="how many, from 0 (%(default)s)")
    add("--tune", action="store_true", help=f"every rate, on seed {TUNED_ON}; no table")
    add_workers(parser)
    add_outputs(parser)
    args = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(args.workers) as pool:
        if args.tune:
            pool.submit(study, TUNED_ON, {method: RATES for method in LR}).result()
            return
        rates = {method: [lr] for method, lr in LR.items()}
        results = [one.result() for one in [pool.submit(study, seed, rates) for seed in range(args.seeds)]]
    write_outputs(args, began, results, table(results), lambda out: plot(results, out))


if __name__ == "__main__":
    main()
