"""Output folders of recipes for the tests of the report: invented samples, evaluated by the real commands."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import write

from orlhf_ext.commands import evaluate
from orlhf_ext.deadend import evaluate as deadend
from orlhf_ext.files.records import read_object, write_json
from orlhf_ext.groups import evaluate as groups
from orlhf_ext.judge import compare as judging
from orlhf_ext.judge.tournament import Game
from orlhf_ext.litbench import evaluate as litbench
from orlhf_ext.reports.summaries import write_summary
from orlhf_ext.vrcli import evaluate as vrcli

#: whether a report can be drawn here
DRAWS = all(importlib.util.find_spec(name) for name in ("altair", "jinja2", "tensorboard", "vl_convert"))
NEEDS = "a report needs the packages of the extra `report`"

#: what a page must show as text, whatever it looks like
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> {{7*7}} \u2028 & \"quoted\""

TEXT = (
    "the river kept its own counsel and we walked along it until evening came and somebody asked whether bread can be "
    "baked without an oven which it can if you have a heavy pot a slow fire and the patience to leave it closed"
)

GROUPS = """
groups:
  - {name: minority, proportion: 0.1, weights: {helpful: 1.0}}
  - {name: majority, proportion: 0.9, weights: {helpful: 0.3, harmless: 0.7}}
"""


def sentence(draw: random.Random, words: int) -> str:
    """Some words, with a capital and a full stop."""
    text = " ".join(draw.choice(TEXT.split()) for _ in range(words))
    return f"{text[:1].upper()}{text[1:]}."


def prompts(draw: random.Random, count: int) -> dict[str, str]:
    """Prompts by id; one is hostile, one has no word in common with the others."""
    found = {f"p{i:03d}": f"\n\nHuman: {sentence(draw, draw.randint(6, 40))}\n\nAssistant:" for i in range(count)}
    found["p001"] = f"\n\nHuman: {HOSTILE}\n\nAssistant:"
    found["p002"] = "\n\nHuman: zebra?\n\nAssistant:"
    return found


def begin(out: Path, recipe: str, seconds: Mapping[str, float], **more: Any) -> None:
    """``run.json``, as a recipe leaves it."""
    versions = {"orlhf_ext": "0.1", "openrlhf": "0.11.2", "torch": "2.13.0", "vllm": "0.29.0", "transformers": "5.15.0"}
    data = {"source": "sample", "train": 160, "test": 40, "dropped": {"train": {}, "test": {}}}
    known = {"recipe": recipe, "profile": "cpu", "model": "models/smollm2-135m-instruct", "seed": 1234, **more}
    write_json(out / "run.json", {**known, "versions": versions, "seconds": dict(seconds), "data": data})


def finish(out: Path, summary: Path) -> None:
    """``summary.json``, as a recipe leaves it."""
    (out / "summary.json").write_bytes(summary.read_bytes())


def log(out: Path, training: str, curves: Mapping[str, Callable[[int], float]], steps: int) -> None:
    """Event files of TensorBoard."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(out / "tb" / training))
    for step in range(1, steps + 1):
        values = [Summary.Value(tag=tag, simple_value=curve(step)) for tag, curve in curves.items()]
        writer.add_event(Event(step=step, wall_time=0.0, summary=Summary(value=values)))
    writer.close()


def fading(draw: random.Random, start: float, end: float, steps: int, noise: float = 0.03) -> Callable[[int], float]:
    """A curve from one value to another."""
    return lambda step: end + (start - end) * 0.5 ** (5 * step / steps) + draw.gauss(0, noise * abs(start - end))


def exo(out: Path, seed: int = 0, loss: str = "exo-rw", count: int = 40) -> Path:
    """A run of hh_exo with two checkpoints."""
    draw = random.Random(seed)
    asked, samples = prompts(random.Random(0), count), out / "samples"
    hard = {name: draw.gauss(0, 0.5) for name in asked}

    def sampled(shift: float, **more: float) -> list[dict[str, Any]]:
        rows = []
        for name, prompt in asked.items():
            rewards = [draw.gauss(hard[name] + shift, 0.25) for _ in range(2)]
            texts = [" " + sentence(draw, draw.randint(4, 45)) for _ in rewards]
            row = {"id": name, "prompt": prompt, "completions": texts, "rewards": rewards}
            row["token_ids"] = [[5] * (len(text.split()) + 1) for text in texts]
            if more:
                row["logprobs_policy"] = [draw.gauss(-60, 5) for _ in rewards]
                row["logprobs_sft"] = [one - draw.gauss(more["kl"], 1.5) for one in row["logprobs_policy"]]
            rows.append(row)
        return rows

    write(samples / "sft.jsonl", sampled(0))
    write(samples / "step10.jsonl", sampled(0.15, kl=1.4))
    write(samples / "step20.jsonl", sampled(0.35, kl=4.2))
    write(samples / "chosen.jsonl", [{**row, "token_ids": [[1], [1]]} for row in sampled(0.2)])
    stages = {"data": 2.1, "sft": 61.0, "rm": 58.2, "sample_train": 44.0, "align": 151.3, "sample_test/sft": 20.5}
    begin(out, "hh_exo", stages, loss=loss, num_contrastive=2)
    align = out / f"align_{loss}_nc2"
    words = ["--sft", f"{samples}/sft.jsonl", "--chosen", f"{samples}/chosen.jsonl", "--run", f"{out}/run.json"]
    words += [f"--policy=step{step}={samples}/step{step}.jsonl" for step in (10, 20)]
    evaluate.main([*words, "--out", f"{align}/summary.json"])
    finish(out, align / "summary.json")
    log(out, "sft", {"train/loss_mean": fading(draw, 3.1, 2.2, 20), "train/lr": lambda step: 1e-5}, 20)
    curves = {"train/loss_mean": fading(draw, 0.69, 0.4, 20), "train/acc_mean": fading(draw, 0.5, 0.8, 20)}
    log(out, "rm", {**curves, "train/lr": lambda step: 1e-5, "train/grad_norm": fading(draw, 2, 1, 20)}, 20)
    log(out, f"align_{loss}_nc2", {"train/loss_mean": fading(draw, 0.7, 0.5, 20), "train/lr": lambda step: 1e-5}, 20)
    return out


