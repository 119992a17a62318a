"""The rewards of `likelihood_cost`: each also logs the seconds that it takes for a batch."""

import time
from typing import ClassVar

from orlhf_ext.rewards import RewardBatch, RewardResult
from orlhf_ext.rewards.combine import check_result
from orlhf_ext.rewards.likelihood import Likelihood
from orlhf_ext.vrcli.reward import VRCLI


class Vrcli(VRCLI):
    """`vrcli`."""

    name: ClassVar[str] = "vrcli"

    def score(self, batch: RewardBatch) -> RewardResult:
        """As it is."""
        began = time.perf_counter()
        found = super().score(batch)
        return RewardResult(found.rewards, {"seconds": [time.perf_counter() - began] * len(batch)})


class Reference(Likelihood):
    """`likelihood`, in whatever form its flags say."""

    name: ClassVar[str] = "reference"

    def score(self, batch: RewardBatch) -> RewardResult:
        """As it is."""
        began = time.perf_counter()
        found = super().score(batch)
        check_result(self.name, found, batch)
        return RewardResult(found.rewards, {"seconds": [time.perf_counter() - began] * len(batch)})


class Policy(Reference):
    """The same under the policy."""

    name: ClassVar[str] = "policy"
