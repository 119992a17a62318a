"""Q_D as a model: saved and loaded, heads that agree, float32 targets in bf16, rows instead of whole vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)
transformers = pytest.importorskip("transformers")

from deadend_q import new_q_model  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from orlhf_ext.cli.errors import UserError  # noqa: E402
from orlhf_ext.deadend.loss import polyak_update, sarsa_loss, sarsa_targets  # noqa: E402
from orlhf_ext.deadend.model import QModel, load_q_model, open_model  # noqa: E402
from orlhf_ext.deadend.settings import read_settings  # noqa: E402

V = 61


def config(family: str, **changes: Any) -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    if family == "gpt2":
        words = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, **ids, **changes}
        return transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **words)
    words = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, **ids, **changes}
    return transformers.LlamaConfig(**{"num_attention_heads": 2, "max_position_embeddings": 32, **words})


@pytest.fixture(params=["gpt2", "llama"])
def language_model(request: Any, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config(request.param))
    model.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def numbers(head: Any) -> dict[str, Any]:
    return {**dict(head.named_parameters()), **dict(head.named_buffers())}


def test_of_a_language_model(language_model: Path) -> None:
    """The trunk is the language model's, both heads are new and equal, and nothing of an output layer is left."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(language_model)
    model = open_model(str(language_model), torch.float32, "sdpa", {"gamma": 0.9})
    assert isinstance(model, QModel) and isinstance(model, type(plain).__base__)
    for name, weight in plain.base_model.state_dict().items():
        assert torch.equal(weight, model.base_model.state_dict()[name]), name
    online, target = numbers(model.q_head), numbers(model.target_head)
    assert online.keys() == target.keys()
    assert all(torch.equal(online[name], target[name]) for name in online)
    assert online["values.weight"].std().item() == pytest.approx(0.02, rel=0.1) and not online["values.bias"].any()
    assert online["inner.weight"].shape == (32, 16) and online["values.weight"].shape == (V, 32)
    assert not list(model.target_head.parameters()) and all(p.requires_grad for p in model.parameters())
    assert not [name for name in model.state_dict() if "lm_head" in name]
    assert model.settings.gamma == 0.9 and model.settings.vocab_size == V


def test_equal_rows(language_model: Path, tmp_path: Path) -> None:
    """Values begin as those of the state; a head that is there has begun already."""
    model = open_model(str(language_model), torch.float32, "sdpa", {}, equal_rows=True)
    rows = model.q_head.values.weight
    assert torch.equal(rows, rows[:1].expand_as(rows)) and rows[0].std().item() == pytest.approx(0.02, rel=0.5)
    assert torch.equal(model.target_head.values.weight, rows)
    hidden = torch.randn(3, 16)
    values = model.q_head(hidden)
    assert torch.allclose(values, values[:, :1].expand_as(values)) and values[:, 0].unique().numel() == 3
    model.save_pretrained(tmp_path / "q")
    with pytest.raises(UserError, match=r"is a Q_D already, and --deadend\.equal_rows is for the beginning"):
        open_model(str(tmp_path / "q"), torch.float32, "sdpa", {}, equal_rows=True)


def test_saved_and_loaded(language_model: Path, tmp_path: Path) -> None:
    """Both heads come back as they were, in any type; training goes on with its own settings."""
    model = open_model(str(language_model), torch.bfloat16, "sdpa", {})
    for buffer in model.target_head.buffers():
        buffer.normal_()
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "q")
    stood = json.loads((tmp_path / "q" / "config.json").read_text())
    assert stood["dead_end"]["vocab_size"] == V
    for dtype in ("float32", "bfloat16"):
        loaded = load_q_model(tmp_path / "q", dtype)
        assert not loaded.training and loaded.q_head.values.weight.dtype == getattr(torch, dtype)
        assert {buffer.dtype for buffer in loaded.target_head.buffers()} == {torch.float32}
        found = loaded.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].float(), wanted[name].float()) for name in wanted)
    on = open_model(str(tmp_path / "q"), torch.float32, "sdpa", {"gamma": 0.5})
    assert on.settings.gamma == 0.5 and load_q_model(tmp_path / "q").settings.gamma == 1.0
    assert torch.equal(on.target_head.values.weight, wanted["target_head.values.weight"])


