"""The values of a recipe's run: what each kind of variable may be, and what follows from the machine's GPUs."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import fit

#: variables that may name a path, which is the caller's
PATHS = """ALIGN_DATA CLASSIFIER CLASSIFIER_MODEL DATA_DIR EVAL_PROMPTS GROUPS_FILE HH_DATA JIGSAW_DATA JUDGE
    LITBENCH_DATA MODEL PERPLEXITY_MODEL Q_MODEL REWARD_MODEL RM_MODEL SFT_MODEL STORIES TEST_FILE""".split()  # noqa: SIM905
#: whole numbers of at least 1
COUNTS = """BATCH_SIZE CLASSIFIER_BATCH CLASSIFIER_EPOCHS CONTEXT_WORDS ENGINES EPISODES EPOCHS EVAL_STEPS GOLD_WORDS K
    MAX_LEN MAX_NEW_TOKENS MAX_SCORED MICRO_BATCH_SIZE NPROC NUM_CHECKPOINTS NUM_COMPLETIONS NUM_CONTRASTIVE NUM_EVAL
    NUM_NODES NUM_PROMPTS NUM_RETURNS NUM_RL PROMPT_TOKENS Q_EPOCHS RM_BATCH_SIZE RM_EPOCHS RM_MAX_LEN RM_SAMPLES
    ROLLOUT_BATCH ROUNDS SAMPLES SAVE_STEPS TARGET_BATCH_SIZE TEST_COMPLETIONS TEST_PROMPTS TP WORKERS""".split()  # noqa: SIM905
#: the same, or `all`
COUNTS_OR_ALL = {
    "hh_exo": ("TRAIN_PROMPTS", "ALIGN_PROMPTS", "TEST_PROMPTS"),
    "hh_exo_online": ("TRAIN_PROMPTS", "TEST_PROMPTS"),
    "jigsaw_rectify": ("NUM_COMMENTS", "NUM_PROMPTS"),
    "litbench_rl": ("TRAIN_PROMPTS", "TEST_PROMPTS"),
    "ncp_vrcli": ("TRAIN_PROMPTS", "VAL_PROMPTS", "TEST_PROMPTS"),
}
#: 0 or 1
SWITCHES = "ALLOW_TRAIN_HOLDOUT CONTROL NEW SHARE_PROMPTS SHOW SWAP_AUGMENT USE_COT WITH_PROMPT".split()  # noqa: SIM905
CHOICES = {
    "AGGREGATE": "min mean softmin batch-min",
    "LONG_ROWS": "cut drop",
    "LOSS": "exo-rw exo-pref dpo-rw dpo-pref pl lipo nca",
    "METHOD": "all gold single maxmin sharedrep",
    "MODE": "most sample all",
    "PAIRS": "round_robin pivot circle",
    "PRESET": "equal paper",
    "PROMPT_FORMAT": "hh chat",
    "ROUND_REFERENCE": "sft last",
    "SYSTEM": "keep drop merge",
}
STYLES = {"hh_groups": "hh chat legacy", "litbench_genrm": "marker chat", "litbench_rl": "marker chat"}
#: a number from 0 to 1, as the name of a stage or a folder may have it
SHARE = r"0|1|0?\.[0-9]+"


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one sentence and leave."""
    print(f"recipe: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def check_count(name: str, text: str, or_all: bool = False) -> None:
    """A whole number of at least 1, or ``all``."""
    tail = ", or all" if or_all else ""
    if re.fullmatch("[1-9][0-9]{9,}", text):
        fail(f"{name}={text} is too large; give a number below 1000000000{tail}")
    if not re.fullmatch("[1-9][0-9]{0,8}", text) and not (or_all and text == "all"):
        fail(f"{name}={text} is not a whole number of at least 1{tail}")


def check_choice(name: str, text: str, known: str) -> None:
    """One of several words."""
    if text not in known.split():
        fail(f"{name}={text} is not known; choose one of: {known}")


def split_words(name: str, text: str) -> list[str]:
    """The words of a variable, as a shell splits them; nothing is run or expanded."""
    try:
        return shlex.split(text)
    except ValueError:
        fail(f"{name}={text} has an open quote; close it")


class Values(dict[str, Any]):
    """The values of a run, by name; what ``lines`` says is printed when they are assigned."""

    def __init__(self, recipe: str, caller: Path, gpus: int) -> None:
        super().__init__()
        self.recipe, self.caller, self.gpus = recipe, caller, gpus
        self.given: set[str] = set()
        self.lines: list[str] = []

    def read(self, defaults: Mapping[str, str], environ: Mapping[str, str]) -> None:
        """Take the defaults, or what the environment has in place of those in capitals; look at each by itself."""
        for name, default in defaults.items():
            value = environ.get(name, "") if name.isupper() else ""
            if value:
                self.given.add(name)
            if name in PATHS:
                value = self.from_caller(value)
            self[name] = value or default
            self.check(name, self[name])
        for name in self.given.intersection(PATHS) - {"HH_DATA"}:  # the first stage looks at HH_DATA
            if self["DRY_RUN"] == "0" and re.match(r"\.{0,2}/", self[name]) and not os.path.exists(self[name]):
                fail(f"{name}={self[name]} does not exist; give a path that does, or a name on a hub")

    def check(self, name: str, value: str) -> None:
        """Look at one value."""
        or_all = self.may_be_all(name)
        if name == "STYLE":
            check_choice(name, value, STYLES[self.recipe])
        elif name in CHOICES:
            check_choice(name, value, CHOICES[name])
        elif name in SWITCHES:
            check_choice(name, value, "0 1")
        elif (name in COUNTS and value) or or_all:
            check_count(name, value, or_all)
        elif name in ("EXAMPLES", "RESUME_STEPS", "SEED", "TUNE_EPOCHS") and not re.fullmatch("[0-9]{1,9}", value):
            fail(f"{name}={value} is {'too large; give' if value.isdigit() else 'not'} a whole number below 1000000000")
        elif name.endswith("_RATE") and name != "LEARNING_RATE" and not re.fullmatch(SHARE, value):
            fail(f"{name}={value} is not a number from 0 to 1")

    def may_be_all(self, name: str) -> bool:
        """Whether a count of this recipe may be ``all``."""
        return name in COUNTS_OR_ALL.get(self.recipe.replace("hh_dpo", "hh_exo"), ())

    def ready(self) -> dict[str, Any]:
        """The values as a shell uses them."""
        found: dict[str, Any] = {}
        for name, value in self.items():
            if (name in SWITCHES and value == "0") or (self.may_be_all(name) and value == "all"):
                value = ""
            if name.endswith(("_ARGS", "_words")):
                found[name.lower()] = [self.from_caller(word) for word in split_words(name, value)]
            if not name.endswith("_words"):
                found[name] = value
        return found

    def number(self, name: str) -> int:
        """A count."""
        return int(self[name])

    def from_caller(self, word: str) -> str:
        """A path, or NAME=PATH, as it is found from the project's folder."""
        name, equals, path = word.rpartition("=") if "=" not in word else word.partition("=")
        there = path and path[0] not in "/-" and self.caller != Path.cwd() and (self.caller / path).exists()
        return f"{name}{equals}{self.caller / path}" if there else word

    def default(self, name: str, other: str) -> None:
        """Where ``name`` is not set by the user and ``other`` is, the one is the other."""
        if name not in self.given and other in self.given:
            self[name] = self[other]

    def no_effect(self, words: str, model: str, why: str) -> None:
        """Words of a training that is skipped."""
        if self[model] and self[words]:
            fail(f"{words} has no effect with {model}{why}; unset one")

    def processes(self) -> int:
        """The most processes of a training."""
        return self.number("NPROC") if self["NPROC"] else max(1, self.gpus if self["PROFILE"] == "gpu" else 0)

    def fit_training(self, *batches: tuple[str, int]) -> list[int]:
        """Sets NPROC and ``launch``; returns the micro-batch of each (name of a batch, most of a forward pass)."""
        wanted = [fit.Batch(name, self.number(name), micro) for name, micro in batches]
        found = fit.fit(wanted, self.processes(), exact=bool(self["NPROC"]))
        self.say(fit.describe(wanted, found, self.processes()))
        self.use_processes(found.processes)
        return found.micros

    def use_processes(self, count: int) -> None:
        """Sets NPROC and ``launch``, how a launcher is started: by itself, or once for each process."""
        start = ["python"] if count == 1 else ["torchrun", "--standalone", "--nproc_per_node", str(count)]
        self.update(NPROC=count, start=[*start, "-m"], launch=[*start, "-m", "orlhf_ext.launch"])

    def fit_rl(self, given_processes: str, spare: int = 0, batch: fit.Batch | None = None) -> None:
        """Who trains and who samples in ``train_ppo_ray``: sets NPROC, ENGINES, TP, ``micro`` and ``placement``.
        The batch is BATCH_SIZE, if it is not given.

        This machine's GPUs are used, less ``spare`` if there are more than one; on a cluster, or where there are none
        to count, four processes beside two engines of two.
        """
        gpus = 0 if self["RAY_ADDRESS"] else self.gpus - spare if self.gpus > 1 else self.gpus
        given = [given_processes, self["ENGINES"], self["TP"]]
        if self["PROFILE"] != "gpu":
            given = [one or "1" for one in given]
        batch = batch or fit.Batch("BATCH_SIZE", self.number("BATCH_SIZE"), self.number("MICRO_BATCH_SIZE"))
        nodes = int(self.get("NUM_NODES", 1))
        found = fit.share([batch], gpus, nodes, *(int(one) if one else None for one in given))
        self.say(fit.describe([batch], found.fit, found.limit, nodes))
        self.update(NPROC=found.fit.processes, ENGINES=found.engines, TP=found.tp, micro=found.fit.micros[0])
        memory = ["--vllm.gpu_memory_utilization", "0.6" if found.colocate else "0.9"]
        self["placement"] = memory if self["PROFILE"] == "gpu" else []
        if found.colocate:
            self["placement"] = ["--train.colocate_all", "--vllm.enable_sleep", "--ds.enable_sleep", *memory]
        cluster = found.fit.processes * nodes + found.engines * found.tp
        self.share_work(cluster if self["RAY_ADDRESS"] else self.gpus, int(self["TP"]) if "TP" in self.given else 1)

    def share_work(self, gpus: int, tp: int = 1) -> None:
        """Sets ``workers`` and ``samplers``, the words by which scoring and sampling use all GPUs (``tp`` of them for
        an engine), or as many as WORKERS says."""
        count = self.number("WORKERS") if self["WORKERS"] else gpus if self["PROFILE"] == "gpu" else 1
        engines = max(1, count // tp)
        self["workers"] = ["--workers", str(count)] if count > 1 else []
        self["samplers"] = ["--workers", str(engines)] if engines > 1 else []
        self["samplers"] += ["--tensor_parallel_size", str(tp)] if tp > 1 else []

    def say(self, line: str) -> None:
        """Print a line when the values are assigned."""
        if line:
            self.lines.append(f"# {line}")


def split_list(v: Values, name: str, pattern: str, what: str) -> list[str]:
    """The values of a list with spaces between them."""
    for value in v[name].split():
        if not re.fullmatch(pattern, value):
            fail(f"{name}={v[name]} are {what} with spaces between them; {value} is not")
    return v[name].split() or fail(f"{name} names at least one value")
