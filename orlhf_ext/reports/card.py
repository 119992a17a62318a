"""Model cards: ``README.md`` beside the weights, with front matter that Hugging Face's hub reads.

What a card says of a model that a recipe's stage made is in files of the run: the stage's stamp (``recipes/stage.py``),
the sidecars of its data, ``run.json``, and the table of a summary. A card ends in `MARK`; a ``README.md`` without it is
somebody's own and is never replaced.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..files.records import atomic_write, object_or_empty
from ..files.sidecars import sidecar_path
from ..files.sources import looks_local
from ..models.small_models import hub_name_of

MARK = "<!-- Written by orlhf-ext card. Remove this line to keep changes of your own. -->"
#: libraries leave a card with nothing in it, such as that of PEFT
_BLANK = "[More Information Needed]"
_UNKNOWN = "that of the source"  # a licence, in sidecars
_MAX_STEPS = 20  # from a file to what it was made of
_DATA = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz")


class Kind(NamedTuple):
    """What a training makes."""

    what: str
    pipeline: str
    use: str


_POLICY = "to sample answers and compare them with those of other models"
_REWARD = "to compare answers to the same prompt with one another; its numbers have no scale of their own"
#: launcher, command or extension -> what it makes; an extension says more than its launcher
KINDS = {
    "train_sft": Kind("A language model, fine-tuned on answers", "text-generation", _POLICY),
    "train_dpo": Kind("A policy, aligned with preferences", "text-generation", _POLICY),
    "train_ppo_ray": Kind("A policy, trained with rewards of its own samples", "text-generation", _POLICY),
    "train_rm": Kind("A reward model, trained on pairs of answers", "", _REWARD),
    "group-rm": Kind("A reward model with a score for each group of people", "", _REWARD),
    "groups merge": Kind("A reward model with a score for each group of people", "", _REWARD),
    "dead-end": Kind(
        "A dead-end value function",
        "",
        "to cap the next token's probability (orlhf-ext deadend decode); it writes no text",
    ),
    "deadend classifier": Kind("A toxicity classifier", "text-classification", "to score comments for an experiment"),
    "export": Kind("A checkpoint of a training", "text-generation", _POLICY),
}
_ANY = Kind("A model", "", _POLICY)
_LIMITS = (
    "Nobody has checked it for safety, truth or bias: it has the limits of its base model and of its data, and is no "
    "product."
)


class Data(NamedTuple):
    """A data file, and what the sidecars say of it and of what it was made of."""

    use: str
    name: str
    rows: int | None
    source: str
    licence: str


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        title: of the model.
        command: the words that made it.
        base: the models it was made from, as the command names them.
        hub_base: those of them that are on the hub, or what they were made from there.
        data: what it learned from.
        versions: of packages.
        about: more of the run: recipe, profile.
        table: of results, in Markdown.
    """

    title: str
    command: Sequence[str]
    base: Sequence[str] = ()
    hub_base: Sequence[str] = ()
    data: Sequence[Data] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    table: str = ""

    def render(self, library: str) -> str:
        """The file's text."""
        from huggingface_hub import ModelCardData

        *uses, program = words_of(self.command)
        kind = next((KINDS[word] for word in (*uses, program) if word in KINDS), _ANY)
        sources = dict.fromkeys(one.source for one in self.data if "/" in one.source and hub_name(one.source))
        front = ModelCardData(
            base_model=list(self.hub_base) or None,
            datasets=list(sources) or None,
            library_name=library,
            pipeline_tag=kind.pipeline or None,
            tags=["orlhf-ext", "openrlhf", *(word for word in (program, *uses) if re.fullmatch(r"[\w-]+", word))],
        )
        facts = {
            "base model": ", ".join(f"`{one}`" for one in self.base),
            "made by": f"{program} with {' and '.join(uses)}" if uses else program,
            **{key: self.about.get(key) for key in ("recipe", "profile")},
            "seed": following(self.command, "--train.seed", "--seed"),
            **{name.replace("_", "-"): version for name, version in self.versions.items()},
        }
        parts = [
            f"---\n{front.to_yaml()}\n---",
            f"# {self.title}",
            f"{kind.what}. For research: {kind.use}. {_LIMITS}",
            table_of(("", ""), [(key, value) for key, value in facts.items() if value]),
        ]
        if self.about.get("profile") == "smoke":
            parts.insert(3, "The profile `smoke` only shows that everything runs; such a model has learned nothing.")
        if self.data:
            rows = [(f"`{one.name}`", one.use, one.rows or "", one.source, one.licence) for one in self.data]
            parts += ["## Data", table_of(("file", "for", "rows", "source", "licence"), rows)]
        if self.table:
            parts += ["## Results", self.table.strip()]
        parts += ["## Training", f"```bash\n{shown(self.command)}\n```", MARK]
        return "\n\n".join(parts) + "\n"


