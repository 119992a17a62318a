"""The steps of ``run.sh``: each is a function of a `Job` that gives figures, and raises where one is wrong.

Numbers of a GPU are compared with the CPU's in float32, where they differ by rounding alone, and bf16's with float32's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: rounding of float32 over the few hundred terms of a sum; a log-probability in nats
CLOSE = 2e-4
#: of bf16, for a mean log-probability of a token in nats
BF16_CLOSE = 0.1
#: dense bf16 operations a second (vendors' data sheets)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


@dataclass(frozen=True)
class Job:
    """What ``run.py`` asks for."""

    step: str
    device: str
    size: str
    folder: Path


def importable(module: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(module) is not None


def has_gpu() -> bool:
    """Whether torch finds a GPU."""
    import torch

    return torch.cuda.is_available()


# --- what steps share


def llama(job: Job, size: str = "") -> Path:
    """A random Llama, once for all steps: of 0.4 M weights, or of 1.1 B."""
    from orlhf_ext.models.small_models import make_tiny

    tiny = make_tiny(job.folder / "tiny")
    if (size or job.size) == "tiny":
        return tiny
    out = job.folder / "llama-1b"
    if not (out / "config.json").exists():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        tokenizer = AutoTokenizer.from_pretrained(tiny)
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LlamaConfig(
            vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
            num_key_value_heads=4, max_position_embeddings=2048, **ids,
        )  # fmt: skip
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


def load(folder: Path, device: str, dtype: str) -> Any:
    """A causal model in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(device).eval()


def draw_rows(prompts: int, completions: int, prompt: int, response: int, vocabulary: int) -> list[list[int]]:
    """Random token ids, the completions of a prompt one after the other."""
    import random

    draw, rows = random.Random(0), []
    for _ in range(prompts):
        begin = draw.choices(range(3, vocabulary), k=prompt)
        rows += [begin + draw.choices(range(3, vocabulary), k=response) for _ in range(completions)]
    return rows


def check(what: str, difference: float, most: float) -> float:
    """A difference that is small enough."""
    if not difference <= most:
        raise AssertionError(f"{what} differ by {difference:.3g}, more than {most:.3g}")
    return difference


def peak_mib(job: Job) -> int:
    """Peak memory of this process: the GPU's, or the machine's."""
    if job.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def timed(job: Job, compute: Callable[[], Any], times: int = 5) -> float:
    """Median seconds of a computation, after two that do not count."""
    import torch

    seconds = []
    for number in range(times + 2):
        start = time.perf_counter()
        compute()
        if job.device == "cuda":
            torch.cuda.synchronize()
        if number > 1:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def launch(job: Job, name: str, launcher: str, words: str, tokens: int, passes: float) -> dict[str, Any]:
    """A launcher in this process: its losses, median step, tokens a second, MFU and peak memory.

    Args:
        tokens: of an optimizer step.
        passes: forward passes a step costs, of 2 operations a weight and token; a backward pass is two of them.
    """
    from orlhf_ext.launch.launcher import main

    out = job.folder / name
    main([launcher, *words.split(), "--ckpt.output_dir", f"{out}/model", "--logger.tensorboard_dir", f"{out}/tb"])
    from common import scalar_events, step_seconds

    # logged as train/loss, or train/NAME_loss by some of OpenRLHF's trainers
    tag = next(tag for tag in ("train/loss", "train/gpt_loss") if scalar_events(out / "tb", tag))
    losses = [event.value for event in scalar_events(out / "tb", tag)]
    step = statistics.median(step_seconds(out / "tb", tag)[1:])
    found = {"losses": losses[:2], "step_s": step, "tokens_per_s": tokens / step, "peak_mib": peak_mib(job)}
    if job.device == "cuda":
        import torch

        card = torch.cuda.get_device_name()
        weights = sum(file.stat().st_size for file in llama(job).glob("*.safetensors")) / 2
        for key, most in PEAKS.items():
            if key in card:
                found["mfu"] = 2 * weights * passes * tokens / step / most
    return found


def command(job: Job, *words: str, **variables: str) -> float:
    """A command of ours in a process of its own; seconds."""
    start, environment = time.perf_counter(), {**os.environ, **variables}
    subprocess.run([sys.executable, "-m", "orlhf_ext", *words], cwd=job.folder, check=True, env=environment)
    return time.perf_counter() - start


