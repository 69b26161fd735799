# shellcheck shell=bash disable=SC2034  # what it sets is used by others
# What became of a run, to be sourced by launchers.

# Exit codes of a process that say: run me again (see ijepa_jax/errors.py).
# They stopped at a signal and saved the state; they lost another process.
readonly SAVED=75 LOST=76

# read_outcome DIR CODE: sets `outcome` and `code` by the exit codes of the
# processes, as `launch/task.sh` left them, and that of their launcher.
#
#   failed     one of them failed by itself, with `code`
#   lost       one of them was lost, or killed by a signal (128 + N)
#   saved      they were stopped
#   finished
read_outcome() {
  local file number
  outcome=finished code=$2
  for file in "$1"/exit_code.*; do
    [[ -e $file ]] || break
    number=$(<"$file")
    : "${number:=74}" # no room for the code
    case $number in
      0) ;;
      "$SAVED") [[ $outcome == finished ]] && outcome=saved ;;
      130) outcome=failed code=$number ;; # Ctrl-C before training
      "$LOST" | 129 | 13? | 14? | 15?)
        [[ $outcome == failed ]] || outcome=lost
        ;;
      *) outcome=failed code=$number ;;
    esac
  done
  # Killed together with the shells that keep the codes.
  if [[ $outcome == finished && $2 != 0 ]]; then
    outcome=lost
  fi
}
