"""A prompt computed once for its completions, against rows that each compute it: ``python tests/bench/prompt_once.py``.

Both sides give the summed log-probabilities of the same random completions, with logits of their tokens alone, and
differ in `orlhf_ext.models.prompt_once` alone. ``--what train`` is a forward and a backward pass, ``--what logprobs`` a
forward pass, ``--what score`` the forward pass of a reward model. Prints the time and the processor time of separate
rows over those of shared prompts, and the peak memory of each side in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, ratio, small_llama

SIZES = {
    "prompt": (200, "tokens of a prompt"),
    "response": (70, "tokens of a completion"),
    "prompts": (2, "prompts of a batch"),
    "pairs": (5, "pairs of runs that count"),
    "threads": (2, "of torch"),
}


def make_rows(args: argparse.Namespace, completions: int, vocabulary: int) -> list[list[int]]:
    """Random token ids, the completions of a prompt one after the other."""
    import random

    draw = random.Random(0)
    rows = []
    for _ in range(args.prompts):
        prompt = draw.choices(range(vocabulary), k=args.prompt)
        rows += [prompt + draw.choices(range(vocabulary), k=args.response) for _ in range(completions)]
    return rows


def make_side(args: argparse.Namespace, model: Any, rows: list[list[int]], mode: str) -> Callable[[], Any]:
    """A pass over all rows, which gives a number for each."""
    import torch

    from orlhf_ext.models.batches import pad_right
    from orlhf_ext.models.logprobs import token_logprobs
    from orlhf_ext.models.prompt_once import PromptOnce

    once = PromptOnce(model, mode)
    ids, mask = pad_right(rows, 0, "cpu")
    starts = torch.full((len(rows),), args.prompt)
    weights = torch.linspace(-1, 1, len(rows)).repeat_interleave(args.response)

    def train() -> Any:
        model.zero_grad(set_to_none=True)
        with once.over(ids, mask):
            logits = label_only(model, ids, mask, starts)
        values = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, args.prompt :].reshape(-1, 1))[:, 0]
        (values * weights).sum().backward()
        return values.detach()

    def logprobs() -> Any:
        with torch.no_grad(), once.over(ids, mask):
            return token_logprobs(model, ids, mask, starts)[0]

    def score() -> Any:
        with torch.no_grad(), once.over(ids, mask):
            return model(ids, mask).float()

    return {"train": train, "logprobs": logprobs, "score": score}[args.what]


def label_only(model: Any, ids: Any, mask: Any, starts: Any) -> Any:
    """Logits of the positions that predict a completion's token."""
    import torch

    from orlhf_ext.models.modules import scored_positions

    place = torch.arange(ids.shape[1], device=ids.device)
    predicts = (place >= starts[:, None] - 1) & (place < ids.shape[1] - 1)
    with scored_positions(model.get_output_embeddings(), predicts):
        return model(ids, attention_mask=mask, use_cache=False).logits[0]


def load(args: argparse.Namespace, folder: Path) -> Any:
    """The model, or a reward model on its backbone."""
    import torch

    torch.set_num_threads(args.threads)
    if args.what == "score":
        from openrlhf.models.model import get_llm_for_sequence_regression

        torch.manual_seed(0)
        words = {"init_value_head": True, "value_head_prefix": "score", "param_dtype": "bf16"}
        return get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="sdpa", **words).eval()
    from orlhf_ext.models.logprobs import load_model

    model = load_model(folder, args.dtype, "sdpa")
    return model.train() if args.what == "train" else model


def one_side(args: argparse.Namespace, folder: Path) -> None:
    """Two passes of one side, and the process's peak memory on its last line."""
    model = load(args, folder)
    rows = make_rows(args, args.completions[0], model.config.get_text_config().vocab_size)
    side = make_side(args, model, rows, args.side)
    for _ in range(2):
        side()
    # not ru_maxrss, which a process takes over from the one that started it
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def peak(args: argparse.Namespace, folder: Path, completions: int, mode: str) -> float:
    """Peak memory in MiB of a process that does one side alone."""
    words = ["--what", args.what, "--model", str(folder), "--side", mode, "--completions", str(completions)]
    for name in SIZES:
        words += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return float(done.stdout.split()[-1])


def compare(args: argparse.Namespace, model: Any, folder: Path, completions: int) -> None:
    """Both sides in turn."""
    rows = make_rows(args, completions, model.config.get_text_config().vocab_size)
    sides = {mode: make_side(args, model, rows, mode) for mode in ("off", "on")}
    apart = (sides["on"]() - sides["off"]()).abs().max().item()
    seconds: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    for number in range(args.pairs + 1):
        for mode in ("off", "on") if number % 2 else ("on", "off"):
            began = time.perf_counter(), time.process_time()
            sides[mode]()
            if number:
                seconds[mode].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    stream = args.prompts * (args.prompt + completions * args.response)
    bound = len(rows) * (args.prompt + args.response) / stream
    print(f"{folder.name}, {args.what}, K = {completions}: token bound {bound:.2f}, values apart {apart:.2g}")
    for index, name in enumerate(("time", "processor time")):
        ratio(f"  {name}", [a[index] / b[index] for a, b in zip(seconds["off"], seconds["on"], strict=True)])
    if not args.no_peak:
        both = [peak(args, folder, completions, mode) for mode in ("off", "on")]
        print(f"  peak memory: {both[0]:.0f} MiB separate, {both[1]:.0f} MiB shared", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["train", "logprobs", "score"], default="train", help="(%(default)s)")
    parser.add_argument("--model", default="smollm2", help="smollm2, llama-17m (random), or a folder (%(default)s)")
    parser.add_argument("--completions", type=int, nargs="+", default=[2, 4, 8], help="K (%(default)s)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="(%(default)s)")
    parser.add_argument("--no_peak", action="store_true", help="do not measure memory")
    parser.add_argument("--side", choices=["on", "off"], help=argparse.SUPPRESS)
    for name, (default, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (%(default)s)")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from orlhf_ext import backends

    backends.install()
    with tempfile.TemporaryDirectory() as temporary:
        if args.model == "llama-17m":
            folder = small_llama(Path(temporary))
        elif args.model == "smollm2":
            from orlhf_ext.models.small_models import make_smollm2

            folder = make_smollm2(ROOT / "models" / "smollm2-135m-instruct")
        else:
            folder = Path(args.model)
        if args.side:
            one_side(args, folder)
            return
        model = load(args, folder)
        for completions in args.completions:
            compare(args, model, folder, completions)


if __name__ == "__main__":
    main()
