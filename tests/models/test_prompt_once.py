"""Rows that begin alike: what they share, and models that compute it once against the same models row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.models.batches import pad_left, pad_right
from orlhf_ext.models.parts import Part, cut_parts, find_parts
from orlhf_ext.models.prompt_once import PromptOnce

SIZES: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
FEW = {"num_key_value_heads": 2}
GPT2 = {"vocab_size": 199, "n_embd": 64, "n_layer": 3, "n_head": 4} | dict.fromkeys(
    ("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0
)
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaConfig": SIZES | FEW,
    "Qwen2Config": SIZES | FEW,
    "Qwen3Config": SIZES | FEW | {"head_dim": 16},
    "MistralConfig": SIZES | FEW | {"sliding_window": None},
    "GemmaConfig": SIZES | FEW | {"head_dim": 16},
    "GPT2Config": GPT2,
    "GPTNeoXConfig": SIZES,
    "MixtralConfig": SIZES | FEW | {"num_local_experts": 4, "sliding_window": None, "output_router_logits": True},
}
WINDOW = SIZES | FEW | {"head_dim": 16, "sliding_window": 24}


def make(family: str, words: dict[str, Any], attention: str = "sdpa") -> Any:
    """A random model whose attention matters."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, family)(**words)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model.eval()


def rows_of(*records: tuple[int, tuple[int, ...]], seed: int = 0) -> list[list[int]]:
    """Random rows: for each record tokens of the prompt, and of each completion."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 199, (count,), generator=generator).tolist()

    return [prompt + draw(own) for length, owns in records for prompt in [draw(length)] for own in owns]


MIXED = rows_of((40, (12, 9)), (23, (7, 15, 5)), (31, (8,)), (50, (1, 30)))


def logits_and_gradients(model: Any, ids: Any, mask: Any, once: PromptOnce | None) -> tuple[Any, dict[str, Any]]:
    """The logits on tokens, and the gradients of a loss that reads all of them; padding takes no part."""
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    model.zero_grad(set_to_none=True)
    with once.over(ids, mask) if once else torch.enable_grad():
        out = model(ids, attention_mask=mask, position_ids=positions)
    logits = out.logits[mask.bool()]
    (logits.log_softmax(-1) * torch.linspace(-1, 1, 199)).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_separate_rows(family: str, attention: str) -> None:
    model = make(family, FAMILIES[family], attention)
    pad = pad_left if family == "LlamaConfig" else pad_right
    ids, mask = pad(MIXED, 2, "cpu")
    said: list[str] = []
    once = PromptOnce(model, "on", said.append)
    wanted, wanted_gradients = logits_and_gradients(model, ids, mask, None)
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.shape[:2].numel()))
    found, gradients = logits_and_gradients(model, ids, mask, once)
    hook.remove()
    assert "are computed once" in said[0] and len(said) == 1
    assert seen[-1] == sum(map(len, MIXED)) - 40 - 2 * 23 - 50
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert gradients.keys() == wanted_gradients.keys()
    norm = torch.stack([g.norm() for g in wanted_gradients.values()]).norm()
    assert torch.stack([(gradients[n] - g).norm() for n, g in wanted_gradients.items()]).norm() <= 1e-5 * norm


def test_the_load_balancing_loss_counts_the_tokens_of_rows() -> None:
    model = make("MixtralConfig", FAMILIES["MixtralConfig"])
    ids, mask = pad_right(MIXED, 2, "cpu")
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask, output_router_logits=True).aux_loss
        with PromptOnce(model, "on").over(ids, mask):
            found = model(ids, attention_mask=mask, output_router_logits=True).aux_loss
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = make("LlamaConfig", FAMILIES["LlamaConfig"])
    ids, mask = pad_right(MIXED, 2, "cpu")
    _, wanted = logits_and_gradients(model, ids, mask, None)
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    _, found = logits_and_gradients(model, ids, mask, PromptOnce(model, "on"))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("family", "words", "attention", "why"),
    [
        ("FalconConfig", {"vocab_size": 199, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
         "sdpa", "it computes with its attention mask"),
        ("GPTNeoConfig", {"vocab_size": 199, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
                          "attention_types": [[["global"], 2]]}, "eager", "it computes with its attention mask"),
        ("MambaConfig", {"vocab_size": 199, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
         "eager", "it has layers of linear_attention"),
        ("MistralConfig", WINDOW, "sdpa", "rows of more than the 24 tokens of its sliding window"),
        ("Gemma2Config", WINDOW | {"query_pre_attn_scalar": 16}, "eager", "24 tokens of its sliding window"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_computed_row_by_row_and_said_once(
    family: str, words: dict[str, Any], attention: str, why: str
) -> None:
    model = make(family, words, attention)
    ids, mask = pad_right(MIXED, 2, "cpu")
    wanted, wanted_gradients = logits_and_gradients(model, ids, mask, None)
    said: list[str] = []
    once = PromptOnce(model, "auto", said.append)
    for _ in range(2):
        found, gradients = logits_and_gradients(model, ids, mask, once)
        assert torch.equal(found, wanted)
        assert all(torch.equal(gradients[name], gradient) for name, gradient in wanted_gradients.items())
    (line,) = (line for line in said if "anew" in line)
    assert line.startswith(f"{type(model).__name__}: prompts are computed anew for each completion: ") and why in line
    with pytest.raises(UserError, match="leave sharing to auto"), PromptOnce(model, "on").over(ids, mask):
        pass


def test_rows_within_a_sliding_window_are_shared() -> None:
    model = make("MistralConfig", WINDOW | {"sliding_window": 100})
    ids, mask = pad_right(MIXED, 2, "cpu")
    wanted, _ = logits_and_gradients(model, ids, mask, None)
    found, _ = logits_and_gradients(model, ids, mask, PromptOnce(model, "on"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_wrong_with_a_stream_is_found_out() -> None:
    """One that makes positions of its own, where transformers' take those they are given."""
    model = make("LlamaConfig", FAMILIES["LlamaConfig"])
    inner = model.model.rotary_emb
    inner.register_forward_pre_hook(lambda _, args, words: (args, {**words, "position_ids": torch.arange(
        words["position_ids"].shape[1])[None]}), with_kwargs=True)  # fmt: skip
    ids, mask = pad_right(MIXED, 2, "cpu")
    said: list[str] = []
    with PromptOnce(model, "auto", said.append).over(ids, mask):
        pass
    assert "LlamaForCausalLM" in said[0] and "hidden states differ by" in said[0]


