#!/usr/bin/env bash
# One GPU a task, ten minutes each: sbatch --array=0-7 examples/slurm.sh rdc-gradient
# Afterwards: rdc experiment merge runs/part-*
#SBATCH --job-name=rdc
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=00:12:00
#SBATCH --requeue
set -euo pipefail
name=${1:?which experiment?}
shards=$((SLURM_ARRAY_TASK_MAX + 1))
rdc experiment run "$name" --minutes 9 --device cuda --quiet \
    --shard "$SLURM_ARRAY_TASK_ID/$shards" --out "runs/part-$SLURM_ARRAY_TASK_ID"
