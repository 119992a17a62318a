"""Which form of the reward ``likelihood`` teaches a policy to reason, where the answer can be verified?

``python studies/likelihood_forms.py [--seeds 5] [--out TABLE.md] [--plot CURVES.svg] [--json FILE]``

The task. A prompt is two digits p, q and three keys of two digits: ``"pq+ab,cd,ef:"``. The right reasoning is the
number s = (p + q) mod 3, and the answer is key s. A response is ``"s=xy"``. The tiny Llama of the tests is first
trained on texts whose reasoning is right in 30 % and a random number otherwise, and whose answer follows from the
reasoning that stands there (each digit in 90 %, else a random one): it can reason in either way, believes its
reasoning, and is right in about two of five. Then it is trained by the reward alone. In the variant ``prose``, gold
texts go on behind the answer with 20 random consonants, which nothing can foresee and no reasoning changes: a long gold
text of which a small part depends on the reasoning.

What is real: the reward class with its flags, its scores under the policy as it is (and under the model before the
training, for ``reference``), OpenRLHF's `PolicyLoss`, advantages as ``group_norm`` has them. What is not: sampling is
by transformers, in this process and in float32, without Ray, vLLM and DeepSpeed. ``logprob_sum`` is left out:
``group_norm`` makes the same of it as of ``logprob_mean``.

Said before any of it was run: a form *learns* a variant if its accuracy on 1000 new prompts, sampled at temperature 1,
rises over five seeds with a 95 % interval above 0, and by half or more of what the reward ``exact`` (1 for the right
answer) gains. Against a form counts an interval that includes 0, or less than a quarter of that gain. ``shuffled``
(``logprob_mean`` with the gold texts of other prompts) must not gain: if it does, the study measures something else
than the likelihood of the right answer, and is worth nothing. Expected: with ``short`` all forms learn; with ``prose``,
``prob`` does not, because exp(S) of 20 unforeseeable consonants is below 1e-25; ``prob_mean`` is hurt least by them.

The learning rate is to be chosen by ``exact`` alone, on a seed (100) that is none of the five.
"""

from __future__ import annotations

import argparse
import random
import string
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from common import add_outputs, add_workers, interval, write_outputs

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {"short": 0, "prose": 20}  # letters behind the answer
CONSONANTS = "bcdfghjklmnpqrstvwxz"  # of which the tokenizer joins no two
FORMS = ("logprob_mean", "prob", "prob_mean", "prob_geo", "jepo", "nover")
CONDITIONS = ("exact", *FORMS, "reference", "shuffled")
RIGHT, FOLLOWS = 0.3, 0.9
FIRST_BATCH, FIRST_LR, FIRST_STEPS = 128, 1e-3, 4000  # of steps at most
GOOD_START, LOOK_EVERY = 0.41, 100  # accuracy that is enough, of 0.44 that such texts allow; steps between two looks
STEPS, PROMPTS, SAMPLES, LR = 60, 16, 8, 3e-4
KEYS, DIGITS = 3, 2
PROMPT_TOKENS, RESPONSE = 12, 4  # tokens; of a response: s = x y
TEST_PROMPTS = 1000


class Problem(NamedTuple):
    """A prompt, its right reasoning, and its gold text."""

    prompt: str
    reasoning: str
    gold: str


def draw(generator: random.Random, letters: int) -> tuple[Problem, list[str]]:
    """A problem, and its keys."""
    p, q = generator.randrange(10), generator.randrange(10)
    keys = ["".join(generator.choices(string.digits, k=DIGITS)) for _ in range(KEYS)]
    prose = "".join(generator.choices(CONSONANTS, k=letters))
    right = (p + q) % KEYS
    return Problem(f"{p}{q}+{','.join(keys)}:", str(right), keys[right] + prose), keys


def first_text(generator: random.Random, letters: int) -> str:
    """What the policy is made from: a text that reasons well or badly, and believes it."""
    problem, keys = draw(generator, letters)
    chosen = int(problem.reasoning) if generator.random() < RIGHT else generator.randrange(KEYS)
    answer = [d if generator.random() < FOLLOWS else generator.choice(string.digits) for d in keys[chosen]]
    return f"{problem.prompt}{chosen}={''.join(answer)}{problem.gold[DIGITS:]}."


