"""One reward model out of one for each group: ``orlhf-ext groups merge --models NAME=DIR ... --out DIR``.

The models must share their backbone to the last bit (``train_rm --ext.use group-rm --groups.only NAME`` with a frozen
one); their heads are stacked, so that one forward pass gives the scores of all. Models with a backbone of their own
each can be used together as they are: ``--ext.reward groups --groups.kind ensemble``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..cli.errors import UserError, command
from ..cli.flags import make_parser, named_paths
from ..files.outputs import check_folder
from ..files.records import atomic_folder, read_object, write_json
from ..models.folder import identity, load_tokenizer, read_config
from ..models.head_settings import EOS, KEY, STYLES, HeadSettings, read_settings
from ..models.reward_models import RewardModel
from ..models.weights import check_files, check_reward

_FLAG = "--models"
_KEPT = (".json", ".jinja", ".txt", ".model")  # of a model folder, beside its weights
_INDEX = "model.safetensors.index.json"


class Member(NamedTuple):
    """The reward model of one group."""

    name: str
    folder: Path
    #: name of its head's tensor, ``(1, d)``
    head: str
    settings: HeadSettings
    #: file of each tensor
    files: dict[str, Path]


def read_member(name: str, path: str, style: str | None, eos: str | None) -> Member:
    """Look at a reward model with one score.

    Args:
        name: of its group.
        path: folder or hub name.
        style: of the prompts that it was trained on, for a model that does not say it.
        eos: how their texts ended, likewise.

    Raises:
        UserError: it has more than one score, a shared layer, or another group's name; a plain model, and style or eos
            are not given; a model that says them, and others are given.
    """
    flag = f"{_FLAG} {name}"
    model = RewardModel(path, flag, single=False)
    folder, config = model.folder, read_config(model.folder)
    if KEY in config:
        settings = read_settings(folder, flag)
        if settings.names != [name]:
            raise UserError(f"{flag} {folder} is a reward model of {', '.join(settings.names)}; give it that name")
        if settings.head != "independent":
            raise UserError(
                f"{flag} {folder} has a shared layer of its own, which cannot be stacked; train it with --groups.head "
                "independent"
            )
        for what, given, own in (("style", style, settings.style), ("eos", eos, settings.eos)):
            if given is not None and given != own:
                raise UserError(f"--{what} {given} is not that of {flag} {folder}, {own}; leave --{what} out")
    elif style is None or eos is None:
        raise UserError(
            f"{flag} {folder} does not say what texts it was trained on; give --style and --eos (train_rm by itself "
            "ends texts with EOS: append)"
        )
    else:
        norm = {key: [float(config[key])] for key in ("mean", "std")} if {"mean", "std"} <= set(config) else None
        settings = HeadSettings([name], "independent", None, "identity", style, eos, norm=norm)
    if model.scores != 1:
        raise UserError(f"{flag} {folder} gives {model.scores} scores for a text; take a model with one")
    return Member(name, folder, model.head, settings, _files(folder))


def _files(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            found.update(dict.fromkeys(weights.keys(), path))
    return found


def check_alike(first: Member, other: Member) -> None:
    """Two models differ in their head only. Raises UserError that names what else they differ in."""
    pair = f"{_FLAG} {first.name} ({first.folder}) and {other.name} ({other.folder})"
    for what in ("style", "eos", "squash"):
        values = getattr(first.settings, what), getattr(other.settings, what)
        if values[0] != values[1]:
            raise UserError(f"{pair} were trained with {what} {values[0]} and {values[1]}; train them alike")
    if _tokenizer(first) != _tokenizer(other):
        raise UserError(f"{pair} have different tokenizers; use them as an ensemble instead")
    if first.head != other.head:
        raise UserError(f"{pair} name their heads {first.head} and {other.head}; train them alike")
    if missing := sorted(set(first.files) ^ set(other.files)):
        raise UserError(f"{pair} differ: only one of them has {missing[0]}; use them as an ensemble instead")
    for name in first.files:
        if name != first.head and not _equal(_tensor(first, name), _tensor(other, name)):
            raise UserError(
                f"{pair} have backbones that differ, in {name}; train them with a frozen backbone, or use them as an "
                "ensemble"
            )


def _tokenizer(member: Member) -> Any:
    tokenizer = load_tokenizer(member.folder, f"{_FLAG} {member.name}")
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    own = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    return own, tokenizer.eos_token, tokenizer.bos_token


def _tensor(member: Member, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(member.files[name], framework="pt") as weights:
        return weights.get_tensor(name)


def _equal(first: Any, other: Any) -> bool:
    import torch

    return first.dtype == other.dtype and torch.equal(first, other)


def merge(members: Sequence[Member], out: Path) -> HeadSettings:
    """Write the model of all groups; ids of groups are the order of ``members``.
    Raises UserError as `check_alike` does, or if there are fewer than two models, or ``out`` is not empty."""
    names = [member.name for member in members]
    if len(names) < 2:
        raise UserError(f"{_FLAG} takes two models or more, each of a group of its own; it names {', '.join(names)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} exists already; remove it or give another one")
    first = members[0]
    for other in members[1:]:
        check_alike(first, other)
    for member in members:
        check_reward(member.folder, f"{_FLAG} {member.name}")
        check_files(member.folder, f"{_FLAG} {member.name}")
    settings = HeadSettings(
        names,
        "independent",
        None,
        first.settings.squash,
        first.settings.style,
        first.settings.eos,
        norm=_stacked_norm(members),
    )
    with atomic_folder(out) as folder:
        _write(folder, members, settings)
        sources = {m.name: {"folder": str(m.folder), "identity": identity(m.folder)} for m in members}
        write_json(folder / "merge.meta.json", {"command": "groups.merge", "version": __version__, "models": sources})
    return settings


def _stacked_norm(members: Sequence[Member]) -> dict[str, list[float]] | None:
    norms = [member.settings.norm for member in members]
    if not all(norms):
        return None
    return {key: [norm[key][0] for norm in norms if norm] for key in ("mean", "std")}


def _write(folder: Path, members: Sequence[Member], settings: HeadSettings) -> None:
    """The first model's files, with all heads in the place of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    first = members[0]
    for path in first.folder.iterdir():
        if path.suffix in _KEPT and path.name not in ("config.json", "merge.meta.json"):
            shutil.copyfile(path, folder / path.name)
    heads = torch.cat([_tensor(member, member.head) for member in members])
    for path in sorted(set(first.files.values())):
        if path != first.files[first.head]:
            shutil.copyfile(path, folder / path.name)
            continue
        save_file({**load_file(path), first.head: heads}, folder / path.name, metadata={"format": "pt"})
    if (folder / _INDEX).is_file():
        index = read_object(folder / _INDEX, "copy the model again")
        if isinstance(size := index.get("metadata", {}).get("total_size"), int):
            index["metadata"]["total_size"] = size + heads.nbytes - _tensor(first, first.head).nbytes
        write_json(folder / _INDEX, index)
    config = {key: value for key, value in read_config(first.folder).items() if key not in ("mean", "std")}
    write_json(folder / "config.json", {**config, KEY: settings.as_config()})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext groups merge", __doc__)
    add = parser.add_argument
    add("--models", required=True, nargs="+", metavar="NAME=DIR", help="the reward model of each group, in order")
    add("--out", required=True, metavar="DIR", help="the folder to make")
    add("--style", choices=STYLES, help="style of the prompts that models of plain train_rm were trained on")
    add("--eos", choices=EOS, help="how the training texts of models of plain train_rm ended")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Look at every model, then write."""
    args = parse(argv)
    check_folder(args.out, new=True)
    models = named_paths(args.models, _FLAG, "NAME=DIR")
    members = [read_member(name, path, args.style, args.eos) for name, path in models.items()]
    if (args.style or args.eos) and all(KEY in read_config(member.folder) for member in members):
        raise UserError("--style and --eos have no effect: every model says what it was trained on; leave them out")
    settings = merge(members, Path(args.out))
    print(f"{args.out}: {settings.num_groups} groups ({', '.join(settings.names)}), one backbone")


if __name__ == "__main__":
    main()
