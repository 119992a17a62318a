"""A judge's forward passes: ``python tests/bench/judge_pairs.py [--model DIR] [--samples 8] [--repeats 5]``.

A batch of samples is compared in pairs, in both orders: all questions in one call, with the two logits that count and
with what questions begin with (the prompt and the first sample) computed once; against the same without sharing, and
against transformers' own forward pass for a question at a time, with all its logits. Texts are random words. The time
is the process's, so that others on the machine do not count. Fails if leans, in float32, are more than 1e-3 apart.
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
from typing import Any

from common import ratio, small_llama, spread

TOLERANCE = 1e-3  # nats
WORDS = "rain came down the avenue like a curtain being drawn and taxis put on their lamps".split()  # noqa: SIM905


def make_rows(args: argparse.Namespace, folder: Path, pairs: str) -> list[list[int]]:
    """Token ids of the questions of a batch."""
    from orlhf_ext.judge.local import Reader, Two
    from orlhf_ext.judge.template import read_template
    from orlhf_ext.judge.tournament import pairs_of
    from orlhf_ext.models.folder import load_tokenizer

    draw = random.Random(0)
    reader = Reader(load_tokenizer(folder), read_template("response", False), "plain", 10**6, 0)
    shown = []
    for number in range(args.prompts):
        texts = [" ".join(draw.choices(WORDS, k=args.words)) for _ in range(args.samples)]
        prompt = " ".join(draw.choices(WORDS, k=40))
        shown += [Two(str(number), prompt, texts[i], texts[j]) for i, j in pairs_of(args.samples, pairs, 0)]  # type: ignore[arg-type]
    return reader.read(shown, "Preferred:")[0]


def ways_of(
    model: Any, rows: Sequence[Sequence[int]], letters: tuple[int, int]
) -> dict[str, Callable[[], list[float]]]:
    """Three ways to the same leans."""
    import torch

    from orlhf_ext.judge.local import letter_margins
    from orlhf_ext.models import prompt_once

    def one_by_one() -> list[float]:
        found = []
        for row in rows:
            with torch.no_grad():
                last = model(torch.tensor([row]), use_cache=False).logits[0, -1].float()
            found.append((last[letters[0]] - last[letters[1]]).item())
        return found

    def ours() -> list[float]:
        return letter_margins(model, rows, letters, 16384, 0)

    def apart() -> list[float]:
        kept = prompt_once.for_model(model)
        prompt_once._of_models[model] = prompt_once.PromptOnce(model, "off")
        try:
            return ours()
        finally:
            prompt_once._of_models[model] = kept

    return {"one by one": one_by_one, "one call": apart, "ours": ours}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder (default: a random Llama, 17M)")
    for name, default, what in (
        ("samples", 8, "samples of a prompt"), ("prompts", 4, "prompts"), ("words", 100, "words of a sample"),
        ("repeats", 5, "rounds that count"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (%(default)s)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from orlhf_ext import backends

    backends.install()
    from orlhf_ext.models.logprobs import load_model

    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.model or small_llama(Path(temporary))).resolve()
        model = load_model(folder, args.dtype, "sdpa")
        exact = load_model(folder, "float32", "sdpa")
        for pairs in ("pivot", "round_robin"):
            rows = make_rows(args, folder, pairs)
            print(f"{pairs}: {len(rows)} questions of {sum(map(len, rows)) / len(rows):.0f} tokens, {folder.name}")
            letters = (10, 11)
            ways = ways_of(model, rows, letters)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(args.repeats + 1):
                for name in list(ways)[:: -1 if number % 2 else 1]:
                    start = time.process_time()
                    ways[name]()
                    if number:
                        seconds[name].append(time.process_time() - start)
            for name, values in seconds.items():
                spread(name, values, "s")
            for slow, fast in (("one by one", "ours"), ("one call", "ours")):
                ratio(f"{slow} / {fast}", [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
            leans = [way() for way in ways_of(exact, rows, letters).values()]
            worst = max(abs(a - b) for row in leans for a, b in zip(row, leans[0], strict=True))
            print(f"float32, leans apart at most: {worst:.2g}\n")
            if not worst <= TOLERANCE:
                sys.exit(f"leans in float32 are more than {TOLERANCE} apart")


if __name__ == "__main__":
    main()