def write_card(folder: Path, card: Card) -> bool:
    """Write a model's card; False where there is one of somebody's own, which stays."""
    path = folder / "README.md"
    if path.exists() and not any(mark in path.read_text(encoding="utf-8", errors="replace") for mark in (MARK, _BLANK)):
        return False
    text = card.render("peft" if (folder / "adapter_config.json").is_file() else "transformers")
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        with atomic_write(path) as stream:
            stream.write(text)
    return True


# --- what a stage's stamp and the files around it say


class Stage(NamedTuple):
    """The stage of a recipe that made something."""

    stamp: Mapping[str, Any]
    #: what relative paths of its command are relative to
    place: Path


def find_stage(path: Path) -> Stage | None:
    """The finished stage among whose outputs a path is, or lies; None if no recipe made it."""
    path = Path(os.path.realpath(path))
    for parent in list(path.parents)[:4]:
        for file in sorted(parent.glob("*.stage.json")):
            stamp = object_or_empty(file)
            made, outputs = str(file).removesuffix(".stage.json"), stamp.get("outputs")
            if stamp.get("state") != "done" or not outputs:
                continue
            place = Path(made.removesuffix(outputs[0]) or ".")
            if any(Path(os.path.realpath(place / one)) in (path, *path.parents) for one in outputs):
                return Stage(stamp, place)
    return None


def read_card(folder: Path, summary: Path | None = None) -> Card | None:
    """The card of a model that a stage made; None if none did.

    Args:
        folder: the model.
        summary: the JSON file of a result, whose table is beside it.
    """
    if (stage := find_stage(folder)) is None:
        return None
    folder = Path(os.path.realpath(folder))
    run = next((parent for parent in folder.parents if (parent / "run.json").is_file()), folder.parent)
    command = [str(word) for word in stage.stamp["command"]]
    base = base_of(command)
    files = [
        ("evaluation" if re.search("eval|valid", flag) else "training", name)
        for flag, value in itertools.pairwise(command)
        for name in value.split(",")
        if name.endswith(_DATA) and name in stage.stamp["inputs"]
    ]
    table = summary.with_suffix(".md") if summary else None
    return Card(
        title=f"{run.name}/{folder.relative_to(run)}",
        command=[short(word, run, stage.place) for word in command],
        base=[short(one, run, stage.place) for one in base],
        hub_base=[one for one in dict.fromkeys(hub_base(one, stage) for one in base) if one],
        data=[read_data(use, name, run, stage.place) for use, name in files],
        versions=stage.stamp.get("versions") or {},
        about=object_or_empty(run / "run.json"),
        table=table.read_text(encoding="utf-8") if table and table.is_file() else "",
    )


def words_of(command: Sequence[str]) -> list[str]:
    """The extensions and rewards of a training, and then its launcher or command."""
    words = command[command.index("-m") + 1 :] if "-m" in command else command
    uses = [value for flag, value in itertools.pairwise(words) if flag in ("--ext.use", "--ext.reward")]
    name = " ".join(words[1:3])
    return [*uses, next((known for known in KINDS if f"{name} ".startswith(f"{known} ")), name)]


