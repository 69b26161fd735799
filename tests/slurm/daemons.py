"""A SLURM of our own on this machine: munged, slurmctld and two slurmd.

Configuration, keys, sockets, ports and logs are private to a directory, so a
SLURM that the machine belongs to is left alone. Everything runs as the user
who runs the tests.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

# What a node believes to have, so that small jobs run at the same time.
CPUS = 16

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch')

# `cred_expire` is also how long a requeued job waits before it may start: 120
# seconds unless said otherwise, or when below 5; jobs that became eligible are
# looked for every `sched_interval`. A job of `urgent` preempts one of `batch`;
# `pair` has a second node, whose name nobody can look up.
_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={root}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=300
UnkillableStepTimeout=60
NodeName=DEFAULT CPUs={cpus}
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=batch Nodes={host} Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} PriorityTier=2
PartitionName=pair Nodes={host},{second} PriorityTier=1
"""


def free_ports(count: int) -> list[int]:
  """Ports of this machine that nobody listens on."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]


class Cluster:
  """The commands of a running SLURM."""

  def __init__(self, root: pathlib.Path) -> None:
    self.root = root
    self.env = os.environ | {
      'SLURM_CONF': str(root / 'slurm.conf'),
      'PATH': _path(),
    }

  def call(self, *command: str, **env: str) -> str:
    """Runs a command in the repository and returns what it wrote."""
    result = subprocess.run(
      command,
      cwd=pathlib.Path(__file__).parents[2],
      env=self.env | env,
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, f'{command}: {result.stdout}{result.stderr}'
    return result.stdout.strip()

  def job(self, job_id: str) -> dict[str, str]:
    """The fields of `scontrol show job`."""
    shown = self.call('scontrol', '--oneliner', 'show', 'job', job_id)
    return dict(part.split('=', 1) for part in shown.split() if '=' in part)

  def logs(self) -> str:
    """What the daemons wrote."""
    return '\n'.join(
      f'--- {path.name}\n{path.read_text()}'
      for path in sorted(self.root.glob('*.log'))
    )


@contextlib.contextmanager
def running(root: pathlib.Path) -> Iterator[Cluster]:
  """Starts the daemons, and stops them and what they started.

  Args:
    root: a directory for all their files; the path must be short, since a
      socket's may have 107 characters.
  """
  host = socket.gethostname().partition('.')[0]
  second = f'second-{host}'
  (root / 'state').mkdir()
  key = root / 'munge.key'
  key.write_bytes(os.urandom(1024))
  key.chmod(0o600)
  (root / 'slurm.conf').write_text(
    _CONF.format(
      root=root,
      host=host,
      second=second,
      cpus=CPUS,
      user=getpass.getuser(),
      ports=free_ports(3),
    )
  )
  cluster = Cluster(root)
  munge = [
    *('munged', '--foreground', '--force', f'--socket={root}/munge.socket'),
    *(f'--key-file={key}', f'--seed-file={root}/munge.seed'),
    *(f'--pid-file={root}/munge.pid', f'--log-file={root}/munge.log'),
  ]
  daemons: list[subprocess.Popen[bytes]] = []
  try:
    for command in (
      munge,
      ['slurmctld', '-D'],
      ['slurmd', '-D', '-N', host],
      ['slurmd', '-D', '-N', second],
    ):
      with (root / f'{command[0]}.stderr.log').open('ab') as log:
        daemons.append(
          subprocess.Popen(
            command, env=cluster.env, stdout=subprocess.DEVNULL, stderr=log
          )
        )
      time.sleep(0.5)
    _wait_until_idle(cluster, daemons)
    yield cluster
  finally:
    if len(daemons) == 4 and daemons[1].poll() is None:
      _end_jobs(cluster)
    for daemon in reversed(daemons):
      daemon.terminate()
    for daemon in daemons:
      try:
        daemon.wait(timeout=20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _end_jobs(cluster: Cluster) -> None:
  """Ends what a failed test has left."""
  user = f'--user={getpass.getuser()}'
  cluster.call('scancel', '--full', '--signal=KILL', user)
  cluster.call('scancel', user)
  end = time.monotonic() + 30
  while cluster.call('squeue', '--noheader') and time.monotonic() < end:
    time.sleep(0.2)


def _wait_until_idle(
  cluster: Cluster, daemons: list[subprocess.Popen[bytes]]
) -> None:
  """Waits until the nodes take jobs."""
  end = time.monotonic() + 60
  while time.monotonic() < end:
    ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
    assert not ended, f'{ended} ended:\n{cluster.logs()}'
    result = subprocess.run(
      ['sinfo', '--noheader', '--Node', '--partition=pair', '--format=%T'],
      env=cluster.env,
      capture_output=True,
      text=True,
      check=False,
    )
    if result.stdout.split() == ['idle', 'idle']:
      return
    time.sleep(0.2)
  raise AssertionError(f'SLURM did not start:\n{cluster.logs()}')


def missing_programs() -> list[str]:
  """The programs that are not installed."""
  return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
  """Daemons are not in everybody's search path."""
  return os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