def write_records(job: Job, count: int = 64, completions: int = 2) -> Path:
    """Prompts with completions and rewards."""
    path = job.folder / f"records{count}x{completions}.jsonl"
    lines = [
        {
            "id": f"q{i}",
            "prompt": f"Question {i}: " + "why is that so? " * 12,
            "completions": [f" because of {i * 7 + k} " + "and so on " * (5 + k) for k in range(completions)],
            "rewards": [float(k) for k in range(completions)],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def count_tokens(folder: Path, path: Path) -> float:
    """Tokens of a record's rows, on average."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    texts = [record["prompt"] + text for record in records for text in record["completions"]]
    return sum(map(len, tokenizer(texts)["input_ids"])) / len(records)


# --- the steps, smallest first


def machine(job: Job) -> dict[str, Any]:
    """What is here, and that no backend for CPUs takes part on a GPU."""
    import torch

    from orlhf_ext import backends
    from orlhf_ext.commands import doctor

    found: dict[str, Any] = {"versions": doctor.versions(), "missing": doctor.missing(), "backends": backends.needed()}
    if job.device == "cuda":
        if "cpu" in backends.needed():
            raise AssertionError("the CPU backend is on, on a machine with a GPU")
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "gib": round(properties.total_memory / 2**30), "cuda": torch.version.cuda}
    return found


def losses(job: Job) -> dict[str, Any]:
    """Losses, targets and caps are the CPU's."""
    import torch

    from orlhf_ext.deadend.decoding import rectify
    from orlhf_ext.deadend.loss import sarsa_targets
    from orlhf_ext.exo.losses import kwise_loss
    from orlhf_ext.exo.settings import LOSS_TYPES
    from orlhf_ext.groups.losses import group_pair_loss

    torch.manual_seed(0)
    rows, caps = torch.randn(3, 16, 4), (torch.randn(8, 500), -1.2 * torch.rand(8, 500))
    values, rewards, lengths = -torch.rand(4, 5), -torch.ones(4), torch.tensor([5, 3, 6, 2])
    computations: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        **{loss: (lambda *t, loss=loss: kwise_loss(*t, loss, 0.5, 0.5), tuple(rows)) for loss in LOSS_TYPES},
        "caps": (lambda z, q: rectify(z, q, 0.3).softmax(-1), caps),
        "caps in the limit": (lambda z, q: rectify(z, q, 0.3, None).softmax(-1), caps),
        "targets": (sarsa_targets, (values, rewards, lengths)),
        "pairs": (group_pair_loss, (torch.randn(9), torch.randn(9))),
    }
    worst = {}
    for name, (compute, tensors) in computations.items():
        there = compute(*(tensor.to(job.device) for tensor in tensors)).cpu()
        worst[name] = check(name, (there - compute(*tensors)).abs().max().item(), 1e-5)
    return {"worst": max(worst.values())}


def models(job: Job) -> dict[str, Any]:
    """Log-probabilities, likelihoods and Q_D's values are the CPU's in float32; bf16's are near."""
    import torch
    from deadend_q import make

    from orlhf_ext.deadend.stepper import QStepper
    from orlhf_ext.models.batches import Row
    from orlhf_ext.models.likelihood import make_scorer
    from orlhf_ext.models.logprobs import make_compute
    from orlhf_ext.models.spans import Span

    folder = llama(job, "tiny")
    ids = draw_rows(2, 4, 60, 20, 250)
    rows, spans = [Row(i, 0, row, 60) for i, row in enumerate(ids)], [Span(row, 60) for row in ids]

    def numbers(device: str, dtype: str) -> tuple[Any, Any]:
        model = load(folder, device, dtype)
        return torch.tensor(make_compute(model, 0)(rows)) / 20, torch.tensor(make_scorer(model, 0, 4096)(spans))

    here, there, half = numbers("cpu", "float32"), numbers(job.device, "float32"), numbers(job.device, "bfloat16")
    found = {}
    for name, one, other, rounded in zip(("logprobs", "likelihood"), here, there, half, strict=True):
        found[name] = check(name, (one - other).abs().max().item(), CLOSE)
        found[f"{name}, bf16"] = check(f"{name} in bf16", (other - rounded).abs().max().item(), BF16_CLOSE)

    def values(device: str) -> Any:
        stepper = QStepper(make("llama").to(device))
        stepper.values([(1, 2, 3), (4, 5)])
        return stepper.values([(1, 2, 3, 4), (9, 9)]).cpu()

    found["Q_D"] = check("Q_D's values", (values("cpu") - values(job.device)).abs().max().item(), CLOSE)
    return found


def shared(job: Job) -> dict[str, Any]:
    """A prompt computed once for K completions: equal, and how much faster."""
    found: dict[str, Any] = {}
    sizes = {"tiny": (40, 14), "1b": (200, 70)}
    for size, dtype in (("tiny", "float32"), (job.size, "bfloat16")):
        model = load(llama(job, size), job.device, dtype).train()
        for completions in (2, 4, 8):
            apart, once = (_training_pass(job, model, *sizes[size], completions, mode) for mode in ("off", "on"))
            if dtype == "float32":
                difference = (once() - apart()).abs().max().item()
                found[f"K={completions}, difference"] = check("shared prompts", difference, CLOSE)
            else:
                found[f"K={completions}, speed"] = timed(job, apart) / timed(job, once)
    return found


def _training_pass(job: Job, model: Any, prompt: int, response: int, completions: int, mode: str) -> Callable[[], Any]:
    """A forward and a backward pass over two prompts, which gives each token's log-probability."""
    import torch
    from prompt_once import label_only

    from orlhf_ext.models.batches import pad_right
    from orlhf_ext.models.prompt_once import PromptOnce

    rows = draw_rows(2, completions, prompt, response, 250)
    ids, mask = pad_right(rows, 0, job.device)
    starts, once = torch.full((len(rows),), prompt, device=job.device), PromptOnce(model, mode)

    def step() -> Any:
        model.zero_grad(set_to_none=True)
        with once.over(ids, mask):
            logits = label_only(model, ids, mask, starts)
        logps = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, prompt:].reshape(-1, 1))[:, 0]
        logps.sum().backward()
        return logps.detach()

    return step


