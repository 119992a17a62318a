#!/usr/bin/env python3
"""The values of a recipe's run, checked, as assignments that the recipe's shell evaluates.

``settings.py values RECIPE CALLER GPU -- NAME=VALUE... smoke NAME=VALUE... cpu ... gpu ... -- WORDS`` takes what a
recipe has at its top: defaults of all profiles, and those of each. A variable in the environment goes before its
default; names in lower case are the recipe's own. The output is ready for use: ``all``, and a switch of 0, are empty;
``…_ARGS`` and ``…_words`` are arrays. CALLER is the folder that the recipe was called from, GPU is 1 on a machine that
has one, WORDS are the recipe's own arguments.

The other actions compute from what stages have written: `computed`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import fit
from values import CHOICES, SHARE, Values, check_choice, fail, split_list

#: the defaults of every recipe
COMMON = ["DRY_RUN=0", "SEED=1234", "OUT=", "NPROC=", "WORKERS=", "PUSH_TO_HUB="]
#: recipe -> its page in docs/methods
PAGES = {
    "hh_exo": "exo", "hh_dpo": "exo", "hh_exo_online": "exo_online", "hh_groups": "groups", "jigsaw_rectify": "deadend",
    "ncp_vrcli": "vrcli", "litbench_btrm": "litbench", "litbench_genrm": "litbench", "litbench_rl": "judge",
}  # fmt: skip
#: flags of LitBench's scripts, which its recipes take, too
LITBENCH_FLAGS = {
    "epochs": "EPOCHS", "max_length": "MAX_LEN", "learning_rate": "LEARNING_RATE", "output_dir": "OUTPUT_DIR",
    "data_dir": "DATA_DIR",
}  # fmt: skip


# --- what each recipe checks and computes before its first stage


def hh_exo(v: Values) -> None:
    """``hh_exo.sh`` and ``hh_dpo.sh``."""
    v.default("MODEL", "SFT_MODEL")
    v.share_work(v.gpus)
    (v["micro"],) = v.fit_training(("BATCH_SIZE", v.number("MICRO_BATCH_SIZE")))
    fit.check_room(v.number("MAX_LEN"), v.number("MAX_NEW_TOKENS"))
    v["losses"] = v["LOSSES"].split() or [v["LOSS"]]
    for loss in v["losses"]:
        check_choice("LOSSES", loss, CHOICES["LOSS"])
    kinds = {not loss.endswith("-pref") for loss in v["losses"]}
    if len(kinds) > 1 or len(set(v["losses"])) < len(v["losses"]):
        fail(f"LOSSES={v['LOSSES']} share their data, so all of them are *-pref, or none is, each once; change it")
    labelled = kinds == {True}
    if v.number("ROUNDS") > 1 and (v["ALIGN_DATA"] or not labelled):
        why = (
            "ALIGN_DATA is sampled already" if v["ALIGN_DATA"] else f"LOSS={v['losses'][0]} learns from the human pairs"
        )
        fail(f"ROUNDS={v['ROUNDS']} samples in each round, and {why}; leave one of them out")
    if v.number("ROUNDS") == 1 and "ROUND_REFERENCE" in v.given:
        fail("ROUND_REFERENCE has no effect on a single round; give ROUNDS, or leave it out")
    if v.number("ROUNDS") > 1 and "NUM_CHECKPOINTS" in v.given:
        fail(
            f"NUM_CHECKPOINTS has no effect with ROUNDS={v['ROUNDS']}, each of which ends with a policy; leave one out"
        )
    v["NUM_CONTRASTIVE"] = v["NUM_CONTRASTIVE"] or (v["NUM_COMPLETIONS"] if labelled and not v["ALIGN_DATA"] else "2")
    contrastive, completions = v.number("NUM_CONTRASTIVE"), v.number("NUM_COMPLETIONS")
    if contrastive < 2:
        fail(f"NUM_CONTRASTIVE={contrastive} leaves nothing to contrast with; give at least 2")
    if not v["ALIGN_DATA"] and not labelled and contrastive > 2:
        fail(
            f"NUM_CONTRASTIVE={contrastive} is for losses from rewards; the human pairs of LOSS={v['losses'][0]} "
            "have two completions"
        )
    if not v["ALIGN_DATA"] and labelled and completions % contrastive:
        fail(f"NUM_COMPLETIONS={completions} is not a multiple of NUM_CONTRASTIVE={contrastive}; change one")
    v.no_effect("SFT_ARGS", "SFT_MODEL", ", which skips SFT")
    v.no_effect("RM_ARGS", "REWARD_MODEL", "")
    for name in ("TRAIN_PROMPTS", "ALIGN_PROMPTS"):
        if v[name] != "all" and not v["ALIGN_DATA"] and v.number(name) < v.number("BATCH_SIZE"):
            fail(f"{v[name]} records of {name} are fewer than BATCH_SIZE={v['BATCH_SIZE']}; lower it, or raise {name}")


def hh_exo_online(v: Values) -> None:
    """``hh_exo_online.sh``."""
    v.default("MODEL", "SFT_MODEL")
    fit.check_room(v.number("MAX_LEN"), v.number("MAX_NEW_TOKENS"))
    if v["LOSS"].endswith("-pref"):
        fail(f"LOSS={v['LOSS']} learns from the human pairs in hh_exo.sh; rewards of samples take one without -pref")
    samples, prompts, given = v.number("SAMPLES"), v.number("ROLLOUT_BATCH"), v["NPROC"]
    fit.check_rollouts(prompts, samples, prompts * samples)
    v.no_effect("SFT_ARGS", "SFT_MODEL", ", which skips SFT")
    v.no_effect("RM_ARGS", "REWARD_MODEL", "")
    v.fit_rl(given, 1, fit.Batch("ROLLOUT_BATCH x SAMPLES", prompts * samples, v.number("MICRO_BATCH_SIZE")))
    v.update(actors=v["NPROC"], rl_micro=v["micro"], NPROC=given)
    (v["micro"],) = v.fit_training(("BATCH_SIZE", v.number("MICRO_BATCH_SIZE")))
    if v["TRAIN_PROMPTS"] != "all":
        for name in ("BATCH_SIZE", "ROLLOUT_BATCH"):
            if v.number("TRAIN_PROMPTS") < v.number(name):
                fail(f"{v['TRAIN_PROMPTS']} records of TRAIN_PROMPTS are fewer than {name}={v[name]}; change one")
    if v["RAY_ADDRESS"]:  # a cluster's workers start in folders of their own
        v["OUT"] = os.path.abspath(v["OUT"])


def hh_groups(v: Values) -> None:
    """``hh_groups.sh``."""
    v.default("MODEL", "SFT_MODEL")
    v["RM_MODEL"] = v["RM_MODEL"] or v["MODEL"]
    fit.check_room(v.number("MAX_LEN"), v.number("MAX_NEW_TOKENS"))
    fit.check_rollouts(v.number("ROLLOUT_BATCH"), v.number("SAMPLES"), v.number("BATCH_SIZE"))
    given_processes = v["NPROC"]
    (v["rm_micro"],) = v.fit_training(("RM_BATCH_SIZE", 16))
    v.fit_rl(given_processes, spare=1)
    if v.number("RM_SAMPLES") < 2:
        fail("RM_SAMPLES=1 leaves nothing to make a pair of; give at least 2")
    for name in ("PROPORTION", "K", "SEED"):
        v[f"{name}S"] = v[f"{name}S"] or v[name]
    v["proportions"] = split_list(v, "PROPORTIONS", r"(?=.*[1-9])0?\.[0-9]+", "numbers between 0 and 1")
    v["ks"] = split_list(v, "KS", r"(?=.*[1-9])[0-9]{1,9}", "whole numbers of at least 1")
    v["seeds"] = split_list(v, "SEEDS", r"[0-9]{1,9}", "whole numbers")
    if v["METHOD"] not in ("all", "sharedrep"):
        v["ks"] = [""]  # no other method has a k
    if v["METHOD"] == "gold" and len(v["proportions"]) > 1:
        fail("METHOD=gold has no proportion to vary; give PROPORTION alone")
    v.no_effect("SFT_ARGS", "SFT_MODEL", ", which skips SFT")
    if not Path(v["GROUPS_FILE"]).is_file():
        fail(f"GROUPS_FILE={v['GROUPS_FILE']} does not exist; give a YAML file such as recipes/groups/words.yaml")
    v["traits"] = [v.from_caller(trait) for trait in v["TRAITS"].split()] or fail("TRAITS names at least one trait")
    for trait in v["traits"]:
        if not re.fullmatch(r"[^=]+=.+", trait):
            fail(f"TRAITS={v['TRAITS']} are NAME=KIND with spaces between them; {trait} is not")
    v["trait_flags"] = [word for trait in v["traits"] for word in ("--trait", trait)]
    if v["RAY_ADDRESS"]:  # a cluster's workers start in folders of their own
        v["OUT"], v["GROUPS_FILE"] = os.path.abspath(v["OUT"]), os.path.abspath(v["GROUPS_FILE"])


def jigsaw_rectify(v: Values) -> None:
    """``jigsaw_rectify.sh``."""
    v.default("Q_MODEL", "MODEL")
    v["epsilons"] = split_list(v, "EPSILONS", SHARE, "numbers from 0 to 1")
    v.share_work(v.gpus)
    batches = ("BATCH_SIZE", v.number("MICRO_BATCH_SIZE")), ("CLASSIFIER_BATCH", 1)
    v["micro"], _ = v.fit_training(*batches)
    v["classifier_micro"] = v.number("CLASSIFIER_BATCH") // v.number("NPROC")
    if v["NUM_PROMPTS"] != "all" and not v["EVAL_PROMPTS"] and v.number("NUM_EVAL") >= v.number("NUM_PROMPTS"):
        fail(
            f"NUM_EVAL={v['NUM_EVAL']} held-out prompts leave none of NUM_PROMPTS={v['NUM_PROMPTS']} to train on; "
            "change one"
        )
    v.no_effect("CLASSIFIER_ARGS", "CLASSIFIER", ", which is not trained")
    if v["CLASSIFIER"] == "perspective" and not os.environ.get("PERSPECTIVE_API_KEY") and v["DRY_RUN"] == "0":
        fail("CLASSIFIER=perspective asks Google's Perspective API; set PERSPECTIVE_API_KEY in the environment")


def ncp_vrcli(v: Values) -> None:
    """``ncp_vrcli.sh``."""
    fit.check_room(v.number("MAX_LEN"), v.number("MAX_NEW_TOKENS"))
    fit.check_rollouts(v.number("ROLLOUT_BATCH"), v.number("SAMPLES"), v.number("BATCH_SIZE"))
    given = v["NPROC"]
    if v["TUNE_EPOCHS"] != "0":
        (v["tune_micro"],) = v.fit_training(("BATCH_SIZE", v.number("MICRO_BATCH_SIZE")))
    v.fit_rl(given)
    if v["NUM_NODES"] != "1" and not v["RAY_ADDRESS"]:
        fail(
            f"NUM_NODES={v['NUM_NODES']} needs a Ray cluster; set RAY_ADDRESS (auto on its head node), or leave "
            "NUM_NODES out"
        )
    if v["RAY_ADDRESS"]:  # a cluster's workers start in folders of their own
        v["OUT"] = os.path.abspath(v["OUT"])


def litbench(v: Values) -> None:
    """``litbench_btrm.sh`` and ``litbench_genrm.sh``."""
    rate = v["LEARNING_RATE"]
    if not re.fullmatch(r"(?=[0.]*[1-9])([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", rate):
        fail(f"LEARNING_RATE={rate} is not a number such as 1e-5")
    v.share_work(v.gpus)
    v.use_processes(v.processes())
    micro = v.number("MICRO_BATCH_SIZE")
    batch = fit.next_batch(v.number("TARGET_BATCH_SIZE"), micro, v["NPROC"])
    v.say(f"{v['NPROC']} processes x {micro} x {batch // (micro * v['NPROC'])} accumulated: {batch} texts a step")
    v["batch"] = batch
    find_tests(v)


def litbench_rl(v: Values) -> None:
    """``litbench_rl.sh``."""
    fit.check_room(v.number("MAX_LEN"), v.number("MAX_NEW_TOKENS"))
    fit.check_rollouts(v.number("ROLLOUT_BATCH"), v.number("SAMPLES"), v.number("BATCH_SIZE"))
    for words, model in (("JUDGE_ARGS", "JUDGE"), ("RM_ARGS", "REWARD_MODEL")):
        if words in v.given:
            v.no_effect(words, model, ", which is not trained")
    v.fit_rl(v["NPROC"], spare=1)
    find_tests(v)
    # what the recipes of both reward models are told; on a hub each has data of its own
    v["shared"] = [f"{name}={v[name]}" for name in ("TEST_FILE", "ALLOW_TRAIN_HOLDOUT") if v[name] not in ("", "0")]
    if os.path.isdir(v["DATA_DIR"]):
        v["shared"].append(f"DATA_DIR={v['DATA_DIR']}")
    if "LITBENCH_DATA" in v.given or v["PROFILE"] != "gpu":
        v["shared"].append(f"LITBENCH_DATA={v['LITBENCH_DATA']}")
    if v["RAY_ADDRESS"]:  # a cluster's workers start in folders of their own
        v["OUT"] = os.path.abspath(v["OUT"])


def find_tests(v: Values) -> None:
    """Sets ``tested``, the words that say where LitBench's test pairs are."""
    test = Path(v["DATA_DIR"]) / "rehydrated_test_data.csv"  # where `litbench rehydrate` writes it
    if not v["TEST_FILE"] and v["LITBENCH_DATA"] not in ("sample", "graded") and test.is_file():
        v["tested"] = ["--test_file", str(test)]
    else:
        v["tested"] = ["--test_file", v["TEST_FILE"]] if v["TEST_FILE"] else []
    if v["ALLOW_TRAIN_HOLDOUT"] == "1":
        v["tested"].append("--allow_train_holdout")


