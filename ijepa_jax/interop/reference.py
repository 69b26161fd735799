"""The authors' checkpoints: `jepa-latest.pth.tar` (reference: `src/helper.py`).

One file holds `encoder`, `predictor`, `target_encoder` as saved under
DistributedDataParallel, the optimiser `opt`, and how far training was.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ijepa_jax.interop import adapt, described, names, weights
from ijepa_jax.interop.described import Described
from ijepa_jax.interop.tensors import Tensors, import_torch
from ijepa_jax.interop.weights import Moments, Parameters, Weights

_DDP = 'module.'
_TABLES = {'encoder': names.ENCODER, 'predictor': names.PREDICTOR}
# Adam's moments, as PyTorch calls them.
_MEAN, _SQUARE = 'exp_avg', 'exp_avg_sq'


def is_reference(found: Tensors) -> bool:
  """Whether a file has the structure of the authors' checkpoints."""
  return any(
    f'{part}.{ddp}pos_embed' in found.shapes
    for part in ('encoder', 'target_encoder')
    for ddp in ('', _DDP)
  )


def open_reference(found: Tensors, heads: int | None) -> Weights:
  """Opens an authors' checkpoint.

  Args:
    found: the file.
    heads: attention heads, where the width does not tell.

  Raises:
    UserError: a tensor is missing, unknown, or of another shape.
  """
  parts = {
    name: _without_ddp(found.section(f'{name}.'))
    for name in ('encoder', 'target_encoder', 'predictor')
  }
  held = {name: part for name, part in parts.items() if part.shapes}
  first = held.get('encoder') or held['target_encoder']
  architecture = adapt.encoder_size(first, names.ENCODER, heads)
  shapes = weights.shapes(architecture.encoder())
  encoders = {
    name: adapt.parameters(part, names.ENCODER, shapes)
    for name, part in held.items()
    if name != 'predictor'
  }
  only = next(iter(encoders.values()))

  predictor = predictor_size = moments = None
  left_out = []
  if 'predictor' in held:
    predictor_size = adapt.trunk_size(
      held['predictor'], names.PREDICTOR, architecture.size.heads
    )
    predictor_shapes = weights.shapes(architecture.predictor(predictor_size))
    predictor = adapt.parameters(
      held['predictor'], names.PREDICTOR, predictor_shapes
    )
    if 'encoder' in held and found.section('opt.state.').shapes:
      trained = {'encoder': shapes, 'predictor': predictor_shapes}
      moments = _open_moments(found, held, trained)
      if moments is None:
        left_out.append("opt, whose parameter groups are not the reference's")
  if moments is None and not left_out and found.section('opt.state.').shapes:
    left_out.append('opt, whose encoder or predictor is not there')
  return Weights(
    source=found.path,
    format="the reference's checkpoint",
    architecture=architecture,
    target=encoders.get('target_encoder', only),
    context=encoders.get('encoder', only),
    predictor=predictor,
    predictor_size=predictor_size,
    moments=moments,
    left_out=tuple(left_out),
    **_read_mark(found),
  )


def _read_mark(found: Tensors) -> dict[str, Any]:
  """What we have written; of the authors' own files, the epoch."""
  key = 'ijepa_jax'
  told = {
    name.removeprefix(f'{key}.'): value
    for name, value in found.plain.items()
    if name.startswith(f'{key}.')
  }
  if told or key in found.plain:
    mark = Described(found.path, {key: found.plain.get(key, told)})
    return described.read_mark(mark.section(key))
  epoch = found.plain.get('epoch')
  return {'progress': {'epoch': epoch} if described.COUNT.has(epoch) else {}}


def _without_ddp(part: Tensors) -> Tensors:
  if part.shapes and all(name.startswith(_DDP) for name in part.shapes):
    return part.section(_DDP)
  return part


# --- The optimiser ---------------------------------------------------------


def _groups(parts: dict[str, list[tuple[str, int]]]) -> list[list[str]]:
  """Parameters of the optimiser's four groups (reference: `init_opt`).

  Args:
    parts: names and ranks of the tensors of encoder and predictor, in the
      order of their modules.

  Returns:
    `'encoder.NAME'`, ...: what decays of both, then what does not. The number
    of a parameter in the optimiser's state is its place in all four.
  """
  return [
    [
      f'{part}.{name}'
      for name, rank in tensors
      if ('bias' in name or rank == 1) != decays
    ]
    for decays in (True, False)
    for part, tensors in parts.items()
  ]


