"""A reward in other trainers: as a reward function of TRL's ``GRPOTrainer``, and as a reward manager of verl.

Neither is imported here. A reward that needs a model of a run gets a scorer of yours in the context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..models.chats import render_with
from ..models.texts import encode
from .base import Reward, RewardBatch, RewardContext, Rollout
from .combine import RewardSet

if TYPE_CHECKING:
    import torch


def for_trl(reward: Reward, context: RewardContext, label: str = "label") -> Callable[..., list[float]]:
    """A function for ``GRPOTrainer(reward_funcs=[...])``, named like the reward, which is set up now.

    Args:
        reward: gets all completions of a process at once; those of equal prompts are a group. What it logs goes to
            TRL's ``log_metric``, as a mean.
        context: with the tokenizer of the policy.
        label: the data set's column that is the rollouts' label; ``""`` where there is no such column.
    """
    rewards, tokenizer = RewardSet([reward]), context.tokenizer
    assert tokenizer is not None, "give RewardContext(tokenizer)"
    rewards.setup(context)

    def score(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **more: Any) -> list[float]:
        texts = [one if isinstance(one, str) else render_with(tokenizer)(one, True) for one in prompts]
        heads, numbers = encode(tokenizer, texts), {text: number for number, text in enumerate(dict.fromkeys(texts))}
        labels = more.get(label) or [""] * len(texts)
        rollouts = [
            _rollout(tokenizer, f"{numbers[text]}/{i}", text, head, list(ids), value, numbers[text])
            for i, (text, head, ids, value) in enumerate(zip(texts, heads, completion_ids, labels, strict=True))
        ]
        found = rewards.score(RewardBatch(rollouts))
        for name, values in found.columns.items():
            if "log_metric" in more and name != f"reward/{reward.name}":
                more["log_metric"](name, sum(values) / len(values))
        return found.rewards

    score.__name__ = reward.name
    return score


class ForVerl:
    """A reward manager of verl, ``manager(data, return_dict)``: all samples of a batch at once, groups by ``uid``.

    Args:
        reward: is set up now; its rollouts' label is ``reward_model["ground_truth"]``.
        context: with the tokenizer of the policy.
    """

    def __init__(self, reward: Reward, context: RewardContext) -> None:
        self._rewards, self._own = RewardSet([reward]), f"reward/{reward.name}"
        self._tokenizer: Any = context.tokenizer
        self._rewards.setup(context)

    def __call__(self, data: Any, return_dict: bool = False) -> torch.Tensor | dict[str, Any]:
        """Rewards ``(samples, response tokens)``, each at the last token of its response; as a dict, with what the
        reward logs as ``reward_extra_info``."""
        import torch

        prompts, responses, mask = (data.batch[name] for name in ("prompts", "responses", "attention_mask"))
        width, others = prompts.shape[1], data.non_tensor_batch
        uids = list(others.get("uid", range(len(prompts))))
        numbers = {uid: number for number, uid in enumerate(dict.fromkeys(uids))}
        rollouts = []
        for i, uid in enumerate(uids):
            head, ids = prompts[i][mask[i, :width].bool()].tolist(), responses[i][mask[i, width:].bool()].tolist()
            text, gold = self._tokenizer.decode(head), others["reward_model"][i].get("ground_truth", "")
            rollouts.append(_rollout(self._tokenizer, f"{numbers[uid]}/{i}", text, head, ids, gold, numbers[uid]))
        found = self._rewards.score(RewardBatch(rollouts))
        rewards = torch.zeros_like(responses, dtype=torch.float32)
        rewards[torch.arange(len(responses)), mask[:, width:].sum(1) - 1] = torch.tensor(found.rewards)
        extra = {name: values for name, values in found.columns.items() if name != self._own}
        return {"reward_tensor": rewards, "reward_extra_info": extra} if return_dict else rewards


def _rollout(
    tokenizer: Any, name: str, prompt: str, head: list[int], ids: list[int], label: Any, group: int
) -> Rollout:
    return Rollout(
        id=name,
        prompt=prompt,
        response=tokenizer.decode(ids, skip_special_tokens=True),
        label=label,
        token_ids=head + ids,
        action_mask=[0] * len(head) + [1] * len(ids),
        truncated=not ids or ids[-1] != tokenizer.eos_token_id,
        group=group,
    )
