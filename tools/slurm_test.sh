#!/usr/bin/env bash
# Tests on a Slurm cluster:
#   tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# GPUS, GPUS_PER_NODE and CPUS_PER_TASK set the size of the job, SRUN_ARGS adds options of srun.
set -euo pipefail
if (($# < 4)); then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
gpus_per_node=${GPUS_PER_NODE:-4}

# SRUN_ARGS stays unquoted: it holds several options.
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" \
srun --partition="$1" \
    --job-name="$2" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="${GPUS:-4}" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$root/tools/test.py" "$3" "$4" --launcher slurm "${@:5}"
