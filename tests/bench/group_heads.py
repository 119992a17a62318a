"""What the scores of U groups cost: ``python tests/bench/group_heads.py [--rounds 7] [--texts 64] [--groups 2 8]``

One reward model with U heads against one with a single score (OpenRLHF's own class), and against U such models: the
same texts of mixed lengths, in the same batches, one after the other in each round. Models are random Llamas of 17
million weights. The aim: within 5 % of one model's time, whatever U is.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import ratio, small_llama, spread

LENGTHS = (16, 200)  # tokens of a text
BUDGET = 2048  # padded tokens of a batch


def make_group_model(base: Path, out: Path, groups: int) -> Path:
    """A reward model with a shared head (k = 16) for so many groups, at random."""
    from orlhf_ext.extensions import run
    from orlhf_ext.groups import model, trained_groups
    from orlhf_ext.models.folder import load_tokenizer
    from orlhf_ext.models.head_settings import HeadSettings

    names = [f"group_{number}" for number in range(groups)]
    run.arguments = SimpleNamespace(groups=SimpleNamespace())
    trained_groups.put(trained_groups.Training(HeadSettings(names), names=tuple(names)), run.arguments)
    made = model.get_llm_for_sequence_regression(str(base), "reward", attn_implementation="sdpa")
    run.arguments = None
    made.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
    return out


def make_scalar_model(base: Path, out: Path) -> Path:
    """A reward model as OpenRLHF's ``train_rm`` saves it, at random."""
    from openrlhf.models.model import get_llm_for_sequence_regression

    from orlhf_ext.models.folder import load_tokenizer

    made: Any = get_llm_for_sequence_regression(
        str(base), "reward", attn_implementation="sdpa", init_value_head=True, value_head_prefix="score"
    )
    made.config.value_head_prefix = "score"
    made.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--texts", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 8], metavar="U", help="(2 8)")
    args = parser.parse_args()
    from orlhf_ext import backends

    backends.install()
    from orlhf_ext.groups.model import get_llm_for_sequence_regression
    from orlhf_ext.models.folder import read_config
    from orlhf_ext.models.reward_models import RewardModel

    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = small_llama(folder)
        size = read_config(base)["vocab_size"]
        texts = [[generator.randrange(3, size) for _ in range(generator.randint(*LENGTHS))] for _ in range(args.texts)]
        scalar = make_scalar_model(base, folder / "scalar")
        copies = [RewardModel(str(scalar)) for _ in range(max(args.groups))]
        for copy in copies:
            copy.load("bfloat16", "sdpa")
        sides = {"one model": copies[:1]}
        for groups in args.groups:
            grouped = make_group_model(base, folder / f"groups{groups}", groups)
            model = RewardModel(str(grouped), single=False)
            model.load("bfloat16", "sdpa", get_llm_for_sequence_regression)
            sides[f"U = {groups}"] = [model]
            sides[f"{groups} models"] = copies[:groups]

        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.rounds + 1):  # the first one warms up
            names = list(sides)[:: 1 if number % 2 else -1]
            for name in names:
                start = time.perf_counter()
                for model in sides[name]:
                    model.score(texts, BUDGET)
                if number:
                    seconds[name].append(time.perf_counter() - start)
            print(f"  round {number}/{args.rounds}" + ("" if number else " (warm-up)"), file=sys.stderr, flush=True)
    print(f"{args.texts} texts, {sum(map(len, texts))} tokens")
    for name, values in seconds.items():
        spread(name, values, "s")
    for groups in args.groups:
        for other in ("one model", f"{groups} models"):
            both = zip(seconds[f"U = {groups}"], seconds[other], strict=True)
            ratio(f"U = {groups} / {other}", [a / b for a, b in both])


if __name__ == "__main__":
    main()
