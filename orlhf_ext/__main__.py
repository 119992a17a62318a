"""``orlhf-ext COMMAND ...`` is ``python -m orlhf_ext.COMMAND ...``."""

from __future__ import annotations

import importlib
import sys

from . import __version__
from .errors import UserError, command, suggest

COMMANDS = {
    "launch": "run an OpenRLHF launcher with extensions",
    "check": "try a reward on sample rollouts, without Ray or a GPU",
    "doctor": "what stands at every seam, and what this machine lacks",
    "build_data": "raw data sets into the files that recipes read",
    "generate": "sample completions with vLLM",
    "score": "score completions with a reward model",
    "logprobs": "log-probabilities of completions",
    "evaluate": "rewards, win rates and KL from scored files",
    "small_models": "models that need no download from a hub",
    "export": "a DeepSpeed checkpoint into a Hugging Face folder",
}


@command
def main() -> None:
    """Hand the command line to the module of that name."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("orlhf-ext COMMAND ...\n")
        for name, what in COMMANDS.items():
            print(f"  {name:<13} {what}")
        print("\norlhf-ext --version shows the version, orlhf-ext COMMAND --help what a command takes.")
        return
    if sys.argv[1] in ("-V", "--version"):
        print(f"orlhf-ext {__version__}")
        return
    name = sys.argv.pop(1).replace("-", "_")
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{suggest(name, list(COMMANDS))}")
    sys.argv[0] = f"orlhf-ext {name}"
    importlib.import_module(f"orlhf_ext.{name}").main()


if __name__ == "__main__":
    main()
