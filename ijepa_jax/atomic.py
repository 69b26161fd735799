"""Text files that a reader sees whole: the old one or the new one."""

import contextlib
import os
import pathlib

from ijepa_jax import errors


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file.

  Raises:
    StorageError: it cannot be written; what was there is still there.
  """
  temporary = path.with_name(path.name + '.tmp')
  try:
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    # Where nothing can be written, nothing can be deleted either.
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise errors.StorageError(
      f'cannot write {path}: {error.strerror}'
    ) from error