def grouped(out: Path, count: int = 30) -> Path:
    """A run of hh_groups with two seeds and their grid."""
    draw = random.Random(3)
    asked = prompts(random.Random(0), count)
    begin(out, "hh_groups", {"data": 3.0, "sft": 50.0, "policy/gold-seed1": 120.0, "policy/gold-seed2": 121.0})
    (out / "groups.yaml").write_text(GROUPS)
    summaries = []
    for seed in (1, 2):
        words = ["--groups", f"{out}/groups.yaml", "--sft", f"{out}/samples/sft-{seed}.jsonl"]
        shifts = {"sft": (0, 0), "gold": (0.4, 0.3), "maxmin": (0.3, 0.4), "sharedrep": (0.35, 0.35)}
        for name, (helpful, harmless) in shifts.items():
            rows = [
                {
                    "id": key,
                    "prompt": prompt,
                    "completions": [" " + sentence(draw, draw.randint(4, 30))],
                    "traits": {"helpful": [draw.gauss(helpful, 0.6)], "harmless": [draw.gauss(harmless, 0.6)]},
                }
                for key, prompt in asked.items()
            ]
            write(out / "samples" / f"{name}-{seed}.jsonl", rows)
            words += [] if name == "sft" else [f"--policy={name}={out}/samples/{name}-{seed}.jsonl"]
            curves = {"train/reward": fading(draw, 0, helpful, 24), "train/kl": fading(draw, 0, 0.1, 24)}
            curves |= {"train/policy_loss": fading(draw, 0.1, 0, 24), "train/response_length": fading(draw, 30, 24, 24)}
            if name != "sft":
                log(out, f"policy_{name}-seed{seed}", {**curves, "train/timing/generation": lambda step: 2.0}, 24)
        own = out / "runs" / f"prop0.1-seed{seed}-k16"
        write_json(own / "run.json", {"recipe": "hh_groups", "proportion": 0.1, "k": 16, "seed": seed})
        groups.main([*words, "--run", f"{own}/run.json", "--out", f"{own}/summary.json"])
        summaries.append(f"{own}/summary.json")
    groups.main(["--grid", *summaries, "--out", f"{out}/grid.json"])
    finish(out, Path(summaries[-1]))
    return out


def rectified(out: Path, count: int = 40) -> Path:
    """A run of jigsaw_rectify with a control and two epsilons."""
    draw = random.Random(4)
    asked = list(prompts(random.Random(0), count).values())
    begin(out, "jigsaw_rectify", {"data/prompts": 2.0, "classifier": 90.0, "q_d": 80.0, "decode/plain": 30.0})
    names = {"plain": (0.55, 3.0), "shuffled0.3": (0.55, 3.3), "eps0.1": (0.45, 3.15), "eps0.3": (0.3, 3.4)}
    likelihoods: dict[str, list[list[tuple[float, int]]]] = {}
    for name, (toxic, nats) in names.items():
        rows = [
            {
                "prompt": {"text": prompt},
                "generations": [
                    {"text": " " + sentence(draw, 9), "toxicity": draw.betavariate(4 * toxic, 4 * (1 - toxic))}
                    for _ in range(4)
                ],
            }
            for prompt in asked
        ]
        write(out / "generations" / f"{name}.jsonl", rows)
        likelihoods[name] = [[(draw.gauss(nats, 0.3) * 12, 12) for _ in range(4)] for _ in asked]
    words = [f"{name}={out}/generations/{name}.jsonl" for name in names]
    summary = out / "evaluation" / "summary.json"
    with pytest.MonkeyPatch.context() as patch:  # no language model is needed to draw its perplexity
        patch.setattr(deadend, "all_likelihoods", lambda *_: likelihoods)
        words += ["--controls", "shuffled0.3"]
        deadend.main([*words, "--perplexity_model", "x", "--run", f"{out}/run.json", "--out", str(summary)])
    finish(out, summary)
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "count": 50 - 5 * i, "texts": 9, "predicted": i / 10 + 0.05}
        | {"observed": i / 11 + 0.03, "interval": [max(0, i / 11 - 0.05), i / 11 + 0.12]}
        for i in range(8)
    ]
    write_json(out / "calibration.json", {"bins": bins, "expected_calibration_error": 0.031})
    curves = {"train/loss_mean": fading(draw, 0.3, 0.1, 30), "train/deadend/q_mean": fading(draw, 0, -0.3, 30)}
    log(out, "q_d", curves, 30)
    return out