def exo(job: Job) -> dict[str, Any]:
    """EXO in ``train_dpo``."""
    return _exo(job, "exo", "")


def exo_cached(job: Job) -> dict[str, Any]:
    """The same with cached reference values: it begins with the same loss."""
    found = _exo(job, "exo_cached", " --exo.cache_reference")
    if (job.folder / "exo.json").exists():
        first = json.loads((job.folder / "exo.json").read_text())["losses"][0]
        check("first losses", abs(found["losses"][0] - first), CLOSE)
    return found


def packing(job: Job) -> dict[str, Any]:
    """EXO over packed sequences."""
    return _exo(job, "exo_packed", " --ds.packing_samples --ds.attn_implementation flash_attention_2")


def _exo(job: Job, name: str, more: str) -> dict[str, Any]:
    model, data = llama(job), write_records(job)
    words = (
        f"--ext.use exo --exo.loss_type exo-rw --model.model_name_or_path {model} --ref.model_name_or_path {model} "
        f"--data.dataset {data} --data.max_len 256 --train.batch_size 8 --train.micro_batch_size 4 "
        f"--train.max_epochs 1 --ds.zero_stage 2 --adam.lr 1e-6{more}"
    )
    return launch(job, name, "train_dpo", words, int(8 * count_tokens(model, data)), 4.0)


def _pairs(job: Job) -> Path:
    path = job.folder / "pairs.jsonl"
    lines = [json.loads(line) for line in write_records(job).read_bytes().splitlines()]
    pairs = [
        {"id": row["id"], "prompt": row["prompt"], "chosen": row["completions"][1], "rejected": row["completions"][0]}
        for row in lines
    ]
    path.write_text("".join(json.dumps({**pair, "group": "ab"[i % 2]}) + "\n" for i, pair in enumerate(pairs)))
    return path


def group_rm(job: Job) -> dict[str, Any]:
    """A reward model with a head for each group."""
    model, data = llama(job), _pairs(job)
    words = (
        f"--ext.use group-rm --model.model_name_or_path {model} --data.dataset {data} --data.prompt_key prompt "
        f"--eval.dataset {data} --eval.split train "
        f"--data.max_len 256 --train.batch_size 8 --train.micro_batch_size 4 --train.max_epochs 1 --ds.zero_stage 2"
    )
    return launch(job, "group_rm", "train_rm", words, int(8 * count_tokens(model, write_records(job))), 3.0)


