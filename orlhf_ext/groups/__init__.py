"""Group preferences (MaxMin-RLHF, SharedRep-RLHF): ``--ext.use group-rm`` with ``train_rm``.

The method, pure torch, is in ``losses``, ``aggregate`` and `orlhf_ext.models.group_heads`. ``model``, ``dataset``,
``trainer`` and ``features`` replace parts of ``train_rm`` (``training`` is what a run trains). ``reward``,
``batch_min`` and ``experience`` are for ``train_ppo_ray``. ``config``, ``assign``, ``traits``, ``render`` and
``label`` are about data. ``score``, ``evaluate``, ``merge`` and ``em`` are commands.

A pair's ``group_id`` is any text or number. The groups' order, in the head and in ``group_reward`` of config.json, is
that of their ids: numbers by their value, then texts by their characters. A group's name is its pairs' ``group``, or
its id.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..cli.errors import UserError, suggest
from ..cli.flags import COUNT, NOT_NEGATIVE
from ..extensions import Extension
from ..extensions.inject import first_process
from ..files.outputs import check_folder
from ..files.records import Line
from ..files.sources import run_records
from ..models.folder import read_config
from ..models.head_settings import EOS, HEADS, HOW, KEY, SQUASHES, STYLES, HeadSettings, from_config
from . import trained_groups

CACHE = "~/.cache/orlhf_ext/features"
DEFAULT_K = 16
SINGLE = "single"
EVERYBODY = "all"  # the group that `SINGLE` makes of all of them

_BUILDER = "openrlhf.models.model:get_llm_for_sequence_regression"
_GROUP_BUILDER = "orlhf_ext.groups.model:get_llm_for_sequence_regression"


class GroupRM(Extension):
    """A reward model with one score for each group, trained by OpenRLHF's ``train_rm``."""

    name = "group-rm"
    launchers = ("train_rm",)
    replacements = {  # noqa: RUF012
        _BUILDER: _GROUP_BUILDER,
        "openrlhf.datasets.reward_dataset:RewardDataset": "orlhf_ext.groups.dataset:GroupDataset",
        "openrlhf.trainer.rm_trainer:RewardModelTrainer": "orlhf_ext.groups.trainer:GroupTrainer",
    }
    relies_on = ("openrlhf.models.model:_get_reward_model", "openrlhf.utils.utils:zero_pad_sequences")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """``--groups.``"""
        return ("groups",)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The ``--groups.*`` flags of training."""
        add = parser.add_argument
        add(
            "--groups.head",
            choices=[*HEADS, SINGLE],
            default="shared",
            help="shared: SharedRep; independent: MaxMin; single: one score for all pairs, as without groups (shared)",
        )
        add("--groups.k", type=COUNT, metavar="K", help=f"width of the shared layer ({DEFAULT_K})")
        add("--groups.squash", choices=SQUASHES, default="tanh", help="of scores in the loss (%(default)s)")
        add(
            "--groups.weighting",
            choices=["proportional", "balanced"],
            default="proportional",
            help="of groups in the loss: by their pairs, or each alike (%(default)s)",
        )
        add(
            "--groups.centering",
            type=NOT_NEGATIVE,
            default=0.0,
            metavar="C",
            help="pulls a pair's scores to a sum of 0 (0)",
        )
        add("--groups.train_backbone", action="store_true", help="train all weights; otherwise the head alone")
        add("--groups.only", metavar="NAME", help="train one group's model on its pairs alone")
        add(
            "--groups.names", nargs="+", metavar="NAME", help="of all groups by id, if the pairs have no column 'group'"
        )
        add("--groups.style", choices=STYLES, help="how the prompts are written (the pairs' column 'style', or hh)")
        add("--groups.eos", choices=EOS, default="append", help="append: a space and EOS end a text (%(default)s)")
        add("--groups.aggregate", choices=HOW[:2], default="min", help="where one reward is asked for (%(default)s)")
        add(
            "--groups.cache_features",
            nargs="?",
            const=CACHE,
            metavar="DIR",
            help="compute the frozen backbone's hidden states once, and keep them in DIR for other runs on these texts "
            f"(DIR is {CACHE} unless given)",
        )

    def check(self, args: SimpleNamespace) -> None:
        """Refuse what cannot be trained before a model is loaded.
        Raises UserError with one sentence that names the flag, or the file and line."""
        _check_flags(args)
        ids, style = _look_at_pairs(args)
        groups = args.groups
        names = tuple(groups.names or ids.values())
        own = None if groups.names or list(ids) == [str(place) for place in range(len(ids))] else list(ids)
        if own and groups.only in names:
            own = [own[names.index(groups.only)]]
        if groups.only is not None and groups.only not in names:
            known = suggest(groups.only, list(names))
            raise UserError(f"--groups.only {groups.only} is not a group of the pairs{known}")
        if single := groups.head == SINGLE:
            names, own = (EVERYBODY,), None
        shared = groups.head == "shared" and groups.only is None
        settings = HeadSettings(
            names=[groups.only] if groups.only else list(names),
            head="shared" if shared else "independent",
            k=(groups.k or DEFAULT_K) if shared else None,
            squash=groups.squash,
            style=style,
            eos=groups.eos,
            aggregate=groups.aggregate,
            ids=own,
        )
        _check_checkpoint(args, settings)
        self._training = trained_groups.Training(settings, groups.train_backbone, names, ids, pooled=single)

    def configure(self, args: SimpleNamespace) -> None:
        """Write down the groups that `check` found in the pairs: the model has a score for each."""
        trained_groups.put(self._training, args)


class GroupReward(Extension):
    """A reward model of groups as ``--reward.model_name_or_path`` of ``train_ppo_ray``: the policy's own token ids, and
    the aggregate that its config names."""

    name = "group-reward"
    launchers = ("train_ppo_ray",)
    replacements = {_BUILDER: _GROUP_BUILDER}  # noqa: RUF012
    relies_on = ("openrlhf.models.model:_get_reward_model",)

    def check(self, args: SimpleNamespace) -> None:
        """The reward model is one of groups, and reads the policy's token ids.
        Raises UserError if it is not, or has another vocabulary."""
        path = args.reward.model_name_or_path
        if not path:
            raise UserError("--ext.use group-reward has no effect without --reward.model_name_or_path; add it")
        folder, policy = Path(path), Path(args.actor.model_name_or_path)
        if not folder.is_dir():
            return  # a hub name: seen when it is loaded
        if KEY not in read_config(folder):
            raise UserError(
                f"--reward.model_name_or_path {path} is not a reward model of groups; leave --ext.use group-reward out"
            )
        if policy.is_dir() and _vocabulary(folder) != _vocabulary(policy):
            raise UserError(
                f"--reward.model_name_or_path {path} has another vocabulary than the policy {policy}, whose ids "
                "it would read; use --ext.reward groups --groups.kind group_rm, which reads text"
            )


def _vocabulary(folder: Path) -> Any:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab() if file.is_file() else None


def _check_flags(args: SimpleNamespace) -> None:
    groups = args.groups
    if groups.k is not None and (groups.head != "shared" or groups.only):
        raise UserError("--groups.k is the width of a shared layer; leave it out, or give --groups.head shared")
    if groups.only and groups.head == SINGLE:
        raise UserError(
            "--groups.head single learns from all pairs, --groups.only from those of one group; leave one out"
        )
    if groups.weighting == "balanced" and (groups.only or groups.head == SINGLE):
        other = "--groups.only" if groups.only else "--groups.head single"
        raise UserError(f"--groups.weighting balanced has no effect with {other}; leave it out")
    lora = args.ds.lora.rank > 0
    if lora and groups.train_backbone:
        raise UserError("--ds.lora.rank trains adapters, --groups.train_backbone all weights; leave one out")
    if groups.cache_features and (lora or groups.train_backbone):
        other = "--ds.lora.rank" if lora else "--groups.train_backbone"
        raise UserError(f"--groups.cache_features needs a backbone that does not change; leave it or {other} out")
    if groups.cache_features:
        check_folder(Path(groups.cache_features).expanduser(), "--groups.cache_features")
    if args.ds.load_in_4bit:
        raise UserError(
            "--ds.load_in_4bit does not go with --ext.use group-rm, which saves whole weights; leave it out"
        )
    if args.ds.packing_samples:
        raise UserError(
            "--ds.packing_samples does not go with --ext.use group-rm, whose heads read one hidden state of each text; "
            "leave it out"
        )
    if args.model.loss_type != "sigmoid":
        raise UserError(f"--model.loss_type {args.model.loss_type} has no effect with --ext.use group-rm; leave it out")


def _look_at_pairs(args: SimpleNamespace) -> tuple[dict[str, str], str]:
    """The groups' names by id, in the groups' order, and the style that the prompts are written in."""
    given = args.groups.names
    if given and (len(set(given)) < len(given) or len(given) < 2):
        raise UserError(f"--groups.names {' '.join(given)}: give two names or more, all different")
    named: dict[str, str | None] = {}
    bare: dict[str, None] = {}
    style = args.groups.style
    #: a group as pairs write it -> the first of them, and how many each flag has
    written: dict[tuple[str, str], tuple[Line, Counter[str]]] = {}
    for flag, line in run_records(args):
        record = line.record
        name = record.get("group")
        written.setdefault((repr(name), repr(record.get("group_id"))), (line, Counter()))[1][flag] += 1
        own = None
        with contextlib.suppress(ValueError):  # an error of `_check_pairs`
            own = trained_groups.id_text(record.get("group_id"))
        if own is not None:
            before = named.setdefault(own, None)
            if isinstance(name, str) and not given:
                named[own] = before or name
                if named[own] != name:
                    raise UserError(f"{line.where} calls group {own} {name!r}, and others call it {before!r}")
        elif isinstance(name, str):
            bare[name] = None
        if (mine := record.get("style")) is not None:
            style = style or mine
            if mine != style:
                raise UserError(
                    f"{line.where} has the style {mine!r}, and the reward model is to be of style {style!r}; "
                    "make all pairs with one style, or give --groups.style as they have it"
                )
    if given:
        ids = trained_groups.by_place(given)
    elif named or bare:
        ids = {one: named.get(one) or one for one in trained_groups.in_order(named or bare)}
    else:
        raise UserError(
            f"{args.data.dataset} has no pairs with a group_id; make them with build_data hh-groups, or give "
            "--groups.names"
        )
    _check_pairs(args, ids, written.values())
    return ids, style or "hh"


def _check_pairs(args: SimpleNamespace, ids: Mapping[str, str], written: Iterable[tuple[Line, Counter[str]]]) -> None:
    """Every pair has a known group, and every group that is trained has pairs."""
    if not first_process():
        return
    names = args.groups.names or list(ids.values())
    counts = dict.fromkeys(names, 0)
    if len(counts) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        both = " and ".join([one for one, called in ids.items() if called == name][:2])
        raise UserError(
            f"{args.data.dataset} has two groups, {both}, that are called {name!r}; give each a name of its own"
        )
    local = False
    for line, pairs in written:
        name = trained_groups.group_name(line.record, counts, ids, line.where)
        counts[name] += pairs["--data.dataset"]
        local = local or "--data.dataset" in pairs
    wanted = [args.groups.only] if args.groups.only in counts else list(names)
    if local and (empty := [name for name in wanted if not counts[name]]):
        raise UserError(
            f"--data.dataset {args.data.dataset} has no pair of group {empty[0]!r}; raise its proportion, take another "
            "seed, or more prompts"
        )
    if local and args.groups.only in counts and counts[args.groups.only] < args.train.batch_size:
        raise UserError(
            f"--groups.only {args.groups.only} has {counts[args.groups.only]} pairs, fewer than --train.batch_size "
            f"{args.train.batch_size}; lower the latter, or raise its proportion"
        )


def _check_checkpoint(args: SimpleNamespace, settings: HeadSettings) -> None:
    """A model that has groups already goes on with the same ones."""
    folder = Path(args.model.model_name_or_path)
    value = read_config(folder).get(KEY) if (folder / "config.json").is_file() else None
    if value is None:
        return
    found = from_config(value, f"--model.model_name_or_path {folder}")
    wanted = replace(settings, squash=found.squash, aggregate=found.aggregate, norm=found.norm)
    for name in ("names", "head", "k", "style", "eos"):
        if getattr(found, name) != getattr(wanted, name):
            raise UserError(
                f"--model.model_name_or_path {folder} is a reward model of groups with {name} "
                f"{getattr(found, name)!r}, not {getattr(wanted, name)!r}; change the flags, or start from its base"
            )
