"""The K-wise trainer: through OpenRLHF's real Actor and strategy in process, and through the real launcher."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import EXO_FLAGS, launch, scalars, write

BETA, TAU = EXO_FLAGS["beta_pi"], EXO_FLAGS["temperature"]


# ---- in process


def make_trainer(strategy, policy, reference, eval_dataloader=None, **exo):
    """The real trainer around two modules, with some of its flags changed."""
    from openrlhf.models import Actor

    from orlhf_ext.exo.trainer import KwiseTrainer

    actors = [Actor(module) for module in (policy, reference)]
    for actor in actors:
        actor.packing_samples = False
    strategy.args.exo = SimpleNamespace(**{**EXO_FLAGS, **exo})
    return KwiseTrainer(
        model=actors[0],
        ref_model=actors[1],
        strategy=strategy,
        tokenizer=None,
        optim=None,
        train_dataloader=None,
        eval_dataloader=eval_dataloader,
        scheduler=None,
    )


def module_of(logits: torch.Tensor) -> torch.nn.Module:
    """A language model that answers every batch with the same logits."""
    from transformers import LlamaConfig
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Fixed(torch.nn.Module):
        config = LlamaConfig(vocab_size=logits.shape[-1])

        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(logits)

        def forward(self, sequences, attention_mask=None, position_ids=None):
            return CausalLMOutputWithPast(logits=self.logits.clone())

    return Fixed()


def logits_case():
    """Logits, ids and mask of the logit-level golden: 4 rows, 8 positions, 5 tokens, 3 prompt tokens."""
    b, t, v = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), torch.arange(5.0), indexing="ij")
    z = 2 * torch.sin(0.7 * b + 1.3 * t + 0.9 * v + 0.1)
    z_reference = 1.5 * torch.cos(0.4 * b + 0.8 * t + 1.1 * v)
    rows = ["12340120", "12302000", "41123000", "41133320"]
    ids = torch.tensor([[int(c) for c in row] for row in rows])
    mask = (torch.arange(8) < torch.tensor([8, 6, 6, 8])[:, None]).long()
    return z, z_reference, ids, mask


POLICY = [-10.684532412843, -8.847725153622, -6.495625887558, -14.790349938094]
REFERENCE = [-10.291654198565, -9.176967763807, -6.951372706731, -5.932592027371]
EPSILON_10 = 1 / (1 + math.e**10)


@pytest.mark.parametrize(
    "loss_type, size, labels, epsilon, expected",
    [
        ("exo-pref", 2, [1, 0, 0, 1], EPSILON_10, 7.534257951406 + math.log1p(math.e**-10)),
        ("dpo-pref", 2, [1, 0, 0, 1], None, 2.778045008167),
        ("exo-rw", 2, [0.9, -0.2, 0.1, 0.6], None, 0.987507322951),
        ("dpo-rw", 2, [0.9, -0.2, 0.1, 0.6], None, 2.133840231808),
        ("exo-rw", 4, [0.9, -0.2, 0.1, 0.6], None, 0.929020530812),
        ("dpo-rw", 4, [0.9, -0.2, 0.1, 0.6], None, 2.561053784973),
    ],
)
def test_logit_golden_through_the_real_actor(strategy, loss_type, size, labels, epsilon, expected):
    """Masking, the shift by one, tau and the loss, from logits to a number, as fit() calls them."""
    from orlhf_ext.exo.dataset import Rows

    z, z_reference, ids, mask = logits_case()
    policy = module_of(z)
    flags = {"loss_type": loss_type, "num_contrastive": size, "epsilon": epsilon, "share_prompt": "off"}
    trainer = make_trainer(strategy, policy, module_of(z_reference), **flags)
    rewards = torch.tensor(labels, dtype=torch.float32)
    rows = Rows([3, 3, 3, 3], list(range(4 // size)), None)
    logps, same, _, _ = trainer.concatenated_forward(trainer.model, ids, mask, rewards, rewards, rows)
    with torch.no_grad():
        reference, _, _, _ = trainer.concatenated_forward(trainer.ref_model, ids, mask, rewards, rewards, rows)
    from openrlhf.models import DPOLoss

    assert isinstance(trainer.loss_fn, DPOLoss)
    loss, best, worst = trainer.loss_fn(logps, same, reference, rewards)
    assert logps.tolist() == pytest.approx(POLICY, abs=1e-5)
    assert reference.tolist() == pytest.approx(REFERENCE, abs=1e-5)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    implicit = BETA * (torch.tensor(POLICY) - torch.tensor(REFERENCE)).view(-1, size)
    groups = rewards.view(-1, size)
    assert best.tolist() == pytest.approx(
        [i[g.argmax()].item() for i, g in zip(implicit, groups, strict=True)], abs=1e-5
    )
    assert worst.tolist() == pytest.approx(
        [i[g.argmin()].item() for i, g in zip(implicit, groups, strict=True)], abs=1e-5
    )
    loss.backward()
    gradient = policy.logits.grad
    predicts = torch.zeros(4, 8, dtype=torch.bool)  # positions whose logits predict a response token
    for row, length in enumerate([8, 6, 6, 8]):
        predicts[row, 2 : length - 1] = True
    assert (gradient[~predicts] == 0).all()
    assert (gradient[predicts].abs().sum(-1) > 0).all()


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def random_batch(seed=0, rows=4, prompt=(5, 9)):
    """Ids and mask of rows with prompts and responses of several lengths, padded on the right."""
    generator = random.Random(seed)
    prompts = [generator.randint(*prompt) for _ in range(rows)]
    lengths = [p + generator.randint(1, 6) for p in prompts]
    torch.manual_seed(seed)
    ids = torch.randint(5, 250, (rows, max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask + 2 * (1 - mask), mask, prompts


def test_logits_of_responses_alone_equal_all_logits(strategy, tiny):
    """Logits for nothing but responses change neither log-probabilities nor gradients, and are fewer."""
    import copy

    from orlhf_ext.exo.dataset import Rows

    trainer = make_trainer(strategy, copy.deepcopy(tiny), tiny, share_prompt="off")
    ids, mask, prompts = random_batch()
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0])
    rows = Rows(prompts, [0, 1], None)
    seen = []
    trainer.model.model.lm_head.register_forward_hook(lambda *a: seen.append(a[2].shape[1]))
    results = []
    for packing_path in (False, True):  # the packing flag of the trainer alone chooses the path over all positions
        trainer.packing_samples = packing_path
        trainer.model.zero_grad()
        sums, _, _, nll = trainer.concatenated_forward(trainer.model, ids, mask, rewards, rewards, rows)
        (sums.pow(2).sum() + nll).backward()
        gradients = [p.grad.clone() for p in trainer.model.parameters()]
        results.append((sums.detach(), nll.detach(), gradients))
    assert seen == [int(mask.sum()) - sum(prompts), ids.shape[1]]
    (sums, nll, gradients), (all_sums, all_nll, all_gradients) = results
    assert torch.allclose(sums, all_sums, rtol=1e-5, atol=1e-5) and torch.allclose(nll, all_nll, rtol=1e-5)
    for gradient, other in zip(gradients, all_gradients, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-3)
    # An independent computation, row by row, without padding, mask or Actor.
    for row, prompt in enumerate(prompts):
        length = int(mask[row].sum())
        with torch.no_grad():
            log_p = torch.log_softmax(tiny(ids[row : row + 1, :length]).logits[0] / TAU, -1)
        expected = sum(log_p[t - 1, ids[row, t]] for t in range(prompt, length))
        assert sums[row].item() == pytest.approx(expected.item(), abs=1e-3)


def test_shared_prompts_change_neither_values_nor_gradients(strategy, tiny):
    """Ragged prompts, two records in a batch, groups of two: what the trainer computes of a stream and of rows."""
    import copy

    from orlhf_ext.exo.dataset import Rows

    generator = torch.Generator().manual_seed(4)
    records = [torch.randint(5, 250, (length,), generator=generator) for length in (60, 31)]
    ends = [torch.randint(5, 250, (length,), generator=generator) for length in (9, 14, 3, 20, 7, 8)]
    pieces = [torch.cat([records[n // 4], end]) for n, end in enumerate(ends)]
    ids = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=2)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in pieces])[:, None]).long()
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 3.0])
    found = {}
    for mode in ("off", "on"):
        trainer = make_trainer(strategy, copy.deepcopy(tiny), tiny, share_prompt=mode)
        tokens = []
        embedding = trainer.model.model.get_input_embeddings()
        embedding.register_forward_hook(lambda _m, _i, out, seen=tokens: seen.append(out.shape[:2].numel()))
        rows = Rows([60] * 4 + [31] * 2, [0, 1], None)
        sums, _, _, nll = trainer.concatenated_forward(trainer.model, ids, mask, rewards, rewards, rows)
        (sums.pow(2).sum() + nll).backward()
        found[mode] = sums.detach(), nll.detach(), [p.grad.clone() for p in trainer.model.parameters()], tokens[-1]
    assert [one[3] for one in found.values()] == [ids.numel(), 60 + 31 + sum(map(len, ends))]
    for wanted, shared in zip([*found["off"][2], *found["off"][:2]], [*found["on"][2], *found["on"][:2]], strict=True):
        torch.testing.assert_close(shared, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_nll_is_that_of_the_best_rows(strategy, tiny):
    from orlhf_ext.exo.dataset import Rows

    trainer = make_trainer(strategy, tiny, tiny, num_contrastive=2)
    ids, mask, prompts = random_batch(3)
    rewards = torch.tensor([1.0, 0.0, -2.0, 0.5])
    with torch.no_grad():
        sums, _, _, nll = trainer.concatenated_forward(
            trainer.model, ids, mask, rewards, rewards, Rows(prompts, [0, 1], None)
        )
    tokens = mask.sum(-1) - torch.tensor(prompts)
    means = sums / tokens
    assert nll.item() == pytest.approx(-(means[0] + means[3]).item() / 2, abs=1e-5)


def test_metrics_of_a_step(strategy, tiny):
    """Means over all groups of the window; a group without a best completion counts for neither accuracy nor margin."""
    trainer = make_trainer(strategy, tiny, tiny, loss_type="exo-rw", num_contrastive=3)
    zeros = torch.zeros(3)
    # h = 2, 0, -2 with the best first: right; the best second: wrong; all labels equal: left out.
    policy = torch.tensor([2.0, 0.0, -2.0])
    losses = [
        trainer.loss_fn(policy, torch.tensor(labels), zeros, torch.tensor(labels))[0].item()
        for labels in ([3.0, 1.0, 0.0], [0.0, 1.0, 0.5], [1.0, 1.0, 1.0])
    ]
    means = trainer.tally.means(strategy)
    p = torch.softmax(BETA * policy, -1)
    assert means["kwise/loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert means["kwise/ranking_acc"] == pytest.approx(0.5)
    assert means["kwise/margin"] == pytest.approx((1 - 1) / 2, abs=1e-6)  # +1 (1 against 0) and -1 (0 against 1)
    assert means["kwise/log_ratio"] == pytest.approx(0, abs=1e-6)
    assert means["kwise/entropy"] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    assert "kwise/response_tokens" not in means  # nothing was forwarded


def test_ranking_needs_the_highest_reward_of_all(strategy, tiny):
    trainer = make_trainer(strategy, tiny, tiny, loss_type="dpo-pref", num_contrastive=3)
    labels = torch.tensor([1.0, 0.0, 0.0])
    _, best, worst = trainer.loss_fn(torch.tensor([1.0, 0.0, 2.0]), labels, torch.zeros(3), labels)
    assert best > worst  # what fit() calls acc: best against worst
    assert trainer.tally.means(strategy)["kwise/ranking_acc"] == 0


def test_evaluation_and_step_logs(strategy, tiny, tiny_model, capsys):
    """evaluate() of the parent runs unchanged on our batches, and its metrics leave those of training alone."""
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from orlhf_ext.exo.dataset import KwiseDataset

    strategy.args.exo = SimpleNamespace(**EXO_FLAGS)
    dataset = KwiseDataset(
        Dataset.from_list(kwise_records(5)), AutoTokenizer.from_pretrained(tiny_model), 96, strategy, is_dpo=True
    )
    loader = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn)
    trainer = make_trainer(strategy, tiny, tiny, loader)
    trainer.tally.add("loss", torch.tensor([7.0]))
    logged = {}
    trainer._tensorboard = SimpleNamespace(add_scalar=lambda name, value, step: logged.update({name: (value, step)}))
    bar = SimpleNamespace(set_postfix=lambda logs: None)
    strategy.args.eval.steps = 3
    trainer.save_logs_and_checkpoints(strategy.args, 3, bar, {"loss": 1.5})
    assert logged["train/loss"] == (1.5, 3) and logged["train/kwise/loss"] == (7.0, 3)
    groups = torch.tensor([r for i in range(5) for r in dataset[i]["rewards"]]).view(-1, 2)
    log_q = torch.log_softmax(groups / 0.5, -1)
    expected = (-math.log(2) - log_q.mean(-1)).mean().item()  # policy and reference are one: p is uniform
    assert logged["eval/eval_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert logged["eval/kwise/loss"][0] == pytest.approx(expected, rel=1e-4)
    assert logged["eval/kwise/ranking_acc"] == (0, 3) and logged["eval/kwise/entropy"][0] == pytest.approx(math.log(2))
    responses = dataset.row_lengths.sum() - sum(sum(dataset[i]["prompt_lengths"]) for i in range(5))
    assert logged["eval/kwise/response_tokens"][0] == pytest.approx(responses / len(dataset.row_lengths))
    assert "evaluation at step 3: kwise/loss" in capsys.readouterr().out
    assert trainer.tally.means(strategy) == {}


def test_token_ids_of_another_tokenizer_are_refused(strategy, tiny):
    from orlhf_ext.cli.errors import UserError

    class Loader(list):
        dataset = SimpleNamespace(largest_id=tiny.config.vocab_size)

    loader = Loader(["a batch"])
    with pytest.raises(UserError, match="another tokenizer"):
        make_trainer(strategy, tiny, tiny, loader)


# ---- through the launcher


def text(generator: random.Random) -> str:
    return " " + " ".join(generator.choices(["apple", "pear", "kind", "help", "please", "the", "cat", "sat"], k=6))


def kwise_records(count: int, ragged: bool = True) -> list[dict]:
    generator = random.Random(1)
    records = []
    for i in range(count):
        k = generator.choice([2, 4]) if ragged else 2
        completions = [text(generator) * generator.randint(1, 2) for _ in range(k)]
        rewards = [generator.gauss(0, 1) for _ in range(k)]
        prompt = f"\n\nHuman: {text(generator)}?\n\nAssistant:"
        records.append({"id": f"k{i}", "prompt": prompt, "completions": completions, "rewards": rewards})
    return records


def pair_records(count: int) -> list[dict]:
    return [
        {"id": r["id"], "prompt": r["prompt"], "chosen": r["completions"][0], "rejected": r["completions"][1]}
        for r in kwise_records(count)
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.launcher
def test_launcher_run_on_pairs(tiny_model, tmp_path):
    """Two real steps of exo-pref with evaluation, logs and a cached reference."""
    data = write(tmp_path / "pairs.jsonl", pair_records(8))
    flags = ["--eval.dataset", str(data), "--eval.split", "train", "--eval.steps", "1", "--exo.cache_reference", "ref"]
    flags += ["--logger.tensorboard_dir", str(tmp_path / "tb"), "--logger.wandb.run_name", "run"]
    log = launch(tmp_path, tiny_model, data, *flags)
    logged = scalars(tmp_path)
    at_start = -math.log(2) - (math.log(1 - 1e-3) + math.log(1e-3)) / 2  # p is uniform before the first step
    assert logged["train/kwise/loss"][0] == pytest.approx(at_start, abs=2e-2)  # bf16, batches of another shape
    assert len(logged["train/kwise/ranking_acc"]) == len(logged["eval/kwise/ranking_acc"]) == 2
    assert all(math.isfinite(v) for values in logged.values() for v in values)
    assert logged["eval/kwise/loss"][-1] == pytest.approx(logged["eval/eval_loss"][-1], rel=1e-4)
    assert logged["eval/eval_loss"][-1] < logged["train/kwise/loss"][0]  # it learns what it is trained on
    assert logged["eval/kwise/log_ratio"][-1] != 0
    assert "EXO data: 8 records, 16 completions (K = 2)" in log
    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert any(not torch.equal(trained[k], before[k]) for k in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss_type, flags",
    [
        ("exo-rw", ["--exo.num_contrastive", "2"]),
        ("dpo-rw", ["--exo.beta_pi", "0.1", "--exo.beta_r", "0.1", "--exo.temperature", "1"]),
        ("exo-pref", ["--exo.epsilon", "4.5397868702e-05", "--model.nll_loss_coef", "0.1"]),
        ("dpo-pref", ["--exo.epsilon", "0.1", "--exo.max_completion_len", "8"]),
    ],
)
def test_each_loss_runs(tiny_model, tmp_path, loss_type, flags):
    records = kwise_records(8) if loss_type.endswith("rw") else pair_records(8)
    data = write(tmp_path / "data.jsonl", records)
    tb = ["--logger.tensorboard_dir", str(tmp_path / "tb"), "--logger.wandb.run_name", "run"]
    launch(tmp_path, tiny_model, data, "--exo.loss_type", loss_type, *flags, *tb)
    logged = scalars(tmp_path)
    assert len(logged["train/kwise/loss"]) == 2 and all(math.isfinite(v) for v in logged["train/kwise/loss"])
    assert ("train/nll_loss" in logged) == ("--model.nll_loss_coef" in flags)
    if loss_type == "dpo-pref":
        assert logged["train/kwise/loss"][0] == pytest.approx(math.log(2), abs=1e-3)
        assert max(logged["train/kwise/response_tokens"]) <= 8


@pytest.fixture(scope="module")
def plain_run(tiny_model, tmp_path_factory):
    """The run that others are compared with: ZeRO-2, one process, pairs; its folder, weights and evaluation."""
    out = tmp_path_factory.mktemp("plain")
    data = write(out / "data.jsonl", pair_records(8))
    log = launch(out, tiny_model, data, *compared_flags(data))
    return SimpleNamespace(data=data, weights=weights(out), metrics=metrics(log))


def compared_flags(data: Path) -> list[str]:
    evaluation = ["--eval.dataset", str(data), "--eval.split", "train", "--eval.steps", "2"]
    return ["--exo.loss_type", "dpo-pref", "--adam.lr", "1e-4", *evaluation]


def metrics(log: str) -> dict[str, float]:
    line = re.findall(r"evaluation at step 2: (.*)", log)[-1]
    return {name: float(value) for name, value in (part.split() for part in line.split(", "))}


@pytest.mark.slow
def test_gradient_checkpointing_is_bitwise_equal(tiny_model, tmp_path, plain_run):
    launch(
        tmp_path, tiny_model, plain_run.data, *compared_flags(plain_run.data), "--model.gradient_checkpointing_enable"
    )
    assert equal(weights(tmp_path), plain_run.weights)


@pytest.mark.slow
@pytest.mark.parametrize("processes, flags", [(2, []), (1, ["--ds.zero_stage", "3"]), (2, ["--ds.zero_stage", "3"])])
def test_data_parallel_and_zero3_agree_with_one_process(tiny_model, tmp_path, plain_run, processes, flags):
    log = launch(tmp_path, tiny_model, plain_run.data, *compared_flags(plain_run.data), *flags, processes=processes)
    mine = metrics(log)
    for name in ("kwise/loss", "kwise/margin", "kwise/log_ratio", "kwise/entropy"):
        assert mine[name] == pytest.approx(plain_run.metrics[name], abs=2e-2), name
    assert mine["kwise/response_tokens"] == pytest.approx(plain_run.metrics["kwise/response_tokens"], abs=1e-3)
    for name, tensor in weights(tmp_path).items():
        assert (tensor.float() - plain_run.weights[name].float()).abs().max() < 2e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--ds.zero_stage", "3", "--model.gradient_checkpointing_enable"]])
def test_lora(tiny_model, tmp_path, plain_run, flags):
    lora = ["--ds.lora.rank", "4", "--adam.lr", "1e-2", *flags]
    log = launch(tmp_path, tiny_model, plain_run.data, *compared_flags(plain_run.data), *lora)
    assert metrics(log)["kwise/log_ratio"] != 0
    assert (tmp_path / "model" / "adapter_config.json").is_file()


STOPPER = """
import os
from orlhf_ext.exo import EXO
from orlhf_ext.exo.trainer import KwiseTrainer

