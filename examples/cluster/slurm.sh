#!/bin/sh
# An array of eight tasks, each of which computes every eighth shard: sbatch examples/cluster/slurm.sh
#
# To be installed on the nodes, in the environment that is activated below: PyTorch for their GPU, then
# `pip install 'torchpeek[data,vision]'`. The data and the run are in a file system that all nodes share.
#
#SBATCH --job-name=torchpeek
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=10
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60

. "$HOME/torchpeek/bin/activate"
export OMP_NUM_THREADS=4  # a run is computed in as many threads as its first process had

# SLURM sets SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT, SLURM_ARRAY_TASK_MIN and SLURM_ARRAY_TASK_STEP. `exec` hands
# the signal of SLURM to torchpeek, which drops the shard that it is at; the same script goes on.
exec torchpeek run val --out runs/v2 --model torchvision:resnet50 --device cuda \
    --method gradcam --method layercam --workers 8
