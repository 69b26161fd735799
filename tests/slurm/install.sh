#!/bin/bash
#
# Installs what the tests in this directory need: Debian's SLURM and munge. Their
# services are not started; tests/slurm/daemons.py starts programs of its own.

set -euo pipefail

export PATH=$PATH:/usr/sbin:/sbin
if type slurmctld slurmd munged sbatch &>/dev/null; then
  exit
fi
if [[ $(id -u) != 0 || -z $(type -P apt-get) ]]; then
  echo 'error: SLURM is not here, and cannot be installed: that needs Debian' \
    'or Ubuntu, and root (apt-get install slurm-wlm munge)' >&2
  exit 2
fi
echo 'Installing slurm-wlm and munge.'
export DEBIAN_FRONTEND=noninteractive
# No service of theirs is started by their installation.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm "$policy"' EXIT
fi
apt-get update -qq
apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