class Stops(KwiseTrainer):
    def save_logs_and_checkpoints(self, args, global_step, *rest, **more):
        super().save_logs_and_checkpoints(args, global_step, *rest, **more)
        if global_step == 1:
            os._exit(9)
"""
STOPPING = """
from orlhf_ext.exo import EXO

class Stopping(EXO):
    replacements = {**EXO.replacements, "openrlhf.trainer.dpo_trainer:DPOTrainer": "stopper:Stops"}
"""


@pytest.mark.slow
def test_resume_equals_an_uninterrupted_run(tiny_model, tmp_path, plain_run):
    """A run that dies after its first step goes on from the checkpoint, with the reference cached in between."""
    (tmp_path / "stopper.py").write_text(STOPPER)
    (tmp_path / "stopping.py").write_text(STOPPING)
    flags = [*compared_flags(plain_run.data), "--ckpt.save_steps", "1", "--train.micro_batch_size", "1"]
    whole = tmp_path / "whole"
    whole.mkdir()
    launch(whole, tiny_model, plain_run.data, *flags)
    launch(tmp_path, tiny_model, plain_run.data, *flags, use="stopping:Stopping", status=9)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    cached = ["--exo.cache_reference", str(tmp_path / "reference")]
    log = launch(tmp_path, tiny_model, plain_run.data, *flags, *cached, "--ckpt.load_enable")
    assert "Loaded the checkpoint" in log
    assert equal(weights(tmp_path), weights(whole))


@pytest.mark.slow
def test_chat_records(tiny_model, tmp_path):
    records = [
        {
            "prompt": [{"role": "user", "content": r["prompt"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
        }
        for r in pair_records(8)
    ]
    data = write(tmp_path / "chat.jsonl", records)
    log = launch(tmp_path, tiny_model, data, "--data.apply_chat_template", "--data.max_len", "256")
    assert "truncated: 0.0% of prompts" in log


@pytest.mark.slow
def test_a_bad_record_ends_in_one_sentence(tiny_model, tmp_path):
    records = kwise_records(8)
    records[4]["rewards"].pop()
    data = write(tmp_path / "data.jsonl", records)
    log = launch(tmp_path, tiny_model, data, "--exo.loss_type", "exo-rw", status=2)
    assert "Traceback" not in log and "data.jsonl line 5 (id 'k4') has" in log
