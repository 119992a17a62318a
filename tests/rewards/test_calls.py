"""Rewards that are coroutines, that run side by side, and that take too long."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.rewards import Reward, RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.calls import Call, TooLong, call
from orlhf_ext.rewards.combine import RewardSet

BATCH = RewardBatch([Rollout(f"r{i}", "q", "a" * i) for i in range(4)])


class Session(Reward):
    """Opens something on the loop, as an HTTP client does, which works on that loop only."""

    async def setup(self, context: RewardContext) -> None:
        self.opened = asyncio.get_running_loop()
        self.closed = False

    async def score(self, batch: RewardBatch) -> list[float]:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.opened
        return [float(len(text)) for text in batch.responses]

    async def teardown(self) -> None:
        assert asyncio.get_running_loop() is self.opened
        self.closed = True


def test_coroutines_share_a_loop_over_all_batches() -> None:
    rewards = RewardSet([reward := Session()])
    rewards.setup(RewardContext())
    assert [rewards.score(BATCH).rewards for _ in range(2)] == [[0, 1, 2, 3]] * 2
    rewards.teardown()
    assert reward.closed


class Waits(Reward):
    name = "waits"

    async def score(self, batch: RewardBatch) -> list[float]:
        await asyncio.sleep(0.4)
        return [1.0] * len(batch)


class WaitsToo(Waits):
    name = "waits_too"


class Blocks(Reward):
    """Waits without a coroutine."""

    waits = True

    def score(self, batch: RewardBatch) -> list[float]:
        time.sleep(0.4)
        return [2.0] * len(batch)


class Here(Reward):
    """What uses signals works: it is in the thread that called."""

    def score(self, batch: RewardBatch) -> list[float]:
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        time.sleep(0.4)
        return [4.0] * len(batch)


def test_what_waits_runs_beside_the_rest() -> None:
    rewards = RewardSet([Waits(), Here(), Blocks(), WaitsToo()])
    began = time.monotonic()
    found = rewards.score(BATCH)
    assert time.monotonic() - began < 1.1  # one after the other: 1.6
    assert found.rewards == [8.0] * 4 and list(found.columns) == [f"reward/{one.name}" for one in rewards.rewards]


def failing(name: str, seconds: float, waits: bool) -> Reward:
    class Fails(Reward):
        async def score(self, batch: RewardBatch) -> list[float]:
            await asyncio.sleep(seconds)
            raise ValueError(name)

    class FailsHere(Reward):
        def score(self, batch: RewardBatch) -> list[float]:
            raise ValueError(name)

    cls = Fails if waits else FailsHere
    cls.name = name
    return cls()


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("first", "second"), [((0.3, True), (0.0, True)), ((0.3, True), (0.0, False)), ((0.0, False), (0.0, True))]
)
def test_the_first_in_order_is_told(first: tuple[float, bool], second: tuple[float, bool]) -> None:
    with pytest.raises(UserError, match=r"reward 'one' raised ValueError: one on sample 'r0'"):
        RewardSet([failing("one", *first), failing("two", *second)]).score(BATCH)


def test_what_is_not_waited_for_is_cancelled() -> None:
    cancelled = threading.Event()

    class Long(Reward):
        async def score(self, batch: RewardBatch) -> list[float]:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return [1.0] * len(batch)

    with pytest.raises(UserError, match="reward 'one' raised"):
        RewardSet([failing("one", 0, False), Long()]).score(BATCH)
    assert cancelled.wait(5)


def test_leaving_the_process_in_a_coroutine_is_an_error_and_the_loop_goes_on() -> None:
    class Leaves(Reward):
        async def score(self, batch: RewardBatch) -> list[float]:
            raise SystemExit(3)

    with pytest.raises(UserError, match=r"reward 'leaves' raised SystemExit: sys.exit\(3\) on sample 'r0'"):
        RewardSet([Leaves()]).score(BATCH)
    assert call(Waits().score, BATCH) == [1.0] * 4


def slow(how: str) -> Reward:
    """It hangs on the third sample."""

    class Slow(Reward):
        def score(self, batch: RewardBatch) -> list[float]:
            for text in batch.responses:
                time.sleep(1.5 if len(text) == 2 else 0)
            return [0.0] * len(batch)

    class SlowToo(Reward):
        name = "slow"

        async def score(self, batch: RewardBatch) -> list[float]:
            for text in batch.responses:
                await asyncio.sleep(60 if len(text) == 2 else 0)
            return [0.0] * len(batch)

    return SlowToo() if how == "async" else Slow()


@pytest.mark.launcher
@pytest.mark.parametrize("how", ["plain", "async"])
@pytest.mark.parametrize("others", [0, 1])
def test_what_takes_too_long_names_reward_sample_and_line(how: str, others: int) -> None:
    rewards = RewardSet([*[Waits()] * others, slow(how)], seconds=0.5)
    where = r" \(.*test_calls\.py line \d+\)" if how == "plain" else ""
    said = f"^reward 'slow' takes more than --ext.reward_timeout 0.5 seconds on sample 'r2'{where}; give it more"
    with pytest.raises(UserError, match=said):
        rewards.score(BATCH)


def test_a_call_in_time_gives_its_value_and_its_error() -> None:
    assert call(lambda: 5, seconds=9) == 5
    with pytest.raises(ValueError, match="no"):
        call(int, "no", seconds=9)
    with pytest.raises(TimeoutError, match="own"):  # the function's own is not ours
        call(_raise, TimeoutError("own"), seconds=9)
    with pytest.raises(TooLong):
        Call(time.sleep, 1, seconds=0.05).result()


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.launcher
def test_a_batch_that_is_slow_as_a_whole_is_named() -> None:
    class Even(Reward):
        def score(self, batch: RewardBatch) -> list[float]:
            time.sleep(0.2 * len(batch))
            return [0.0] * len(batch)

    said = re.escape("seconds on a batch of 4 samples, 'r0' to 'r3' (none was found that does so alone)")
    with pytest.raises(UserError, match=said):
        RewardSet([Even()], seconds=0.5).score(BATCH)
