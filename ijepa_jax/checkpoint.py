"""Checkpoints: the one file that knows Orbax.

A run's directory holds `checkpoints/STEP/{state,meta}`: the train state, and
what is needed to read it and to continue (config, versions, fingerprint of
the data). Orbax writes into a temporary folder and renames it when complete,
so a kill at any moment leaves only whole checkpoints.
"""

import contextlib
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
from etils import epath
from orbax import checkpoint as ocp

import ijepa_jax
from ijepa_jax import errors, sharding

FOLDER = 'checkpoints'


def versions() -> dict[str, str]:
  """Versions of what determines a run's numbers."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
  return {
    'ijepa_jax': ijepa_jax.__version__,
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in names},
  }


class Checkpoints:
  """The checkpoints of one run; saving is asynchronous."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    keep: int,
    keep_period: int | None,
  ):
    """Opens, and makes, the checkpoints of a run.

    Args:
      workdir: the run's directory.
      keep: how many of the newest stay.
      keep_period: checkpoints at multiples of this step stay for good.
    """
    self.folder = epath.Path(workdir).resolve() / FOLDER
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_period
      ),
      item_names=('state', 'meta'),
    )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    return self._manager.latest_step()

  def path(self, step: int) -> str:
    """Where the checkpoint of a step is."""
    return str(self.folder / str(step))

  def meta(self, step: int) -> dict[str, Any]:
    """Config, versions and data fingerprint of a checkpoint."""
    with _readable(self.path(step)):
      args = ocp.args.Composite(meta=ocp.args.JsonRestore())
      return self._manager.restore(step, args=args).meta

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads a state onto the shardings that `abstract_state` carries."""
    with _readable(self.path(step)):
      args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
      return self._manager.restore(step, args=args).state

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Starts to save in the background."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
      ),
      force=True,
    )

  def preempted(self, step: int) -> bool:
    """Whether all processes were told to stop at this step."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves under way and releases the folder."""
    self._manager.close()


def find(path: str) -> epath.Path:
  """The checkpoint that a user means by `path`.

  Args:
    path: a run's directory, its `checkpoints` folder, or one checkpoint.

  Raises:
    UserError: there is none.
  """
  folder = epath.Path(path).expanduser().resolve()
  if not folder.is_dir():
    what = 'is no directory' if folder.exists() else 'does not exist'
    raise errors.UserError(
      f'init_from={path} {what}; give a run directory or a checkpoint'
    )
  if (folder / 'state').exists():
    return folder
  if (folder / FOLDER).exists():
    folder = folder / FOLDER
  steps = ocp.utils.checkpoint_steps(folder)
  if not steps:
    raise errors.UserError(
      f'init_from={path} holds no checkpoint; give a run directory, or a '
      f'folder like {FOLDER}/1000 inside one'
    )
  return folder / str(max(steps))


def load_weights(path: str, abstract_state: Any) -> tuple[dict, dict]:
  """Parameters and target of another run, for `init_from`.

  Args:
    path: see `find`.
    abstract_state: the new run's state, with shardings.

  Returns:
    `(params, target)`.

  Raises:
    UserError: nothing there, unreadable, or shapes that do not fit.
  """
  folder = find(path)
  wanted = {'params': abstract_state.params, 'target': abstract_state.target}
  with _readable(str(folder)):
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    found = checkpointer.metadata(folder / 'state').item_metadata.tree
    _require_same_shapes(wanted, found, path)
    restored = checkpointer.restore(
      folder / 'state',
      args=ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      ),
    )
  return restored['params'], restored['target']


def _require_same_shapes(wanted: dict, found: dict, path: str) -> None:
  shapes = {
    sharding.path_name(keys): tuple(leaf.shape)
    for keys, leaf in jax.tree.leaves_with_path(found)
    if hasattr(leaf, 'shape')
  }
  for keys, leaf in jax.tree.leaves_with_path(wanted):
    name = sharding.path_name(keys)
    if shapes.get(name) != leaf.shape:
      what = f'has shape {shapes[name]}' if name in shapes else 'is missing'
      raise errors.UserError(
        f'init_from={path}: {name} {what}, this config needs {leaf.shape}; '
        'model.* and predictor.* must be those of that run'
      )


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
  """A checkpoint that cannot be read is an error, never a restart."""
  try:
    yield
  except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise errors.UserError(
      f'cannot read checkpoint {path}: {reason}; delete it to continue from '
      'the one before'
    ) from error
