#!/bin/bash
#
# Trains with Open MPI (4 or 5), one process per GPU:
#
#   launch/openmpi.sh --hostfile=hosts -n 16 -- \
#     --config=configs/vith14.py --workdir=/shared/runs/vith14
#
# What stands before `--` goes to mpirun, the rest to `python -m ijepa_jax.main`.
# $PYTHON names another interpreter. WORKDIR/logs/openmpi/ has a log per process.
# Process 0 runs on this host, whose name the others must know:
# JAX_COORDINATOR_ADDRESS=HOST:PORT to say it otherwise.
#
# SIGTERM or Ctrl-C lets all save the same step and end with 75; the same command
# continues. A process that dies ends all of them; the exit code is that of one
# that failed by itself.

set -euo pipefail

options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
if [[ -z $workdir ]]; then
  echo 'error: expected launch/openmpi.sh [MPIRUN_OPTIONS] --' \
    '--config=FILE --workdir=DIR [--config.FIELD=VALUE ...]' >&2
  exit 2
fi
shift  # the --
case $workdir in /*) ;; *)
  echo "error: --workdir=$workdir: expected an absolute path" >&2
  exit 2
  ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/xla_flags.sh
. launch/outcome.sh
logs=$workdir/logs/openmpi
(umask 077 && mkdir -p "$workdir") # for its owner alone
mkdir -p "$logs"
rm -f "$logs"/exit_code.* # of the attempt before

# What JAX is told here it detects by itself under Open MPI 4, but not under 5.
# Ports below those that systems give to outgoing connections.
port=$((RANDOM % 20000 + 10000))
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-$(hostname):$port}
# shellcheck disable=SC2016  # known to the process
readonly PROCESS='
  export JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE
  export JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK
  export JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK
  log=$0/process_$JAX_PROCESS_ID.log
  if ((JAX_PROCESS_ID)); then
    exec >> "$log" 2>&1
  else
    exec > >(trap "" USR1; tee -a "$log") 2>&1
  fi
  exec bash launch/task.sh "$0" "$JAX_PROCESS_ID" "$@"
'

# In a session of its own, where the Ctrl-C of a terminal does not reach it.
setsid mpirun "${options[@]}" --wdir "$PWD" -x JAX_COORDINATOR_ADDRESS \
  -x XLA_FLAGS bash -c "$PROCESS" "$logs" \
  "${PYTHON:-python}" -m ijepa_jax.main "$@" &
mpirun=$!
# mpirun itself would kill the processes a second after a SIGTERM.
trap 'kill -USR1 "$mpirun" 2>/dev/null' TERM INT
while kill -0 "$mpirun" 2>/dev/null; do
  wait "$mpirun" || true
done
code=0
wait "$mpirun" || code=$?
read_outcome "$logs" "$code"
case $outcome in
  finished | failed) exit "$code" ;;
  saved) exit "$SAVED" ;;
  lost) exit "$LOST" ;;
esac
