"""What a reward is. Five minutes, and you have one::

    # my_rewards.py
    from dataclasses import dataclass
    from . import Reward

    @dataclass
    class Brevity(Reward):
        words: int = 50  # becomes the flag --brevity.words

        def score(self, batch):
            return [min(1.0, self.words / max(1, len(text.split()))) for text in batch.responses]

    orlhf-ext check reward my_rewards:Brevity --brevity.words 40
    python -m orlhf_ext.launch train_ppo_ray --ext.reward my_rewards:Brevity --brevity.words 40 ...

``score`` gets all rollouts of a generated batch at once and gives one number for each, in their order. That is all a
reward must do. What it gives is checked (see `combine`): a wrong length, NaN or an exception stops the run, and says
which reward and which sample it was.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

#: one number for each rollout; a tensor or an array has the shape ``(len(batch),)``
Floats: TypeAlias = "Sequence[float] | torch.Tensor"


@dataclass(frozen=True)
class Rollout:
    """One sampled response and what it answers."""

    #: unique in its batch; error messages name it
    id: str
    #: as the policy read it, chat template included
    prompt: str
    #: what the policy wrote (in a chat of several turns: all that follows the prompt), without special tokens
    response: str
    #: the data set's label column, unchanged
    label: Any = ""
    #: prompt and response, special tokens (and the end token, if the policy ended by itself) included
    token_ids: Sequence[int] = ()
    #: as long as ``token_ids``; 1 where the policy wrote the token
    action_mask: Sequence[int] = ()
    #: whether the length limit cut the response off
    truncated: bool = False
    #: the images of the prompt, or None
    images: Any = None
    #: which prompt it answers; rollouts of one batch with the same group are compared. None: with no other
    group: int | None = None

    def __post_init__(self) -> None:
        for name in ("token_ids", "action_mask"):  # lists could be changed
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def copy(self) -> Rollout:
        """One whose label and images can be changed without changing these."""
        if isinstance(self.label, str | int | float | None) and self.images is None:
            return self
        return replace(self, label=copy.deepcopy(self.label), images=copy.deepcopy(self.images))

    @property
    def response_ids(self) -> list[int]:
        """The token ids that the policy wrote."""
        return [token for token, written in zip(self.token_ids, self.action_mask, strict=True) if written]


@dataclass(frozen=True)
class RewardBatch:
    """The rollouts of a generated batch: iterate over them, or take a column. Those of a prompt follow each other.

    What a reward receives is its own: it cannot be changed, or is a copy, so that no reward sees what another one did.
    """

    rollouts: Sequence[Rollout]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rollouts", tuple(self.rollouts))

    def copy(self) -> RewardBatch:
        """One whose labels and images can be changed without changing these; all the rest cannot be changed."""
        return RewardBatch([rollout.copy() for rollout in self])

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self.rollouts)

    def __getitem__(self, index: int) -> Rollout:
        return self.rollouts[index]

    def take(self, indices: Iterable[int]) -> RewardBatch:
        """A batch of some of the rollouts."""
        return RewardBatch([self.rollouts[index] for index in indices])

    def groups(self) -> list[list[int]]:
        """The indices of the rollouts of each prompt."""
        found: dict[int, list[int]] = {}
        for index, rollout in enumerate(self):
            found.setdefault(-1 - index if rollout.group is None else rollout.group, []).append(index)
        return list(found.values())

    @property
    def ids(self) -> list[str]:
        """Ids, all different."""
        return [rollout.id for rollout in self]

    @property
    def prompts(self) -> list[str]:
        """Prompts as the policy read them."""
        return [rollout.prompt for rollout in self]

    @property
    def responses(self) -> list[str]:
        """Responses without special tokens."""
        return [rollout.response for rollout in self]

    @property
    def labels(self) -> list[Any]:
        """Labels of the data set."""
        return [rollout.label for rollout in self]

    @property
    def token_ids(self) -> list[Sequence[int]]:
        """Token ids of prompt and response."""
        return [rollout.token_ids for rollout in self]

    @property
    def action_masks(self) -> list[Sequence[int]]:
        """For each token id, 1 where the policy wrote it."""
        return [rollout.action_mask for rollout in self]


@dataclass(frozen=True)
class RewardResult:
    """What `Reward.score` gives when rewards alone are not enough."""

    #: a float for each rollout
    rewards: Floats
    #: more to log: name -> a float for each rollout; every batch has the same names
    metrics: Mapping[str, Floats] = field(default_factory=dict)
    #: what is compared with ``--algo.dynamic_filtering_range``, if not the rewards
    scores: Floats | None = None
    #: with ``--ext.reward_combine gdpo`` each of these is normalised apart, and counts as the reward would: name -> a
    #: float for each rollout
    apart: Mapping[str, Floats] = field(default_factory=dict)


class ScoreTokens(Protocol):
    """Log-probabilities under a model of the run, at temperature 1."""

    @property
    def device(self) -> str:
        """Where they are computed, ``cpu`` or ``cuda``."""

    def __call__(self, token_ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probabilities of the tokens whose mask is 1, in order; what several sequences begin with is
        computed once.

        Args:
            token_ids: sequences of any lengths.
            masks: as long as each; never 1 for the first token, which nothing predicts.
        """


