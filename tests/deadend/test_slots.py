"""Rectified decoding for vLLM's second model runner, driven as that drives it (slots, prompts in parts, preemption,
drafts that are rejected, verification in parts, warm-up), against whole forward passes and the formula."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deadend_q import V, alone, infeasible_rows, make, make_q

from orlhf_ext.deadend.decoding import rectify
from orlhf_ext.deadend.slots import SlotStepper

SLOTS, LENGTH = 6, 96


class Buffer:
    """As vLLM's: ``np`` on the host and ``gpu`` on the device, which differ until they are flushed."""

    def __init__(self, *size: int) -> None:
        self.np = np.zeros(size, dtype=np.int32)
        self.gpu = torch.zeros(size, dtype=torch.int32)

    def flush(self) -> None:
        self.gpu = torch.from_numpy(self.np.copy())


@dataclass
class Request:
    ids: list[int]
    epsilon: Any
    left: int
    slot: int = -1
    computed: int = 0
    drafts: list[int] = field(default_factory=list)


class Runner:
    """What the second runner does with slots and rows, with random logits in the place of a model's."""

    def __init__(self, config: Any, seed: int) -> None:
        from orlhf_ext.deadend.vllm import RectifiedDecoding

        self.rng, self.torch = random.Random(seed), torch.Generator().manual_seed(seed)
        self.ids, self.prefill = Buffer(SLOTS, LENGTH), Buffer(SLOTS)
        states = SimpleNamespace(
            device=torch.device("cpu"), max_num_reqs=SLOTS, all_token_ids=self.ids, prefill_len=self.prefill
        )
        self.it: Any = RectifiedDecoding(config, states)
        self.model = self.it._q_model.double()  # only mistakes are left: in float32 rounding alone is 2e-6
        self.free = list(range(SLOTS))
        self.vocab = self.model.config.vocab_size + 3  # padded
        self.checked = self.infeasible = 0

    def add(self, request: Request) -> None:
        from vllm import SamplingParams

        request.slot = self.free.pop()
        request.computed, request.drafts = 0, []
        self.prefill.np[request.slot] = len(request.ids)
        self.ids.np[request.slot, : len(request.ids)] = request.ids
        extra = {} if request.epsilon is None else {"deadend_epsilon": request.epsilon}
        assert self.it.add_request(request.slot, SamplingParams(extra_args=extra)) is (request.epsilon != "off")

    def remove(self, request: Request) -> None:
        self.free.append(request.slot)
        request.slot = -1

    def step(self, running: list[Request], parts: int) -> None:
        for buffer in (self.ids, self.prefill):
            buffer.flush()
        self.it.apply_staged_writes()
        self.rng.shuffle(running)
        rows = []  # of each request: itself, position, token, and the drafts before it
        for request in running:
            known = len(request.ids)
            if known - request.computed > 1:  # a prompt, perhaps in parts
                request.computed = min(known, request.computed + self.rng.choice([3, 8, 40]))
                rows.append([(request, request.computed - 1, request.ids[request.computed - 1], [])])
            else:
                request.drafts = [self.rng.randrange(self.vocab) for _ in range(self.rng.choice([0, 0, 1, 3]))]
                new = [request.ids[-1], *request.drafts]
                rows.append([(request, known - 1 + i, token, new[1 : i + 1]) for i, token in enumerate(new)])
                request.computed = known
        cuts = sorted(self.rng.sample(range(1, len(rows)), min(parts, len(rows)) - 1)) if len(rows) > 1 else []
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            self.verify(rows[start:end])
        for request in running:
            if request.computed == len(request.ids):
                kept = self.rng.randint(0, len(request.drafts))  # the others are rejected
                request.ids += [*request.drafts[:kept], self.rng.randrange(self.vocab - 3)]
                request.computed = len(request.ids) - 1
                request.left -= 1

    def verify(self, rows: list[list[tuple[Request, int, int, list[int]]]]) -> None:
        flat = [row for group in rows for row in group]
        logits = torch.randn(len(flat), self.vocab, generator=self.torch) * 3
        logits[:, 7] = -torch.inf  # a grammar's
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor([row[0].slot for row in flat]),
            idx_mapping_np=np.array([group[0][0].slot for group in rows]),
            input_ids=torch.tensor([row[2] for row in flat], dtype=torch.int32),
            pos=torch.tensor([row[1] for row in flat]),
            seq_lens_upper_bound_np=np.array([group[-1][1] + 1 for group in rows] + [0, 0], dtype=np.int32),
        )
        found = self.it.apply(logits.clone(), context)
        for (request, position, _, drafts), before, after in zip(flat, logits, found, strict=True):
            if request.epsilon == "off":
                assert torch.equal(before, after)
            elif position + 1 >= self.prefill.np[request.slot]:  # else nobody samples from it
                self.check((request.ids + drafts)[: position + 1], request.epsilon, before, after)

    def check(self, text: list[int], epsilon: float | None, before: torch.Tensor, after: torch.Tensor) -> None:
        ids = torch.tensor([text]).clamp(max=self.model.config.vocab_size - 1)
        with torch.inference_mode():
            q_values = self.model.q_head(self.model.base_model(ids).last_hidden_state[0, -1:])
        q_values = torch.nn.functional.pad(q_values, (0, 3), value=2.0)
        epsilon = 0.1 if epsilon is None else epsilon
        wanted = rectify(before[None], q_values, epsilon)[0].float()
        torch.testing.assert_close(after.softmax(-1), wanted.softmax(-1), atol=1e-6, rtol=0)
        self.checked += 1
        self.infeasible += int(infeasible_rows(before[None], q_values, epsilon))


