#!/usr/bin/env bash
# DPO on labelled samples of Anthropic HH, to compare EXO with.
# (As hh_exo.sh with LOSS=dpo-rw, in an output folder of its own.)
RECIPE=hh_dpo
export LOSS=${LOSS:-dpo-rw}
source "$(dirname "${BASH_SOURCE[0]}")/hh_exo.sh"
