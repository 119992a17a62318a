"""Rectified decoding in vLLM against plain decoding, and against upstream's way of asking Q_D:
``python tests/bench/rectified_decoding.py [--model DIR --q_model DIR] [--requests 25] [--rounds 5]``.

One engine, one batch of requests (a few prompts, several completions each, all of the same length), three ways in turn:
"plain" leaves the logits alone; "rectified" asks Q_D with a cache for keys and values; "upstream" runs Q_D's trunk over
every whole sequence at every step, as the paper's code does (its head on the last position alone, which is more than
that code spares). By default the models are random: a policy of SmolLM2-135M's shape, and a Q_D of a sixth of its
computation, which is about what gpt2 is to gpt2-large. Without a GPU all runs on one thread, and seconds are those of
the processor, which other processes do not lengthen. Fails if the two ways of asking Q_D differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ratio

WAYS = ("plain", "rectified", "upstream")
TOLERANCE = 1e-4


class Upstream:
    """Q_D without a cache: the same call as `QStepper.values`."""

    def __init__(self, q_model: Any) -> None:
        self.model = q_model

    def values(self, sequences: Sequence[Sequence[int]]) -> Any:
        """``(len(sequences), V)``."""
        import torch

        with torch.inference_mode():
            width = max(map(len, sequences))
            ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in sequences])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences])
            device = self.model.q_head.inner.weight.device
            return self.model.q_head(self.model.hidden_states(ids.to(device), mask.to(device))[:, -1])

    def forget(self) -> None:
        """It keeps nothing."""


class Clock:
    """Counts the seconds that one way of asking Q_D takes."""

    def __init__(self, stepper: Any) -> None:
        self.stepper, self.seconds = stepper, 0.0
        self.model, self.forget = stepper.model, stepper.forget

    def values(self, sequences: Sequence[Sequence[int]]) -> Any:
        """As `QStepper.values`."""
        start = now()
        found = self.stepper.values(sequences)
        self.seconds += now() - start
        return found


def now() -> float:
    """Seconds: of the processor, or on the wall where a GPU works."""
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def random_models(folder: Path) -> tuple[Path, Path]:
    """A policy and a value function with the tiny tokenizer's files and SmolLM2's number of tokens."""
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "support"))
    from deadend_q import new_q_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from orlhf_ext.models.small_models import make_tiny

    tokenizer = AutoTokenizer.from_pretrained(make_tiny(folder / "tiny"))
    common: dict[str, Any] = {"vocab_size": 49152, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    policy: dict[str, Any] = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    value: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**common, **policy, num_attention_heads=9, num_key_value_heads=3)).save_pretrained(
        folder / "policy"
    )
    new_q_model(LlamaConfig(**common, **value, num_attention_heads=6, num_key_value_heads=3)).save_pretrained(
        folder / "q"
    )
    for name in ("policy", "q"):
        tokenizer.save_pretrained(folder / name)
    return folder / "policy", folder / "q"


def main() -> None:
    """Run the ways in turn and print their speeds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the policy's folder")
    parser.add_argument("--q_model", type=Path, help="Q_D's folder")
    for name, default in (("prompts", 5), ("completions", 5), ("prompt_tokens", 20), ("new_tokens", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="(all)")
    args = parser.parse_args()
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")  # before vLLM is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        made = (args.model, args.q_model) if args.model else random_models(Path(folder))
        measure(args, *made)


def measure(args: argparse.Namespace, model: Path, q_model: Path) -> None:
    """See `main`."""
    import torch
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    from orlhf_ext.deadend.vllm_shared import live
    from orlhf_ext.models.engines import load_vllm
    from orlhf_ext.models.samplers import Sampling

    count = args.prompts * args.completions
    max_len = args.prompt_tokens + args.new_tokens
    sampling = Sampling(args.completions, 1.0, 1.0, 50, args.new_tokens, max_len, 0, "float32")
    more = {
        "logits_processors": ["orlhf_ext.deadend.vllm:RectifiedDecoding"],
        "additional_config": {"deadend": {"model": str(q_model), "epsilon": 0.1}},
        "enable_prefix_caching": False,
    }
    llm = load_vllm(model, sampling, count, more=more)
    (processor,) = live
    steppers = {"rectified": Clock(processor.stepper), "upstream": Clock(Upstream(processor.stepper.model))}
    generator = torch.Generator().manual_seed(0)
    known = processor.stepper.model.config.vocab_size
    prompts = torch.randint(3, known, (args.prompts, args.prompt_tokens), generator=generator).tolist()

    def run(way: str, number: int) -> tuple[float, float]:
        processor.stepper = steppers.get(way, processor.stepper)  # type: ignore[assignment]
        extra = {"deadend_epsilon": "off"} if way == "plain" else {}
        params = [
            SamplingParams(max_tokens=args.new_tokens, ignore_eos=True, top_k=50, seed=number, extra_args=extra)
            for number in range(count)
        ]
        inputs: list[Any] = [tokens_input(prompts[i % args.prompts]) for i in range(count)]
        before, start = steppers[way].seconds if way in steppers else 0.0, now()
        outputs = llm.generate(inputs, params, use_tqdm=False)
        seconds = now() - start
        asking = steppers[way].seconds - before if way in steppers else 0.0
        print(f"  round {number} {way}: {seconds:.2f} s, Q_D {asking:.2f} s", file=sys.stderr, flush=True)
        return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds, asking

    texts = [prompt[: 1 + i % len(prompt)] for i, prompt in enumerate(prompts)]
    apart = max(
        (steppers["rectified"].values(rows) - steppers["upstream"].values(rows)).abs().max().item()
        for rows in (texts, [[*text, 5] for text in texts])
    )
    print(f"{count} requests of {args.prompt_tokens} + {args.new_tokens} tokens; values differ by {apart:.1e} at most")
    if apart > TOLERANCE:
        sys.exit("the two ways of asking Q_D disagree")
    speeds: dict[str, list[float]] = {way: [] for way in args.ways}
    asked: dict[str, list[float]] = {way: [] for way in args.ways}
    for number in range(args.rounds + 1):
        for way in args.ways[:: -1 if number % 2 else 1]:
            speed, asking = run(way, number)
            if number:
                speeds[way].append(speed)
                asked[way].append(asking)
    for way, values in speeds.items():
        print(f"{way}: median {statistics.median(values):.1f} tokens/s (min {min(values):.1f}, max {max(values):.1f})")
    for one, other in (("rectified", "plain"), ("rectified", "upstream")):
        if one in speeds and other in speeds:
            ratio(f"tokens/s, {one} / {other}", [a / b for a, b in zip(speeds[one], speeds[other], strict=True)])
    if {"rectified", "upstream"} <= set(args.ways):
        pairs = zip(asked["upstream"], asked["rectified"], strict=True)
        ratio("seconds of asking Q_D, upstream / rectified", [a / b for a, b in pairs])


if __name__ == "__main__":
    main()
