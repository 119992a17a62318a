"""Groups of annotators: their names, shares and tastes, from a YAML file; and how they score a response."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..cli.errors import UserError
from ..files.records import is_number

#: how far the sum of proportions may be from 1
TOLERANCE = 1e-9
KEYS = ("name", "proportion", "weights")


@dataclass(frozen=True)
class Group:
    """People with one taste; a group's id is its place in the file."""

    name: str
    #: the share of annotators; None where each record names its group
    proportion: float | None
    #: trait -> weight; a response's score is the weighted sum of its traits
    weights: dict[str, float]


def read_groups(path: str | Path, proportion: float | None = None) -> list[Group]:
    """Groups from ``groups: [{name, proportion, weights: {trait: weight}}]``.

    Args:
        path: a YAML file.
        proportion: the share of the first of exactly two groups, instead of the file's; the second has the rest.

    Raises:
        UserError: the file cannot be read, a group lacks something, or proportions do not add up to 1; the file and
            the group are named.
    """
    entries = _entries(Path(path))
    groups = [_group(f"{path} group {place}", entry) for place, entry in enumerate(entries, 1)]
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} has two groups named {name!r}; give each a name of its own")
    if proportion is not None:
        if len(groups) != 2:
            raise UserError(
                f"--proportion {proportion:g} is the share of the first of two groups, but {path} has {len(groups)}; "
                "leave it out, and write each group's proportion into the file"
            )
        if not 0 < proportion < 1:
            raise UserError(f"--proportion {proportion:g} is not between 0 and 1")
        shares = (proportion, 1 - proportion)
        return [Group(group.name, share, group.weights) for group, share in zip(groups, shares, strict=True)]
    given = [group.proportion for group in groups if group.proportion is not None]
    if given and len(given) < len(groups):
        lacking = next(group.name for group in groups if group.proportion is None)
        raise UserError(f"{path}: group {lacking!r} has no proportion, but another has; give all of them one, or none")
    if given and abs(math.fsum(given) - 1) > TOLERANCE:
        raise UserError(
            f"{path}: the proportions {', '.join(map(repr, given))} add up to {math.fsum(given):.12g}, not to 1"
            "; fix them"
        )
    return groups


def odd_weights(groups: Sequence[Group]) -> list[str]:
    """A sentence for each group whose weights do not add up to 1, which is allowed but rarely meant."""
    sums = {group.name: math.fsum(group.weights.values()) for group in groups}
    return [
        f"the weights of group {name!r} add up to {total:g}, not to 1: its scores are on another scale than others'"
        for name, total in sums.items()
        if abs(total - 1) > TOLERANCE
    ]


def wanted_traits(groups: Iterable[Group]) -> list[str]:
    """The names of the traits that some group weighs, each once."""
    return list(dict.fromkeys(name for group in groups for name in group.weights))


def trait_fault(traits: Any, wanted: Iterable[str], count: int | None = None) -> str | None:
    """What is wrong with the traits of a record, if anything: ``"no trait 'helpful'"``.

    Args:
        traits: trait -> one score for each response.
        wanted: the traits that must be there; every other is checked, too.
        count: how many responses there are; the length of the first trait if not given.
    """
    if not isinstance(traits, Mapping):
        return "no traits"
    for name in dict.fromkeys([*wanted, *traits]):
        if name not in traits:
            return f"no trait {name!r}"
        values = traits[name]
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__"):
            return f"no list of scores as trait {name!r}"
        count = len(values) if count is None else count
        if len(values) != count:
            return f"another number of scores of trait {name!r} than responses ({len(values)} for {count})"
        for value in values:
            if not is_number(value):
                return f"a score of trait {name!r} that is not a finite number ({value!r})"
    return None


def group_scores(groups: Sequence[Group], traits: Mapping[str, Sequence[float]], where: str) -> list[list[float]]:
    """The gold score that each group gives to each response: the sum of weight * trait, in float64.

    Args:
        groups: U groups.
        traits: trait -> one score for each of K responses.
        where: what a message calls the record.

    Returns:
        K lists of U scores.

    Raises:
        UserError: a trait is missing, or a score of it is not a finite number.
    """
    wanted = wanted_traits(groups)
    if fault := trait_fault(traits, wanted):
        raise UserError(f"{where} has {fault}; score it again, with {', '.join(wanted)}")
    # fsum: the same digits in every version of Python
    return [
        [math.fsum(weight * float(traits[name][place]) for name, weight in group.weights.items()) for group in groups]
        for place in range(len(traits[wanted[0]]))
    ]


def _entries(path: Path) -> list[Any]:
    import yaml

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"--groups {path} {what}; give a YAML file such as recipes/groups/hh.yaml")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place} is not valid YAML ({getattr(error, 'problem', None) or 'no text'})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML that can be read (not text, or nested too deep)") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(content, dict) or not isinstance(content.get("groups"), list) or not content["groups"]:
        raise UserError(
            f"{path} has no list of groups; write groups: [{{name, proportion, weights: {{trait: weight}}}}]"
        )
    if unknown := [key for key in content if key != "groups"]:
        raise UserError(f"{path} has {unknown[0]!r} beside groups, which means nothing here; take it out")
    return content["groups"]


def _group(where: str, entry: Any) -> Group:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not {{name, proportion, weights}}; fix it")
    if unknown := [key for key in entry if key not in KEYS]:
        raise UserError(f"{where} has {unknown[0]!r}, which means nothing here; known: {', '.join(KEYS)}")
    name, proportion, weights = (entry.get(key) for key in KEYS)
    if not isinstance(name, str) or not name.strip():
        _refuse(where, "name", name, "text")
    where = f"{where} ({name})"
    if proportion is not None and not (is_number(proportion) and 0 < proportion <= 1):
        _refuse(where, "proportion", proportion, "a number above 0 and at most 1")
    if not isinstance(weights, dict) or not weights:
        _refuse(where, "weights", weights, "{trait: weight}")
    for trait, weight in weights.items():
        if not isinstance(trait, str):
            _refuse(where, "a trait's name", trait, "text")
        if not is_number(weight):
            _refuse(where, f"weight of {trait}", weight, "a number")
    share = None if proportion is None else float(proportion)
    return Group(name, share, {trait: float(weight) for trait, weight in weights.items()})


def _refuse(where: str, key: str, value: Any, wanted: str) -> NoReturn:
    raise UserError(f"{where}: {key} is {value!r}, not {wanted}; fix it")
