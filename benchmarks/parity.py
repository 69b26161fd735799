"""Compares model, loss, gradients, optimiser, schedules and EMA with a folder.

  python benchmarks/parity.py --golden tests/golden

reads numbers of the reference from files as tests/golden/README.md describes
them, runs what training runs on the same inputs, on the CPU in float32, and
prints one row per quantity. What the folder lacks is skipped and named; so is
what is in PyTorch's files where PyTorch is not installed. Exit code 0: all
pass, 1: a difference is larger than its tolerance, 2: bad input.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import parity_batch
import parity_files
import parity_golden
import parity_huggingface
import parity_masks
import parity_models
import parity_report
import parity_schedules
import parity_training

from ijepa_jax import errors


class Comparison:
  """Compares with each file of a folder."""

  def __init__(self, folder: parity_files.Folder):
    self.folder = folder
    self.report = parity_report.Report()

  def run(self) -> parity_report.Report:
    """Compares with all that is there.

    Raises:
      UserError: a file is damaged, or there is nothing to compare with.
    """
    kinds = (
      ('model_*.npz', self._model),
      ('eps_probe*.npz', self._probe),
      ('traj_*.npz', self._trajectory),
      ('schedules.npz', self._schedules),
      ('hf/*/config.json', self._huggingface),
      ('masks/statistics.json', self._statistics),
      ('masks/masks_*.npz', self._block_sizes),
      ('masks/collator_stream_*.npz', self._collator_stream),
    )
    for pattern, compare in kinds:
      paths = sorted(self.folder.path.glob(pattern))
      for path in paths:
        compare(path)
      if not paths:
        self.report.skip(pattern, 'all', 'not in the folder')
    if not self.report.rows:
      raise errors.UserError(f'{self.folder.path}: nothing to compare with')
    return self.report

  def _model(self, path: pathlib.Path) -> None:
    golden, source = self.folder.read(path), path.stem
    tensors = self._tensors(golden, path.with_suffix('.pth.tar'), '')
    if not tensors:
      self.report.skip(source, 'all', 'no weights')
      return
    weights = parity_models.make_weights(tensors, path)
    shape = parity_golden.shape_of(
      self.folder.entries(path), *weights.params.values()
    )
    parity_batch.compare(self.report, source, shape, weights, golden)
    self._name_the_rest(golden)

  def _probe(self, path: pathlib.Path) -> None:
    golden, source = parity_files.read(path), path.stem
    tensors = golden.tensors('')
    target = parity_golden.to_ours(tensors, 'target_encoder', path)
    params = {}
    if 'encoder/pos_embed' in tensors:
      params = {'encoder': parity_golden.to_ours(tensors, 'encoder', path)}
    weights = parity_models.Weights(params, target)
    models = self.folder.path.glob('model_*.npz')
    fitting = [
      inputs
      for model in sorted(models)
      if (inputs := self._inputs_of_probe(model, golden, target))
    ]
    if not fitting:
      self.report.skip(source, 'all', 'there is no model_*.npz with its images')
      return
    shape, batch = parity_batch.closest_inputs(weights, golden, fitting)
    parity_batch.compare_probe(
      self.report, source, shape, weights, batch, golden
    )
    self._name_the_rest(golden)

  def _inputs_of_probe(
    self, model: pathlib.Path, golden: parity_files.Arrays, target: dict
  ) -> tuple[parity_golden.Shape, dict] | None:
    """Sizes and batch of a model, if a probe may have been made with them."""
    try:
      shape = parity_golden.shape_of(self.folder.entries(model), target)
    except errors.UserError:  # a model of other sizes
      return None
    inputs = self.folder.read(model)
    images = inputs['images_u8']
    side = shape.image_size
    if images.shape != (len(golden['target_full']), 3, side, side):
      return None
    masks = inputs['masks_enc'], inputs['masks_pred']
    parity_golden.check_masks(model, shape, images, *masks)
    return shape, parity_golden.make_batch(images, *masks)

  def _trajectory(self, path: pathlib.Path) -> None:
    golden, source = self.folder.read(path), path.stem
    if 'config_json' in golden:
      text = str(golden['config_json'])
      described = parity_files.parse_json(text, path)
    else:
      described = self.folder.entries(path).get('schedule', {})
    schedules = parity_schedules.make_schedules(described, path)
    parity_schedules.compare(self.report, source, schedules, golden)
    if described.get('use_bfloat16'):
      self.report.skip(source, 'all updates', 'a run in bfloat16')
      return
    beside = f'{source}_{{}}.pth.tar'
    init = self._tensors(golden, path.with_name(beside.format('init')), 'init/')
    if not init:
      self.report.skip(source, 'all updates', 'no initial weights')
      return
    last = path.with_name(beside.format('final'))
    final = {
      'final': self._tensors(golden, last, 'final/'),
      'final_f64': golden.section('final_f64'),
    }
    weights = parity_models.make_weights(init, path)
    shape = parity_golden.shape_of(
      self.folder.entries(path), *weights.params.values()
    )
    parity_training.check_sizes(self.report, source, described, shape)
    learner = parity_models.Model(shape).learner
    parity_training.compare(
      self.report,
      source,
      parity_training.Run(shape, weights, schedules, golden),
      parity_models.jit(learner.step, donate_argnums=0),
      final,
    )
    self._name_the_rest(golden)

  def _schedules(self, path: pathlib.Path) -> None:
    golden = parity_files.read(path)
    for name in golden.prefixes('(.*)/lr$'):
      described = self._described(name)
      if described is not None:
        schedules = parity_schedules.make_schedules(described, name)
      elif name in parity_schedules.PUBLISHED:
        schedules = parity_schedules.published(name)
      else:
        self.report.skip(name, 'schedules', 'config.json does not describe it')
        continue
      parity_schedules.compare(
        self.report, name, schedules, golden.section(name)
      )

  def _described(self, name: str) -> Mapping[str, Any] | None:
    """What config.json says of a schedule, if it does."""
    config = self.folder.config
    entries = config.get(name), config.get('schedules', {}).get(name)
    return next(filter(parity_schedules.is_described, entries), None)

  def _huggingface(self, path: pathlib.Path) -> None:
    parity_huggingface.compare(self.report, path, self.folder)

  def _statistics(self, path: pathlib.Path) -> None:
    for name, theirs in parity_files.read_json(path).items():
      parity_masks.compare_statistics(self.report, name, theirs)

  def _block_sizes(self, path: pathlib.Path) -> None:
    golden = parity_files.read(path)
    parity_masks.compare_sizes(self.report, f'masks/{path.stem}', golden)

  def _collator_stream(self, path: pathlib.Path) -> None:
    self.report.skip('masks', path.stem, 'drawn from another random stream')

  # --- Weights and sizes ---------------------------------------------------

  def _tensors(
    self, golden: parity_files.Arrays, path: pathlib.Path, prefix: str
  ) -> dict[str, np.ndarray]:
    """Tensors of the npz under `prefix`, or of the checkpoint beside it.

    Where both have them, they are compared.
    """
    held = golden.tensors(prefix)
    source = golden.path.stem
    if not path.exists():
      self.report.skip(source, path.name, 'not in the folder')
      return held
    if not parity_files.has_torch():
      self.report.skip(source, path.name, 'needs PyTorch, not installed')
      return held
    saved = parity_files.read_checkpoint(path)
    if held:
      wrong = parity_report.different_bits(saved, held)
      quantity = f'{prefix}*, tensors unlike .pth.tar'
      self.report.add(source, quantity, wrong, 0.0)
    return held or saved

  def _name_the_rest(self, golden: parity_files.Arrays) -> None:
    if left := golden.unasked():
      self.report.skip(golden.path.stem, ', '.join(left), 'not compared')


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table, and exits with its code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--golden',
    required=True,
    type=pathlib.Path,
    metavar='DIR',
    help='folder of golden numbers',
  )
  path = parser.parse_args(arguments).golden
  with errors.exit_cleanly():
    report = Comparison(parity_files.Folder(path)).run()
    print(report.summary())
    if report.failed:
      sys.exit(1)


if __name__ == '__main__':
  # The tolerances are of float32 on a CPU.
  if 'JAX_PLATFORMS' not in os.environ:
    jax.config.update('jax_platforms', 'cpu')
  main()
