"""recipes/setup.sh with a python that only logs what it is asked to install; pip's settings as uv's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from helpers import ROOT
from recipe_runs import load

from orlhf_ext.extensions.releases import OPENRLHF_VERSION

#: python 3.11, and the one of .venv: each install is a line of the log, if no file of the folder says otherwise
PYTHON = """#!/bin/sh
case "$*" in
    *ensurepip*) ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"install -q -q uv") [ ! -e HERE/no-uv ] && echo "fetch uv" >>HERE/log ;;
    *uv_install.py*) [ ! -e HERE/uv-fails ] && shift 1 && echo "uv $*" >>HERE/log ;;
    *"pip "*) [ ! -e HERE/pip-fails ] && shift 6 && echo "pip $*" >>HERE/log ;;
esac
status=$?
[ ! -e HERE/hangs ] || case "$*" in *"--no-deps -r"*) echo hangs >>HERE/log && exec sleep 60 ;; esac
exit $status
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A copy of the project with small lock files, on a machine whose python is `PYTHON`."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "orlhf_ext" / "extensions").mkdir(parents=True)
    shutil.copy(ROOT / "orlhf_ext" / "extensions" / "seams.py", tmp_path / "orlhf_ext" / "extensions")
    (tmp_path / "requirements-cpu.txt").write_text("numpy==1\ntorch==2\n")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "python3.11"
    program.write_text(PYTHON.replace("HERE", str(tmp_path)))
    program.chmod(0o755)
    return tmp_path


