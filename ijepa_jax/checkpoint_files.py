"""One checkpoint, read or written outside of the run that it belongs to."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax import checkpoint as ocp

from ijepa_jax import errors, integrity, sharding
from ijepa_jax.data import sources
from ijepa_jax.interop import described
from ijepa_jax.interop.described import Described

FOLDER = 'checkpoints'

# What Orbax raises on reading and on writing; RecursionError is of JSON.
FAILURES = (
  ValueError,
  KeyError,
  OSError,
  TypeError,
  AttributeError,
  RecursionError,
)


def find(path: epath.PathLike) -> epath.Path | None:
  """The checkpoint that a user means by `path`, or None if there is none.

  Args:
    path: a run's directory, its `checkpoints` folder, or one checkpoint.
  """
  folder = epath.Path(path).expanduser().resolve()
  if not folder.is_dir():
    return None
  if (folder / 'state').exists() and (folder / 'meta').exists():
    return folder
  if (folder / FOLDER).exists():
    folder = folder / FOLDER
  found = all_in(folder)
  return found[-1] if found else None


def all_in(folder: epath.Path) -> list[epath.Path]:
  """The whole checkpoints in a run's `checkpoints` folder, oldest first."""
  return [folder / str(k) for k in sorted(ocp.utils.checkpoint_steps(folder))]


def trained_here(path: epath.PathLike) -> bool:
  """Whether weights come from our own runs alone, as far as is known.

  Published weights have a licence, which what starts from them inherits.
  """
  folder = find(path)
  if folder is None:
    return False
  return bool(State(folder).mark().get('trained_here', described.FLAG))


class State:
  """A checkpoint whose arrays are read one at a time, onto the host.

  Attributes:
    meta: what the run said of itself.
    shapes: of all arrays by path, such as `target/pos_embed`.
  """

  def __init__(self, folder: epath.Path):
    """Reads only what describes the arrays.

    Raises:
      UserError: it cannot be read.
    """
    self._folder = folder / 'state'
    self._verified = False
    handler = ocp.PyTreeCheckpointHandler()
    self._checkpointer = ocp.Checkpointer(handler)
    with readable(str(folder / 'meta')):
      meta = ocp.Checkpointer(ocp.JsonCheckpointHandler())
      told = meta.restore(folder / 'meta')
    with readable(str(folder)):
      # Asked of the handler: the checkpointer warns of a file that is missing
      # in the checkpoints of runs.
      self._tree = handler.metadata(self._folder).tree
    self.meta = described.top(str(folder / 'meta'), told)
    self.shapes = _shapes(self._tree)

  def mark(self) -> Described:
    """The section `ijepa_jax`, see `interop.weights.Weights.mark`."""
    told = self.meta.values.get('ijepa_jax')
    if told is None and 'config' in self.meta.values:
      # A run from before that section: it could only start from our own.
      evaluation = self.meta.section('config').section('eval')
      crop = evaluation.get('crop', described.SHARE)
      told = {'trained_here': True} | ({} if crop is None else {'crop': crop})
    return Described(self.meta.path, {'ijepa_jax': told}).section('ijepa_jax')

  def read(self, path: str) -> np.ndarray:
    """One array by its path; before the first, all files are verified.

    Raises:
      UserError: it cannot be read, or a file was changed.
    """
    if not self._verified:
      _require_undamaged(self._folder.parent)
      self._verified = True

    def one(value: Any) -> Any:
      return jax.tree.map_with_path(
        lambda keys, _: value if sharding.path_name(keys) == path else ...,
        self._tree,
      )

    with readable(str(self._folder.parent)):
      restored = self._checkpointer.restore(
        self._folder,
        args=ocp.args.PyTreeRestore(
          one(0), restore_args=one(ocp.RestoreArgs(restore_type=np.ndarray))
        ),
      )
    return next(x for x in jax.tree.leaves(restored) if x is not ...)


