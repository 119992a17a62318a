"""``orlhf-ext COMMAND ...``, or ``python -m orlhf_ext COMMAND ...``: the one place that knows every command."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from . import __version__
from .cli.errors import UserError, command, suggest
from .extensions.releases import LAUNCHERS


class Command(NamedTuple):
    """A command: the module whose ``main()`` runs it, and one line on what it does."""

    module: str
    help: str


#: heading -> name -> command; a command of a method has two words
COMMANDS: dict[str, dict[str, Command]] = {
    "training": {
        "launch": Command("launch.launcher", "run an OpenRLHF launcher with extensions (`launch` may be left out)"),
        "export": Command("commands.export", "turn a DeepSpeed checkpoint into a Hugging Face folder"),
    },
    "data and models": {
        "build_data": Command("build_data", "turn raw data sets into the files that recipes read"),
        "small_models": Command("commands.small_models", "make models that need no download"),
        "generate": Command("commands.generate", "sample completions with vLLM"),
        "score": Command("commands.score", "score completions with a reward model"),
        "logprobs": Command("commands.logprobs", "log-probabilities of completions"),
        "evaluate": Command("commands.evaluate", "rewards, win rates and KL of scored samples"),
    },
    "reports": {
        "report": Command("commands.report", "one page about runs: results, charts, curves, answers"),
        "card": Command("commands.card", "model cards of what a recipe has trained"),
    },
    "what is installed": {
        "list": Command("commands.list", "extensions, rewards, builders and recipes, one line each"),
        "check": Command("commands.check", "try a reward on sample rollouts, without Ray or a GPU"),
        "doctor": Command("commands.doctor", "what is at each seam of OpenRLHF, and what this machine lacks"),
    },
    "VR-CLI": {
        "vrcli baseline": Command("vrcli.baseline", "likelihood of the gold texts without a plan"),
        "vrcli score": Command("vrcli.score", "rewards of sampled plans"),
        "vrcli evaluate": Command("vrcli.evaluate", "plans before and after training"),
    },
    "group preferences": {
        "groups em": Command("groups.em", "find groups of annotators that are not labelled"),
        "groups merge": Command("groups.merge", "merge one reward model per group into one model"),
        "groups score": Command("groups.score", "score completions with gold traits"),
        "groups evaluate": Command("groups.evaluate", "compare policies for each group"),
    },
    "dead ends": {
        "deadend continuations": Command("deadend.continuations", "sample continuations of value prompts"),
        "deadend classifier": Command("deadend.classifier", "train a toxicity classifier"),
        "deadend score": Command("deadend.score", "score continuations for toxicity"),
        "deadend hold_out": Command("deadend.hold_out", "hold prompts out for the evaluation"),
        "deadend calibration": Command("deadend.calibration", "compare the values of Q_D with the outcomes"),
        "deadend decode": Command("deadend.decode_prompts", "decode prompts with rectified probabilities"),
        "deadend evaluate": Command("deadend.evaluate", "compare decodings"),
    },
    "LitBench": {
        "litbench evaluate": Command("litbench.evaluate", "accuracy of reward models and judges on story pairs"),
    },
    "judges": {
        "judge compare": Command("judge.compare", "a judge compares the samples of two policies"),
    },
}


def find(words: list[str]) -> tuple[str, Command, list[str]]:
    """The name of the command that a command line begins with, the command, and the words behind its name.
    Raises UserError if there is no such command; the nearest one is suggested."""
    known = {name: found for group in COMMANDS.values() for name, found in group.items()}
    if words[0] in LAUNCHERS:
        return "launch", known["launch"], words
    for count in (2, 1):
        name = " ".join(words[:count]).replace("-", "_")
        if name in known and len(words) >= count:
            return name, known[name], words[count:]
    method = words[0].replace("-", "_")
    if steps := [name for name in known if name.startswith(f"{method} ")]:
        if len(words) == 1 or words[1] in ("-h", "--help"):
            return method, Command("", _listed(f"orlhf-ext {method}", {name: known[name] for name in steps})), []
        raise UserError(f"unknown command {' '.join(words[:2])!r}{suggest(' '.join(words[:2]), steps)}")
    raise UserError(f"unknown command {words[0]!r}{suggest(words[0], [*known, *LAUNCHERS])}")


def _listed(heading: str, commands: dict[str, Command]) -> str:
    return "\n".join([f"{heading}:", *(f"  {name:<22} {found.help}" for name, found in commands.items())])


def _help() -> str:
    return "\n\n".join(
        [
            "orlhf-ext COMMAND ...",
            *(_listed(heading, commands) for heading, commands in COMMANDS.items()),
            "orlhf-ext COMMAND --help shows what a command takes, orlhf-ext --version the version.",
        ]
    )


@command
def main(argv: list[str] | None = None) -> None:
    """Hand the command line to the module of its command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return
    if words[0] in ("-V", "--version"):
        print(f"orlhf-ext {__version__}")
        return
    name, found, rest = find(words)
    if not found.module:
        print(found.help)
        return
    sys.argv = [f"orlhf-ext {name}", *rest]
    importlib.import_module(f"orlhf_ext.{found.module}").main()


if __name__ == "__main__":
    main()