def _open_moments(
  found: Tensors,
  held: dict[str, Tensors],
  shapes: dict[str, dict[str, tuple[int, ...]]],
) -> Moments | None:
  """Adam's moments, or None if the groups are others."""
  parts = {
    part: [(name, len(shape)) for name, shape in held[part].shapes.items()]
    for part in _TABLES
  }
  groups = _groups(parts)
  theirs = found.plain.get('opt.param_groups')
  try:
    numbers = [group['params'] for group in theirs]  # type: ignore[union-attr]
  except (TypeError, KeyError):
    return None
  if [len(group) for group in numbers] != [len(group) for group in groups]:
    return None
  number = {
    name: str(number)
    for group, ids in zip(groups, numbers)
    for name, number in zip(group, ids)
  }
  state = found.section('opt.state.')

  def section(part: str, moment: str) -> Parameters:
    full = {
      name: f'{number[f"{part}.{name}"]}.{moment}' for name, _ in parts[part]
    }
    tensors = Tensors(
      found.path,
      {n: state.shapes[key] for n, key in full.items() if key in state.shapes},
      lambda name: state.read(full[name]),
    )
    trained = {k: v for k, v in shapes[part].items() if k != 'pos_embed'}
    return adapt.parameters(tensors, _TABLES[part], trained)

  # A tensor, or a plain number as PyTorch once saved it; of any parameter.
  step = f'{number["encoder.norm.weight"]}.step'
  plain = found.plain.get(f'opt.state.{step}')
  if step not in state.shapes and not isinstance(plain, int):
    return None
  return Moments(
    count=int(state.read(step) if plain is None else plain),
    mean={part: section(part, _MEAN) for part in _TABLES},
    square={part: section(part, _SQUARE) for part in _TABLES},
  )


# --- Writing ---------------------------------------------------------------


# The state of a `GradScaler` that has done nothing yet.
_SCALER = {
  'scale': 65536.0,
  'growth_factor': 2.0,
  'backoff_factor': 0.5,
  'growth_interval': 2000,
  '_growth_tracker': 0,
}


def write(path: str, held: Weights) -> None:
  """Writes a checkpoint that the authors' code loads strictly.

  Args:
    path: of the file.
    held: what to write; a single encoder is written as both.
  """
  torch = import_torch('the format reference')
  content: dict[str, Any] = {
    'encoder': _state_dict(torch, held.context, names.ENCODER)
  }
  content['target_encoder'] = (
    content['encoder']
    if held.single
    else _state_dict(torch, held.target, names.ENCODER)
  )
  if held.predictor is not None:
    content['predictor'] = _state_dict(torch, held.predictor, names.PREDICTOR)
  if held.moments is not None:
    content['opt'] = _optimizer(torch, held.moments, content)
  content |= {
    'scaler': _SCALER,
    'epoch': held.progress.get('epoch', 0),
    'ijepa_jax': held.mark(),
  }
  torch.save(content, path)


def _state_dict(
  torch: Any, held: Parameters, table: names.Table
) -> dict[str, Any]:
  return {
    _DDP + name: torch.from_numpy(tensor)
    for name, tensor in _in_order(held, table)
  }


def _in_order(
  held: Parameters, table: names.Table
) -> Iterator[tuple[str, np.ndarray]]:
  """Tensors in the order of the authors' modules: block by block."""
  tensors = {
    name: tensor
    for entry in table
    if entry.ours in held
    for name, tensor in names.scatter(entry, held[entry.ours])
  }
  depth = held.shapes['trunk.blocks.fc1.kernel'][0]
  for name in names.in_order(table, depth):
    if name in tensors:
      yield name, tensors[name]


def _optimizer(
  torch: Any, moments: Moments, content: dict[str, Any]
) -> dict[str, Any]:
  """`torch.optim.AdamW.state_dict()` of the reference.

  Its schedules set learning rate and decay before every update.
  """
  parts = {
    part: [
      (name.removeprefix(_DDP), tensor.ndim)
      for name, tensor in content[part].items()
    ]
    for part in _TABLES
  }
  groups = _groups(parts)
  number = {name: i for i, name in enumerate(n for g in groups for n in g)}
  state: dict[int, dict[str, Any]] = {}
  for moment, of_part in ((_MEAN, moments.mean), (_SQUARE, moments.square)):
    for part, table in _TABLES.items():
      for name, tensor in _in_order(of_part[part], table):
        entry = state.setdefault(
          number[f'{part}.{name}'],
          {'step': torch.tensor(float(moments.count))},
        )
        entry[moment] = torch.from_numpy(tensor)
  adam = {
    'lr': 0.0,
    'weight_decay': 0.0,
    'betas': (0.9, 0.999),
    'eps': 1e-8,
    'amsgrad': False,
    'maximize': False,
    'foreach': None,
    'capturable': False,
    'differentiable': False,
    'fused': None,
  }
  excluded = {'WD_exclude': True}  # the authors' mark of what does not decay
  return {
    'state': dict(sorted(state.items())),
    'param_groups': [
      adam
      | ({} if i < len(_TABLES) else excluded)
      | {'params': [number[name] for name in group]}
      for i, group in enumerate(groups)
    ],
  }
