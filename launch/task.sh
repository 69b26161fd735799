#!/bin/bash
#
# Runs one process of a run for a launcher, and keeps its exit code:
#
#   launch/task.sh DIR NUMBER COMMAND...
#
# The code goes to DIR/exit_code.NUMBER, for launchers return only one code for
# all processes, and not always the one that matters. A process that was stopped
# and saved (75) is a success here, or launchers would kill those still saving.
# SIGUSR1 becomes SIGTERM, for mpirun does not pass on a SIGTERM that gives time.

set -u
folder=$1 number=$2
shift 2
code_file=$folder/exit_code.$number
pid_file=$folder/command_pid.$number
rm -f "$pid_file"

# Sends SIGTERM once, however early it was wanted.
# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap '' USR1
  until [[ -s $pid_file ]] || ! kill -0 "${keeper:-$$}"; do sleep 0.1; done
  kill -TERM "$(<"$pid_file")"
} 2>/dev/null
trap stop USR1
trap : TERM # SLURM sends it to all processes: outlive the command

# Bash forgets the code of a child that ends just when a signal interrupts `wait`.
# So another shell keeps it, with the command in its foreground.
(
  trap '' USR1 # mpirun sends it to the command as well, which would end
  trap : TERM
  # shellcheck disable=SC2016  # for the shell that becomes the command
  bash -c 'echo "$$" >"$0" && exec "$@"' "$pid_file" "$@"
  echo "$?" >"$code_file"
) &
keeper=$!
while kill -0 "$keeper" 2>/dev/null; do
  wait "$keeper"
done
rm -f "$pid_file"
# 74: files cannot be written, see ijepa_jax/errors.py.
code=$(<"$code_file") || code=74
: "${code:=74}"
exit "$((code == 75 ? 0 : code))"
