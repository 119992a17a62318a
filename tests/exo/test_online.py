"""``--ext.use online-exo``: goldens of the weights, the gradient that OpenRLHF's own classes make of the advantages,
and what is refused."""

from __future__ import annotations

import copy
import re
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext import backends
from orlhf_ext.cli.errors import UserError
from orlhf_ext.exo.losses import kwise_loss
from orlhf_ext.exo.online import OnlineEXO
from orlhf_ext.exo.settings import LOSS_TYPES

pytest.importorskip("openrlhf")
Space = SimpleNamespace
H, R = [2.0, 0.5, -1.5, -2.25], [2.0, 0.5, -1.0, 1.25]
OWN = {"loss_type": "exo-rw", "num_contrastive": 0, "beta_pi": 0.5, "beta_r": 0.5, "epsilon": None}


def weights(h: list[float], r: list[float], **own: Any) -> tuple[list[float], dict[str, float]]:
    """Of one group: minus the gradient, and the metrics."""
    backends.install()
    from orlhf_ext.exo.experience import kwise_gradient

    rows = (torch.tensor([row], dtype=torch.float64) for row in (h, r))
    with torch.no_grad():  # as in the experience maker
        gradient, metrics = kwise_gradient(*rows, Space(**{**OWN, **own}))
    return (-gradient[0]).tolist(), metrics


@pytest.mark.parametrize(
    ("loss", "h", "r", "value", "expected"),
    [
        ("exo-rw", H, R, 0.652774105254, [0.276961839343, -0.170158194522, -0.161021214862, 0.054217570040]),
        ("dpo-rw", H, R, 0.972922256312, [0.108841000535, -0.114253145233, -0.048239998800, 0.053652143498]),
        ("exo-pref", H, R, 2.387101657415, [0.836718710157, -0.575322850904, -0.162437692209, -0.098958167044]),
        ("dpo-pref", H, R, 0.568475546655, [0.216805893346, -0.133771423917, -0.049211756675, -0.033822712753]),
        ("exo-rw", [0.0] * 4, R, 1.481962342365, [0.328125, -0.046875, -0.421875, 0.140625]),
        ("exo-rw", H, [0.7] * 4, 0.301174001024, [-0.1463107664, 0.031216255584, 0.060695575335, 0.054398935480]),
        ("exo-rw", H[:2], R[:2], 0.383564272314, [0.245131867982, -0.245131867982]),
    ],
)
def test_golden_weights(loss, h, r, value, expected) -> None:
    found, metrics = weights(h, r, loss_type=loss)
    assert metrics["loss"] == pytest.approx(value, abs=1e-11)
    assert found == pytest.approx(expected, abs=1e-11)


@given(r=st.lists(st.floats(-5, 5), min_size=2, max_size=8), beta_pi=st.floats(0.05, 2), beta_r=st.floats(0.1, 2))
def test_at_the_reference_exo_is_reinforce_with_the_groups_mean(r, beta_pi, beta_r) -> None:
    found, metrics = weights([0.0] * len(r), r, beta_pi=beta_pi, beta_r=beta_r)
    scale = beta_pi / (len(r) * beta_r)
    assert found == pytest.approx([scale * (x - statistics.fmean(r)) for x in r], rel=1e-7, abs=1e-9)
    assert metrics["log_ratio"] == 0 and metrics.get("ranking_acc", 0) == 0


def test_metrics() -> None:
    p, q = (torch.tensor(row, dtype=torch.float64).softmax(-1) for row in ([0.5 * h for h in H], [r / 0.5 for r in R]))
    _, metrics = weights(H, R)
    assert metrics["entropy"] == pytest.approx(-(p * p.log()).sum().item())
    assert metrics["target_entropy"] == pytest.approx(-(q * q.log()).sum().item())
    assert metrics["margin"] == pytest.approx(0.75) and metrics["log_ratio"] == pytest.approx(statistics.fmean(H))
    assert metrics["ranking_acc"] == metrics["decided"] == 1
    _, tied = weights(H, [0.7] * 4, loss_type="pl")
    assert tied["decided"] == 0 and not {"ranking_acc", "margin", "target_entropy"} & set(tied)


# the contract: Actor, ActorPPOTrainer, its buffer, its loss and its normalisers are OpenRLHF's


