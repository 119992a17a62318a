#!/usr/bin/env python3
"""Run ``uv pip install`` with pip's settings: ``uv_install.py UV WORDS...``, with the python to install into.

uv reads neither pip's configuration files nor its ``PIP_`` variables. They are handed over in the environment, not on
a command line: the address of an index may contain a password.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping

#: pip's setting -> uv's variable, and what separates its values
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
#: pip takes the best version of all indexes, and uv by default that of the first index that has the package. Like pip,
#: uv is to compile all modules, on all cores: the first stages would do so one by one, and every process where Python
#: may not keep what it compiles
DEFAULTS = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_HTTP_TIMEOUT": "180", "UV_COMPILE_BYTECODE": "1"}


def read_settings(listed: str) -> dict[str, str]:
    """The output of ``pip config list``: variables go before the section ``install``, and that before ``global``."""
    found: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):
        for line in listed.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(section):
                found[key[len(section) :]] = str(ast.literal_eval(value))
    return found


def uv_environment(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with pip's settings as uv's variables; those that are set already stay."""
    given = {VARIABLES[key][0]: VARIABLES[key][1].join(settings[key].split()) for key in VARIABLES if key in settings}
    return {**DEFAULTS, **given, **environ}


def main() -> None:
    """Replace this process with uv."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = read_settings(listed)
    words = ["--no-index"] if settings.get("no-index", "").lower() in ("1", "true", "yes", "on") else []
    command = [sys.argv[1], "pip", "install", "--quiet", "--python", sys.executable, *words, *sys.argv[2:]]
    os.execvpe(sys.argv[1], command, uv_environment(settings, os.environ))


if __name__ == "__main__":
    main()