RECIPES: dict[str, Callable[[Values], None]] = {
    "hh_exo": hh_exo, "hh_dpo": hh_exo, "hh_exo_online": hh_exo_online, "hh_groups": hh_groups,
    "jigsaw_rectify": jigsaw_rectify, "ncp_vrcli": ncp_vrcli, "litbench_btrm": litbench, "litbench_genrm": litbench,
    "litbench_rl": litbench_rl,
}  # fmt: skip


# --- what a recipe was given


def show_help(recipe: str) -> str:
    """The head of the recipe, and the variables that its page and docs/recipes.md list, each once."""
    page, names = f"docs/methods/{PAGES[recipe]}.md", set[str]()
    script = Path(f"recipes/{recipe}.sh").read_text(encoding="utf-8").splitlines()[1:]
    end = next(place for place, line in enumerate(script) if not line.startswith("#"))
    lines = [line[1:].removeprefix(" ") for line in script[:end]]
    lines += ["", f"Variables [and their defaults]; {page} has the profiles and the stages, too:"]
    for name in (page, "docs/recipes.md"):
        text = Path(name).read_text(encoding="utf-8")
        for section in re.findall(r"(?ms)^#+ Variables.*?(?=^#+ |\Z)", text):
            for row in re.findall(r"(?m)^\| `.*", section):
                listed, default, meaning = (
                    cell.strip() for cell in row.replace("`", "").replace("\\|", "/").split("|")[1:4]
                )
                new = [one for one in listed.split(", ") if one not in names]
                names.update(new)
                if new:
                    lines += [f"  {', '.join(new)}{f' [{default}]' if default else ''}", f"      {meaning}"]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message.removeprefix('argument ')}; --help shows flags and variables")


