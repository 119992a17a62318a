"""A random value function over the tiny tokenizer, for the tests of rectified decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

V, POSITIONS = 50, 40  # tokens and positions of the value functions of `make`


def new_q_model(config: Any, **settings: Any) -> Any:
    """A `QModel` with a random trunk; ``settings`` are those of `QSettings`."""
    from orlhf_ext.deadend.model import initialise, q_model_class
    from orlhf_ext.deadend.settings import KEY, QSettings

    model = q_model_class(config)(config)
    initialise(model)
    setattr(model.config, KEY, QSettings(vocab_size=config.vocab_size, **settings).as_config())
    return model


def make_q(
    out: Path,
    tokenizer_from: Path,
    positions: int = 512,
    vocab_size: int | None = None,
    seed: int = 5,
    mean: float = -1.55,
) -> Path:
    """Save a GPT-2 trunk and the tokenizer; values are around ``mean``, where many tokens look dead."""
    import torch
    from transformers import GPT2Config

    from orlhf_ext.models.folder import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_from)
    size = vocab_size or len(tokenizer)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": positions}
    sizes |= {"bos_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_q_model(GPT2Config(vocab_size=size, initializer_range=0.3, **sizes))
        with torch.no_grad():
            model.q_head.inner.weight.normal_(0, 0.3)
            model.q_head.values.weight.normal_(0, 0.03)
            model.q_head.values.bias.normal_(mean, 0.2)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def infeasible_rows(logits: Any, q_values: Any, epsilon: Any = 0.0) -> Any:
    """``(B,)``, true where the caps of all tokens that the language model allows sum to less than 1."""
    from orlhf_ext.deadend.decoding import caps

    return (caps(q_values, epsilon) * (logits > float("-inf"))).sum(-1) < 1


def make(kind: str) -> Any:
    """A small value function of one family, whose values tell positions and tokens apart."""
    import torch
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    common: dict[str, Any] = {"vocab_size": V, "max_position_embeddings": POSITIONS, "initializer_range": 0.3}
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = {
        "llama": lambda: LlamaConfig(**common, **small, **heads),
        "gpt2": lambda: GPT2Config(
            vocab_size=V, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
        ),
        "qwen2-window": lambda: Qwen2Config(
            **common, **small, **heads, use_sliding_window=True, sliding_window=4, max_window_layers=1
        ),
        "mistral-window": lambda: MistralConfig(**common, **small, **heads, sliding_window=4),
    }[kind]()
    torch.manual_seed(3)
    config._attn_implementation = "sdpa"
    model = new_q_model(config).eval()
    with torch.no_grad():
        for parameter in model.q_head.parameters():
            parameter.mul_(20)
    return model


def alone(model: Any, sequence: list[int]) -> Any:
    """The values after one sequence by a forward pass over it, without any cache."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([sequence])
        return model.q_head(model.base_model(ids, use_cache=False).last_hidden_state[0, -1])