@dataclass(frozen=True)
class RewardContext:
    """What a run gives to a reward."""

    #: the policy's; None in ``check reward`` without ``--tokenizer``
    tokenizer: PreTrainedTokenizerBase | None = None
    #: the launcher's nested arguments: ``args.rollout.batch_size``, ...
    args: SimpleNamespace = field(default_factory=SimpleNamespace)
    #: where a reward puts its model: "cpu" or "cuda"
    device: str = "cpu"
    #: a scorer on the frozen reference model; None where there is none
    score_reference: ScoreTokens | None = None
    #: a scorer on the policy, as it was when it sampled the batch; None where no reward needs it
    score_policy: ScoreTokens | None = None


class Reward(ABC):
    """Scores rollouts. Subclass it and write `score`.

    Its arguments are dataclass fields, or typed parameters of ``__init__``: ``words: int = 50`` becomes the flag
    ``--NAME.words``, and may also be given as ``--ext.reward_args '{"NAME": {"words": 40}}'``. A ``ValueError`` that
    ``__init__`` or ``__post_init__`` raises is shown to the user unchanged.
    """

    #: the name in logs, and the prefix of its flags; if not set, the class's name in small letters: ``my_reward``
    name: ClassVar[str]
    #: it cannot do without `RewardContext.score_reference`
    needs_reference: bool = False
    #: it cannot do without `RewardContext.score_policy`
    needs_policy: bool = False
    #: it looks at `Rollout.images`; otherwise a prompt with images is an error
    reads_images: ClassVar[bool] = False
    #: the part of a GPU that one copy of it wants; 0 for a reward without a model
    gpus: float = 0.0
    #: `score` waits for a network or other processes, and runs in a thread, beside the other rewards
    waits: ClassVar[bool] = False
    #: it keeps ``--ext.reward_timeout`` by itself
    keeps_time: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def needs_extensions(self) -> Sequence[str]:
        """Names of extensions that are switched on with it, such as one that replaces the experience maker."""
        return ()

    def check(self, args: SimpleNamespace) -> None:  # noqa: B027 - most rewards need none
        """Called before anything is started, with the launcher's nested arguments: refuse what cannot work.

        Raises:
            UserError: one sentence that names the flag, file or record, and the way out.
        """

    def setup(self, context: RewardContext) -> Awaitable[None] | None:  # noqa: B027
        """Called once before the first batch: load what `score` needs. This, `score` and `teardown` may each be
        ``async def``; they share an event loop."""

    @abstractmethod
    def score(self, batch: RewardBatch) -> RewardResult | Floats | Awaitable[RewardResult | Floats]:
        """One number for each rollout, in their order: a list, a tensor, or a `RewardResult`."""

    def teardown(self) -> Awaitable[None] | None:  # noqa: B027
        """Called once at the end."""
