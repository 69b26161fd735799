"""Saving a figure, and the few colours that all pictures share."""

import os
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ijepa_jax.errors import StorageError

# Okabe & Ito 2008: told apart with any kind of colour vision, here in an order
# that also differs in lightness from one to the next.
COLORS = (
  '#E69F00',
  '#56B4E9',
  '#009E73',
  '#D55E00',
  '#CC79A7',
  '#0072B2',
  '#F0E442',
)
INK = '#222222'
MUTED = '#7a7a7a'
FAINT = '#dddddd'


def two_places(value: float) -> str:
  """A number to two places, never -0.00."""
  return f'{round(float(value), 2) + 0.0:.2f}'


def save(figure: Figure, path: str | os.PathLike, dpi: int = 120) -> None:
  """Writes a PNG; a reader sees the old picture or the new one, whole.

  Args:
    figure: made by `matplotlib.figure.Figure`, outside pyplot's global state.
    path: its folder must exist.
    dpi: pixels per inch.

  Raises:
    StorageError: the file cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + '.tmp')
  try:
    with open(temporary, 'wb') as file:
      FigureCanvasAgg(figure)
      figure.savefig(file, format='png', dpi=dpi, facecolor='white')
    os.replace(temporary, path)
  except OSError as error:
    raise StorageError(f'cannot write {path}: {error.strerror}') from error
  finally:
    temporary.unlink(missing_ok=True)
