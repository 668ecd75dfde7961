#!/usr/bin/env bash
# Tests on several GPUs, or CPU processes, of one machine or more:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# On each of several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail
if (($# < 3)); then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)

PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" \
python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$root/tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
