"""A training that is killed at any checkpoint and resumed ends as the run that nobody killed, bit for bit."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, write
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext import openrlhf_fixes
from orlhf_ext.openrlhf_fixes.resuming import StepsOfEpoch, ends_episode

pytest.importorskip("openrlhf")


@given(st.data())
def test_the_position_is_that_of_the_run_as_a_whole(data: Any) -> None:
    """For any number of records, ranks, micro batches and steps: OpenRLHF's two lines, and its sampler, find the very
    record that the run as a whole would have read next."""
    from openrlhf.utils.distributed_sampler import DistributedSampler

    ranks, micro, gas = (data.draw(st.integers(1, 4)) for _ in range(3))
    batch = ranks * micro * gas
    records, epochs = data.draw(st.integers(batch, 5 * batch)), data.draw(st.integers(1, 4))

    def read(rank: int, epoch: int, consumed: Any) -> list[list[int]]:
        """The micro batches that a rank still reads in an epoch."""
        sampler: Any = DistributedSampler(range(records), ranks, rank, seed=3, drop_last=True)
        sampler.set_epoch(epoch, consumed_samples=consumed)
        found = list(sampler)
        return [found[i : i + micro] for i in range(0, len(found) - micro + 1, micro)]

    whole = [[batches for epoch in range(epochs) for batches in read(rank, epoch, 0)] for rank in range(ranks)]
    steps = StepsOfEpoch(Fraction(len(read(0, 0, 0)), gas))
    done = data.draw(st.integers(0, len(whole[0]) // gas))
    consumed = done * batch
    start = consumed // batch // steps
    left = consumed % (steps * batch)
    for rank in range(ranks):
        rest = [b for epoch in range(start, epochs) for b in read(rank, epoch, left if epoch == start else 0)]
        assert rest == whole[rank][done * gas :]


def test_an_epoch_is_counted_as_before_elsewhere() -> None:
    steps = StepsOfEpoch(Fraction(5, 2))
    assert steps == 2 and 4 % steps == 0 and 5 % steps == 1 and isinstance(7 // steps, int)


@pytest.mark.parametrize(("count", "ends"), [(4, [0, 1, 0, 1]), (5, [0, 1, 0, 1, 1]), (1, [1]), (0, [])])
def test_the_last_rollouts_are_a_step_of_their_own(count: int, ends: list[int]) -> None:
    openrlhf_fixes.install()
    import torch
    from openrlhf.utils.loss_utils import iter_grad_accum_global_norm

    strategy = SimpleNamespace()
    found = [
        (item.item(), info["batch_num_tokens"].item(), strategy.ends_step)
        for item, info in iter_grad_accum_global_norm(
            iter(torch.arange(1, count + 1)), strategy, 2, lambda item: item * torch.ones(1, 1)
        )
    ]
    assert [int(end) for _, _, end in found] == ends
    assert [item for item, _, _ in found] == list(range(1, count + 1))
    tokens = [3, 3, 7, 7, 5] if count > 1 else [1]  # of the window
    assert [2 * half for _, half, _ in found] == tokens[:count]


def weights(model: Path) -> dict[str, bytes]:
    """All tensors of a model folder."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(model / "model.safetensors")
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


class Buffered:
    """OpenRLHF's generator over a real data loader; sampling gives each prompt itself as an answer."""

    def __init__(self, records: int, batch: int, at_once: int) -> None:
        openrlhf_fixes.install()
        import torch
        from openrlhf.trainer.ppo_utils import samples_generator
        from openrlhf.trainer.ppo_utils.experience import Experience
        from torchdata.stateful_dataloader import StatefulDataLoader

        class Generator(samples_generator.SamplesGenerator):
            def _generate_vllm(self, dataloader_iter: Any, num_prompts: int, *_: Any, **__: Any) -> Any:
                prompts, _, _, done = samples_generator._collect_prompt_batch(dataloader_iter, num_prompts)
                answers = [Experience(prompts=[prompt], sequences=torch.tensor([[prompt]])) for prompt in prompts]
                return answers[::-1], len(prompts), done

        rollout = SimpleNamespace(batch_size=batch, n_samples_per_prompt=1, vllm_generate_batch_size=at_once)
        space = SimpleNamespace(
            rollout=rollout,
            vllm=SimpleNamespace(enable_sleep=False),
            algo=SimpleNamespace(dynamic_filtering_enable=False),
            ckpt=SimpleNamespace(path="ckpt"),
        )
        torch.manual_seed(0)
        self.loader = StatefulDataLoader(
            list(range(records)),
            batch_size=1,
            shuffle=True,
            drop_last=True,
            collate_fn=lambda rows: ([None], rows, [None], [None]),
        )
        self.generator = Generator(SimpleNamespace(args=space), self.loader, None, None, [])

    def run(self, episodes: int, episode: int = 0, state: Any = None) -> list[tuple[list[int], int, Any]]:
        """What each step trains on, and its checkpoint's episode and state; as `PPOTrainer.fit` does it."""
        if state is not None:
            self.loader.load_state_dict(state)
            episode += ends_episode(state)
        steps = []
        for number in range(episode, episodes):
            exhausted = False
            while not exhausted:
                samples, _, _, exhausted = self.generator.generate_samples()
                if samples:
                    kept = copy.deepcopy(self.loader.state_dict())
                    steps.append(([sample.prompts[0] for sample in samples], number, kept))
        return steps


