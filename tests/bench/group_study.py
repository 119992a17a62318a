"""Opposed tastes under control: what MaxMin, SharedRep and a plain reward model find, and what it costs whom.

``python tests/bench/group_study.py [--seeds 5] [--proportion 0.1] [--preset equal|paper] [--out table.md] [--json F]``

A response is eight words of three kinds: A (each with probability 1/4), C (1/4) and others. Two groups of annotators
score it by its counts of A and C, as z-scores of how responses are drawn: the minority by zA + zC, the majority by
-zA + zC. They are opposed on A and agree on C. The minority labels a share ``--proportion`` of the training pairs, and
each pair goes by its own group's gold score (without noise, unless ``--noise`` flips a share of the labels).

For each seed three reward models are trained on the same pairs, by the real launcher, on cached hidden states of the
frozen random model of the tests (in which the counts can be read off linearly: R^2 above 0.98): ``sharedrep`` (shared
head, k = 16), ``maxmin`` (independent heads), ``plain`` (one head, for all pairs). Preset ``equal`` gives them one
squash (tanh), learning rate, batch size and number of epochs; ``paper`` has MaxMin's as its rivals' scripts had them
beside SharedRep: a tenth of the learning rate, no squash, twice the epochs. The learning rate is higher than the
scripts' 5e-4 for three epochs, with which no method is near done on so few pairs.

Reported are the heads' accuracy on held-out pairs of each group, and the gold scores of the best of 16 candidates for
each of 200 prompts by each reward. That stands for reinforcement learning at its optimum: no policy is trained here.
``standardised`` takes each head's z-score before the minimum, as a preference loss leaves a head's offset open.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Run, run, tiny_model

if TYPE_CHECKING:
    import torch

NAMES = ("minority", "majority")
METHODS = ("sharedrep", "maxmin", "plain")
WORDS = {"A": (" a", " e", " i", " o"), "C": (" b", " d", " g", " k"), "other": (" m", " p", " s", " t")}
KINDS = ("A", "C", "other", "other")
LENGTH = 8
PROMPT = "\n\nHuman: hello\n\nAssistant:"
MAX_LEN = 64
LR, EPOCHS, BATCH = 1e-2, 10, 32
TEST_PAIRS = 500  # of each group
EVAL_PAIRS = 64  # of these, for the launcher, which evaluates after every epoch
PROMPTS, CANDIDATES = 200, 16


@dataclass(frozen=True)
class Response:
    """A text, and the two groups' gold scores of it."""

    text: str
    gold: tuple[float, float]


def draw(generator: random.Random) -> Response:
    """A random response."""
    kinds = [generator.choice(KINDS) for _ in range(LENGTH)]
    mean, deviation = LENGTH / 4, (LENGTH * 3 / 16) ** 0.5
    a, c = ((kinds.count(kind) - mean) / deviation for kind in "AC")
    return Response("".join(generator.choice(WORDS[kind]) for kind in kinds), (a + c, c - a))


def draw_pair(generator: random.Random, group: int) -> tuple[Response, Response]:
    """Two responses that the group does not find equal, the better one first."""
    while True:
        one, other = draw(generator), draw(generator)
        if one.gold[group] != other.gold[group]:
            return (one, other) if one.gold[group] > other.gold[group] else (other, one)


def row(identifier: str, group: int, name: str, pair: tuple[Response, Response]) -> dict[str, Any]:
    """A pair as ``train_rm --ext.use group-rm`` takes it."""
    texts = {"prompt": PROMPT, "chosen": pair[0].text, "rejected": pair[1].text}
    return {"id": identifier, "group_id": group, "group": name, "style": "hh", **texts}


@dataclass(frozen=True)
class Data:
    """What a seed gives."""

    folder: Path
    test: tuple[list[tuple[Response, Response]], ...]
    candidates: list[Response]


def make_data(folder: Path, args: argparse.Namespace, seed: int) -> Data:
    """Write the training and the held-out pairs, once with groups and once without."""
    generator = random.Random(f"group study {seed}")
    train = []
    for _ in range(args.pairs):
        group = 0 if generator.random() < args.proportion else 1
        pair = draw_pair(generator, group)
        train.append((group, pair[::-1] if generator.random() < args.noise else pair))
    test = tuple([draw_pair(generator, group) for _ in range(TEST_PAIRS)] for group in (0, 1))
    held_out = [(group, pair) for group in (0, 1) for pair in test[group][:EVAL_PAIRS]]
    folder.mkdir(parents=True)
    for kind in ("groups", "plain"):
        for name, pairs in (("train", train), ("test", held_out)):
            with (folder / f"{kind}-{name}.jsonl").open("w") as stream:
                for number, (group, pair) in enumerate(pairs):
                    own = (group, NAMES[group]) if kind == "groups" else (0, "all")
                    stream.write(json.dumps(row(f"{name}-{number}", *own, pair)) + "\n")
    return Data(folder, test, [draw(generator) for _ in range(PROMPTS * CANDIDATES)])