def write(folder: epath.PathLike, state: Any, meta: dict[str, Any]) -> None:
  """Writes one checkpoint outside of a run, in the same format.

  Args:
    folder: where; must not exist.
    state: nested dicts of `jax.Array`, whose memory is used as it is: of
      numpy arrays Orbax makes copies, in case they change.
    meta: see `State`.
  """
  folder = epath.Path(folder).resolve()
  folder.mkdir(parents=True)
  # A file per array: the one database of all (OCDBT) is built in memory.
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(folder / 'state', args=ocp.args.PyTreeSave(state))
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
    checkpointer.save(folder / 'meta', args=ocp.args.JsonSave(meta))
  integrity.write(folder, folder / integrity.FILE)


def load_weights(path: str, abstract_state: Any) -> tuple[dict, dict]:
  """Parameters and target of another run, or imported, for `init_from`.

  Args:
    path: see `find`.
    abstract_state: the new run's state, with shardings.

  Returns:
    `(params, target)`. Of imported weights with a single encoder, it is both;
    without a predictor, `params` has none.

  Raises:
    UserError: nothing there, unreadable, or shapes that do not fit.
  """
  # Paths of a bucket are left as they are.
  local = '://' not in path
  folder = find(sources.existing_path(path, 'init_from') if local else path)
  if folder is None:
    raise errors.UserError(
      f'init_from={path} holds no checkpoint; give a run directory, a folder '
      f'like {FOLDER}/1000 inside one, or what `python -m ijepa_jax.convert '
      '--to=orbax` has written'
    )
  _require_undamaged(folder)
  wanted = {'params': abstract_state.params, 'target': abstract_state.target}
  with readable(str(folder)):
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    found = checkpointer.metadata(folder / 'state').item_metadata.tree
    # Imported weights may have a single encoder, and no predictor.
    wanted['params'] = {
      part: tree
      for part, tree in wanted['params'].items()
      if part in found.get('params', {})
    }
    _require_same_shapes(wanted, found, path)
    restored = checkpointer.restore(
      folder / 'state',
      args=ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      ),
    )
  params = restored['params']
  if 'encoder' not in params:
    # A copy: the step donates the state, and no buffer twice.
    params['encoder'] = jax.tree.map(jnp.copy, restored['target'])
  return params, restored['target']


def _require_same_shapes(wanted: dict, found: dict, path: str) -> None:
  shapes = _shapes(found)
  for keys, leaf in jax.tree.leaves_with_path(wanted):
    name = sharding.path_name(keys)
    if shapes.get(name) != leaf.shape:
      what = f'has shape {shapes[name]}' if name in shapes else 'is missing'
      raise errors.UserError(
        f'init_from={path}: {name} {what}, this config needs {leaf.shape}; '
        'model.* and predictor.* must be those of that run'
      )


def _shapes(metadata: Any) -> dict[str, tuple[int, ...]]:
  """Shapes of a saved tree by path, such as `target/pos_embed`."""
  return {
    sharding.path_name(keys): tuple(leaf.shape)
    for keys, leaf in jax.tree.leaves_with_path(metadata)
    if hasattr(leaf, 'shape')
  }


def _require_undamaged(folder: epath.Path) -> None:
  found = integrity.damage(folder)
  if found is None:
    return
  others = all_in(folder.parent)
  good = [path for path in others if integrity.damage(path) is None]
  raise errors.UserError(
    f'checkpoint {folder} is damaged: {found}; last good one: '
    f'{good[-1] if good else "none beside it"}'
  )


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
  """A checkpoint that cannot be read is an error, never a restart."""
  try:
    yield
  except FAILURES as error:
    raise errors.UserError(
      f'cannot read checkpoint {path}: {reason(error)}'
    ) from error


def reason(error: Exception) -> str:
  """What an error says, in one line; of TensorStore's tale, the end."""
  told = re.search(r'([^:\n]+) \[os_error_code=', str(error))
  if told:
    return told[1].strip()
  return str(error).splitlines()[0] if str(error) else type(error).__name__
