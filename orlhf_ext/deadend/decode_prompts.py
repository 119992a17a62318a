"""Rectified decoding of prompts: ``orlhf-ext deadend decode --model DIR --q_model Q_D --data prompts.jsonl
--out generations.jsonl --epsilon 0.1``

The probability of each next token is capped by ``1 + Q_D(s, a) - epsilon`` before temperature, top-k and top-p.
``--plain`` decodes the same prompts, with the same seeds, without Q_D. The record is written back with
``"generations": [{"text", "token_ids"}]``; the sidecar counts the steps at which the caps of all tokens summed to less
than 1. A run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.errors import UserError, command
from ..cli.flags import DTYPES, SHARE, make_parser, whole
from ..models.folder import check_context, find_model, find_same, identity, read_config
from .sampling import Plain, add_flags, check_flags, print_counts, sample_file
from .settings import read_settings

if TYPE_CHECKING:
    from torch import Tensor

Q_FLAG = "--q_model"


class Rectified(Plain):
    """Decoding under the caps of a value function."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name = args.q_model
        folder = find_model(self.name, Q_FLAG)
        self.copy_of = identity(folder, times=False)
        self.known = read_settings(folder, Q_FLAG).vocab_size
        self.options = {"epsilon": args.epsilon, "passes": args.passes or None, "infeasible": args.infeasible}
        self.dtype, self.backend = args.q_dtype, args.backend
        self.arguments = {"q_model": identity(folder), "q_dtype": self.dtype, **self.options}
        self._processor: Any = None

    def check(self, folder: Path, max_len: int) -> None:
        from .decoding import check_vocabulary

        size = read_config(folder).get("vocab_size", self.known)
        check_vocabulary(self.known, f"{Q_FLAG} {self.name}", size, f"--model {folder}", str(folder))
        check_context(find_model(self.name, Q_FLAG), max_len, "the longest prompt with --max_new_tokens, at")

    @property
    def folder(self) -> Path:
        """That of Q_D, in a worker."""
        return find_same(self.name, self.copy_of, Q_FLAG)

    def engine(self) -> dict[str, Any]:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, infeasible steps are counted
        options = {"model": str(self.folder), "dtype": self.dtype, **self.options}
        return {
            "logits_processors": ["orlhf_ext.deadend.vllm:RectifiedDecoding"],
            "additional_config": {"deadend": options},
        }

    def beside(self, rows: int, max_len: int) -> int:
        from .memory import needed_bytes

        return needed_bytes(self.folder, rows, max_len, self.dtype)

    def processors(self, model: Any, tokenizer: Any) -> Callable[[Tensor], list[Any]]:
        from ..models.samplers import end_ids
        from .hf import RectifiedLogitsProcessor
        from .model import load_q_model

        self._processor = processor = RectifiedLogitsProcessor(
            load_q_model(self.folder, self.dtype, str(model.device)),
            **self.options,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(end_ids(model, tokenizer)),
            vocab_size=len(tokenizer),
        )
        return lambda mask: [processor.for_batch(mask)]

    def counts(self) -> Counter[str]:
        if self.backend == "hf":
            one = self._processor
            return Counter(steps=one.steps, infeasible_steps=one.infeasible_steps) if one else Counter()
        from .vllm import counts

        return Counter(counts())


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Decode each prompt, rectified or not."""
    parser = make_parser("orlhf-ext deadend decode", __doc__)
    add = parser.add_argument
    add_flags(parser, num_returns=25, batch_size=3, min_new_tokens=10)
    add(
        "--num_samples_for_eval",
        type=whole(1, also=(-1,)),
        default=-1,
        help="number of prompts to draw; -1: all (%(default)s)",
    )
    add(
        "--do_sample",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="--no-do_sample takes the likeliest token, with --num_returns 1",
    )
    add(Q_FLAG, "--q_model_name_or_path", metavar="DIR", help="Q_D: a folder that train_sft --ext.use dead-end wrote")
    add("--epsilon", type=SHARE, default=0.0, help="how far below 1 + Q_D the caps are (%(default)s)")
    add("--passes", type=whole(), default=2, help="2 as in the authors' code; 0: the limit of many (%(default)s)")
    add(
        "--infeasible",
        choices=["normalize", "fallback"],
        default="normalize",
        help="where all caps sum to less than 1: the caps themselves, or the language model's own distribution on the "
        "50 tokens with the largest caps (%(default)s)",
    )
    add("--q_dtype", choices=DTYPES, default="float32", help="type of Q_D's trunk (%(default)s)")
    add("--plain", action="store_true", help="decode without Q_D")
    args = parser.parse_args(argv)
    if not args.do_sample:
        args.temperature = 0.0
    check_flags(args, "deadend.decode")
    if args.plain == bool(args.q_model):
        raise UserError(f"give either {Q_FLAG} for rectified decoding, or --plain")
    decoding = Plain() if args.plain else Rectified(args)
    print_counts(args.out, sample_file(args, "deadend.decode", args.num_samples_for_eval, decoding))


if __name__ == "__main__":
    main()
