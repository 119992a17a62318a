"""Where the sidecar of a data file is: ``x.meta.json`` for ``x.jsonl``. Imports nothing of this project."""

from __future__ import annotations

import os
import re
from pathlib import Path

_DATA_SUFFIX = re.compile(r"\.(jsonl|json|parquet|csv)(\.gz)?$")


def sidecar_path(path: str | os.PathLike) -> Path:
    """The sidecar of a data file: its name without the suffix of a kind of data, also of a gzipped one, if it has one.

    ``eps0.3.jsonl`` and ``eps0.3.jsonl.gz`` have ``eps0.3.meta.json``.
    """
    path = Path(path)
    return path.with_name(_DATA_SUFFIX.sub("", path.name) + ".meta.json")
