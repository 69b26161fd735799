"""The checkpoints of a run; with `checkpoint_files`, all that knows Orbax.

A run's directory holds `checkpoints/STEP/{state,meta}`: the train state, and
what is needed to read it and to continue (config, versions, fingerprint of
the data, checksums of all files). Orbax writes into a temporary folder and
renames it when complete, so a kill at any moment leaves only whole checkpoints.
"""

import contextlib
import dataclasses
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax import checkpoint as ocp

import ijepa_jax
from ijepa_jax import (
  checkpoint_files,
  distributed,
  errors,
  integrity,
  orbax_noise,
)

# Beside it: checkpoints that `checkpoint.step` has passed over.
ASIDE = 'set_aside'

# For a save under way, before another error ends the run.
_PATIENCE_SECONDS = 30


class _MetaHandler(ocp.JsonCheckpointHandler):
  """Writes JSON and, when all else of a checkpoint is there, its checksums."""

  def finalize(self, directory: epath.Path) -> None:
    integrity.write(directory.parent, directory / 'checksums.json')


@ocp.args.register_with_handler(_MetaHandler, for_save=True)
@dataclasses.dataclass
class _MetaSave(ocp.args.JsonSave):
  pass


@ocp.args.register_with_handler(_MetaHandler, for_restore=True)
@dataclasses.dataclass
class _MetaRestore(ocp.args.JsonRestore):
  pass


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

    What a killed run left of an unfinished checkpoint is deleted.

    Args:
      workdir: the run's directory.
      keep: how many of the newest stay.
      keep_period: checkpoints at multiples of this step stay for good.

    Raises:
      StorageError: the folder cannot be made, or not be written to.
    """
    self.folder = epath.Path(workdir).resolve() / checkpoint_files.FOLDER
    self._saving: int | None = None
    self._failure: errors.StorageError | None = None
    self._watching: threading.Thread | None = None
    orbax_noise.silence()
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.StorageError(
        f'cannot make {self.folder}: {error.strerror}'
      ) from error
    if not os.access(self.folder, os.W_OK | os.X_OK, effective_ids=True):
      raise errors.StorageError(
        f'cannot write to {self.folder}: it belongs to user '
        f'{os.stat(self.folder).st_uid}, this is user {os.geteuid()}; expected '
        'a folder that this user may write to'
      )
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_period,
        cleanup_tmp_directories=True,
      ),
      # In this order they are completed.
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'meta': _MetaHandler(),
      },
    )

  def steps(self) -> list[int]:
    """Steps of the whole checkpoints on disk, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(self.folder))

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    return max(self.steps(), default=None)

  def path(self, step: int) -> str:
    """Where the checkpoint of a step is."""
    return str(self.folder / str(step))

  def set_aside(self, steps: Sequence[int], metrics: epath.Path) -> epath.Path:
    """Moves checkpoints out of the way of new ones, on all processes.

    Args:
      steps: of those checkpoints.
      metrics: a file that the run will shorten; it is copied first.

    Returns:
      The folder that they are in now.
    """
    folder = self.folder.parent / ASIDE
    if jax.process_index() == 0:
      folder.mkdir(exist_ok=True)
      if metrics.exists():
        metrics.copy(_free(folder / metrics.name))
      for step in steps:
        epath.Path(self.path(step)).rename(_free(folder / str(step)))
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('checkpoints set aside')
    self._manager.reload()
    return folder

  def verify(self, step: int) -> None:
    """Compares the files of a checkpoint with their checksums.

    Each process of the run reads a part of them.

    Raises:
      UserError: a file was changed, on all processes; it names the newest
        checkpoint that is whole.
    """
    process, processes = jax.process_index(), jax.process_count()
    found = integrity.damage(epath.Path(self.path(step)), process, processes)
    if processes > 1:
      distributed.meet('verified')  # a part may take long to read
      counts = multihost_utils.process_allgather(np.int32(found is not None))
      if counts.any() and found is None:
        found = f'process {int(counts.argmax())} found a changed file'
    if found is not None:
      raise errors.UserError(
        f'checkpoint {self.path(step)} is damaged: {found}; '
        f'{self._way_back(step)}'
      )

  def meta(self, step: int) -> dict[str, Any]:
    """Config, versions and data fingerprint of a checkpoint."""
    with self._readable(step):
      args = ocp.args.Composite(meta=_MetaRestore())
      return self._manager.restore(step, args=args).meta

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads a state onto the shardings that `abstract_state` carries."""
    with self._readable(step):
      args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
      return self._manager.restore(step, args=args).state

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Starts to save in the background.

    Raises:
      StorageError: this save cannot begin, or the last one did not succeed.
    """
    with self._writing():
      self._manager.wait_until_finished()  # of the step before
      self._saving = step
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=_MetaSave(meta)
        ),
        force=True,
      )
    # Orbax would tell of a failure at the next save, which may be hours away.
    self._watching = threading.Thread(target=self._watch, daemon=True)
    self._watching.start()

  def check(self) -> None:
    """Raises a StorageError when a save in the background has failed."""
    if self._failure is not None:
      raise self._failure

  def preempted(self, step: int) -> bool:
    """Whether all processes were told to stop at this step."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Returns when everything is on disk, or raises a StorageError."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves under way and releases the folder."""
    told = self._failure is not None
    try:
      with self._writing():
        self._manager.close()
    except errors.StorageError:
      if not told:
        raise

  @contextlib.contextmanager
  def naming_last_good(self) -> Iterator[None]:
    """Names the last good step when any other file cannot be written.

    On a full disk it is chance whether a checkpoint or another file of the run
    is the first to be refused.
    """
    try:
      yield
    except (errors.StorageError, OSError) as error:
      told = errors.of_disk(error) if isinstance(error, OSError) else error
      if told is None or told is self._failure:
        raise
      if self._watching is not None:  # a save may be about to be whole
        self._watching.join(_PATIENCE_SECONDS)
      if self._failure is not None:
        raise self._failure from error
      raise errors.StorageError(f'{told}; {self._going_on()}') from error

  def _watch(self) -> None:
    # Whatever else Orbax raises (a peer is lost), it raises once per thread.
    ignored = errors.StorageError, RuntimeError
    with contextlib.suppress(*ignored), self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """A save that fails is one line, and kept for `check`."""
    try:
      yield
    except checkpoint_files.FAILURES as error:
      self._failure = errors.StorageError(
        f'cannot save step {self._saving} in {self.folder}: '
        f'{checkpoint_files.reason(error)}; {self._going_on()}'
      )
      raise self._failure from error

  def _going_on(self) -> str:
    """What to do about a file that cannot be written."""
    good = self._last_good()
    if good is None:
      return 'last good step: none; mend that and run the same command again'
    return (
      f'last good step: {good}; mend that, and the same command continues '
      'from there'
    )

  def _last_good(self, before: int | None = None) -> int | None:
    """The newest step whose files are as they were written."""
    for step in reversed(self.steps()):
      if before is None or step < before:
        path = epath.Path(self.path(step))
        if (path / 'meta').exists() and integrity.damage(path) is None:
          return step
    return None

  def _way_back(self, step: int) -> str:
    """What to do about a damaged checkpoint."""
    good = self._last_good(before=step)
    if good is None:
      return 'last good step: none before it'
    return (
      f'last good step: {good}, from which --config.checkpoint.step={good} '
      'continues'
    )

  @contextlib.contextmanager
  def _readable(self, step: int) -> Iterator[None]:
    try:
      yield
    except checkpoint_files.FAILURES as error:
      raise errors.UserError(
        f'cannot read checkpoint {self.path(step)}: '
        f'{checkpoint_files.reason(error)}; {self._way_back(step)}'
      ) from error


def _free(path: epath.Path) -> epath.Path:
  """The path, with a number behind it if there is something already."""
  number, free = 0, path
  while free.exists():
    number += 1
    free = path.with_name(f'{path.name}.{number}')
  return free