def arguments(micro: int, mode: str, own: dict[str, Any]) -> SimpleNamespace:
    """What the experience maker and the actor's trainer read; 4 prompts of 4 samples."""
    advantage = {"is_correction_level": "off", "is_correction_mode": "mask", "is_correction_gating": "ratio"}
    return Space(
        kwise=Space(**{**OWN, **own}),
        reward=Space(),
        data=Space(max_len=64),
        rollout=Space(n_samples_per_prompt=4, max_new_tokens=16, micro_batch_size=1),
        actor=Space(
            loss_agg_mode=mode,
            eps_clip_low_high=(0.2, 0.2),
            dual_clip=None,
            policy_loss_type="ppo",
            aux_loss_coef=0,
            entropy_coef=None,
            num_nodes=1,
            num_gpus_per_node=1,
        ),
        algo=Space(
            advantage=Space(**advantage, is_correction_threshold=[0.5, 5.0], estimator="dr_grpo"),
            kl=Space(use_loss=False, init_coef=0.01, estimator="k1", unbiased_gradient=False),
        ),
        train=Space(max_epochs=1, dynamic_batch_enable=False, batch_size=16, micro_batch_size=micro),
        ds=Space(packing_samples=False, tensor_parallel_size=1, ring_attn_size=1),
        vllm=Space(sync_backend="gloo"),
    )


class Steps:
    """What `ActorPPOTrainer` asks of a strategy; keeps the gradient of every optimizer step."""

    ring_attn_group = None
    seed, ring_attn_size, ds_tensor_parallel_size = 0, 1, 1

    def __init__(self, args: SimpleNamespace, accumulated: int) -> None:
        self.args, self.accumulated_gradient, self.count = args, accumulated, 0
        self.gradients: list[torch.Tensor] = []

    def is_rank_0(self) -> bool:
        return False

    def get_rank(self) -> int:
        return 0

    def all_reduce(self, data: Any, op: str = "mean") -> Any:
        return data

    def get_grad_norm(self, model: Any) -> float:
        return 0.0

    def backward(self, loss: torch.Tensor, model: Any, optimizer: Any) -> None:
        (loss / self.accumulated_gradient).backward()  # as DeepSpeed

    def optimizer_step(self, optimizer: Any, model: Any, scheduler: Any, name: str = "") -> None:
        self.count += 1
        if self.count % self.accumulated_gradient == 0:
            self.gradients.append(gradient_of(model))


def gradient_of(actor: Any) -> torch.Tensor:
    """All gradients as one float64 vector, which are then cleared."""
    found = torch.cat([parameter.grad.flatten().double() for parameter in actor.parameters()])
    actor.zero_grad()
    return found


@pytest.fixture(scope="module")
def actors(tiny_model: Path, strategy: Any) -> tuple[Any, Any]:
    """The policy, which has moved, and the reference; float32."""
    from openrlhf.models import Actor
    from transformers import AutoModelForCausalLM

    made = []
    for noise in (0.15, 0.0):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa")
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data += noise * parameter.data.std() * torch.randn(parameter.shape, generator=generator)
        model.global_steps = 0  # as DeepSpeed's engine has
        actor = Actor(model, temperature=0.8)
        actor.packing_samples = False
        made.append(actor)
    return made[0], made[1]