def read_words(recipe: str, words: list[str]) -> dict[str, str]:
    """Variables that a recipe's own arguments stand for; only LitBench's reward models take any."""
    if recipe not in ("litbench_btrm", "litbench_genrm"):
        if words:
            fail(
                f"{words[0]} is not known; a recipe has variables, NAME=VALUE bash recipes/{recipe}.sh (--help lists "
                "them)"
            )
        return {}
    parser = _Parser(allow_abbrev=False, add_help=False)
    for flag, name in LITBENCH_FLAGS.items():
        parser.add_argument(f"--{flag}", dest=name)
    parser.add_argument("--use_cot", dest="USE_COT", action="store_const", const="1")
    found, unknown = parser.parse_known_args(words)
    if unknown:
        fail(
            f"{unknown[0]} is not known; flags are --{', --'.join(LITBENCH_FLAGS)} and (GenRM) --use_cot, all else "
            "is a variable"
        )
    if found.USE_COT and recipe != "litbench_genrm":
        fail("--use_cot has no effect on a Bradley-Terry model; leave it out")
    return {name: value for name, value in vars(found).items() if value is not None}


def choose(name: str, given: str, known: str, default: str) -> str:
    """A word of the environment, or its default."""
    check_choice(name, given or default, known)
    return given or default


