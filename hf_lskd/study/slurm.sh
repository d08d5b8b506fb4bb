#!/usr/bin/env bash
# One cell of a study, as an element of a job array; hf-lskd puts what it has to say where the names between @ stand.
# A cluster's own lines go below, before the first command (a copy with more of them: recipes/slurm/gpu.sh):
#SBATCH --ntasks-per-node=1
@CHOOSE_CELL@
@MAKE_CELL@