def train(args: argparse.Namespace, model: Path, cache: Path, data: Data, method: str, seed: int) -> Run:
    """One reward model, by the launcher."""
    kind = "plain" if method == "plain" else "groups"
    paper = args.preset == "paper" and method == "maxmin"
    out = data.folder / method
    flags: list[Any] = ["--model.model_name_or_path", model]
    flags += ["--data.dataset", data.folder / f"{kind}-train.jsonl", "--eval.dataset"]
    flags += [data.folder / f"{kind}-test.jsonl", "--data.prompt_key", "prompt", "--data.max_len", MAX_LEN]
    flags += ["--train.batch_size", BATCH, "--train.micro_batch_size", BATCH, "--train.seed", seed]
    flags += ["--train.max_epochs", args.epochs * (2 if paper else 1), "--adam.lr", args.lr / (10 if paper else 1)]
    flags += ["--lr_scheduler", "linear", "--lr_warmup_ratio", 0, "--groups.squash", "identity" if paper else "tanh"]
    flags += ["--groups.head", "shared" if method == "sharedrep" else "independent"]
    flags += ["--groups.k", args.k] if method == "sharedrep" else []
    flags += ["--groups.cache_features", cache, "--ckpt.output_dir", out / "model", "--ckpt.path", out / "ckpt"]
    words = [sys.executable, "-m", "orlhf_ext.launch", "train_rm", "--ext.use", "group-rm", *flags]
    return run(words, out, HF_DATASETS_CACHE=str(data.folder / "datasets"), HF_HUB_OFFLINE="1")


class Reader:
    """Scores of texts by trained reward models, which all have the same frozen backbone."""

    def __init__(self, model: Path) -> None:
        from orlhf_ext import backends

        backends.install()
        from orlhf_ext.models.folder import load_tokenizer

        self.model, self.tokenizer = model, load_tokenizer(model)

    def hidden(self, responses: list[Response]) -> torch.Tensor:
        """``(responses, d)``"""
        from orlhf_ext.groups import features
        from orlhf_ext.groups.render import encode

        encoded = encode(self.tokenizer, [(PROMPT, one.text) for one in responses], "append", MAX_LEN)
        return features.of_texts(str(self.model), [one.ids for one in encoded], int(self.tokenizer.pad_token_id))

    def head(self, folder: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, list[float]]]:
        """The head of a saved model, ``(B, d)`` to ``(B, U)``, and its means and deviations over held-out texts."""
        import torch
        from safetensors.torch import load_file

        from orlhf_ext.models.group_heads import make_head
        from orlhf_ext.models.head_settings import read_settings

        settings, weights = read_settings(folder, "--model"), load_file(folder / "model.safetensors")
        own = {name.removeprefix("score."): weight for name, weight in weights.items() if name.startswith("score.")}
        made = make_head(own["proj.weight" if settings.head == "shared" else "weight"].shape[1], settings)
        made.load_state_dict(own)
        assert settings.norm is not None
        return torch.no_grad()(made.float()), settings.norm


