#!/bin/sh
# Two "nodes" of two processes on this machine, each with an address of its own, by loopback:
#   docs/cluster/two_nodes.sh docs/cluster/train.py --epochs 20
# On two machines the same line runs on each, with the address of the first one as endpoint.
set -eu
port=${PORT:-29500}
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

node() {
    address=$1
    shift
    torchrun --nnodes 2 --nproc-per-node 2 --rdzv-id two-nodes --rdzv-backend c10d \
        --rdzv-endpoint "127.0.0.1:$port" --local-addr "$address" "$@"
}

node 127.0.0.1 "$@" &
first=$!
node 127.0.0.2 "$@" || { kill "$first" 2> /dev/null; exit 1; }
wait "$first"
