"""Training a policy for the worst group: with noisy labels, and where nobody says who is in which group.

``python studies/groups.py [--seeds 5] [--out TABLE.md] [--plot GROUPS.svg] [--json FILE]``

The tastes are those of ``tests/bench/group_study.py``: a response is eight words of kinds A, C and others, a minority's
gold score is zA + zC, the majority's -zA + zC, with z-scores of the counts under the policy at the start. A fifth of 40
annotators are of the minority; each labels 25 pairs by his group's gold score, and a share of his labels is flipped.
Reward models are the heads of `orlhf_ext.models.group_heads` on a random linear map of the words' counts, trained by
`group_pair_loss`: ``one head`` for all pairs, ``MaxMin`` and ``SharedRep`` with the true groups, and ``EM, U groups``
(`orlhf_ext.groups.em`), which is told only who labelled what: two groups, which is right, or three or four. The policy
draws each word from one distribution and is trained by policy gradients for the least of the standardised heads, all
with one KL to the start, `KL` nats a response; with ``gdpo`` in its name, for what `orlhf_ext.rewards.gdpo` makes of
the heads, each normalised among the samples and then added. ``gold`` is trained for the least of the true scores: the
ceiling. What is measured is the true expected score of each group, a sum and no estimate. What is not real: the policy
has 16 weights.

Settings were tried on a seed (101) that is none of the five. The first design had a penalty of 0.1 a nat in place of a
held KL: policies then went 10 nats from the start, where one head served the minority as well as two (3.18 against
3.16). The KL of a best of 16 was set after that; the design decides whether heads for groups matter.

Said before the five seeds were run. At a share of flipped labels, a method *helps the worst group* if its gold score
there is above that of ``one head`` by a paired 95 % interval over five seeds that excludes 0; it *bears* the noise if
it keeps at least 80 % of the ceiling. A wrong number of groups *does no harm* if EM with three or four is less than
0.2 below EM with two, the interval's lower end included. ``gdpo`` *stands in for the minimum* if it is less than 0.2
below the same heads' minimum, the interval's lower end included; expected with few flipped labels, where a sum of
opposed tastes leaves what both agree on, and not with many, since it does not look at who is worst off.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import interval, run

from orlhf_ext.groups.aggregate import aggregate, standardise
from orlhf_ext.groups.em import EM
from orlhf_ext.groups.losses import group_pair_loss
from orlhf_ext.models.group_heads import initialise, make_head
from orlhf_ext.models.head_settings import HeadSettings
from orlhf_ext.rewards import gdpo

WORDS, LENGTH, HIDDEN = 16, 8, 32  # words of kind A: 0 to 3, of kind C: 4 to 7
ANNOTATORS, MINORITY, PAIRS = 40, 8, 25
NOISES = (0.0, 0.1, 0.2, 0.3)
EPOCHS, LR, K = 10, 1e-2, 16
STEPS, SAMPLES, POLICY_LR = 200, 256, 0.05
KL, HOLD = 1.8, 5.0  # nats of a response, about those of a best of 16; and how firmly they are held
SUMMED = {"MaxMin, gdpo": "MaxMin", "SharedRep, gdpo": "SharedRep"}  # and the same heads' minimum
EMS = ("EM, 2 groups", "EM, 3 groups", "EM, 4 groups")
METHODS = ("one head", "MaxMin", "SharedRep", *SUMMED, *EMS)


def gold(probabilities: torch.Tensor) -> torch.Tensor:
    """Expected scores ``(..., 2)`` of minority and majority; rows are counts over `LENGTH`, or probabilities."""
    share = torch.stack([probabilities[..., :4].sum(-1), probabilities[..., 4:8].sum(-1)], -1)
    a, c = ((share - 0.25) * LENGTH / (LENGTH * 0.25 * 0.75) ** 0.5).unbind(-1)
    return torch.stack([a + c, c - a], -1)


def counts_of(words: torch.Tensor) -> torch.Tensor:
    """``(..., LENGTH)`` words to ``(..., WORDS)`` shares."""
    return torch.nn.functional.one_hot(words, WORDS).float().mean(-2)


def settings_of(groups: int, shared: bool = False) -> HeadSettings:
    """A head's settings, not squashed, as EM has them."""
    names = [f"g{i}" for i in range(groups)]
    head, k = ("shared", K) if shared else ("independent", None)
    return HeadSettings(names, head, k, squash="identity")


def fit(hidden: torch.Tensor, groups: torch.Tensor, settings: HeadSettings, seed: int) -> torch.nn.Module:
    """Heads trained on pairs ``(pairs, 2, d)``, each on those of its group ``(pairs,)``."""
    generator = torch.Generator().manual_seed(seed)
    head = make_head(hidden.shape[2], settings)
    initialise(head, generator)
    optimizer = torch.optim.AdamW(head.parameters(), LR, weight_decay=0.0)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(hidden), generator=generator).split(64):
            scores = [head(hidden[batch, side]).gather(1, groups[batch, None])[:, 0] for side in (0, 1)]
            optimizer.zero_grad()
            group_pair_loss(*scores, "identity").backward()
            optimizer.step()
    return head.requires_grad_(False)


def least(scores: torch.Tensor, moments: tuple[list[float], list[float]]) -> torch.Tensor:
    """The reward ``(B,)`` of heads' scores ``(B, U)``: the least of a response, each head standardised."""
    return aggregate(standardise(scores, *moments), "min")


def summed(scores: torch.Tensor) -> torch.Tensor:
    """The reward ``(B,)`` of heads' scores ``(B, U)`` of one prompt's samples, as gdpo has it."""
    return torch.tensor(gdpo.whiten(gdpo.sums_of_z(scores.T.tolist(), [1.0] * scores.shape[1], [range(len(scores))])))