@pytest.mark.parametrize("budget", [10, 60, 150, 10_000])
@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_a_function_of_rows(budget: int, pad: Any) -> None:
    model = make("LlamaConfig", FAMILIES["LlamaConfig"])
    sizes: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[:2].numel()))

    def last(ids: torch.Tensor, mask: torch.Tensor, members: list[int]) -> list[Any]:
        hidden = model.model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))[0]
        ends = mask.shape[1] - 1 - mask.fliplr().argmax(1)
        return list(hidden[torch.arange(len(members)), ends])

    found = PromptOnce(model, "on").map(MIXED, budget, last, pad)
    hook.remove()
    assert max(sizes) <= max(budget, 2 * 80)  # two rows are the first check
    for row, value in zip(MIXED, found, strict=True):
        wanted = model.model(torch.tensor([row]))[0][0, -1]
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)


def test_a_reward_models_scores(reward_model: Path) -> None:
    """OpenRLHF's, in float32: each text alone, and all that begin alike in one batch."""
    from orlhf_ext.models.reward_models import RewardModel

    reader = RewardModel(str(reward_model))
    reader.load("bfloat16", "sdpa")
    reader._model.float()
    alone = reader.score(MIXED, 2)
    sizes: list[int] = []
    embedding = reader._model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[:2].numel()))
    together = reader.score(MIXED, 10_000)
    hook.remove()
    assert sizes[-1] == sum(map(len, MIXED)) - 40 - 2 * 23 - 50
    assert together == [[pytest.approx(score, abs=1e-5)] for (score,) in alone]
    assert len({score for (score,) in alone}) == len(MIXED)