@pytest.fixture(scope="module")
def config(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("vllm")
    from orlhf_ext.models.folder import read_config

    q_folder = make_q(tmp_path_factory.mktemp("q") / "q", tiny_model, positions=128)
    size = read_config(tiny_model)["vocab_size"]
    model = SimpleNamespace(
        model=str(tiny_model), tokenizer=str(tiny_model), max_model_len=LENGTH, get_vocab_size=lambda: size
    )
    options = {"deadend": {"model": str(q_folder), "epsilon": 0.1}}
    return SimpleNamespace(additional_config=options, model_config=model, speculative_config=object())


@pytest.mark.launcher
@pytest.mark.parametrize("seed", range(2))
def test_rows_are_those_of_the_formula(config: Any, seed: int) -> None:
    from vllm import SamplingParams

    runner = Runner(config, seed)
    rng = runner.rng
    for slot in range(SLOTS):  # vLLM's warm-up: parameters without tokens
        assert not runner.it.add_request(slot, SamplingParams())
    runner.it.apply_staged_writes()
    waiting = [
        Request([rng.randrange(3, 200) for _ in range(length)], rng.choice([None, 0.0, 0.5, 1.0, "off"]), 6)
        for length in rng.choices([1, 2, 5, 30], k=10)
    ]
    running: list[Request] = []
    while waiting or running:
        while waiting and runner.free and rng.random() < 0.8:
            running.append(waiting.pop())
            runner.add(running[-1])
        if running:
            runner.step(running, parts=rng.choice([1, 1, 2, 3]))
        for request in list(running):
            ended = request.left <= 0 or len(request.ids) > LENGTH - 8
            if ended or rng.random() < 0.05:  # or preempted: what it had comes back as its beginning
                running.remove(request)
                runner.remove(request)
                if not ended:
                    waiting.insert(0, request)
    assert runner.checked > 40
    assert (runner.it.steps, runner.it.infeasible_steps) == (runner.checked, runner.infeasible)


@pytest.mark.launcher
def test_one_name_for_both_runners(config: Any) -> None:
    from orlhf_ext.deadend.vllm import RectifiedDecoding, RectifiedRows, RectifiedSlots

    states = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=2)
    assert type(RectifiedDecoding(config, states)) is RectifiedSlots
    plain = SimpleNamespace(**{**vars(config), "speculative_config": None})
    assert type(RectifiedDecoding(plain, torch.device("cpu"), False)) is RectifiedRows


@pytest.mark.launcher
def test_a_runner_that_would_ignore_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    from vllm import SamplingParams

    from orlhf_ext.deadend import vllm, vllm_shared

    monkeypatch.setattr(vllm_shared, "INTERFACES", vllm_shared.INTERFACES[:1])
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match="unset VLLM_USE_V2_MODEL_RUNNER"):
        vllm.RectifiedDecoding.validate_params(SamplingParams())
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    vllm.RectifiedDecoding.validate_params(SamplingParams())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2-window", "mistral-window"])
def test_every_family(kind: str) -> None:
    model = make(kind)
    rng, stepper = random.Random(1), SlotStepper(model)
    texts = [[rng.randrange(V) for _ in range(n)] for n in (1, 3, 9, 20)]
    stepper.make_room(6, 0)
    read = [(row, text) for row, text in enumerate(texts, 1) if len(text) > 1]
    ids = torch.tensor([text[:-1] + [0] * (20 - len(text)) for _, text in read])
    stepper.read(torch.tensor([row for row, _ in read]), ids, [len(text) - 1 for _, text in read])
    for _ in range(8):
        order = rng.sample(range(4), rng.randint(1, 4))
        rows = [(i + 1, texts[i][-1], len(texts[i]) - 1) for i in order]
        places, tokens, positions = (torch.tensor(column) for column in zip(*rows, strict=True))
        found = stepper.values(places, tokens, positions, int(positions.max()) + 1)
        for i, row in zip(order, found, strict=True):
            torch.testing.assert_close(row, alone(model, texts[i]), atol=1e-4, rtol=1e-4)
            texts[i].append(rng.randrange(V))
