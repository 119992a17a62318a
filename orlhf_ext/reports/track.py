"""A run's curves in a Trackio project: local, beside those of other tools, shown by ``trackio show``."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence

from ..cli.errors import UserError
from .page.runs import Run


def to_trackio(runs: Sequence[Run], project: str) -> int:
    """Log the curves of every training as a run of its own, ``RUN/TRAINING``; how many there are.

    What the project has under such a name is replaced.

    Raises:
        UserError: Trackio is not installed.
    """
    try:
        import trackio
    except ImportError as error:
        raise UserError("--trackio needs the package trackio; pip install trackio, or leave the flag out") from error
    count = 0
    for run in runs:
        config = {key: value for key, value in run.about.items() if isinstance(value, str | int | float)}
        for training, curves in run.curves.items():
            steps: dict[int, dict[str, float]] = defaultdict(dict)
            for tag, points in curves.items():
                for step, value in points:
                    steps[int(step)][tag] = value
            name = f"{run.name}/{training}"
            with contextlib.redirect_stdout(io.StringIO()):  # how to start its server, for each run
                with contextlib.suppress(ValueError):  # there is no such project yet
                    for old in [one for one in trackio.Api().runs(project) if one.name == name]:
                        old.delete()
                trackio.init(
                    project, name, run.name, config=config, embed=False, auto_log_gpu=False, auto_log_cpu=False
                )
                for step, values in sorted(steps.items()):
                    trackio.log(values, step=step)
                trackio.finish()
            count += 1
    return count