def test_rows_that_do_not_pay_are_not_a_stream() -> None:
    model = make("LlamaConfig", FAMILIES["LlamaConfig"])
    rows = rows_of((16, (200, 200)))
    ids, mask = pad_right(rows, 2, "cpu")
    seen: list[Any] = []
    once = PromptOnce(model, "on")
    with once.over(ids, mask):
        hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[:2])))
        model(ids, attention_mask=mask)
    hook.remove()
    assert seen == [(2, 216)]


def test_parts_save_what_can_be_saved() -> None:
    rows = rows_of((40, (12, 9)), (23, (7, 15, 5)), (31, (8,)))
    assert find_parts(rows) == [Part([0, 1], 40), Part([2, 3, 4], 23), Part([5], 0)]
    order = [4, 0, 5, 2, 1, 3]
    mixed = [rows[i] for i in order]
    assert find_parts(mixed) == [Part([0, 3, 5], 23), Part([1, 4], 40), Part([2], 0)]
    # a template's beginning, which all share, does not keep prompts apart from their completions
    header = list(range(500, 525))
    assert [part.length for part in find_parts([header + row for row in rows[:5]])] == [65, 48]
    # prompts that were cut at other places share nothing
    assert [part.length for part in find_parts([rows[0], rows[1][7:], [*rows[1][7:], 3]])] == [0, 41]
    assert find_parts([[7] * 30, [7] * 30]) == [Part([0, 1], 29)]
    assert find_parts([[7], [7], []]) == [Part([0], 0), Part([1], 0), Part([2], 0)]
    assert find_parts([]) == []


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), max_size=12), st.integers(1, 200))
def test_parts_and_batches_have_every_row_once(rows: list[list[int]], budget: int) -> None:
    rows = [row for tail in rows for row in ([0] * 17 + tail, [0] * 17 + [1, *tail])]
    parts = find_parts(rows)
    assert sorted(row for part in parts for row in part.rows) == list(range(len(rows)))
    for part in parts:
        beginnings = {tuple(rows[row][: part.length]) for row in part.rows}
        assert len(beginnings) == 1 and all(part.length < len(rows[row]) for row in part.rows)
    lengths = [len(row) for row in rows]
    batches = cut_parts(parts, lengths, budget)
    assert sorted(row for batch in batches for part in batch for row in part.rows) == list(range(len(rows)))
    for batch in batches:
        tokens = sum(part.tokens(lengths) for part in batch)
        assert tokens <= budget or [len(part.rows) for part in batch] == [1]


def test_bfloat16_differs_by_rounding_alone() -> None:
    model = make("LlamaConfig", FAMILIES["LlamaConfig"]).bfloat16()
    said: list[str] = []
    ids, mask = pad_right(MIXED, 2, "cpu")
    once = PromptOnce(model, "on", said.append)
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits.float()
        with once.over(ids, mask):
            found = model(ids, attention_mask=mask).logits.float()
        exact = make("LlamaConfig", FAMILIES["LlamaConfig"])(ids, attention_mask=mask).logits
    kept = mask.bool()
    of_rows, of_stream = ((x - exact)[kept].norm() for x in (wanted, found))
    assert of_stream <= 1.5 * of_rows


def test_a_policy_and_its_reference_begin_as_one() -> None:
    """In bf16 too, kernels of training and of reading would differ; a loss begins at the value that users check."""
    model = make("LlamaConfig", FAMILIES["LlamaConfig"]).bfloat16()
    ids, mask = pad_right(MIXED, 2, "cpu")
    found = []
    for training in (True, False):
        with (
            PromptOnce(model.train(training), "on", str, trained=True).over(ids, mask),
            torch.set_grad_enabled(training),
        ):
            found.append(model(ids, attention_mask=mask).logits.detach()[mask.bool()])
    assert torch.equal(*found)
