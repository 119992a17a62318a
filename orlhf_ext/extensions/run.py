"""The arguments of this process's run, for classes and functions that OpenRLHF calls without them: those of models."""

from types import SimpleNamespace

#: nested, and configured by the run's extensions; None where no launcher runs (in commands, and in Ray's workers, whose
#: classes have ``strategy.args``)
arguments: SimpleNamespace | None = None
