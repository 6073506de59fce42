#!/usr/bin/env bash
# One GPU a task, ten minutes each:
#   sbatch --array=0-7 examples/slurm.sh rdc-gradient
#   rdc experiment merge runs/part-*        # afterwards
#SBATCH --job-name=rdc
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=00:12:00
#SBATCH --requeue
set -euo pipefail
name=${1:?which experiment?}
task=$SLURM_ARRAY_TASK_ID
shards=$((SLURM_ARRAY_TASK_MAX + 1))
rdc experiment run "$name" --minutes 9 --device cuda --quiet \
    --shard "$task/$shards" --out "runs/part-$task"
