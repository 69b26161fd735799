"""Several processes that train one run: how they find each other.

Whoever starts the processes says so in their environment. Either all three of
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, or a
cluster that JAX recognises has started them: SLURM (through srun), Open MPI,
Kubernetes (an indexed job), a TPU pod. What is set wins over what the cluster
says. A process that is alone opens no port.
"""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
from jax._src import clusters
from jax._src import distributed as jax_distributed

from ijepa_jax import ending, errors

ADDRESS = 'JAX_COORDINATOR_ADDRESS'
PROCESSES = 'JAX_NUM_PROCESSES'
PROCESS = 'JAX_PROCESS_ID'
BIND = 'JAX_COORDINATOR_BIND_ADDRESS'

# How long a process that has ended waits for the others to end.
_SHUTDOWN_SECONDS = 60
# How long a process may take to look through its data, or to compile.
_WAIT_MS = 3_600_000
# How long network file systems may take to show a new file everywhere.
_VISIBLE_SECONDS = 60
# The names of barriers must differ.
_meetings = itertools.count()


@contextlib.contextmanager
def joined(config: ml_collections.ConfigDict) -> Iterator[None]:
  """Joins the processes of the run, if there are several; all end together.

  To be entered before anything touches a device.

  Args:
    config: reads `distributed`.

  Raises:
    UserError: the environment is wrong, or set only in part.
    LostProcess: the others did not come.
  """
  found = settings(os.environ)
  if found is None:
    yield
    return
  ending.on_abort(
    'the processes of the run did not find each other within '
    f'distributed.start_seconds={config.distributed.start_seconds}'
  )
  try:
    found = found or _detected(config.distributed.start_seconds)
    if found['process_id'] == 0 and found['coordinator_address']:
      _require_free_port(
        found.get('coordinator_bind_address')
        or os.environ.get(BIND)
        or f':{found["coordinator_address"].rpartition(":")[2]}'
      )
    jax.distributed.initialize(
      **found,
      initialization_timeout=config.distributed.start_seconds,
      heartbeat_timeout_seconds=config.distributed.heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (ValueError, OSError) as error:
    raise errors.UserError(
      f'JAX does not find the other processes ({_one_line(error)}); set '
      f'{ADDRESS}, {PROCESSES} and {PROCESS}'
    ) from error
  except RuntimeError as error:
    raise errors.LostProcess(
      f'the processes of the run did not find each other: {_one_line(error)}'
    ) from error
  finally:
    ending.on_abort(None)
  with ending.together(_client()):
    yield


def _detected(seconds: int) -> dict[str, Any]:
  """What JAX finds out where `settings` leaves all to it.

  Which GPUs are whose it finds out by itself; this is to know who listens.
  There is no public way to ask (jax 0.10 and 0.11).

  Args:
    seconds: to wait for a host whose name is not known yet.
  """
  address, processes, process, _ = (
    clusters.ClusterEnv.auto_detect_unset_distributed_params(
      coordinator_address=os.environ.get(ADDRESS),
      num_processes=None,
      process_id=None,
      local_device_ids=[],
      cluster_detection_method=None,
      initialization_timeout=seconds,
    )
  )
  return {
    'coordinator_address': address,
    'num_processes': processes,
    'process_id': process,
  }


def _require_free_port(address: str) -> None:
  """Raises where the coordinator cannot listen; JAX 0.10 would crash."""
  host, _, port = address.rpartition(':')
  host = host.strip('[]')
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    socket.create_server((host, int(port)), family=family).close()
  except OSError as error:
    reason = str(error.strerror).partition(' (')[0]
    line = f'the coordinator cannot listen on {address}: {reason}'
    if error.errno == errno.EADDRINUSE:  # of an earlier start, most likely
      raise errors.LostProcess(line) from error
    raise errors.UserError(f'{line}; see {ADDRESS} and {BIND}') from error


def _client() -> Any:
  """JAX's client of the coordination service; None in a process alone.

  There is no public way to its key-value store (jax 0.10 and 0.11).
  """
  return jax_distributed.global_state.client


def require_same(said: Mapping[str, Any]) -> None:
  """Raises a UserError where a process differs from process 0.

  Args:
    said: names and values, of types that JSON has.
  """
  client = _client()
  if client is None:
    return
  key = 'ijepa_jax/said'
  mine = json.dumps(said)
  if jax.process_index() == 0:
    client.key_value_set(key, mine)
    return
  theirs = json.loads(client.blocking_key_value_get(key, _WAIT_MS))
  for name, value in json.loads(mine).items():
    if theirs.get(name) != value:
      raise errors.UserError(
        f'{name} is {value!r} here and {theirs.get(name)!r} on process 0; '
        'expected the same on all processes'
      )


def require_shared(workdir: pathlib.Path) -> None:
  """Raises a UserError unless all processes see the same directory."""
  client = _client()
  if client is None:
    return
  file, key = workdir / '.processes', 'ijepa_jax/workdir'
  if jax.process_index() == 0:
    token = uuid.uuid4().hex
    file.write_text(token)
    client.key_value_set(key, token)
  else:
    token = client.blocking_key_value_get(key, _WAIT_MS)
    end = time.monotonic() + _VISIBLE_SECONDS
    while not (file.exists() and file.read_text() == token):
      if time.monotonic() > end:
        raise errors.UserError(
          f'--workdir={workdir} is another directory than on process 0: '
          'expected one that all processes share'
        )
      time.sleep(0.1)
  client.wait_at_barrier(key, _WAIT_MS)
  if jax.process_index() == 0:
    file.unlink()


def meet(name: str) -> None:
  """Waits for the other processes, however long they still compile.

  Before processes first compute together: Gloo, which connects CPUs, gives up
  on one that comes 30 seconds after another, and has no option for that.

  Args:
    name: of this meeting, for messages. All processes have the same meetings in
      the same order.
  """
  client = _client()
  if client is not None:
    number = next(_meetings)
    client.wait_at_barrier(f'ijepa_jax/{number}/{name}', _WAIT_MS)


def counter(name: str) -> Callable[[int], int] | None:
  """Counts what any process meets; None in a process alone.

  Returns:
    A function that takes a number, and returns how many different ones all
    processes have given it so far.
  """
  client = _client()
  if client is None:
    return None

  def count(item: int) -> int:
    new = 1
    try:
      client.key_value_set(f'ijepa_jax/{name}/{item}', '')
    except jax.errors.JaxRuntimeError as error:
      if 'ALREADY_EXISTS' not in str(error):
        raise
      new = 0
    return client.key_value_increment(f'ijepa_jax/{name}', new)

  return count


def settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
  """What `jax.distributed.initialize` has to be told.

  Args:
    environment: `os.environ`.

  Returns:
    Arguments, none where JAX detects all of them; None for a process alone.

  Raises:
    UserError: it is wrong, or set only in part.
  """
  address = environment.get(ADDRESS)
  processes = _number(environment, PROCESSES)
  process = _number(environment, PROCESS)
  if processes is None and process is None:
    cluster = _has_cluster(environment)
    if address is not None and not cluster:
      raise errors.UserError(
        f'{ADDRESS}={address} is set, but not {PROCESSES} and {PROCESS}, and '
        'no cluster says them; set all three or none'
      )
    return {} if cluster else None
  if processes is None or process is None:
    named, missing = (
      (PROCESS, PROCESSES) if processes is None else (PROCESSES, PROCESS)
    )
    raise errors.UserError(
      f'{named}={environment[named]} is set, but not {missing}; set '
      f'{ADDRESS}, {PROCESSES} and {PROCESS}, or none of them'
    )
  if process >= processes:
    raise errors.UserError(
      f'{PROCESS}={process}: expected 0 to {processes - 1}, because '
      f'{PROCESSES}={processes}'
    )
  if processes == 1:
    return None
  if address is None:
    raise errors.UserError(
      f'{PROCESSES}={processes} is set, but not {ADDRESS}: expected HOST:PORT '
      'of process 0, the same on all processes'
    )
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.UserError(
      f'{ADDRESS}={address}: expected HOST:PORT of process 0, such as '
      '10.0.0.1:12345'
    )
  bind = None
  if host == 'localhost' or host.startswith('127.'):
    # Processes of one machine need no port that others reach.
    bind = environment.get(BIND, address)
  return {
    'coordinator_address': address,
    'coordinator_bind_address': bind,  # None: all addresses, or BIND
    'num_processes': processes,
    'process_id': process,
    'cluster_detection_method': 'deactivate',
  }


def _has_cluster(environment: Mapping[str, str]) -> bool:
  """Whether this process is one of several that a cluster has started.

  JAX finds out the rest; it would take a process alone for a cluster of one.
  """
  return (
    _is_slurm_task(environment)
    or (_number(environment, 'OMPI_COMM_WORLD_SIZE') or 1) > 1
    or {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= environment.keys()
    or _is_tpu_host(environment)
  )


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
  """Whether `srun` has started this process as one of several.

  Raises:
    UserError: the job has several tasks, and this is none of them.
  """
  tasks = _number(environment, 'SLURM_NTASKS') or 1
  if tasks == 1:
    return False
  # An interactive step keeps the job's number of tasks and has one itself.
  in_step = 'SLURM_STEP_NODELIST' in environment
  if not in_step or _number(environment, 'SLURM_STEP_NUM_TASKS') == 1:
    raise errors.UserError(
      f'SLURM_NTASKS={tasks}, but this process is none of those tasks; start '
      f'it with srun, or set {PROCESSES}=1 and {PROCESS}=0 to train alone'
    )
  return True


def _is_tpu_host(environment: Mapping[str, str]) -> bool:
  """Whether there may be other hosts of the same TPU slice."""
  for name in ('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES'):
    if name in environment:
      return ',' in environment[name]
  # A TPU VM of Compute Engine knows its neighbours from a metadata server.
  # JAX sets the first when it is imported there, the second elsewhere.
  return (
    environment.get('TPU_ML_PLATFORM') == 'JAX'
    and 'TPU_SKIP_MDS_QUERY' not in environment
  )


def _number(environment: Mapping[str, str], name: str) -> int | None:
  text = environment.get(name)
  if text is None:
    return None
  if not text.isdecimal():
    raise errors.UserError(f'{name}={text!r}: expected a whole number')
  return int(text)


def _one_line(error: Exception) -> str:
  return str(error).splitlines()[0] if str(error) else type(error).__name__
