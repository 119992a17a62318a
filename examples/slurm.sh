#!/usr/bin/env bash
# A recipe, or RL over several nodes, under Slurm. Written from the documentation of Slurm and Ray; nobody has submitted it here.
#
#   sbatch examples/slurm.sh                       one node: the recipe uses all of its GPUs
#   sbatch --nodes 3 examples/slurm.sh             Ray over three nodes, two of which train
#SBATCH --job-name=orlhf-ext
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch, from the folder of the project}"

# A shared file system holds the project, its .venv (bash recipes/setup.sh, once, on a node with a GPU) and OUT.
source .venv/bin/activate
export PROFILE=gpu OUT=${OUT:-$PWD/outputs/slurm-$SLURM_JOB_ID}

if [[ $SLURM_NNODES == 1 ]]; then
    exec bash recipes/hh_exo.sh
fi

# Ray's head on the first node, a worker on each other one. RL, sampling and scoring use them.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes 1 --ntasks 1 --nodelist "$head" hostname --ip-address | awk '{print $1}'):6379
srun --nodes 1 --ntasks 1 --nodelist "$head" --overlap ray start --head --port 6379 --block &
sleep 30
srun --nodes $((SLURM_NNODES - 1)) --ntasks $((SLURM_NNODES - 1)) --exclude "$head" --overlap \
    ray start --address "$address" --block &
sleep 30

# Two of the three nodes train, one samples: 8 engines of one GPU each.
RAY_ADDRESS=$address NUM_NODES=$((SLURM_NNODES - 1)) NPROC=8 ENGINES=8 TP=1 bash recipes/ncp_vrcli.sh