@pytest.mark.launcher
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("batch", [2, 3, 4, 10, 16])
def test_no_prompt_is_lost_or_trained_on_twice(batch: int, at_once: int) -> None:
    """10 prompts, 3 episodes, sampled one or two batches at once; a run goes on from each of its checkpoints."""
    whole = Buffered(10, batch, at_once * batch).run(3)
    for done, (_, episode, state) in enumerate(whole, 1):
        rest = Buffered(10, batch, at_once * batch).run(3, episode, state)
        assert [prompts for prompts, _, _ in rest] == [prompts for prompts, _, _ in whole[done:]], done
    assert sorted(prompt for prompts, _, _ in whole for prompt in prompts) == sorted([*range(10)] * 3)


def pairs(count: int) -> list[dict[str, Any]]:
    """Preferences for the tiny model, each of its own length."""
    return [
        {
            "id": str(i),
            "prompt": f"\n\nHuman: hello {i}?\n\nAssistant:",
            "chosen": f" fine {i} yes" + "!" * (i % 3),
            "rejected": f" no {i * i}",
            "group_id": i % 2,
            "text": f"hello {i} and {i * i}" + "!" * (i % 4),
            "reward": [-(i % 2)],
        }
        for i in range(count)
    ]


STOCK = {"train_dpo": ["--data.prompt_key", "prompt"], "train_rm": ["--data.prompt_key", "prompt", "--eval.steps", "2"]}
STOCK["train_sft"] = ["--data.input_key", "prompt", "--data.output_key", "chosen"]
OWN = {
    "exo": ["train_dpo", "--ext.use", "exo", "--exo.loss_type", "exo-pref"],
    "group-rm": [
        *("train_rm", "--data.prompt_key", "prompt", "--ext.use", "group-rm", "--eval.steps", "2"),
        *("--groups.names", "a", "b", "--groups.train_backbone"),
    ],
    "dead-end": ["train_sft", "--ext.use", "dead-end"],
}
RUNS = [
    pytest.param(["train_dpo", *STOCK["train_dpo"]], 1, id="train_dpo", marks=pytest.mark.slow),
    pytest.param(["train_rm", *STOCK["train_rm"]], 1, id="train_rm", marks=pytest.mark.slow),
    pytest.param(["train_sft", *STOCK["train_sft"]], 1, id="train_sft"),
    pytest.param(["train_dpo", *STOCK["train_dpo"]], 2, id="train_dpo on two ranks", marks=pytest.mark.slow),
    pytest.param(["train_rm", *STOCK["train_rm"]], 2, id="train_rm on two ranks", marks=pytest.mark.slow),
    *(pytest.param(words, 1, id=name, marks=pytest.mark.slow) for name, words in OWN.items()),
]


@pytest.mark.launcher
@pytest.mark.parametrize(("words", "ranks"), RUNS)
def test_a_resumed_training_is_the_run_as_a_whole(
    words: list[str], ranks: int, tiny_model: Path, tmp_path: Path
) -> None:
    """11 records, 4 a step, 3 epochs, with dropout: weights, config and schedule from a checkpoint in each epoch and
    from the last one. An epoch has 5 micro batches of 2 records, and 2 are a step."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    data = write(tmp_path / "data.jsonl", pairs(11))
    flags = ["--model.model_name_or_path", str(model), "--data.dataset", str(data), "--data.max_len", "64"]
    flags += ["--train.batch_size", "4", "--train.micro_batch_size", str(2 // ranks), "--train.max_epochs", "3"]
    flags += ["--adam.lr", "1e-3", "--lr_warmup_ratio", "0"]
    if words[0] == "train_dpo":
        flags += ["--ref.model_name_or_path", str(tiny_model)]
    else:
        flags += ["--eval.dataset", str(data)]
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*(starter if ranks > 1 else [sys.executable]), str(ROOT / "tests/support/resume_runs.py")]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "runs"), "1,3,6,7", *words, *flags],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    whole, untrained = weights(tmp_path / "runs/whole/model"), weights(model)
    assert any(whole[name] != untrained.get(name) for name in whole)
    assert not (tmp_path / "runs/whole/ckpt/global_step8").exists()
    settings = json.loads((tmp_path / "runs/whole/model/config.json").read_text())
    if words[0] == "train_rm":
        assert settings.get("std") or settings["group_reward"]["norm"]["std"]
    for step in (1, 3, 6, 7):
        again = tmp_path / f"runs/{step}/model"
        assert weights(again) == whole, step
        assert json.loads((again / "config.json").read_text()) == settings, step