def start(machine: Path) -> subprocess.Popen[str]:
    path = f"{machine}/bin:/usr/bin:/bin"
    return subprocess.Popen(
        ["bash", str(machine / "recipes" / "setup.sh")],
        env={"PATH": path, "CUDA_VISIBLE_DEVICES": "", "HOME": str(machine)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def set_up(machine: Path) -> tuple[int, str, str, list[str]]:
    """Exit status, output, errors, and the installs of one set-up."""
    log = machine / "log"
    log.unlink(missing_ok=True)
    process = start(machine)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors, log.read_text().splitlines() if log.exists() else []


def installs(machine: Path, installer: str) -> list[str]:
    lock = machine / "requirements-cpu.txt"
    tail = f"--no-deps --no-build-isolation -e {machine}"
    return [f"{installer} torch==2 -c {lock}", f"{installer} --no-deps -r {lock}", f"{installer} {tail}"]


def test_it_installs_once_and_then_does_nothing(machine: Path):
    uv = f"uv {machine}/.venv/bin/uv"
    status, output, errors, log = set_up(machine)
    assert (status, errors, log) == (0, "", ["fetch uv", *installs(machine, uv)])
    assert output.endswith(", by uv\n") and "/uv pip install torch==2" in (machine / ".venv/setup.log").read_text()
    assert set_up(machine) == (0, "", "", [])
    # new entry points install the project again, a new lock file everything
    with (machine / "pyproject.toml").open("a") as file:
        file.write("# more\n")
    status, output, errors, log = set_up(machine)
    assert (status, log) == (0, [installs(machine, "pip")[2]]) and "pyproject.toml changed" in output
    with (machine / "requirements-cpu.txt").open("a") as file:
        file.write("more==1\n")
    assert set_up(machine)[3] == ["fetch uv", *installs(machine, uv)]


def test_the_machines_own_uv_is_used(machine: Path):
    (machine / "bin" / "uv").write_text("#!/bin/sh\n")
    (machine / "bin" / "uv").chmod(0o755)
    assert set_up(machine)[3] == installs(machine, f"uv {machine}/bin/uv")


@pytest.mark.parametrize("fault", ["no-uv", "uv-fails"])
def test_pip_takes_over(machine: Path, fault: str):
    (machine / fault).touch()
    status, output, errors, log = set_up(machine)
    assert (status, errors) == (0, "") and output.endswith(", by pip\n")
    assert [line for line in log if line != "fetch uv"] == installs(machine, "pip")
    said = (machine / ".venv" / "setup.log").read_text()
    assert "# pip install torch==2" in said and ("uv failed, pip takes over" in said) == (fault == "uv-fails")


def test_a_failure_is_one_sentence_and_the_next_run_starts_again(machine: Path):
    for fault in ("uv-fails", "pip-fails"):
        (machine / fault).touch()
    status, _, errors, _ = set_up(machine)
    assert status == 2 and errors.splitlines()[-1].startswith("set-up: error: installing torch failed, see ")
    (machine / "pip-fails").unlink()
    assert set_up(machine)[0] == 0


def wait_for(machine: Path, line: str) -> None:
    deadline = time.monotonic() + 30
    while not ((machine / "log").exists() and line in (machine / "log").read_text().splitlines()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_one_is_started_again_from_nothing(machine: Path):
    (machine / "hangs").touch()
    process = start(machine)
    wait_for(machine, "hangs")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (machine / ".venv" / "half").touch()
    (machine / "hangs").unlink()
    status, _, _, log = set_up(machine)
    assert status == 0 and len(log) == 4 and not (machine / ".venv" / "half").exists()


def test_a_second_one_waits_for_the_first(machine: Path):
    (machine / "hangs").touch()
    first = start(machine)
    wait_for(machine, "hangs")
    (machine / "hangs").unlink()
    second = start(machine)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=0.5)
    sleeper = subprocess.run(["pgrep", "-g", str(first.pid), "sleep"], capture_output=True, text=True).stdout.split()
    for pid in sleeper:
        os.kill(int(pid), signal.SIGTERM)
    first.communicate(timeout=30)
    output, errors = second.communicate(timeout=30)
    assert second.returncode == 0 and errors == ""
    assert first.returncode == 0 or "done in" in output  # pip took over in the first, or the second did it all


def test_an_environment_of_the_users_is_never_touched(machine: Path):
    (machine / ".venv").mkdir()
    (machine / ".venv" / "mine").touch()
    status, _, errors, log = set_up(machine)
    assert status == 2 and "was not made here" in errors and log == [] and (machine / ".venv" / "mine").exists()


def test_it_has_help_and_no_arguments():
    script = str(ROOT / "recipes" / "setup.sh")
    done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "ORLHF_EXT_PYTHON" in done.stdout
    done = subprocess.run(["bash", script, "now"], capture_output=True, text=True)
    assert done.returncode == 2 and "now is not known" in done.stderr


def test_joining_an_environment_brings_what_the_recipes_need(tmp_path: Path):
    """A python that has OpenRLHF alone gets every extra that is not for developers, whatever pip then finds there."""
    log = tmp_path / "log"
    (tmp_path / "python").write_text(
        f"""#!/bin/sh
case "$*" in
    *openrlhf) echo {OPENRLHF_VERSION} ;;
    *pip*) echo "$*" >>{log} ;;
esac
"""
    )
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "ORLHF_EXT_PYTHON": str(tmp_path / "python")}
    done = subprocess.run(["bash", str(ROOT / "recipes" / "setup.sh")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = log.read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["optional-dependencies"]) - {"openrlhf", "bench", "dev", "docs"}
    assert set(line.partition("[")[2].rstrip("]").split(",")) == wanted and f"-e {ROOT}[" in line


# --- pip's settings


@pytest.fixture(scope="module")
def uv_install() -> ModuleType:
    return load("uv_install")


def test_the_environment_goes_before_configuration_files(uv_install: ModuleType):
    listed = "global.index-url='https://a/simple'\ninstall.index-url='https://b/simple'\n:env:.find-links='/x /y'\n"
    listed += "global.find-links='/z'\n:env:.index-url='https://c/?x=y'\nuser.other='1'\n"
    assert uv_install.read_settings(listed) == {"index-url": "https://c/?x=y", "find-links": "/x /y"}


def test_settings_of_pip_become_variables_of_uv(uv_install: ModuleType):
    settings = {
        "index-url": "https://a",
        "extra-index-url": "https://b\nhttps://c",
        "find-links": "/x /y",
        "proxy": "p",
    }
    settings["trusted-host"] = "a b"
    found = uv_install.uv_environment(settings, {"UV_DEFAULT_INDEX": "https://mine", "PATH": "/bin"})
    assert uv_install.uv_environment({}, {"UV_COMPILE_BYTECODE": "0"})["UV_COMPILE_BYTECODE"] == "0"
    assert found == {
        "UV_DEFAULT_INDEX": "https://mine", "UV_INDEX": "https://b https://c", "UV_FIND_LINKS": "/x,/y",
        "UV_INSECURE_HOST": "a b", "ALL_PROXY": "p", "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_HTTP_TIMEOUT": "180", "UV_COMPILE_BYTECODE": "1", "PATH": "/bin",
    }  # fmt: skip


def test_a_password_is_in_no_command_and_no_output(tmp_path: Path):
    (tmp_path / "uv").write_text(
        '#!/bin/sh\necho "$*"\n[ "$UV_DEFAULT_INDEX" = https://me:secret@x/simple ] || exit 9\n'
    )
    (tmp_path / "uv").chmod(0o755)
    environment = {**os.environ, "PIP_INDEX_URL": "https://me:secret@x/simple", "PIP_NO_INDEX": "0"}
    tool = [sys.executable, str(ROOT / "recipes" / "uv_install.py"), str(tmp_path / "uv"), "numpy"]
    done = subprocess.run(tool, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "secret" not in done.stdout + done.stderr
    assert done.stdout.endswith(" numpy\n") and "--no-index" not in done.stdout
