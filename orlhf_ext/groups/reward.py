"""``groups``: the reward of several groups in ``train_ppo_ray``, one number made of one for each group.

The numbers come from the true taste of each group (``gold``: traits and the weights of a groups file), from one reward
model with a score for each group (``group_rm``), or from one reward model for each group (``ensemble``). A reward model
reads prompt and response with its own tokenizer, rendered as in its training.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

from ..cli.errors import UserError, suggest
from ..cli.flags import FINITE, LENGTH, NOT_NEGATIVE, POSITIVE, named_paths, whole
from ..files.sources import run_records
from ..models.folder import find_model, length_limit, read_config
from ..models.head_settings import KEY, Eos, read_settings
from ..models.reward_models import RewardModel
from ..rewards import Reward, RewardBatch, RewardContext, RewardResult
from .aggregate import aggregate, standardise
from .label import Label, read_label
from .render import encode

Kind = Literal["gold", "group_rm", "ensemble"]
Aggregate = Literal["min", "mean", "weighted", "softmin", "index", "batch-min"]
BATCH_MIN = "batch-min"

#: what has an effect with some choices only: argument -> choices
_KINDS = {
    "traits": ("gold",),
    "model": ("group_rm",),
    "models": ("ensemble",),
    "normalize": ("group_rm", "ensemble"),
    "eos": ("gold", "ensemble"),
}
_AGGREGATES = {"tau": ("softmin",), "weights": ("weighted",), "index": ("index",)}
_NEEDED = {"gold": ("config", "traits"), "group_rm": ("model",), "ensemble": ("models",)}

#: rollouts to scores ``(B, U)``, and for each 1 where a model's length limit cut its text (nothing without a model)
Scores = Callable[[RewardBatch], tuple[list[list[float]], list[float]]]


@dataclass(frozen=True)
class Reader:
    """A reward model and what its folder says about itself."""

    model: RewardModel
    #: its groups, as many as it gives scores
    names: list[str]
    #: how its prompts were rendered; None where it does not say
    style: str | None
    eos: Eos
    #: mean and deviation of its scores, one for each group; None where it does not say
    norm: tuple[list[float], list[float]] | None
    #: whether the heads are those of `orlhf_ext.groups`, or OpenRLHF's own
    grouped: bool


def read_group_model(path: str, flag: str = "--groups.model") -> Reader:
    """A reward model with a score for each group. Raises UserError if it is not one."""
    settings = read_settings(find_model(path, flag), flag)
    model = RewardModel(path, flag, single=False)
    if model.scores != settings.num_groups:
        raise UserError(
            f"{flag} {model.folder} has {model.scores} scores among its weights and {settings.num_groups} groups in "
            "its config.json; copy the model again"
        )
    norm = settings.norm and (settings.norm["mean"], settings.norm["std"])
    return Reader(model, settings.names, settings.style, settings.eos, norm, True)  # type: ignore[arg-type]


def read_member(name: str, path: str, eos: Eos | None) -> Reader:
    """The reward model of one group: a plain one, or one that was trained with ``--groups.only``.
    Raises UserError if it gives more than one score, or is another group's."""
    flag = f"--groups.models {name}"
    folder = find_model(path, flag)
    config = read_config(folder)
    if KEY in config:
        reader = read_group_model(path, flag)
        if reader.names != [name]:
            raise UserError(f"{flag} {folder} is a reward model of {_listed(reader.names)}; give each group its own")
        if eos is not None and eos != reader.eos:
            raise UserError(f"{flag} {folder} was trained with eos {reader.eos}, not --groups.eos {eos}; leave it out")
        return reader
    norm = ([float(config["mean"])], [float(config["std"])]) if {"mean", "std"} <= set(config) else None
    return Reader(RewardModel(path, flag), [name], None, eos or "append", norm, False)


