"""Sets up JAX for the tests, before anything imports it.

The tests run on the CPU as 8 simulated devices, so that sharded and unsharded
code are both real. What is already in the environment wins: `JAX_PLATFORMS=cuda
make test` runs on a GPU.
"""

import os
import tempfile

import hypothesis

_DEVICES = '--xla_force_host_platform_device_count'

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}=8'.strip()
  )
# Only errors from the C++ side (XLA, TSL); set before jaxlib is loaded.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Pictures are drawn into files, also where there is a display.
os.environ.setdefault('MPLBACKEND', 'Agg')
# Many tests compile the same programs, here and in processes of their own.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  os.path.join(tempfile.gettempdir(), f'ijepa_jax_test_cache_{os.getuid()}'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

# The same examples every time, and no limit per example: a busy machine must
# not turn a property red.
hypothesis.settings.register_profile(
  'ijepa_jax', deadline=None, derandomize=True
)
hypothesis.settings.load_profile('ijepa_jax')