def test_folders_that_are_no_value_function(language_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(UserError, match=r"is not a value function: its config.json has no dead_end; give a folder"):
        load_q_model(language_model)
    with pytest.raises(UserError, match=r"nothing is not a folder"):
        read_settings(tmp_path / "nothing", "--q")
    model = open_model(str(language_model), torch.float32, "sdpa", {})
    model.save_pretrained(tmp_path / "q")
    weights = load_file(tmp_path / "q" / "model.safetensors")
    del weights["q_head.values.bias"]
    save_file(weights, tmp_path / "q" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks q_head.values.bias among its weights; copy the model again"):
        load_q_model(tmp_path / "q")
    stood = json.loads((tmp_path / "q" / "config.json").read_text())
    stood["dead_end"]["gamma"] = 2
    (tmp_path / "q" / "config.json").write_text(json.dumps(stood))
    with pytest.raises(UserError, match=r"has a dead_end in its config.json that cannot be read: gamma is 2, not"):
        load_q_model(tmp_path / "q")
    bert = transformers.CLIPConfig()
    with pytest.raises(UserError, match=r"a model of type 'clip' cannot carry a value function"):
        new_q_model(bert)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_values_of_actions(family: str) -> None:
    """Rows of the output layer give what the whole layer gives; padding on the right changes nothing; a step with a
    cache gives what the whole text gives."""
    torch.manual_seed(0)
    model = new_q_model(config(family)).eval()
    ids = torch.randint(3, V, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        for buffer in model.target_head.buffers():
            buffer.normal_()
        q, target = model(ids, mask)
        hidden = model.hidden_states(ids, mask)[:, :-1]
        picked = [head(hidden).gather(-1, ids[:, 1:, None]).squeeze(-1) for head in (model.q_head, model.target_head)]
        torch.testing.assert_close(q, picked[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(target, picked[1], rtol=0, atol=1e-5)
        alone, _ = model(ids[1:, :5])
        torch.testing.assert_close(q[1:, :4], alone, rtol=0, atol=1e-6)
        start = model.base_model(ids[:1, :6], use_cache=True)
        step = model.base_model(
            ids[:1, 6:7], position_ids=torch.tensor([[6]]), past_key_values=start.past_key_values, use_cache=True
        )
        torch.testing.assert_close(model.q_head(step.last_hidden_state[:, -1]), model.q_head(hidden[:1, 6]))


def test_bf16() -> None:
    """Values are float32, and the target head stays so through any conversion."""
    torch.manual_seed(0)
    model = new_q_model(config("llama"))
    for convert in (lambda: model.bfloat16(), lambda: model.half(), lambda: model.to(torch.bfloat16)):
        convert()
        assert {buffer.dtype for buffer in model.target_head.buffers()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    q, target = model(torch.randint(3, V, (2, 5)))
    assert q.dtype == target.dtype == torch.float32 and q.requires_grad and not target.requires_grad
    before = {name: buffer.clone() for name, buffer in model.target_head.named_buffers()}
    online = dict(model.q_head.named_parameters())
    with torch.no_grad():
        for parameter in online.values():
            parameter.add_(0.01)
    polyak_update(model.target_head.buffers(), model.q_head.parameters(), 0.1)
    for name, buffer in model.target_head.named_buffers():
        wanted = 0.9 * before[name] + 0.1 * online[name].float()
        torch.testing.assert_close(buffer, wanted)
        assert (buffer != before[name]).float().mean() > 0.99


def test_gradients_of_a_frequent_token() -> None:
    """A thousand small gradients add up in a bf16 head, too."""
    torch.manual_seed(0)
    model = new_q_model(config("llama", max_position_embeddings=1024)).bfloat16()
    q, _ = model(torch.full((1, 1001), 5))
    q.sum().backward()
    assert model.q_head.values.bias.grad[5].item() == 1000
    assert model.q_head.values.bias.grad.count_nonzero() == 1


class _Largest(TorchDispatchMode):
    """The shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), words: Any = None) -> Any:
        found = function(*args, **(words or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor):
                self.shapes.add(tuple(one.shape))
        return found


def test_training_makes_no_tensor_of_batch_length_and_vocabulary() -> None:
    torch.manual_seed(0)
    vocab, b, t = 4001, 3, 7
    model = new_q_model(config("llama", vocab_size=vocab))
    ids, lengths = torch.randint(3, vocab, (b, t)), torch.tensor([7, 4, 2])
    mask = (torch.arange(t) < lengths[:, None]).long()
    with _Largest() as seen:
        q, target = model(ids, mask)
        sarsa_loss(q, sarsa_targets(target, torch.tensor([-1.0, 0.0, -1.0]), lengths), lengths).backward()
    largest = max(torch.Size(shape).numel() for shape in seen.shapes)
    assert largest == vocab * 32  # the output layer's own gradient; B (T-1) V would be 18 V, of which none is made
    assert not [shape for shape in seen.shapes if vocab in shape[1:] or (vocab in shape and len(shape) > 2)]
    with _Largest() as seen, torch.no_grad():  # the watcher sees what it is to see
        model.q_head(model.hidden_states(ids, mask))
    assert (b, t, vocab) in seen.shapes