@pytest.fixture(scope="module")
def sampled(actors: tuple[Any, Any]) -> list[Any]:
    """Sixteen samples of four prompts as a generator gives them, of unequal lengths."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int, count: int = 1) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    rows = []
    for i in range(16):
        if i % 4 == 0:
            prompt = draw(3, 270, int(draw(3, 9)))
        ids = torch.cat([prompt, draw(3, 270, int(draw(1, 17)))])
        mask = torch.zeros(1, len(ids) - 1, dtype=torch.long)
        mask[:, len(prompt) - 1 :] = 1
        reward = torch.randn(1, generator=generator)
        row = Experience(
            sequences=ids[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            action_mask=mask,
            rewards=reward,
            response_length=mask.sum(-1),
            truncated=torch.tensor([False]),
            total_length=torch.tensor([float(len(ids))]),
            prompts=[f"p{i // 4}"],
            labels=[""],
            images=[None],
            mm_train_inputs=[None],
            info={"reward": reward.clone()},
        )
        row.index = [i]
        rows.append(row)
    return rows


def experiences(rows: list[Any], actors: tuple[Any, Any], size: int) -> list[Any]:
    """As `make_experience` leaves them: micro batches of ``size`` samples, here of mixed prompts."""
    from openrlhf.models.utils import masked_mean
    from openrlhf.trainer.ppo_utils.experience import Experience

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7)).tolist()
    mixed = [copy.deepcopy(rows[i]) for i in order]
    batches = [Experience.concat_experiences(mixed[i : i + size], 2) for i in range(0, len(mixed), size)]
    with torch.no_grad():
        for batch in batches:
            given_to = (batch.sequences, batch.action_mask, batch.attention_mask)
            batch.action_log_probs, base = (actor(*given_to) for actor in actors)
            difference = batch.action_log_probs.float() - base.float()
            batch.info["logprobs_diff"] = masked_mean(difference, batch.action_mask, dim=-1)
    return batches


def exact(rows: list[Any], actors: tuple[Any, Any], own: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """The loss and its gradient by autograd, each sample alone and without padding."""
    sums = [
        torch.stack([actor(row.sequences, row.action_mask, row.attention_mask).sum() for row in rows])
        for actor in actors
    ]
    own = {**OWN, **own}
    size = own.pop("num_contrastive") or 4
    policy, reference, labels = (t.view(-1, size) for t in (*sums, torch.cat([row.rewards for row in rows])))
    loss = kwise_loss(policy, reference.detach(), labels, **own)
    loss.backward()
    actors[1].zero_grad()
    return loss.item(), gradient_of(actors[0])


def trained(args: SimpleNamespace, batches: list[Any], actor: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient of the one optimizer step that `ActorPPOTrainer` makes, and its status."""
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

    from orlhf_ext.exo.experience import KwiseExperience

    maker = object.__new__(KwiseExperience)
    maker.args = args
    made = maker.compute_advantages_and_returns(batches)
    steps = Steps(args, 16 // args.train.micro_batch_size)
    scheduler = Space(get_last_lr=lambda: [0.0])
    trainer = ActorPPOTrainer(
        steps,
        actor,
        None,
        None,
        scheduler,
        micro_train_batch_size=args.train.micro_batch_size,
        dataloader_pin_memory=False,
    )
    for batch in made:
        trainer.replay_buffer.append(batch)
    status = trainer.ppo_train(0.0)
    (gradient,) = steps.gradients
    return gradient, status


def check_gradient(rows: list[Any], actors: tuple[Any, Any], own: dict[str, Any], *sizes: tuple[int, int]) -> None:
    """Both aggregations, in micro batches of the given sizes in training and in sampling."""
    loss, wanted = exact(rows, actors, own)
    for micro, size in sizes:
        batches = experiences(rows, actors, size)
        for mode in ("token-mean", "seq-mean-token-mean"):
            found, status = trained(arguments(micro, mode, own), copy.deepcopy(batches), actors[0])
            assert (found - wanted).norm() < 1e-5 * wanted.norm()
            assert status["kwise/loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
            assert status["ppo_clip_ratio"] == 0 and abs(status["ppo_kl"]) < 1e-6


@pytest.mark.parametrize(
    "own",
    [*({"loss_type": loss} for loss in LOSS_TYPES), {"num_contrastive": 2}, {"beta_pi": 2.0, "beta_r": 0.1}],
    ids=lambda own: "-".join(map(str, own.values())),
)
def test_openrlhf_makes_the_losss_gradient(own, actors, sampled) -> None:
    check_gradient(sampled, actors, own, (8, 5))


@pytest.mark.launcher
def test_it_does_so_in_micro_batches_of_any_size(actors, sampled) -> None:
    check_gradient(sampled, actors, {}, (16, 16), (4, 3), (1, 5))


def test_a_sample_without_a_token_counts_without_harm(actors, sampled) -> None:
    """All of its turns may be masked: its log ratio is 0, and no gradient comes of it."""
    rows = copy.deepcopy(sampled)
    rows[5].action_mask.zero_()
    check_gradient(rows, actors, {}, (8, 3))


def test_samples_that_make_no_equal_micro_batches_are_refused(actors, sampled) -> None:
    args = arguments(8, "token-mean", {})
    with pytest.raises(UserError, match="the last batch of an episode has 12 samples, which are no multiple of 8"):
        trained(args, experiences(sampled[:12], actors, 4), actors[0])


# what is refused


def run_arguments(folder: Path, **changes: Any) -> SimpleNamespace:
    """The launcher's nested arguments and our own; ``__`` in a name stands for a dot."""
    from openrlhf.utils.config import hierarchize

    (folder / "prompts.jsonl").write_text('{"prompt": "p"}\n' * 10)
    given: dict[str, Any] = {f"kwise.{name}": value for name, value in OWN.items()}
    given |= {
        "actor.num_nodes": 1,
        "actor.num_gpus_per_node": 2,
        "actor.policy_loss_type": "ppo",
        "algo.advantage.estimator": "gae",
        "algo.advantage.gamma": 1.0,
        "algo.advantage.is_correction_level": "off",
        "algo.dynamic_filtering_enable": False,
        "algo.kl.init_coef": 0.01,
        "algo.kl.target": None,
        "algo.kl.use_loss": False,
        "data.max_samples": 8,
        "data.prompt_dataset": str(folder / "prompts.jsonl"),
        "ds.ring_attn_size": 1,
        "ds.tensor_parallel_size": 1,
        "eval.dataset": None,
        "reward.clip_range": [-10, 10],
        "rollout.batch_size": 4,
        "rollout.micro_batch_size": 4,
        "rollout.n_samples_per_prompt": 8,
        "train.batch_size": 32,
        "train.dynamic_batch_enable": False,
        "train.max_epochs": 1,
        "train.micro_batch_size": 2,
    }
    return hierarchize(Space(**given | {name.replace("__", "."): value for name, value in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kwise__loss_type": "exo-rv"}, "--kwise.loss_type: unknown loss 'exo-rv'; did you mean 'exo-rw'?"),
        ({"kwise__epsilon": 0.1}, "--kwise.epsilon: epsilon smooths preference labels"),
        ({"rollout__n_samples_per_prompt": 1}, "leaves nothing to compare"),
        ({"kwise__num_contrastive": 3}, "--kwise.num_contrastive 3 does not part"),
        ({"kwise__num_contrastive": 1}, "--kwise.num_contrastive 1 does not part"),
        ({"algo__kl__init_coef": 0.0}, "with --algo.kl.init_coef 0 there is none"),
        ({"train__batch_size": 16}, "give --train.batch_size 32"),
        ({"train__max_epochs": 2}, "and --train.max_epochs 1"),
        ({"algo__kl__use_loss": True}, "--algo.kl.use_loss is not part of the loss"),
        ({"algo__kl__target": 6.0}, "--algo.kl.target is not part of the loss"),
        ({"actor__policy_loss_type": "gspo"}, "--actor.policy_loss_type is not part of the loss"),
        ({"algo__advantage__is_correction_level": "token"}, "is_correction_level is not part of the loss"),
        ({"algo__advantage__gamma": 0.99}, "--algo.advantage.gamma is not part of the loss"),
        ({"reward__clip_range": [-1, 1]}, "--reward.clip_range is not part of the loss"),
        ({"rollout__micro_batch_size": 6}, "makes no micro batches of --rollout.micro_batch_size 6"),
        ({"train__micro_batch_size": 32}, "samples are a multiple of 64"),
        ({"actor__num_gpus_per_node": 16}, "samples are a multiple of 64"),
        ({"rollout__micro_batch_size": 8, "algo__dynamic_filtering_enable": True}, "may leave any number of prompts"),
        ({"rollout__micro_batch_size": 8, "data__max_samples": 9}, "give --data.max_samples 8"),
    ],
)
def test_what_breaks_its_assumptions_is_refused(changes, said, tmp_path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        OnlineEXO().check(run_arguments(tmp_path, **changes))


def test_what_keeps_them_is_not(tmp_path, capsys) -> None:
    for changes in (
        {},
        {"kwise__num_contrastive": 2, "kwise__loss_type": "exo-pref", "kwise__epsilon": 0.1},
        {"data__max_samples": 10**8},  # the last two prompts make micro batches for both
        {"actor__num_gpus_per_node": 8, "ds__ring_attn_size": 2, "ds__tensor_parallel_size": 2},
        {"algo__dynamic_filtering_enable": True},
        {"train__dynamic_batch_enable": True, "rollout__micro_batch_size": 6},
    ):
        args = run_arguments(tmp_path, **changes)
        OnlineEXO().check(args)
        OnlineEXO().configure(args)
        assert args.algo.advantage.estimator == "dr_grpo"
        assert "has no critic: --algo.advantage.estimator dr_grpo" in capsys.readouterr().out
    args = run_arguments(tmp_path, algo__advantage__estimator="rloo")
    OnlineEXO().configure(args)
    assert args.algo.advantage.estimator == "rloo" and not capsys.readouterr().out
