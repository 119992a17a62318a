"""DPO with log-probabilities divided by the response's length: ``--ext.use length`` with ``train_dpo``."""

import argparse
from types import SimpleNamespace

from orlhf_ext.cli.errors import UserError
from orlhf_ext.extensions import Extension


class LengthDPO(Extension):
    """Length-normalised DPO (Lambert et al., "Tulu 3", arXiv 2411.15124)."""

    name = "length"
    launchers = ("train_dpo",)
    replacements = {"openrlhf.trainer.dpo_trainer:DPOTrainer": "length_dpo.trainer:LengthTrainer"}  # noqa: RUF012

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The trainer reads it as ``strategy.args.length.power``."""
        parser.add_argument("--length.power", type=float, default=1.0, help="of the length; 0 is plain DPO (1.0)")

    def check(self, args: SimpleNamespace) -> None:
        """Refuse what makes no sense, before a model is loaded."""
        if not 0 <= args.length.power <= 1:
            raise UserError(f"--length.power {args.length.power} must be from 0 to 1")