def planned(out: Path, count: int = 30) -> Path:
    """A run of ncp_vrcli."""
    draw = random.Random(5)
    asked = prompts(random.Random(0), count)
    begin(out, "ncp_vrcli", {"data": 1.0, "baseline": 20.0, "train": 300.0, "sample/before": 15.0})
    for when, gain in (("before", -1.2), ("after", 0.6)):
        rows = []
        for name in asked:
            value = draw.gauss(gain, 1.5)
            rows.append({"id": name, "sample": 0, "plan": f"In summary: {sentence(draw, 20)}", "reward": value})
            rows[-1] |= {"pct_improvement": value, "nll": 2.4, "base_nll": 2.5, "plan_tokens": 24, "marker": True}
            rows[-1]["empty"] = False
        write(out / "plans" / f"{when}.jsonl", rows)
    chats = [{"id": key, "prompt": [{"role": "user", "content": text}]} for key, text in asked.items()]
    data = write(out / "data" / "test.jsonl", chats)
    summary = out / "policy" / "summary.json"
    words = [f"--{when}={out}/plans/{when}.jsonl" for when in ("before", "after")]
    vrcli.main([*words, "--data", str(data), "--run", f"{out}/run.json", "--out", str(summary), "--show", "0"])
    finish(out, summary)
    curves = {"train/reward": fading(draw, -1, 0.5, 40), "train/kl": fading(draw, 0, 0.05, 40, 0.1)}
    log(out, "policy", {**curves, "train/policy_loss": fading(draw, 0.05, 0, 40)}, 40)
    return out


def judged(out: Path, count: int = 120) -> Path:
    """A run of litbench_btrm."""
    draw = random.Random(6)
    begin(out, "litbench_btrm", {"data": 4.0, "train": 200.0, "score": 12.0}, run="bt_reward_x")
    rows = []
    for i in range(count):
        stories = [sentence(draw, draw.randint(20, 90)) for _ in range(2)]
        margin = draw.gauss(0.6, 1.2)
        rows.append({"id": f"p{i}", "prompt": sentence(draw, 12), "completions": stories, "rewards": [margin, 0.0]})
    rows[1]["prompt"], rows[2]["prompt"] = HOSTILE, "zebra"
    results = out / "results" / "bt_reward_x"
    write(results / "scored.jsonl", rows)
    words = ["--pairs", f"{results}/scored.jsonl", "--run", f"{out}/run.json", "--out", f"{results}/summary.json"]
    litbench.main(words)
    finish(out, results / "summary.json")
    log(out, "bt_reward_x", {"train/loss_mean": fading(draw, 0.69, 0.5, 30), "eval/eval_loss": lambda step: 0.6}, 30)
    return out


def preferred(out: Path, count: int = 60) -> Path:
    """A run of litbench_rl; the judge is a die."""
    draw = random.Random(7)
    begin(out, "litbench_rl", {"train": 300.0, "sample/after": 20.0, "evaluate": 12.0})
    names = [f"p{i}" for i in range(count)]
    files = []
    for when, gain in (("before", 0.0), ("after", 0.7)):
        rows = [
            {"id": name, "prompt": sentence(draw, 9), "completions": [sentence(draw, draw.randint(20, 60))]}
            for name in names
        ]
        rows[1]["prompt"], rows[2]["prompt"] = HOSTILE, "zebra"
        files.append(
            str(write(out / "stories" / f"{when}.jsonl", [r | {"rewards": [draw.gauss(gain, 1)]} for r in rows]))
        )
    pairs = judging.read_pairs(*files)
    games = [[Game(0, 1, (draw.gauss(0.8, 1), draw.gauss(-0.6, 1)))] for _ in names]
    metrics, records = judging.compare(pairs, games, False, 0), judging.records_of(pairs, games, False)
    table, summary = judging.table_of(metrics), out / "policy" / "summary.json"
    known = {**read_object(out / "run.json", ""), "command": "judge.compare", "metrics": metrics}
    write_summary(summary, known, f"{judging.caption(metrics)}\n\n{table.markdown(across=True)}", table.csv(), records)
    finish(out, summary)
    log(out, "policy", {"train/reward": lambda step: 0.5, "train/judge/length_corr": fading(draw, 0, 0.3, 30)}, 30)
    return out


#: name of a recipe -> what makes a run of it
KINDS: dict[str, Callable[[Path], Path]] = {
    "hh_exo": exo,
    "hh_groups": grouped,
    "jigsaw_rectify": rectified,
    "ncp_vrcli": planned,
    "litbench_btrm": judged,
    "litbench_rl": preferred,
}