def dead_end(job: Job) -> dict[str, Any]:
    """A value function."""
    model, path = llama(job), job.folder / "deadend.jsonl"
    lines = [{"text": "a b c and so on " * 8 + str(i), "reward": [-float(i % 2)]} for i in range(64)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        f"--ext.use dead-end --model.model_name_or_path {model} --data.dataset {path} --data.max_len 256 "
        f"--train.batch_size 8 --train.micro_batch_size 4 --train.max_epochs 1 --ds.zero_stage 2"
    )
    return launch(job, "dead_end", "train_sft", words, 8 * 60, 3.0)


def commands(job: Job) -> dict[str, Any]:
    """Commands that read and sample with transformers; seconds, start-up included."""
    model, data = llama(job), write_records(job)
    length = ("--data", str(data), "--max_len", "256")
    found = {"logprobs": command(job, "logprobs", "--model", str(model), *length, "--out", "logprobs.jsonl")}
    words = ("--num_completions", "2", "--max_new_tokens", "16", "--out", "samples.jsonl")
    found["generate"] = command(job, "generate", "--model", str(model), "--backend", "hf", *length, *words)
    if importable("openrlhf"):
        from common import reward_model

        words = ("--model", str(reward_model(job.folder, model)), *length, "--out", "scores.jsonl")
        found["score"] = command(job, "score", *words)
    if (job.folder / "dead_end/model").is_dir():
        words = ("--q_model", "dead_end/model", "--backend", "hf", "--num_returns", "2", "--out", "decoded.jsonl")
        found["decode"] = command(job, "deadend", "decode", "--model", str(model), "--data", str(data), *words)
    return {f"{name}_s": seconds for name, seconds in found.items()}


def vllm(job: Job) -> dict[str, Any]:
    """``generate`` in vLLM, and decoding under caps by each model runner that knows logits processors."""
    from orlhf_ext.deadend.vllm_shared import INTERFACES

    model, data = llama(job), write_records(job)
    words = ("--data", str(data), "--max_len", "256", "--num_completions", "4", "--max_new_tokens", "64")
    found = {"generate_s": command(job, "generate", "--model", str(model), *words, "--out", "vllm.jsonl")}
    if (job.folder / "dead_end/model").is_dir():
        words = ("deadend", "decode", "--model", str(model), "--data", str(data), "--q_model", "dead_end/model")
        runners = len(INTERFACES) if job.device == "cuda" else 1  # on a CPU the second one needs an interpreter
        for runner in map(str, range(runners)):
            out = ("--num_returns", "2", "--out", f"capped{runner}.jsonl")
            found[f"decode_{runner}_s"] = command(job, *words, *out, VLLM_USE_V2_MODEL_RUNNER=runner)
            counts = json.loads((job.folder / f"capped{runner}.meta.json").read_text()).get("counts", {})
            found |= {f"{name}, runner {runner}": count for name, count in counts.items()}
    return found


def rl(job: Job) -> dict[str, Any]:
    """A rewarded ``train_ppo_ray`` on one GPU, which trains and samples in turn."""
    import ray_runs

    ray_runs.write_inputs(job.folder)
    one = {"train.colocate_all": True, "vllm.enable_sleep": True, "ds.enable_sleep": True}
    more = {**one, "train.colocate_actor_ref": None, "vllm.gpu_memory_utilization": 0.5} if job.device == "cuda" else {}
    words = ray_runs.flags(llama(job), **{"data.max_samples": 16, **more})
    start = time.perf_counter()
    ray_runs.launch(job.folder, "--ext.reward", "length", "--length.target", "8", *words)
    batches = ray_runs.rollouts(job.folder)
    return {"whole_s": time.perf_counter() - start, "reward": ray_runs.mean_reward(batches), "steps": len(batches)}


STEPS: dict[str, Callable[[Job], dict[str, Any]]] = {
    step.__name__: step
    for step in (machine, losses, models, shared, exo, exo_cached, group_rm, dead_end, commands, packing, vllm, rl)
}
NEEDS = {
    **{name: ("openrlhf", "deepspeed") for name in ("exo", "exo_cached", "group_rm", "dead_end")},
    "packing": ("flash_attn",),
    "vllm": ("vllm",),
    "rl": ("vllm", "ray"),
}


def main() -> None:
    """One step, whose figures go into STEP.json."""
    found = json.loads(sys.argv[1])
    job = Job(**{**found, "folder": Path(found["folder"])})
    from orlhf_ext import backends

    if job.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    backends.install()
    figures = STEPS[job.step](job)
    new = job.folder / f".{job.step}.json"
    new.write_text(json.dumps(figures))
    new.replace(job.folder / f"{job.step}.json")


if __name__ == "__main__":
    main()
