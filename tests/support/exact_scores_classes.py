"""The classes of `exact_scores`."""

from __future__ import annotations

import json
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker


def float32(_: str) -> torch.dtype:
    return torch.float32


class Maker(RemoteExperienceMaker):
    def make_experience(self, samples_list: list[Any]) -> list[Any]:
        made = super().make_experience(samples_list)
        with open("logprobs.jsonl", "a") as stream:
            for one in made:
                for i, mask in enumerate(one.attention_mask):
                    ids = one.sequences[i][mask.bool()].tolist()
                    logprobs = one.action_log_probs[i][one.action_mask[i].bool()].tolist()
                    stream.write(json.dumps({"ids": ids, "logprobs": logprobs}) + "\n")
        return made
