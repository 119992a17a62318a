#!/usr/bin/env bash
# What only a GPU shows, smallest first, each step in a process of its own with a time limit: a table, and one JSON.
#
#   bash tests/gpu/run.sh                                     on a machine with a GPU
#   bash tests/gpu/run.sh --only losses models shared         some of the steps
#   bash tests/gpu/run.sh --device cpu --size tiny            the same script without a GPU
#
# It needs torch, transformers and DeepSpeed with OpenRLHF; flash-attn, vLLM and Ray are used where they are installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${ORLHF_EXT_PYTHON:-python3}
[[ -n ${ORLHF_EXT_PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
PYTHONPATH=$PWD:$PWD/tests/support:$PWD/tests/bench exec "$python" tests/gpu/run.py "$@"
