#!/bin/bash
# A Ray cluster inside a Slurm job: the head on its first node, workers on the others, then one command, then the end.
#
#   sbatch --nodes 4 --gpus-per-node 4 --time 12:00:00 cluster/slurm.sh python -m pipeline sweep mine.yaml
#
# Fill in what your site asks for (account, partition) on the sbatch line. To be run from the repository's root, which
# all nodes see, as they see the storage of the experiment. SSKT_ENV names an environment other than .venv.
# When the job is preempted or a node fails, Slurm queues it again, and the same command goes on from what is finished.
#SBATCH --job-name=sskt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

[[ $# -gt 0 ]] || { echo "slurm.sh: no command; put one behind it, such as: python -m pipeline sweep mine.yaml" >&2; exit 2; }
[[ -n ${SLURM_JOB_NODELIST:-} ]] || { echo "slurm.sh: not inside a Slurm job; start it with sbatch" >&2; exit 2; }

environment=${SSKT_ENV:-$PWD/.venv}
export PATH="$environment/bin:$PATH"
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs may share a node
per_node=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# The token lies in a file that its owner alone can read, on a disk that all nodes see; processes get its path.
private=$(umask 077 && mktemp -d "$PWD/.sskt-$SLURM_JOB_ID-XXXXXX")
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$private/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/token" RAY_USAGE_STATS_ENABLED=0
export RAY_TMPDIR=${SLURM_TMPDIR:-/tmp} # of each node
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=60 # half of what is left at SIGTERM
export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3 # as in the Dockerfile

started=() nodes_up=()
clean_up() {
    trap - EXIT TERM INT
    for pid in "${started[@]}"; do kill -TERM "$pid" 2> /dev/null || true; done
    wait || true
    rm -rf "$private"
}
leave() { # nodes first: at SIGTERM each drains, and its trials save the step they are at
    trap - TERM INT
    for pid in "${nodes_up[@]}"; do kill -TERM "$pid" 2> /dev/null || true; done
    for pid in "${nodes_up[@]}"; do wait "$pid" || true; done
    exit 143
}
trap clean_up EXIT
trap leave TERM INT # a child that is waited for lets the trap run at once

on() { # NODE COMMAND...: a step of the job, ended with it
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@" &
    started+=($!)
}

address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}')
on "$head" ray start --head --block --node-ip-address "$address" --port "$port" --dashboard-host 127.0.0.1 \
    --dashboard-port "$((port + 10000))" --ray-client-server-port "$((port + 20000))" "${per_node[@]}"
export RAY_ADDRESS="$address:$port"
for node in "${nodes[@]:1}"; do
    on "$node" ray start --address "$RAY_ADDRESS" --block "${per_node[@]}" # tries again until the head is there
done

for ((attempt = 1; ; attempt++)); do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" python -m cluster doctor --nodes "${#nodes[@]}" && break
    ((attempt < ${SSKT_PATIENCE:-5})) || exit 1
    sleep 10
done

nodes_up=("${started[@]}")
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "$@" &
command=$!
started+=("$command")
wait "$command"
