"""Compiled programs, kept on disk for the next start of a run.

On a GPU the algorithms that XLA chose by timing them are kept with a program:
a run that is resumed computes with the same ones.
"""

import os
import warnings

import jax

from ijepa_jax import errors, user_cache


def enable(setting: str) -> None:
  """Tells JAX where to keep programs, before the first one is compiled.

  What the environment says of it (`JAX_COMPILATION_CACHE_DIR`) wins.

  Args:
    setting: the field `compilation_cache`: a directory, 'off', or 'auto', which
      is `user_cache.folder('compiled')` on an accelerator. Not on a CPU: there
      a program is made for one kind of processor, and a home directory is
      shared by several.

  Raises:
    UserError: the directory cannot be made.
  """
  chosen = jax.config.values['jax_compilation_cache_dir']
  if chosen is not None or setting == 'off':
    return
  directory = setting
  if setting == 'auto':
    if jax.default_backend() == 'cpu':
      return
    directory = user_cache.folder('compiled')
  try:
    # For the user alone: who can write there decides what a run computes.
    os.makedirs(directory, mode=0o700, exist_ok=True)
  except OSError as error:
    problem = f'compilation_cache={directory}: {error.strerror}'
    if setting == 'auto':  # a read-only home costs time, nothing else
      warnings.warn(f'compiled programs are not kept: {problem}', stacklevel=2)
      return
    raise errors.UserError(
      f'{problem}; expected a directory, auto or off'
    ) from error
  jax.config.update('jax_compilation_cache_dir', directory)