def measure(data: Data, reader: Reader, methods: dict[str, Path]) -> dict[str, dict[str, float]]:
    """For each reward: accuracies where it has been trained, and gold scores of what it selects."""
    import torch

    from orlhf_ext.groups.aggregate import aggregate, standardise

    pairs = [pair for group in (0, 1) for pair in data.test[group]]
    flat = [response for pair in pairs for response in pair]
    hidden = reader.hidden([*flat, *data.candidates])
    test, candidates = hidden[: len(flat)].view(2, TEST_PAIRS, 2, -1), hidden[len(flat) :]
    gold = torch.tensor([one.gold for one in data.candidates])
    # pairs of a group that the other one would have decided the other way
    opposed = [torch.tensor([a.gold[1 - u] < b.gold[1 - u] for a, b in data.test[u]]) for u in (0, 1)]
    rewards = {"gold": gold.amin(1), "no selection": torch.zeros(len(gold))}
    found: dict[str, dict[str, float]] = {name: {} for name in rewards}
    for method, folder in methods.items():
        head, norm = reader.head(folder)
        scores = head(candidates)
        rewards[method] = aggregate(scores, "min")
        found[method] = {}
        for group, name in enumerate(NAMES):
            own = head(test[group].flatten(0, 1)).view(TEST_PAIRS, 2, -1)[:, :, min(group, scores.shape[1] - 1)]
            right = (own[:, 0] > own[:, 1]).float()
            found[method] |= {
                f"{name}_acc": right.mean().item(),
                f"{name}_acc_opposed": right[opposed[group]].mean().item(),
            }
        if scores.shape[1] > 1:
            rewards[f"{method}, standardised"] = aggregate(standardise(scores, norm["mean"], norm["std"]), "min")
            found[f"{method}, standardised"] = dict(found[method])
    for name, reward in rewards.items():
        best = reward.view(PROMPTS, CANDIDATES).argmax(1) + torch.arange(PROMPTS) * CANDIDATES
        means = gold[best].mean(0).tolist()
        found[name] |= {f"{group}_gold": mean for group, mean in zip(NAMES, means, strict=True)}
        found[name]["worst_gold"] = min(means)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of Student's 95 % interval (NaN for one value)."""
    import numpy as np
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(half)


COLUMNS = {
    "minority_acc": "accuracy, minority",
    "majority_acc": "accuracy, majority",
    "minority_acc_opposed": "minority's opposed pairs",
    "majority_acc_opposed": "majority's opposed pairs",
    "minority_gold": "gold, minority",
    "majority_gold": "gold, majority",
    "worst_gold": "gold, worst group",
}
ORDER = ("gold", "maxmin", "maxmin, standardised", "sharedrep", "sharedrep, standardised", "plain", "no selection")


def table(seeds: dict[int, dict[str, dict[str, float]]], settings: str) -> str:
    """Markdown: a row for each reward; mean and half of the interval over seeds."""
    lines = [settings, "", f"| reward | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in ORDER:
        cells = []
        for column in COLUMNS:
            values = [found[name][column] for found in seeds.values() if column in found[name]]
            mean, half = interval(values) if values else (0.0, 0.0)
            cells.append(f"{mean:.3f} ± {half:.3f}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for one, other in (
        ("sharedrep", "maxmin"),
        ("sharedrep, standardised", "maxmin, standardised"),
        ("plain", "maxmin"),
    ):
        gaps = [found[one]["worst_gold"] - found[other]["worst_gold"] for found in seeds.values()]
        mean, half = interval(gaps)
        lines.append(f"- worst group, ({one}) - ({other}), seed by seed: {mean:+.3f} ± {half:.3f}")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="how many, from 0 (%(default)s)")
    add("--pairs", type=int, default=1000, help="for training (%(default)s)")
    add("--proportion", type=float, default=0.1, help="of the minority (%(default)s)")
    add("--noise", type=float, default=0.0, help="share of the training labels that are flipped (%(default)s)")
    add("--k", type=int, default=16, help="of sharedrep (%(default)s)")
    add("--preset", choices=["equal", "paper"], default="equal")
    add("--lr", type=float, default=LR, help="(%(default)s)")
    add("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    add("--model", type=Path, help="a backbone (default: the tiny random Llama of the tests)")
    add("--out", type=Path, help="for the Markdown table")
    add("--json", type=Path, help="for all numbers")
    return parser.parse_args()


def main() -> None:
    """Train, measure, print."""
    args = parse()
    seeds, seconds = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = (args.model or tiny_model(folder)).resolve()
        reader = Reader(model)
        for seed in range(args.seeds):
            data = make_data(folder / str(seed), args, seed)
            for method in METHODS:
                seconds.append(train(args, model, folder / "cache", data, method, seed).wall)
            seeds[seed] = measure(data, reader, {method: data.folder / method / "model" for method in METHODS})
            print(f"  seed {seed + 1}/{args.seeds}", file=sys.stderr, flush=True)
    facts = {key: getattr(args, key) for key in ("pairs", "proportion", "noise", "k", "preset", "lr", "epochs")}
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    text = table(seeds, f"{args.seeds} seeds; {told}; mean ± half of the 95 % t-interval over seeds")
    print(text)
    print(f"{len(seconds)} trainings, {sum(seconds) / len(seconds):.1f} s each")
    if args.out:
        args.out.write_text(text)
    if args.json:
        args.json.write_text(json.dumps({"settings": facts, "seeds": seeds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