def read_blocks(words: list[str], profile: str) -> dict[str, str]:
    """The defaults of a profile; what comes later wins."""
    found, block = {}, "every"
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            block = name
        elif block in ("every", profile):
            found[name] = value
    return found


def values(recipe: str, caller: Path, has_gpu: bool, blocks: list[str], words: list[str]) -> Values:
    """All values of a run; leaves with one sentence where they cannot work."""
    environ = {**os.environ, **read_words(recipe, words)}
    dry = choose("DRY_RUN", environ.get("DRY_RUN", ""), "0 1", "0") == "1"
    if shown := environ.get("GPUS"):
        if not re.fullmatch(r"0|[1-9][0-9]{0,3}", shown):
            fail(f"GPUS={shown} is not a number of GPUs such as 8")
        if not dry:
            fail(f"GPUS={shown} is for DRY_RUN=1; to use some of this machine's GPUs set CUDA_VISIBLE_DEVICES")
    gpus = int(shown) if shown else fit.count_gpus(has_gpu, environ)
    profile = choose("PROFILE", environ.get("PROFILE", ""), "smoke cpu gpu", "gpu" if gpus else "cpu")
    found = Values(recipe, caller, gpus)
    found.read({**read_blocks([*COMMON, *blocks], profile), "PROFILE": profile}, environ)
    output = found.pop("OUTPUT_DIR", "")
    if output and found["OUT"] not in ("", output):
        fail(f"OUTPUT_DIR={output} and OUT={found['OUT']} name two folders; unset one")
    found["OUT"] = found["OUT"] or output
    found["OUT"] = (
        os.path.join("" if caller == Path.cwd() else caller, found["OUT"]).rstrip("/")
        if found["OUT"]
        else (f"outputs/{recipe}-{profile}")
    )
    if push := found["PUSH_TO_HUB"]:
        if recipe not in ("hh_groups", "jigsaw_rectify"):
            fail(
                f"PUSH_TO_HUB has no effect on {recipe}; unset it, and upload a folder with hf upload OWNER/NAME "
                "FOLDER --private"
            )
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push, re.ASCII):
            fail(f"PUSH_TO_HUB={push} is not OWNER/PREFIX, such as me/study")
    cores = len(os.sched_getaffinity(0))
    # One process takes all cores, several share them; for tiny matrices, threads cost more than they bring.
    found.update(gpus=gpus, threads=1 if profile == "smoke" else max(1, cores // found.processes()))
    try:
        RECIPES[recipe](found)
    except fit.Misfit as error:
        fail(str(error))
    return found


# --- from what stages have written


def count_rows(path: str, expected: int) -> int:
    """How many records a file has; ``expected`` of them in a dry run, or where it cannot be read."""
    if os.environ.get("DRY_RUN") == "1" or not os.path.isfile(path):
        return expected
    from orlhf_ext.files.records import read_lines

    with contextlib.suppress(Exception):  # the next stage says what is wrong with it
        return sum(1 for _ in read_lines(path))
    return expected


def find_run(out: str, kind: str, new: bool, words: str) -> str:
    """The name of a run's model folder in ``out``.

    It is the newest unfinished one that was begun with the same ``words``, else the newest finished one of them, else
    (and with ``new``) one with the time in its name, which this call begins unless it is a dry run.
    """
    stamp = time.strftime(f"{kind}_model_%Y%m%d_%H%M%S", time.gmtime())
    begun = [] if new else sorted(Path(out).glob(f"{kind}_model_*.begun"))  # in the order of their times
    same = [path.with_suffix("") for path in begun if path.read_text(encoding="utf-8").rstrip("\n") == words]
    unfinished = [path for path in same if not Path(f"{path}.done").exists()]
    if same:
        return (unfinished or same)[-1].name
    name, number = stamp, 2
    while Path(out, name).exists() or Path(out, f"{name}.begun").exists():
        name, number = f"{stamp}_{number}", number + 1
    if os.environ.get("DRY_RUN") != "1":
        Path(out, f"{name}.begun").write_text(f"{words}\n", encoding="utf-8")
    return name


def group_names(path: str) -> list[str]:
    """The names of the groups of a file."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        from orlhf_ext.cli.errors import UserError
        from orlhf_ext.groups.config import read_groups
    except ImportError as error:
        fail(f"PRESET=paper reads GROUPS_FILE, for which {error.name} is missing; run bash recipes/setup.sh first")
    try:
        return [group.name for group in read_groups(path)]
    except UserError as error:
        fail(f"GROUPS_FILE={path} has no groups: {error}")


def shell(found: dict[str, Any]) -> str:
    """Assignments that a shell evaluates."""
    lines = []
    for name, value in found.items():
        if isinstance(value, list):
            lines.append(f"{name}=({' '.join(shlex.quote(str(word)) for word in value)})")
        else:
            lines.append(f"{name}={shlex.quote(str(value))}")
    return "\n".join(lines)


def computed(action: str, words: list[str]) -> dict[str, Any]:
    """What the actions besides ``values`` find."""
    if action == "group_names":
        return {"group_names": group_names(*words)}
    if action == "run":
        out, kind, new, *rest = words
        return {"name": find_run(out, kind, bool(new), " ".join(rest))}
    rows, numbers = count_rows(words[0], int(words[1])), [int(word) for word in words[2:]]
    if action == "checkpoints":
        batch, most, *limit = numbers
        steps, every = fit.checkpoints(min([rows, *limit]), batch, most)
        return {"steps": steps, "interval": every}
    if action == "warmup":
        return {"warmup": f"{fit.warmup_ratio(rows, *numbers):.6f}"}
    batch, epochs, most = numbers
    if rows < batch:
        fail(f"{words[0]} has {rows} rows, fewer than the {batch} of one step; lower TARGET_BATCH_SIZE")
    return {"interval": fit.save_every(rows // batch, epochs, most)}


def main(argv: list[str] | None = None) -> None:
    """Print assignments, or one sentence on the error stream."""
    action, *words = sys.argv[1:] if argv is None else argv
    if action != "values":
        print(shell(computed(action, words)))
        return
    recipe, caller, gpu, _, *rest = words
    blocks, own = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    if {"-h", "--help"} & set(own):
        print(f"printf '%s\\n' {shlex.quote(show_help(recipe))}\nexit")
        return
    found = values(recipe, Path(caller), gpu == "1", blocks, own)
    print(shell(found.ready()), *(f"echo {shlex.quote(line)}" for line in found.lines), sep="\n")


if __name__ == "__main__":
    main()