def train_policy(reward: Callable[[torch.Tensor], torch.Tensor], seed: int) -> tuple[list[float], float]:
    """The groups' true scores of a policy that is trained for a reward of shares ``(B, WORDS)``, and its KL in nats."""
    torch.manual_seed(seed)
    logits = torch.zeros(WORDS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], POLICY_LR)
    for _ in range(STEPS):
        logps = logits.log_softmax(-1)
        words = torch.multinomial(logps.detach().exp().expand(SAMPLES, -1), LENGTH, replacement=True)
        rewards = reward(counts_of(words))
        kl = LENGTH * (logps.exp() * (logps + torch.tensor(WORDS).log())).sum()
        loss = -((rewards - rewards.mean()) * logps[words].sum(-1)).mean() + HOLD * (kl - KL).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return gold(logits.softmax(-1)).tolist(), kl.item()


def study(seed: int) -> dict[str, Any]:
    """One seed: every method at every noise."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    pairs = counts_of(torch.randint(WORDS, (ANNOTATORS * PAIRS, 2, LENGTH), generator=generator))
    seen = torch.randn(WORDS, HIDDEN, generator=generator)
    annotators = torch.arange(ANNOTATORS).repeat_interleave(PAIRS)
    group = (annotators >= MINORITY).long()
    start = counts_of(torch.randint(WORDS, (4096, LENGTH), generator=generator)) @ seen
    found: dict[str, Any] = {"seed": seed, "gold": train_policy(lambda x: gold(x).amin(-1), seed)[0], "rows": []}
    for noise in NOISES:
        scores = gold(pairs).gather(2, group[:, None, None].expand(-1, 2, 1))[..., 0]
        flipped = (torch.rand(len(pairs), generator=generator) < noise) ^ (scores[:, 0] < scores[:, 1])
        hidden = torch.where(flipped[:, None, None], pairs.flip(1), pairs) @ seen
        for method in METHODS:
            own, settings = group, settings_of(2, method.startswith("SharedRep"))
            if method == "one head":
                own, settings = torch.zeros_like(group), settings_of(1)
            elif method.startswith("EM"):
                settings = settings_of(int(method.split()[1]))
                em = EM(settings, lr=LR)
                with contextlib.redirect_stdout(io.StringIO()):
                    which, fits = em.best(hidden, annotators, seed, 4)
                own = fits[which].assignment[annotators]
            head = fit(hidden, own, settings, seed)
            of_start = head(start)
            moments = of_start.mean(0).tolist(), of_start.std(0).tolist()

            combine = summed if method in SUMMED else partial(least, moments=moments)
            ends, kl = train_policy(lambda shares: combine(head(shares @ seen)), seed)  # noqa: B023
            found["rows"].append({"noise": noise, "method": method, "gold": ends, "worst": min(ends), "kl": kl})
    print(f"seed {seed} done", file=sys.stderr, flush=True)
    return found


def worst(results: Sequence[dict[str, Any]], method: str, noise: float) -> list[float]:
    """The worst group's score of each seed."""
    return [r["worst"] for one in results for r in one["rows"] if (r["method"], r["noise"]) == (method, noise)]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: the worst group's gold score by method and noise, with what was said beforehand."""
    ceiling = interval([min(one["gold"]) for one in results])
    lines = [
        f"{len(results)} seeds, the worst group's gold score, mean ± half of the 95 % interval; the ceiling is "
        f"{ceiling[0]:.2f} ± {ceiling[1]:.2f}. +: helps the worst group; bold: bears the noise.",
        "",
        f"| reward | {' | '.join(f'{noise:.0%} flipped' for noise in NOISES)} |",
        f"|{'---|' * (len(NOISES) + 1)}",
    ]
    for method in METHODS:
        cells = []
        for noise in NOISES:
            values = worst(results, method, noise)
            mean, half = interval(values)
            told = f"{mean:.2f} ± {half:.2f}"
            if mean >= 0.8 * ceiling[0]:
                told = f"**{told}**"
            gain = interval([a - b for a, b in zip(values, worst(results, "one head", noise), strict=True)])
            cells.append(f"{told} +" if gain[0] - gain[1] > 0 else told)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "| one minus another |" + " |" * len(NOISES), f"|{'---|' * (len(NOISES) + 1)}"]
    pairs = [(method, EMS[0], "no harm") for method in EMS[1:]]
    for method, than, words in [*pairs, *((one, other, "stands in") for one, other in SUMMED.items())]:
        both = [zip(worst(results, method, noise), worst(results, than, noise), strict=True) for noise in NOISES]
        gaps = [interval([a - b for a, b in values]) for values in both]
        told = [f"{mean:+.2f} ± {half:.2f}{f', {words}' if mean - half > -0.2 else ''}" for mean, half in gaps]
        lines.append(f"| {method} minus {than} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict[str, Any]], out: Path) -> None:
    """The worst group's score against noise, with intervals: an SVG file."""
    import altair as alt
    import pandas as pd

    rows = []
    for method in METHODS:
        for noise in NOISES:
            mean, half = interval(worst(results, method, noise))
            rows.append({"reward": method, "flipped": noise, "score": mean, "low": mean - half, "high": mean + half})
    colours = alt.Color("reward:N", sort=list(METHODS), scale=alt.Scale(scheme="tableau10"))
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("flipped:Q", title="labels that are flipped", axis=alt.Axis(format="%")), color=colours
    )
    line = base.mark_line(point=True).encode(y=alt.Y("score:Q", title="worst group's gold score"))
    chart = line + base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    chart.properties(width=480, height=260).configure(background="white").save(str(out))


if __name__ == "__main__":
    run(__doc__, study, table, plot)
