"""One of two processes that do nothing but end, in the way that is asked for.

The first argument says how: `test_ending` starts it.
"""

import os
import signal
import sys
import time

import jax
from jax.experimental import multihost_utils

from ijepa_jax import distributed, ending, errors
from ijepa_jax.config import fields


def wait_for_the_other():
  multihost_utils.sync_global_devices('together')


def fail(error):
  """Fails in process 1, for which process 0 waits."""
  if process == 1:
    raise error
  wait_for_the_other()


def die(process_to_die):
  if process == process_to_die:
    os.kill(os.getpid(), signal.SIGKILL)


def count():
  counted = distributed.counter('test')
  for item in (1, 2, 3) if process else (3, 4):
    counted(item)
  wait_for_the_other()
  assert counted(3) == 4


def die_idle():
  die(1)
  time.sleep(60)


def die_first():
  die(0)
  wait_for_the_other()


def interrupted():
  raise errors.Interrupted('stopped, saved')


def everywhere():
  raise errors.NonFiniteError('not finite')


WAYS = {
  'well': count,
  'data error': lambda: fail(errors.DataError('bad records')),
  'bug': lambda: fail(TypeError('a bug')),
  'everywhere': everywhere,
  'interrupted': interrupted,
  'die in a collective': lambda: (die(1), wait_for_the_other()),
  'die idle': die_idle,
  'die first': die_first,
  'differ': lambda: distributed.require_same({'seed': process}),
}

if __name__ == '__main__':
  config = fields.defaults()
  # Where nobody dies, a machine that stands still for a while is no fault.
  dies = sys.argv[1].startswith('die')
  config.distributed.heartbeat_seconds = 5 if dies else 60
  config.distributed.start_seconds = 30 if sys.argv[1] != 'absent' else 2
  with errors.exit_cleanly(), distributed.joined(config):
    process = jax.process_index()
    wait_for_the_other()
    with ending.announcing():
      WAYS[sys.argv[1]]()
