"""Does EXO find more reward than DPO for the same KL, where reward and optimum are known?

``python studies/exo_frontier.py [--seeds 5] [--out TABLE.md] [--plot FRONTIER.svg] [--json FILE]``

The paper's claim (Ji et al., ICML 2024, section 3): a policy that cannot represent the optimum is better fitted by the
reverse KL divergence, which seeks its modes, than by DPO's forward one, which covers them. The task can be counted out:
a prompt is eight numbers, a response three tokens of eight, so that a policy's expected reward and its KL to the
reference are sums over 512 responses and no estimate. The gold reward counts tokens in common with the nearest of three
good responses that depend on the prompt, far from each other and of different worth, and has mean 0 and standard
deviation 1 over a prompt's responses. The policy is an autoregressive network with one hidden layer of `HIDDEN` units:
too few for all prompts. The reference is the same network, fitted to ``softmax(gold)``.

All losses are those of `orlhf_ext.exo.losses` and learn from the same `SAMPLES` samples of the reference in groups of
K = 2, 4 or 8; ``*-pref`` is told only which one of a group is the best. They take equally many steps over equally many
samples. After each pass over the samples the expected reward on held-out prompts is measured, and the KL there.

Settings were tried on seeds (101, 102) that are none of the five: the reference was fitted to ``softmax(gold / 2)`` at
first, whose reward was 0.18, and DPO had more reward for its KL there, too.

Said before the five seeds were run. Rewards are compared at one KL, the largest that both losses of a pair and a seed
have reached, on the straight lines between measurements. *For* EXO counts, for a pair of losses, a K and a beta_pi,
that its reward minus DPO's has a 95 % interval over five seeds above 0; *against* it, one below 0; else it is
undecided. The plot has the exact optimum, ``reference * exp(gold / beta)`` over all beta, as the ceiling.

Added when the first run was seen: the objective that the losses from rewards share, reward minus beta_pi * beta_r times
KL, at the end.

Each loss, K and beta_pi has the learning rate of `RATES` with the highest reward at the end on a seed (100) that is
none of the five.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import TUNED_ON, interval, run
from online_exo import at_kl
from torch import nn

from orlhf_ext.exo.losses import kwise_loss

FEATURES, TOKENS, LENGTH, HIDDEN, GOOD = 8, 8, 3, 24, 3
TRAIN_PROMPTS, TEST_PROMPTS, SAMPLES = 1024, 512, 8192
BATCH, EPOCHS = 256, 12  # samples in a step, passes over all of them
LOSSES = ("exo-rw", "dpo-rw", "exo-pref", "dpo-pref")
KS, BETAS_PI, BETA_R = (2, 4, 8), (0.1, 0.5), 0.5
RATES = (3e-4, 1e-3, 3e-3, 1e-2)

#: every response, ``(512, 3)``
RESPONSES = torch.cartesian_prod(*[torch.arange(TOKENS)] * LENGTH)


class Policy(nn.Module):
    """An autoregressive network: the prompt and the tokens so far in, the next token's logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES + LENGTH * (TOKENS + 1), HIDDEN)
        self.out = nn.Linear(HIDDEN, TOKENS)

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        """Log-probabilities ``(prompts, 512)`` of all responses, in nats; ``prompts`` is ``(prompts, FEATURES)``."""
        total = torch.zeros(len(prompts), 1)
        for place in range(LENGTH):
            prefixes = RESPONSES[:: TOKENS ** (LENGTH - place), :place]  # (8 ** place, place)
            seen = torch.full((len(prefixes), LENGTH), TOKENS)
            seen[:, :place] = prefixes
            words = nn.functional.one_hot(seen, TOKENS + 1).flatten(1).float()
            both = torch.cat([prompts[:, None].expand(-1, len(words), -1), words.expand(len(prompts), -1, -1)], -1)
            steps = self.out(torch.tanh(self.hidden(both))).log_softmax(-1)  # (prompts, 8 ** place, 8)
            total = (total[:, :, None] + steps).flatten(1)
        return total


