#!/bin/bash
#
# Trains on a TPU VM slice that exists, one process per host:
#
#   launch/tpu.sh start NAME --zone=ZONE [--project=ID] -- \
#     --config=configs/vith14.py --workdir=/shared/runs/vith14
#
# start    starts training on all hosts, detached: the connection may break; the
#          same line continues a run
# status   says for each host that it is running, or the process's exit code
# stop     SIGTERM: all hosts save the same step and end with 75
#
# What stands before `--` goes to gcloud. WORKDIR, and this repository with its
# environment in .venv, are on a file system that all hosts mount at the same
# place; WORKDIR/logs/tpu/ has a log per host. No XLA flags are set: those for
# GPUs are unknown to a TPU.

set -euo pipefail

usage() {
  echo 'error: expected launch/tpu.sh start|status|stop NAME --zone=ZONE' \
    '[GCLOUD_OPTIONS] -- --config=FILE --workdir=DIR' \
    '[--config.FIELD=VALUE ...]' >&2
  exit 2
}

(($# > 2)) || usage
action=$1 name=$2
shift 2
options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
[[ $workdir == /* ]] || usage
shift # the --

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
quote() { printf '%q ' "$@"; }
setup="cd $(quote "$repository")
logs=$(quote "$workdir/logs/tpu")
host=\$(hostname)
running() { kill -0 \"\$(cat \"\$logs/pid.\$host\" 2>/dev/null)\" 2>/dev/null; }"

case $action in
  start)
    command="$setup
if running; then
  echo \"\$host: error: already running\" >&2
  exit 2
fi
(umask 077 && mkdir -p $(quote "$workdir")) # for its owner alone
mkdir -p \"\$logs\"
rm -f \"\$logs/exit_code.\$host\"
setsid nohup bash launch/task.sh \"\$logs\" \"\$host\" \\
  .venv/bin/python -m ijepa_jax.main $(quote "$@") \\
  >> \"\$logs/\$host.log\" 2>&1 < /dev/null &
echo \$! > \"\$logs/pid.\$host\"
echo \"\$host: started\""
    ;;
  status)
    command="$setup
if running; then
  echo \"\$host: running\"
else
  echo \"\$host: exit code \$(cat \"\$logs/exit_code.\$host\" || echo unknown)\"
fi"
    ;;
  stop)
    command="$setup
if running; then
  kill -USR1 \"\$(cat \"\$logs/pid.\$host\")\"
fi"
    ;;
  *) usage ;;
esac
exec gcloud compute tpus tpu-vm ssh "$name" --worker=all "${options[@]}" \
  --command="$command"