def following(command: Sequence[str], *flags: str) -> str:
    """The last word behind one of some flags; an empty one without them."""
    return next((value for flag, value in reversed(list(itertools.pairwise(command))) if flag in flags), "")


def base_of(command: Sequence[str]) -> list[str]:
    """The models that a command starts from, as it names them."""
    if "--models" in command:  # of groups merge
        words = itertools.takewhile(lambda word: not word.startswith("--"), command[command.index("--models") + 1 :])
        return [word.partition("=")[2] for word in words]
    flags = ("--model.model_name_or_path", "--actor.model_name_or_path", "--model_name_or_path", "--model")
    return [name] if (name := following(command, *flags)) else []


def hub_name(name: str) -> bool:
    """Whether a name is one of the hub, and nothing local."""
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)) and not looks_local(name)


def hub_base(name: str, stage: Stage) -> str:
    """The model of the hub that another one goes back to; nothing where that is not known.

    Args:
        name: of a model that a stage's command starts from. What was a folder then is among the stage's inputs.
        stage: that one.
    """
    for _ in range(_MAX_STEPS):
        if name not in stage.stamp["inputs"]:
            return name if hub_name(name) else ""
        folder = stage.place / name
        found = find_stage(folder)
        if found is None or not (base := base_of(found.stamp["command"])):
            return hub_name_of(folder)
        name, stage = base[0], found
    return ""


def read_data(use: str, name: str, run: Path, place: Path) -> Data:
    """What the sidecars say of a data file; ``run`` and ``place`` as for `short`."""
    metas = list(sidecars(place / name, place))
    counts = metas[0].get("counts", {}) if metas else {}
    rows = next((counts[key] for key in ("kept", "records", "prompts") if isinstance(counts.get(key), int)), None)
    licences = (str(meta["licence"]) for meta in metas if meta.get("licence", _UNKNOWN) != _UNKNOWN)
    first = metas[-1] if metas else {}
    files = [Path(str(one.get("file"))).name for one in first.get("sources", ())[:1]]
    source = first.get("source") or first.get("arguments", {}).get("raw_dir") or ", ".join(files)
    licence = next(licences, _UNKNOWN if metas else "not known")
    return Data(use, short(name, run, place), rows, short(str(source), run, place), licence)


def sidecars(path: Path, place: Path) -> Iterator[dict[str, Any]]:
    """The sidecar of a data file, that of the file it was made of, and so on."""
    for _ in range(_MAX_STEPS):
        if not (meta := object_or_empty(sidecar_path(path))):
            return
        yield meta
        sources = meta.get("sources") or [{}]
        if not (origin := meta.get("data", {}).get("path") or sources[0].get("file")):
            return
        path = place / origin


# --- how it is shown


def short(word: str, run: Path, place: Path) -> str:
    """A word of a command without folders that are this machine's own: the run is ``$OUT``, the user's home ``~``.

    Args:
        word: maybe a path, or one behind ``NAME=`` or a comma.
        run: the run's folder.
        place: what relative paths are relative to.
    """
    for folder, name in ((str(run), "$OUT"), (os.path.relpath(run, place), "$OUT"), (str(Path.home()), "~")):
        if folder.strip("./"):
            word = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?=/|$)", name, word)
    return word


def shown(command: Sequence[str]) -> str:
    """A command as a shell takes it, a flag on each line; its addresses without users and passwords."""
    words = [word if re.fullmatch(r"(\$OUT|~)[\w./-]*", word) else shlex.quote(word) for word in command]
    text = "".join(f" \\\n    {word}" if word.startswith("--") else f" {word}" for word in words)
    return re.sub(r"(?<=://)[^\s/@'\"]+@", "", text.strip())


def table_of(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
