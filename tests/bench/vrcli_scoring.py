"""VR-CLI's scoring against upstream's: ``python tests/bench/vrcli_scoring.py [--model DIR] [--plans 8] [--repeats 5]``.

Upstream gives a frozen model one sequence at a time, with the logits of every token in float32. Here only scored tokens
get logits, sequences run in batches, and the context that the plans of a prompt share runs once; the ways in between
tell what each of the three brings. All have the same model, dtype, attention and token ids, which are random: by
default a small next chapter, of a context much longer than a plan, and a gold text twice as long. Fails if the
log-probabilities of both, in float32, are more than 1e-4 apart.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import ratio, small_llama, spread

if TYPE_CHECKING:
    from orlhf_ext.models.spans import Span

TOLERANCE = 1e-4  # nats

SIZES = {
    "context": (600, "tokens of a prompt up to the plan"),
    "plan": (60, "tokens of a plan, on average"),
    "gold": (120, "scored tokens"),
    "plans": (8, "plans of a prompt"),
    "prompts": (1, "prompts"),
    "repeats": (5, "rounds that count"),
    "batch_tokens": (16384, "padded tokens in a batch"),
}


def make_spans(args: argparse.Namespace, vocabulary: int) -> list[Span]:
    """Sequences; plans have from half to one and a half of the tokens asked for."""
    from orlhf_ext.models.spans import Span

    generator = random.Random(0)

    def draw(count: int) -> list[int]:
        return generator.choices(range(vocabulary), k=count)

    spans = []
    for _ in range(args.prompts):
        context, gold = draw(args.context), draw(args.gold)
        for _ in range(args.plans):
            plan = draw(generator.randint(args.plan - args.plan // 2, args.plan + args.plan // 2))
            spans.append(Span(context + plan + gold, len(context + plan)))
    return spans


def upstream(model: Any, span: Span) -> Any:
    """What upstream calls: transformers' forward pass of one sequence, with its loss. The cache, which upstream keeps
    and never reads, is left out."""
    import torch

    ids = torch.tensor([span.ids], device=model.device)
    labels = ids.clone()
    labels[:, : span.start] = -100
    with torch.no_grad():
        return model(input_ids=ids, labels=labels, use_cache=False)


def make_ways(model: Any, spans: Sequence[Span], batch_tokens: int) -> dict[str, Callable]:
    """From upstream's way to ours, one gain at a time; each gives the mean nll of every sequence."""
    from orlhf_ext.models import prompt_once
    from orlhf_ext.models.likelihood import make_scorer

    score = make_scorer(model, 0, batch_tokens)

    def apart() -> list[float]:
        kept = prompt_once.for_model(model)
        prompt_once._of_models[model] = prompt_once.PromptOnce(model, "off")
        try:
            return score(spans)
        finally:
            prompt_once._of_models[model] = kept

    return {
        "upstream": lambda: [upstream(model, span).loss.item() for span in spans],
        "label-only logits": lambda: [score([span])[0] for span in spans],
        "and batches": apart,
        "ours": lambda: score(spans),
    }


def farthest(model: Any, spans: Sequence[Span], batch_tokens: int) -> tuple[float, float]:
    """How far upstream's numbers and ours are apart at the most: a token's log-probability, and a sequence's mean."""
    import torch

    from orlhf_ext.models.likelihood import span_logprobs
    from orlhf_ext.models.spans import mean_nll

    token = mean = 0.0
    for span, ours in zip(spans, span_logprobs(model, spans, batch_tokens), strict=True):
        theirs = upstream(model, span)
        ids = torch.tensor(span.ids[span.start :], device=model.device)
        logprobs = theirs.logits[0, span.start - 1 : -1].float().log_softmax(-1).gather(-1, ids[:, None])[:, 0].cpu()
        token = max(token, (logprobs - ours).abs().max().item())
        mean = max(mean, abs(theirs.loss.item() - mean_nll(ours.tolist())))
    return token, mean


def measure(ways: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn; one round first that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            ways[name]()  # gives Python numbers, so that a GPU has finished
            if number:
                seconds[name].append(time.perf_counter() - start)
        print(f"  round {number}/{repeats}" + ("" if number else " (warm-up)"), file=sys.stderr, flush=True)
    return seconds


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder (default: a random Llama, 17M)")
    for name, (default, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(%(default)s)")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="(%(default)s)")
    parser.add_argument("--attn_implementation", default="sdpa", help="as in transformers (%(default)s)")
    args = parser.parse_args()
    if min(getattr(args, name) for name in SIZES) < 1:
        parser.error("every number must be at least 1")
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the CPU's kernels are for machines without a GPU
    from orlhf_ext import backends

    backends.install()
    import torch

    from orlhf_ext.models.logprobs import load_model

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.model or small_llama(Path(temporary))).resolve()  # rotary positions may pass its 512
        model = load_model(folder, args.dtype, args.attn_implementation)
        spans = make_spans(args, model.config.get_text_config().vocab_size)
        ways = make_ways(model, spans, args.batch_tokens)
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        print(f"{folder.name}, {args.dtype}, {args.attn_implementation}, {where}")
        shape = f"{args.context} context + {args.plan} plan + {args.gold} gold"
        print(f"{args.prompts} prompt(s), {args.plans} plans of each; tokens: {shape}")
        seconds = measure(ways, args.repeats)
        exact = model if args.dtype == "float32" else load_model(folder, "float32", args.attn_implementation)
        token, mean = farthest(exact, spans, args.batch_tokens)

    for name, values in seconds.items():
        spread(name, values, "s")
    for name, slow, fast in (
        ("time, upstream / ours", "upstream", "ours"),
        ("  of it by label-only logits", "upstream", "label-only logits"),
        ("  of it by batches", "label-only logits", "and batches"),
        ("  of it by the shared context", "and batches", "ours"),
    ):
        ratio(name, [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
    print(f"float32, upstream and ours apart at most: a token's log-prob {token:.2g}, a sequence's nll {mean:.2g}")
    if not token <= TOLERANCE:
        sys.exit(f"log-probabilities in float32 are more than {TOLERANCE} apart")


if __name__ == "__main__":
    main()