class Policy:
    """A tiny model in float32 with its tokenizer, which knows digits and letters as single tokens."""

    def __init__(self, folder: Path, seed: int, letters: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from orlhf_ext.models.folder import load_tokenizer
        from orlhf_ext.models.small_models import make_tiny

        make_tiny(folder, seed=seed)
        self.folder, self.letters = folder, letters
        self.tokenizer = load_tokenizer(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).float()
        torch.manual_seed(seed)

    def encode(self, texts: Sequence[str]) -> Any:
        """``(B, T)`` of texts that have as many tokens each."""
        import torch

        return torch.tensor(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def begin(self, generator: random.Random) -> int:
        """The training before: next tokens of texts, the prompt's left out, until they are learned; its steps."""
        import torch

        optimizer = torch.optim.AdamW(self.model.parameters(), FIRST_LR, betas=(0.9, 0.95), weight_decay=0.0)
        for step in range(1, FIRST_STEPS + 1):
            ids = self.encode([first_text(generator, self.letters) for _ in range(FIRST_BATCH)])
            logits = self.model(input_ids=ids).logits[:, PROMPT_TOKENS - 1 : -1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, PROMPT_TOKENS:].flatten(), reduction="none"
            ).view(len(ids), -1)
            # response and prose weigh alike, or a long prose would leave little for the response
            (losses[:, :RESPONSE].mean() + losses[:, RESPONSE:].mean()).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % LOOK_EVERY == 0 and accuracy(self, 1000 + step) >= GOOD_START:
                return step
        raise RuntimeError(f"no good start after {FIRST_STEPS} steps")

    def sample(self, prompts: Any) -> Any:
        """``(B, RESPONSE)`` tokens behind prompts ``(B, T)``, at temperature 1."""
        import torch

        ids = prompts
        with torch.no_grad():
            for _ in range(RESPONSE):
                logits = self.model(input_ids=ids).logits[:, -1]
                ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        return ids[:, prompts.shape[1] :]

    def logprobs(self, prompts: Any, responses: Any) -> Any:
        """``(B, RESPONSE)``"""
        import torch

        ids = torch.cat([prompts, responses], 1)
        logits = self.model(input_ids=ids).logits[:, prompts.shape[1] - 1 : -1]
        return logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]


class Scorer:
    """Log-probabilities under a model as it is, as a run's actors give them."""

    device = "cpu"

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, token_ids: Any, masks: Any) -> list[list[float]]:
        """Of the tokens whose mask is 1."""
        from orlhf_ext.models.likelihood import span_logprobs
        from orlhf_ext.rewards.scorers import to_span

        spans = [to_span(ids, mask) for ids, mask in zip(token_ids, masks, strict=True)]
        return [found.tolist() for found in span_logprobs(self._model, spans)]


def accuracy(policy: Policy, seed: int) -> float:
    """The share of new prompts whose sampled answer is the right one."""
    problems = [draw(generator, 0)[0] for generator in [random.Random(f"test {seed}")] for _ in range(TEST_PROMPTS)]
    texts = policy.tokenizer.batch_decode(policy.sample(policy.encode([one.prompt for one in problems])))
    return sum(text.partition("=")[2] == one.gold for text, one in zip(texts, problems, strict=True)) / len(problems)


def make_reward(condition: str, policy: Policy, before: Any) -> Callable[[Any], list[float]]:
    """Rewards of a batch of rollouts."""
    from orlhf_ext.rewards import RewardContext
    from orlhf_ext.rewards.combine import RewardSet
    from orlhf_ext.rewards.likelihood import Likelihood

    if condition == "exact":
        return lambda batch: [float(one.response.partition("=")[2] == one.label[:DIGITS]) for one in batch]
    form: Any = condition if condition in FORMS else "logprob_mean"
    model: Any = "reference" if condition == "reference" else "policy"
    reward = Likelihood(form=form, model=model, cut="=", opener="=", closer=".", gate="off")
    args = SimpleNamespace(
        actor=SimpleNamespace(model_name_or_path=str(policy.folder)), ds=SimpleNamespace(param_dtype="fp32")
    )
    rewards = RewardSet([reward])
    rewards.setup(RewardContext(policy.tokenizer, args, "cpu", Scorer(before), Scorer(policy.model)))
    return lambda batch: rewards.score(batch).rewards


def group_norm(rewards: Sequence[float]) -> Any:
    """OpenRLHF's advantages: by the mean and the deviation of a prompt's samples; equal ones get 0."""
    import torch

    table = torch.tensor(rewards, dtype=torch.float64).view(-1, SAMPLES)
    apart = table - table.mean(1, keepdim=True)
    apart[table.amax(1) == table.amin(1)] = 0
    return (apart / (table.std(1, keepdim=True) + 1e-9)).flatten().float()


