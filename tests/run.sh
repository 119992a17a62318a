#!/usr/bin/env bash
# Set up what the tests need, then lint, types and tests.
#
#   bash tests/run.sh            linters, types, the fast tests (--fast stops here), faults, launchers, recipes at smoke size
#   bash tests/run.sh --slow     the tests that take minutes, too
#   bash tests/run.sh [...] -- WORDS    WORDS go to pytest, for example: -- -k stages -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/setup.sh

level=normal
while (($#)); do
    case $1 in
        --fast) level=fast ;;
        --slow) level=slow ;;
        --) shift && break ;;
        *) echo "tests/run.sh: unknown option $1; known: --fast, --slow, -- PYTEST WORDS" >&2 && exit 2 ;;
    esac
    shift
done
set_up
# A recipe that a test runs is to use this environment, and none of the variables that a user may have set for another run.
ORLHF_EXT_PYTHON=$(command -v python)
export ORLHF_EXT_PYTHON OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

ruff check .
ruff format --check .
mypy
mypy recipes/*.py

# run MARKERS WORDS...: pytest; "no test was selected" is fine, as with -k.
run() {
    local status=0
    python -m pytest -m "$@" || status=$?
    ((status == 0 || status == 5)) || exit "$status"
}
# The fast tests share the machine's cores. Of the others, which start processes of their own, two files run at a time,
# unless they would share a GPU's memory.
shared=(-n auto --maxprocesses 4 --dist worksteal)
pairs=(-n 2 --dist loadfile)
! has_gpu || pairs=()
[[ $level != slow ]] || shared+=(--hypothesis-profile=full)
run "not slow and not recipe and not launcher and not fault" "${shared[@]}" "$@"
[[ $level != fast ]] || exit 0
run "fault and not slow and not launcher and not recipe" "${shared[@]}" "$@"
run "(launcher or recipe) and not slow" "${pairs[@]}" "$@"
[[ $level == normal ]] || run slow "$@"
