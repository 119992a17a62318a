"""The engine of `exact_scores`."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

from orlhf_ext.extensions.ray_classes import unwrap


def note(event: str) -> None:
    with open("engine.txt", "a") as stream:
        stream.write(f"{event}\n")


class Rollouts(unwrap(RolloutRayActor)):  # type: ignore[misc]
    async def __init__(self, *args: Any, **kwargs: Any) -> None:
        await super().__init__(*args, **{**kwargs, "enable_sleep_mode": False})
        self._awake = {"weights", "kv_cache"}

    async def sleep(self, level: int = 1) -> None:
        self._awake.clear()
        note("sleep")

    async def wake_up(self, tags: list[str] | None = None) -> None:
        self._awake.update(tags or ("weights", "kv_cache"))
        note("wake")

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        assert len(self._awake) == 2, f"only {self._awake} of the engine is awake"
        note("generate")
        return await super().generate(*args, **kwargs)
