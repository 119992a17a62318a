"""OpenRLHF's trainer, with a scorer on the reference model for rewards, and an evaluation before the first step."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ppo_trainer import PPOTrainer

from ..cli.errors import UserError
from ..extensions.ray_classes import unwrap
from .evaluation import eval_arguments
from .scorers import GroupScorer


class RewardedTrainer(unwrap(PPOTrainer)):  # type: ignore[misc]
    """The single controller of ``train_ppo_ray``; `RewardedSamples` computes the rewards in its process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused: UserError | None = None
        group = self.reference_model_group
        scorer = GroupScorer(group, self.args, int(self.tokenizer.pad_token_id)) if group is not None else None
        try:
            self.samples_generator.setup_rewards(scorer, self.actor_model_group)
        except UserError as error:  # Ray gives only the traceback of an actor that could not be made
            self._refused = error

    def get_max_steps(self) -> int:
        """What the launcher asks for first. Raises UserError if a reward could not be set up."""
        if self._refused is not None:
            raise self._refused
        return super().get_max_steps()

    def fit(self, global_step: int = 0) -> None:
        """Train, after an evaluation if there is to be one before the first step."""
        try:
            if self.args.ext.eval_on_start and not self.init_checkpoint_states()["global_step"]:
                logs = self.evaluate(0, **self.generate_kwargs)
                self._latest_eval_metric_value = logs.get(self._detect_eval_metric_key(logs) or "")
            super().fit(global_step)
        except BaseException:
            try:
                self.samples_generator.teardown_rewards()
            except UserError as error:  # the run's own error says why, and is not to be hidden by this one
                print(f"[orlhf-ext] after an error: {error}", flush=True)
            raise
        self.samples_generator.teardown_rewards()

    def evaluate(self, global_step: int, **generate_kwargs: Any) -> dict[str, float]:
        """Evaluate with evaluation's own sampling settings."""
        return super().evaluate(global_step, **eval_arguments(self.args, generate_kwargs))
