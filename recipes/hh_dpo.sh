#!/usr/bin/env bash
# As hh_exo.sh, with DPO's loss on the labelled samples (dpo-rw) and an output folder of its own, to compare with.
RECIPE=hh_dpo
export LOSS=${LOSS:-dpo-rw}
source "$(dirname "${BASH_SOURCE[0]}")/hh_exo.sh"