def train(policy: Policy, condition: str, seed: int, lr: float) -> list[float]:
    """The mean accuracy of the samples of each step."""
    import copy

    import torch
    from openrlhf.models.loss import PolicyLoss

    from orlhf_ext.rewards import RewardBatch, Rollout

    generator = random.Random(f"train {seed}")
    reward = make_reward(condition, policy, copy.deepcopy(policy.model))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.0)
    loss, curve = PolicyLoss(), []
    for _ in range(STEPS):
        problems = [draw(generator, policy.letters)[0] for _ in range(PROMPTS)]
        labels = [one.gold for one in problems]
        given = labels[1:] + labels[:1] if condition == "shuffled" else labels
        prompts = policy.encode([one.prompt for one in problems]).repeat_interleave(SAMPLES, 0)
        responses = policy.sample(prompts)
        rollouts = [
            Rollout(
                id=f"{i}",
                prompt=problems[i // SAMPLES].prompt,
                response=policy.tokenizer.decode(response),
                label=given[i // SAMPLES],
                token_ids=[*prompt.tolist(), *response.tolist()],
                action_mask=[0] * len(prompt) + [1] * RESPONSE,
                group=i // SAMPLES,
            )
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        right = [one.response.partition("=")[2] == labels[one.group or 0][:DIGITS] for one in rollouts]
        curve.append(sum(right) / len(right))
        advantages = group_norm(reward(RewardBatch(rollouts)))[:, None].expand(-1, RESPONSE)
        now = policy.logprobs(prompts, responses)
        loss(now, now.detach(), advantages, torch.ones_like(now))[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return curve


def study(variant: str, seed: int, lr: float, conditions: Sequence[str]) -> dict[str, Any]:
    """One seed of a variant: every condition from the same start."""
    import copy

    from orlhf_ext import backends

    backends.install()  # OpenRLHF's loss is imported without flash-attn
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"variant": variant, "seed": seed, "before": 0.0, "after": {}, "curves": {}}
    with tempfile.TemporaryDirectory() as temporary:
        policy = Policy(Path(temporary) / "tiny", seed, VARIANTS[variant])
        policy.begin(random.Random(f"first {seed}"))
        start = copy.deepcopy(policy.model.state_dict())
        torch.manual_seed(seed)
        found["before"] = accuracy(policy, seed)
        for condition in conditions:
            policy.model.load_state_dict(start)
            torch.manual_seed(seed)
            found["curves"][condition] = train(policy, condition, seed, lr)
            found["after"][condition] = accuracy(policy, seed)
            words = f"{variant} seed {seed} {condition}: {found['before']:.3f} -> {found['after'][condition]:.3f}"
            print(words, file=sys.stderr, flush=True)
    return found


def verdict(condition: str, gains: tuple[float, float], exact: float) -> str:
    """What the study said beforehand about such a gain."""
    mean, half = gains
    if condition == "exact":
        return ""
    if mean - half <= 0 or mean < exact / 4:
        return "no"
    return "yes" if mean >= exact / 2 else "undecided"


def table(results: Sequence[dict[str, Any]], conditions: Sequence[str]) -> str:
    """Markdown: a row for each condition; means and halves of the intervals over seeds."""
    variants = list(dict.fromkeys(one["variant"] for one in results))
    lines = ["| reward | " + " | ".join(f"{name}: accuracy | gain | learns" for name in variants) + " |"]
    lines.append("|---" * (1 + 3 * len(variants)) + "|")
    cells = [
        f"{interval([one['before'] for one in results if one['variant'] == name])[0]:.3f} | |" for name in variants
    ]
    lines.append(f"| before | {' | '.join(cells)} |")
    for condition in conditions:
        cells = []
        for name in variants:
            rows = [one for one in results if one["variant"] == name]
            gains = interval([one["after"][condition] - one["before"] for one in rows])
            exact, _ = interval([one["after"][conditions[0]] - one["before"] for one in rows])
            after, half = interval([one["after"][condition] for one in rows])
            cells.append(
                f"{after:.3f} ± {half:.3f} | {gains[0]:+.3f} ± {gains[1]:.3f} | {verdict(condition, gains, exact)}"
            )
        lines.append(f"| {f'`{condition}`'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict[str, Any]], conditions: Sequence[str], out: Path) -> None:
    """Accuracy of the samples by step, means over seeds, smoothed over five steps: an SVG file."""
    import altair as alt
    import pandas as pd

    rows = []
    for name in dict.fromkeys(one["variant"] for one in results):
        for condition in conditions:
            curves = [one["curves"][condition] for one in results if one["variant"] == name]
            means = [sum(step) / len(step) for step in zip(*curves, strict=True)]
            for step in range(4, len(means)):
                value = sum(means[step - 4 : step + 1]) / 5
                rows.append({"variant": name, "reward": condition, "step": step + 1, "accuracy": value})
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("step:Q"),
            y=alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("reward:N", sort=list(conditions), scale=alt.Scale(scheme="tableau10")),
        )
        .properties(width=260, height=200)
        .facet(column=alt.Column("variant:N", sort=list(VARIANTS)))
        .configure(background="white")
    )
    chart.save(str(out))


def main() -> None:
    """Run all, two seeds at a time; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="how many, from --first (%(default)s)")
    add("--first", type=int, default=0, help="seed (%(default)s)")
    words = "the others are held against the first"
    add("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS, help=words)
    add("--lr", type=float, default=LR, help="(%(default)s)")
    add_workers(parser)
    add_outputs(parser)
    args = parser.parse_args()
    began = time.monotonic()
    seeds = range(args.first, args.first + args.seeds)
    with ProcessPoolExecutor(args.workers) as pool:
        work = [pool.submit(study, variant, seed, args.lr, args.conditions) for seed in seeds for variant in VARIANTS]
        results = [one.result() for one in work]
    write_outputs(
        args, began, results, table(results, args.conditions), lambda out: plot(results, args.conditions, out)
    )


if __name__ == "__main__":
    main()