def gold(prompts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rewards ``(prompts, 512)``: mean 0 and standard deviation 1 for each prompt."""
    found = []
    for worth in (1.0, 0.9, 0.8)[:GOOD]:
        inner = torch.randn(FEATURES, 2 * FEATURES, generator=generator)
        outer = torch.randn(2 * FEATURES, LENGTH * TOKENS, generator=generator)
        target = (torch.tanh(prompts @ inner) @ outer).view(-1, LENGTH, TOKENS).argmax(-1)
        found.append(worth * (target[:, None] == RESPONSES).float().mean(-1) ** 2)
    rewards = torch.stack(found).amax(0)
    return (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)


def fit_reference(prompts: torch.Tensor, rewards: torch.Tensor) -> Policy:
    """A policy fitted to ``softmax(gold)`` by the cross entropy."""
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(400):
        loss = -(rewards.softmax(-1) * policy(prompts)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.requires_grad_(False)


def batches(count: int, k: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of the groups of each step of a pass: as many samples a step for every K."""
    yield from torch.randperm(count, generator=generator).split(BATCH // k)


def train(start: Policy, task: dict[str, torch.Tensor], loss: str, k: int, beta_pi: float, lr: float) -> Any:
    """Reward and KL (nats a response) on held-out prompts, at the start and after each pass."""
    policy = Policy()
    policy.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    which = task["which"].repeat_interleave(task["responses"].shape[1] // k)
    responses, labels, reference = (task[name].view(-1, k) for name in ("responses", "labels", "reference"))
    curve = [measure(policy, task)]
    for _ in range(EPOCHS):
        for some in batches(len(which), k, generator):
            logps = policy(task["prompts"][which[some]]).gather(1, responses[some])
            optimizer.zero_grad()
            kwise_loss(logps, reference[some], labels[some], loss, beta_pi, BETA_R).backward()
            optimizer.step()
        curve.append(measure(policy, task))
    return curve


@torch.no_grad()
def measure(policy: Policy, task: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Expected reward and KL to the reference, exact, as means over the held-out prompts."""
    return expected(policy(task["test_prompts"]), task)


def expected(logps: torch.Tensor, task: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The same of log-probabilities ``(prompts, 512)``."""
    reward = (logps.exp() * task["test_gold"]).sum(-1).mean()
    return reward.item(), (logps.exp() * (logps - task["test_reference"])).sum(-1).mean().item()


def make_task(seed: int) -> tuple[Policy, dict[str, torch.Tensor]]:
    """The reference, its labelled samples ``(TRAIN_PROMPTS, 8)``, and the held-out prompts with their gold rewards."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    everything = torch.randn(TRAIN_PROMPTS + TEST_PROMPTS, FEATURES, generator=generator)
    rewards = gold(everything, generator)
    prompts, labels = everything[:TRAIN_PROMPTS], rewards[:TRAIN_PROMPTS]
    reference = fit_reference(prompts, labels)
    logps = reference(prompts)
    responses = torch.multinomial(logps.exp(), SAMPLES // TRAIN_PROMPTS, replacement=True, generator=generator)
    task = {
        "prompts": prompts,
        "which": torch.arange(TRAIN_PROMPTS),
        "responses": responses,
        "labels": labels.gather(1, responses),
        "reference": logps.gather(1, responses),
        "test_prompts": everything[TRAIN_PROMPTS:],
        "test_gold": rewards[TRAIN_PROMPTS:],
        "test_reference": reference(everything[TRAIN_PROMPTS:]),
    }
    return reference, task


def ceiling(task: dict[str, torch.Tensor]) -> list[tuple[float, float]]:
    """Reward and KL of the exact optimum, over beta."""
    betas = (1e9, 4, 2, 1, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
    return [expected((task["test_reference"] + task["test_gold"] / beta).log_softmax(-1), task) for beta in betas]


def study(seed: int, rates: dict[str, Sequence[float]]) -> dict[str, Any]:
    """One seed: every loss, K and beta_pi, at each of its learning rates, from the same reference and samples."""
    torch.set_num_threads(1)
    reference, task = make_task(seed)
    found: dict[str, Any] = {"seed": seed, "ceiling": ceiling(task), "curves": {}}
    for loss, k, beta_pi in product(LOSSES, KS, BETAS_PI):
        name = name_of(loss, k, beta_pi)
        curves = {lr: train(reference, task, loss, k, beta_pi, lr) for lr in rates[name]}
        best = max(curves, key=lambda lr: curves[lr][-1][0])
        found["curves"][name] = curves[best]
        found.setdefault("rates", {})[name] = best
    print(f"seed {seed}: reference {found['ceiling'][0][0]:.3f}", file=sys.stderr, flush=True)
    return found


def name_of(loss: str, k: int, beta_pi: float) -> str:
    """How results name a way to train."""
    return f"{loss} K={k} {beta_pi:g}"


def verdict(difference: tuple[float, float]) -> str:
    """What the study said beforehand of EXO's reward minus DPO's."""
    mean, half = difference
    return "for" if mean - half > 0 else "against" if mean + half < 0 else "undecided"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: EXO minus DPO at one KL, and what each reaches at the end."""
    start = interval([one["ceiling"][0][0] for one in results])
    lines = [
        f"{len(results)} seeds, mean ± half of the 95 % interval. The reference's reward: {start[0]:.3f} ± "
        f"{start[1]:.3f}.",
        "",
        "| losses | K | β_π | at KL (nats) | EXO | DPO | EXO minus DPO | | at the end: EXO (KL) | DPO (KL) "
        "| objective, EXO minus DPO |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, beta_pi, k in product(("rw", "pref"), BETAS_PI, KS):
        names = [name_of(f"{way}-{kind}", k, beta_pi) for way in ("exo", "dpo")]
        pairs = [[one["curves"][name] for name in names] for one in results]
        levels = [min(max(kl for _, kl in curve) for curve in pair) for pair in pairs]
        exo, dpo = ([at_kl(pair[i], kl) for pair, kl in zip(pairs, levels, strict=True)] for i in (0, 1))
        gain = interval([a - b for a, b in zip(exo, dpo, strict=True)])
        ends = [[interval([pair[i][-1][j] for pair in pairs])[0] for j in (0, 1)] for i in (0, 1)]
        means = [interval(values)[0] for values in (levels, exo, dpo)]
        told = [kind, f"{k}", f"{beta_pi:g}", f"{means[0]:.2f}", *(f"{mean:.3f}" for mean in means[1:])]
        told += [f"{gain[0]:+.3f} ± {gain[1]:.3f}", verdict(gain), *(f"{r:.3f} ({kl:.2f})" for r, kl in ends)]
        penalty = beta_pi * BETA_R  # what a nat costs
        values = [[pair[i][-1][0] - penalty * pair[i][-1][1] for i in (0, 1)] for pair in pairs]
        objective = interval([a - b for a, b in values])
        told.append(f"{objective[0]:+.3f} ± {objective[1]:.3f}" if kind == "rw" else "")
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Reward against KL, a panel for each K and kind of label, means over seeds: an SVG file."""
    import altair as alt
    import pandas as pd

    def mean(curves: Sequence[Sequence[tuple[float, float]]]) -> Iterator[tuple[int, float, float]]:
        for step, points in enumerate(zip(*curves, strict=True)):
            reward, kl = (sum(values) / len(values) for values in zip(*points, strict=True))
            yield step, reward, kl

    rows, best = [], list(mean([one["ceiling"] for one in results]))
    for loss, k, beta_pi in product(LOSSES, KS, BETAS_PI):
        panel = {"K": f"K = {k}", "learns from": "rewards" if loss.endswith("rw") else "the best one"}
        found = mean([one["curves"][name_of(loss, k, beta_pi)] for one in results])
        line = f"{loss.partition('-')[0].upper()}, β_π {beta_pi:g}"
        rows += [{**panel, "loss": line, "step": s, "reward": r, "KL (nats)": kl} for s, r, kl in found]
    most = max(row["KL (nats)"] for row in rows)
    for panel in {(row["K"], row["learns from"]) for row in rows}:
        for step, reward, kl in best:
            if kl <= most:
                named = dict(zip(("K", "learns from"), panel, strict=True))
                rows.append({**named, "loss": "optimum", "step": step, "reward": reward, "KL (nats)": kl})
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(strokeWidth=1.6, point=alt.OverlayMarkDef(size=14))
        .encode(
            x="KL (nats):Q",
            y=alt.Y("reward:Q", scale=alt.Scale(zero=False)),
            order="step:Q",
            color=alt.Color("loss:N", scale=alt.Scale(scheme="tableau10")),
        )
        .properties(width=230, height=190)
        .facet(column="K:N", row="learns from:N")
        .configure(background="white")
    )
    chart.save(str(out))


def tune() -> dict[str, list[float]]:
    """The learning rate of each loss, K and beta_pi."""
    names = [name_of(*way) for way in product(LOSSES, KS, BETAS_PI)]
    return {name: [lr] for name, lr in study(TUNED_ON, dict.fromkeys(names, RATES))["rates"].items()}


if __name__ == "__main__":
    run(__doc__, study, table, plot, tune)