@dataclass
class Groups(Reward):
    """The rewards of all groups, made one: true ones, one model's, or those of a model for each."""

    name: ClassVar[str] = "groups"

    kind: Annotated[Kind, "gold (traits), group_rm (one model, a score for each group), ensemble (a model for each)"]
    config: Annotated[str, "YAML file of groups; for a model, a check that it has the same ones"] = ""
    traits: Annotated[tuple[str, ...], "gold: NAME=KIND, the traits that the file weighs"] = ()
    model: Annotated[str, "group_rm: folder or hub name"] = ""
    models: Annotated[tuple[str, ...], "ensemble: NAME=FOLDER for each group"] = ()
    eos: Annotated[Eos | None, "how texts end for models that do not say it (gold: none; ensemble: append)"] = None
    aggregate: Annotated[
        Aggregate,
        "min (of each response), mean, weighted, softmin, index, or batch-min (the group with the least mean over the "
        "batch)",
    ] = "min"
    tau: Annotated[float, "softmin: towards 0 it is min, towards infinity mean", POSITIVE] = 1.0
    weights: Annotated[tuple[float, ...], "weighted: one for each group, in the order of the groups", FINITE] = ()
    index: Annotated[str, "index: name of the group"] = ""
    normalize: Annotated[bool, "each group's scores less their mean, over their deviation, as models have it"] = False
    max_len: Annotated[
        int, "tokens that models read, cut on the left; 0: all that they have positions for", whole(2, also=(0,))
    ] = 0
    batch_tokens: Annotated[int, "padded tokens in a batch", LENGTH] = 16384
    dtype: Annotated[Literal["bfloat16", "float16"], "bfloat16 or float16"] = "bfloat16"
    attn_implementation: Annotated[str, "as in transformers"] = "sdpa"
    gpus: Annotated[float, "the part of a GPU that one copy takes, in a run with GPUs", NOT_NEGATIVE] = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            value, flag = getattr(self, field.name), f"--groups.{field.name}"
            given = value != field.default
            if given and self.kind not in _KINDS.get(field.name, (self.kind,)):
                raise ValueError(f"{flag} has no effect with --groups.kind {self.kind}; leave it out")
            if given and self.aggregate not in _AGGREGATES.get(field.name, (self.aggregate,)):
                raise ValueError(f"{flag} has no effect with --groups.aggregate {self.aggregate}; leave it out")
            if not given and field.name in _NEEDED[self.kind]:
                raise ValueError(f"--groups.kind {self.kind} needs {flag}")
            if not given and self.aggregate in _AGGREGATES.get(field.name, ()) and field.name != "tau":
                raise ValueError(f"--groups.aggregate {self.aggregate} needs {flag}")
        self._members = named_paths(self.models, "--groups.models", "NAME=FOLDER")
        if self.kind == "gold" and not self._make_traits().holds_models:
            self.gpus = 0.0

    @property
    def needs_extensions(self) -> tuple[str, ...]:
        """``batch-min`` for the aggregate of that name."""
        return (BATCH_MIN,) if self.aggregate == BATCH_MIN else ()

    def check(self, args: SimpleNamespace) -> None:
        """Refuse what cannot work, before anything is started.

        Raises:
            UserError: a label cannot be read, or its prompt is of another style than the model's; models, groups file
                and arguments do not fit each other.
        """
        names, style = self._check_sources()
        self._numbers(names)
        if args.ext.reward_combine == "gdpo" and self.aggregate in ("weighted", "index"):
            raise UserError(
                f"--ext.reward_combine gdpo normalises each group's rewards apart, where --groups.aggregate "
                f"{self.aggregate} has no effect; leave one of them out"
            )
        data = args.data
        if data.label_key != "label":
            raise UserError("reward 'groups' reads the column 'label'; give --data.label_key label")
        for flag, given in (
            ("--data.apply_chat_template", data.apply_chat_template),
            ("--data.input_template", data.input_template),
        ):
            if given:
                raise UserError(f"{flag} would render prompts again, which are text for group rewards; leave it out")
        for _, line in run_records(args):
            label = read_label(line.record.get("label"), line.where)
            style = style or label.style
            self._check_style(label, style, line.where)

    def setup(self, context: RewardContext) -> None:
        """Load what gives the scores.

        Raises:
            UserError: as `check`, of models and groups.
        """
        self._names, self._style = self._check_sources()
        self._weights, self._index = self._numbers(self._names)
        self._scores: Scores
        if self.kind == "gold":
            self._scores = self._gold_scores()
            return
        readers = self._readers()
        self._norm = self._statistics(readers) if self.normalize else None
        self._scores = self._model_scores(readers)

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards, and to log: ``reward_GROUP``, and ``argmin_GROUP``, 1 where it is the group's that is least.

        With ``batch-min`` the rewards are means over the groups, until the experience maker has the whole batch.

        Raises:
            UserError: a label cannot be read, or a score is not finite; the record and the sample are named.
        """
        import torch

        labels = [read_label(rollout.label, f"sample {rollout.id!r}") for rollout in batch]
        for label, rollout in zip(labels, batch, strict=True):
            self._check_style(label, self._style or label.style, f"sample {rollout.id!r}")
        table, cut = self._scores(batch)
        for label, rollout, row in zip(labels, batch, table, strict=True):
            for group, value in zip(self._names, row, strict=True):
                if not math.isfinite(value):
                    raise UserError(
                        f"group {group!r} has a score of {value} for a response to {label.id!r} (sample "
                        f"{rollout.id!r}); a model's weights or a trait is NaN or overflows: use an earlier checkpoint"
                    )
        rewards = torch.tensor(table, dtype=torch.float64)
        if self.normalize:
            assert self._norm is not None
            rewards = standardise(rewards, *self._norm)
        how = "mean" if self.aggregate == BATCH_MIN else self.aggregate
        total = aggregate(rewards, how, self.tau, self._weights, self._index)
        least = torch.nn.functional.one_hot(rewards.argmin(1), len(self._names)).double()
        metrics = {f"reward_{name}": rewards[:, i] for i, name in enumerate(self._names)}
        metrics |= {f"argmin_{name}": least[:, i] for i, name in enumerate(self._names)}
        if self.kind != "gold":
            metrics["cut"] = torch.tensor(cut)
        return RewardResult(total, metrics, apart={name: rewards[:, i] for i, name in enumerate(self._names)})

    # what the scores come from

    def _make_traits(self) -> Any:
        from .traits import Traits

        how = (self.max_len, self.eos or "none", self.batch_tokens, self.dtype, self.attn_implementation)
        return Traits(self.traits, *how, flag="--groups.traits")

    def _readers(self) -> list[Reader]:
        if self.kind == "group_rm":
            return [read_group_model(self.model)]
        return [read_member(name, folder, self.eos) for name, folder in self._members.items()]

    def _check_sources(self) -> tuple[list[str], str | None]:
        """The groups' names in order, and the style that prompts must have (None: any)."""
        known = self._read_groups() if self.config else None
        if self.kind == "gold":
            from .config import group_scores

            assert known is not None  # checked by `__post_init__`
            traits = self._make_traits()
            traits.check()
            group_scores(known, {name: [0.0] for name in traits.names}, "--groups.traits")  # all that the file weighs
            return [group.name for group in known], None
        readers = self._readers()
        names = [name for reader in readers for name in reader.names]
        for reader in readers:
            length_limit(reader.model.folder, self.max_len, "--groups.max_len", reader.model.flag)
        if self.normalize:
            self._statistics(readers)
        if known is not None and sorted(names) != sorted(group.name for group in known):
            raise UserError(
                f"{readers[0].model.flag.partition(' ')[0]} gives scores of {_listed(names)}, and --groups.config "
                f"{self.config} has {_listed([group.name for group in known])}; give the file it was trained with"
            )
        styles = {reader.style: reader for reader in readers if reader.style is not None}
        if len(styles) > 1:
            shown = ", ".join(f"{reader.model.flag} of {style}" for style, reader in styles.items())
            raise UserError(f"the models were trained on prompts of different styles: {shown}; train them on one")
        return names, next(iter(styles), None)

    def _read_groups(self) -> Any:
        from .config import read_groups

        return read_groups(self.config)

    def _statistics(self, readers: Sequence[Reader]) -> tuple[list[float], list[float]]:
        means: list[float] = []
        deviations: list[float] = []
        for reader in readers:
            if reader.norm is None or not all(value > 0 for value in reader.norm[1]):
                raise UserError(
                    f"{reader.model.flag} {reader.model.folder} has no mean and deviation of its scores in its "
                    "config.json; train it with --eval.dataset, or leave --groups.normalize out"
                )
            means += reader.norm[0]
            deviations += reader.norm[1]
        return means, deviations

    def _numbers(self, names: Sequence[str]) -> tuple[Sequence[float] | None, int | None]:
        """Weights and index, as `aggregate` takes them."""
        if self.weights and len(self.weights) != len(names):
            raise UserError(
                f"--groups.weights gives {len(self.weights)} numbers for {len(names)} groups ({', '.join(names)}); "
                "give one for each"
            )
        if self.index and self.index not in names:
            raise UserError(f"--groups.index {self.index} is not a group{suggest(self.index, list(names))}")
        return self.weights or None, names.index(self.index) if self.index else None

    @staticmethod
    def _check_style(label: Label, style: str, where: str) -> None:
        if label.style != style:
            raise UserError(
                f"{where} (id {label.id!r}) has a prompt of style {label.style}, and the reward model, or the prompt "
                f"before it, is of style {style}; build the prompts again with the style of the reward model"
            )

    def _gold_scores(self) -> Scores:
        from .config import group_scores

        traits, groups = self._make_traits(), self._read_groups()

        def scores(batch: RewardBatch) -> tuple[list[list[float]], list[float]]:
            found = traits.score(batch.prompts, batch.responses)
            table = []
            for i, rollout in enumerate(batch):
                where = f"the response to {read_label(rollout.label, '').id!r} (sample {rollout.id!r})"
                table += group_scores(groups, {name: [values[i]] for name, values in found.items()}, where)
            return table, []

        return scores

    def _model_scores(self, readers: Sequence[Reader]) -> Scores:
        computes = [self._load(reader) for reader in readers]

        def scores(batch: RewardBatch) -> tuple[list[list[float]], list[float]]:
            parts = [compute(batch) for compute in computes]
            table = [[value for row in rows for value in row] for rows in zip(*(p[0] for p in parts), strict=True)]
            return table, [float(any(column)) for column in zip(*(p[1] for p in parts), strict=True)]

        return scores

    def _load(self, reader: Reader) -> Scores:
        """A model with its tokenizer."""
        model = reader.model
        model.load(self.dtype, self.attn_implementation, _make_group_model if reader.grouped else None)
        max_len = length_limit(model.folder, self.max_len, "--groups.max_len", model.flag)

        def scores(batch: RewardBatch) -> tuple[list[list[float]], list[float]]:
            encoded = encode(model.tokenizer, [(r.prompt, r.response) for r in batch], reader.eos, max_len)
            table = model.score([model.as_pooled(one.ids) for one in encoded], self.batch_tokens)
            return table, [float(one.lost > 0) for one in encoded]

        return scores


def _make_group_model(*args: Any, **words: Any) -> Any:
    from .model import get_llm_for_sequence_regression  # it imports DeepSpeed

    return get_llm_for_sequence_regression(*args, **words)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} group(s), {', '.join(names)}"
