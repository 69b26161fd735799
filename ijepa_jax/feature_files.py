"""Files of features: what `ijepa_jax.extract` writes, npz or parquet."""

import dataclasses
import json
import os
from typing import Any

import numpy as np

from ijepa_jax import errors

# Parquet's readers take one row group at a time.
_ROW_GROUP_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Features:
  """What a file holds; fields that are None are not in it.

  Attributes:
    names: (n,) of the images.
    features: (n, ...) float32, a row per image.
    bad_files: names of files that could not be read.
    labels: (n,) int32, positions in `classes`, or -1.
    classes: their names.
    layers: (L,) blocks that the features are of.
  """

  names: np.ndarray
  features: np.ndarray
  bad_files: np.ndarray
  labels: np.ndarray | None = None
  classes: np.ndarray | None = None
  layers: np.ndarray | None = None


def new_file(path: str, field: str) -> str:
  """The absolute path of a file that can be made.

  Args:
    path: as the user typed it.
    field: what the user calls it.

  Raises:
    UserError: it exists, no format has this suffix, or pyarrow is missing.
  """
  path = os.path.abspath(os.path.expanduser(path))
  suffix = os.path.splitext(path)[1]
  if suffix not in _WRITERS:
    raise errors.UserError(
      f'{field}: {path}: expected a name that ends in {" or ".join(_WRITERS)}'
    )
  if os.path.lexists(path):
    raise errors.UserError(f'{field}: {path} exists; choose another name')
  if suffix == '.parquet':
    try:
      import pyarrow  # noqa: F401
    except ImportError as error:
      raise errors.UserError(
        f'{field}: .parquet needs pyarrow, which is not installed: '
        "pip install -e '.[parquet]'"
      ) from error
  return path


def write(path: str, held: Features) -> None:
  """Writes a file, in the format that its suffix says."""
  _WRITERS[os.path.splitext(path)[1]](path, held)


def _write_npz(path: str, held: Features) -> None:
  arrays = {key: x for key, x in vars(held).items() if x is not None}
  np.savez(path, **arrays)


def _write_parquet(path: str, held: Features) -> None:
  import pyarrow as pa
  from pyarrow import parquet

  kind = pa.float32()
  for _ in held.features.shape[1:]:
    kind = pa.list_(kind)
  fields = [('name', pa.string()), ('feature', kind)]
  if held.labels is not None:
    fields[1:1] = [('label', pa.int32()), ('class', pa.string())]
  metadata = {
    key: json.dumps(array.tolist())
    for key in ('bad_files', 'classes', 'layers')
    if (array := getattr(held, key)) is not None
  }
  schema = pa.schema(fields, metadata)
  group = max(1, _ROW_GROUP_BYTES // held.features[0].nbytes)
  with parquet.ParquetWriter(path, schema) as writer:
    for start in range(0, len(held.features), group):
      rows = slice(start, start + group)
      columns = [pa.array(held.names[rows]), _lists(held.features[rows])]
      if held.labels is not None and held.classes is not None:
        labels = held.labels[rows]
        label = pa.array(labels, mask=labels < 0)
        names = pa.array(held.classes.tolist(), pa.string())
        columns[1:1] = [label, names.take(label)]
      writer.write_table(pa.table(columns, schema=schema))


def _lists(values: np.ndarray) -> Any:
  """Arrow's lists, nested as the axes of `values` but the first."""
  import pyarrow as pa

  nested = pa.array(values.reshape(-1))
  for axis in range(values.ndim - 1, 0, -1):
    starts = np.arange(0, len(nested) + 1, values.shape[axis])
    nested = pa.ListArray.from_arrays(starts.astype(np.int32), nested)
  return nested


_WRITERS = {'.npz': _write_npz, '.parquet': _write_parquet}
