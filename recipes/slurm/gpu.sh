#!/usr/bin/env bash
# A job of a study: hf-lskd study RECIPE --launcher slurm --slurm-template recipes/slurm/gpu.sh [--accelerate-config FILE]
# Copy it and change what is the cluster's. hf-lskd itself gives --array, --dependency, --requeue, --output and, for a cell over
# several machines, --nodes. All lines for sbatch have to stand above the first command.
#SBATCH --partition=gpu
#SBATCH --account=your_account
#SBATCH --gpus-per-node=1          # as many as one machine of the --accelerate-config has processes
#SBATCH --ntasks-per-node=1        # accelerate starts the processes of a machine
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
set -euo pipefail

@CHOOSE_CELL@
# HF_LSKD_STUDY, HF_LSKD_CELL and HF_LSKD_PYTHON are set now. For a container, HF_LSKD_PYTHON names a script of two lines,
# `#!/bin/sh` and `exec apptainer exec --nv image.sif python3 "$@"`, which then is what each node starts:
#   export HF_LSKD_PYTHON=/home/me/python_in_container
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

@MAKE_CELL@
