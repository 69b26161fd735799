"""Speed of the authors' training step (github.com/facebookresearch/ijepa).

  python benchmarks/reference_step.py --reference=DIR --variant=vit_tiny \
      --patch-size=16 --image-size=224 --batch-size=32 --predictor-depth=6

DIR is a checkout of theirs, which is under another licence than this project.
Their models, mask collator, optimiser and schedules do the steps of their
`src/train.py` on synthetic images; only the data loader and the wrapper for
several GPUs are left out. The last line is JSON, for `python -m
ijepa_jax.benchmark step --vs='...'`. Needs PyTorch, and nothing of ijepa_jax.

Their masks have another length in every batch, so the time of a step varies;
`images_per_second` is by the median step.
"""

import argparse
import copy
import importlib
import json
import logging
import math
import pathlib
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

# Where their files are, in DIR.
_NEEDED = ('src/helper.py', 'src/masks/multiblock.py')
# As in their configs for ImageNet.
_MASKS = {
  'enc_mask_scale': (0.85, 1.0),
  'pred_mask_scale': (0.15, 0.2),
  'aspect_ratio': (0.75, 1.5),
  'nenc': 1,
  'npred': 4,
  'allow_overlap': False,
}
_MIN_KEEP = 10
_FEWEST = 3  # measured steps, however short --seconds is


def main() -> None:
  """Prints progress on stderr, and the result as the last line."""
  args = _parse()
  torch = import_torch(args.reference)
  if args.device == 'cuda' and not torch.cuda.is_available():
    _refuse('--device=cuda: PyTorch sees no GPU')
  warnings.filterwarnings('ignore', module='torch')  # of what theirs call
  torch.manual_seed(0)
  torch.backends.cudnn.benchmark = True  # as they do

  step, masks = _make_step(args)
  seconds, lengths, mask_seconds = [], [], []
  begin = time.perf_counter()
  for number in range(args.warmup + args.steps):
    if number == args.warmup:
      begin = time.perf_counter()
      if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    measured = number - args.warmup
    if measured >= _FEWEST and time.perf_counter() - begin > args.seconds:
      break
    start = time.process_time()
    context, target = masks()
    mask_seconds.append(time.process_time() - start)
    start = time.perf_counter()
    loss = step(context, target)  # a float: the device is done
    seconds.append(time.perf_counter() - start)
    lengths.append((context[0].shape[1], target[0].shape[1]))
    print(
      f'step {number + 1}: {seconds[-1]:.3f} s, loss {loss:.4f}',
      file=sys.stderr,
      flush=True,
    )
  seconds = seconds[args.warmup :]
  contexts, targets = zip(*lengths[args.warmup :])
  on_gpu = args.device == 'cuda'
  result = {
    'images_per_second': args.batch_size / statistics.median(seconds),
    'seconds': seconds,
    'context_tokens': statistics.mean(contexts),
    'target_tokens': statistics.mean(targets),
    'mask_samples_per_second': args.batch_size
    / statistics.median(mask_seconds),
    'peak_memory_bytes': torch.cuda.max_memory_allocated()
    if on_gpu
    else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    'peak_memory_source': 'PyTorch on the GPU' if on_gpu else 'the process',
    'torch': torch.__version__,
    'threads': torch.get_num_threads(),
    'device': torch.cuda.get_device_name() if on_gpu else 'cpu',
    **{
      name: value
      for name, value in vars(args).items()
      if name not in ('reference', 'device', 'seconds')
    },
  }
  print(json.dumps(result))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--reference', required=True, type=pathlib.Path, metavar='DIR')
  add('--variant', default='vit_tiny', help='as in their vision_transformer.py')
  add('--patch-size', type=int, default=16)
  add('--image-size', type=int, default=224)
  add('--batch-size', type=int, default=32)
  add('--predictor-depth', type=int, default=6)
  add('--predictor-width', type=int, default=384)
  add('--steps', type=int, default=50, help='measured, at most')
  add('--seconds', type=float, default=30.0, help='stop when they have passed')
  add('--warmup', type=int, default=2, help='steps that do not count')
  add('--autocast', action='store_true', help='bfloat16, as they train')
  add('--sdpa', action='store_true', help="PyTorch's fused attention")
  add('--compile', action='store_true', help='torch.compile; give it --warmup')
  add('--device', choices=('cpu', 'cuda'), default='cpu')
  return parser.parse_args()


def _make_step(
  args: argparse.Namespace,
) -> tuple[Callable[[Any, Any], float], Callable[[], tuple[Any, Any]]]:
  """Their training step, and their masks: `main` of their `src/train.py`."""
  import torch
  from torch.nn import functional

  helper = _theirs('helper')
  vision_transformer = _theirs('models.vision_transformer')
  apply_masks = _theirs('masks.utils').apply_masks
  repeat_interleave_batch = _theirs('utils.tensors').repeat_interleave_batch
  grad_logger = _theirs('utils.logging').grad_logger

  if args.variant not in vision_transformer.VIT_EMBED_DIMS:
    known = ', '.join(vision_transformer.VIT_EMBED_DIMS)
    _refuse(f'--variant={args.variant}: expected one of {known}')
  if args.sdpa:
    vision_transformer.Attention.forward = _fused_attention
  device = torch.device(args.device)
  encoder, predictor = helper.init_model(
    device=device,
    patch_size=args.patch_size,
    model_name=args.variant,
    crop_size=args.image_size,
    pred_depth=args.predictor_depth,
    pred_emb_dim=args.predictor_width,
  )
  target_encoder = copy.deepcopy(encoder)
  for parameter in target_encoder.parameters():
    parameter.requires_grad = False
  # Of a long run's first epochs: the images are noise, the loss stays finite.
  optimizer, scaler, schedule, decay_schedule = helper.init_opt(
    encoder=encoder,
    predictor=predictor,
    wd=0.04,
    final_wd=0.4,
    start_lr=2e-4,
    ref_lr=1e-3,
    final_lr=1e-6,
    iterations_per_epoch=1000,
    warmup=40,
    num_epochs=300,
    ipe_scale=1.0,
    use_bfloat16=args.autocast,
  )
  parameters = list(zip(encoder.parameters(), target_encoder.parameters()))
  named = list(encoder.named_parameters())
  if args.compile:
    encoder, predictor, target_encoder = map(
      torch.compile, (encoder, predictor, target_encoder)
    )
  images = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
  if args.device == 'cuda':
    images = images.pin_memory()
  collator = make_collator(args.image_size, args.patch_size)
  momentum = 0.996

  def masks() -> tuple[Any, Any]:
    _, context, target = collator([0] * args.batch_size)
    return context, target

  def step(masks_enc: Any, masks_pred: Any) -> float:
    schedule.step()
    decay_schedule.step()
    batch = images.to(device, non_blocking=True)
    masks_enc = [x.to(device, non_blocking=True) for x in masks_enc]
    masks_pred = [x.to(device, non_blocking=True) for x in masks_pred]
    with torch.autocast(args.device, torch.bfloat16, enabled=args.autocast):
      with torch.no_grad():
        h = target_encoder(batch)
        h = functional.layer_norm(h, (h.size(-1),))
        h = apply_masks(h, masks_pred)
        h = repeat_interleave_batch(h, len(batch), repeat=len(masks_enc))
      z = predictor(encoder(batch, masks_enc), masks_enc, masks_pred)
      loss = functional.smooth_l1_loss(z, h)
    if args.autocast:
      scaler.scale(loss).backward()
      scaler.step(optimizer)
      scaler.update()
    else:
      loss.backward()
      optimizer.step()
    grad_logger(named)
    optimizer.zero_grad()
    with torch.no_grad():
      for online, target in parameters:
        target.data.mul_(momentum).add_((1.0 - momentum) * online.detach().data)
    value = float(loss.detach())
    if args.device == 'cuda':
      torch.cuda.synchronize()
    return value

  return step, masks


def import_torch(reference: pathlib.Path) -> Any:
  """PyTorch; their code, in the folder `reference`, can be imported then."""
  missing = [name for name in _NEEDED if not (reference / name).is_file()]
  if missing:
    _refuse(
      f'--reference={reference}: expected a checkout of '
      f'github.com/facebookresearch/ijepa, {missing[0]} is missing'
    )
  sys.path.insert(0, str(reference))
  try:
    import torch
  except ImportError:
    _refuse("PyTorch is missing; pip install -e '.[torch]'")
  # Theirs logs to stdout, from its import on.
  logging.disable(logging.WARNING)
  return torch


def make_collator(image_size: int, patch_size: int) -> Any:
  """Their mask collator with the masks of their configs."""
  return _theirs('masks.multiblock').MaskCollator(
    input_size=image_size,
    patch_size=patch_size,
    min_keep=min_keep(image_size // patch_size),
    **_MASKS,
  )


def _theirs(name: str) -> Any:
  """A module of theirs; its package is called `src`."""
  return importlib.import_module(f'src.{name}')


def min_keep(grid: int) -> int:
  """Their 10 patches, or less than any target has on few patches.

  Otherwise their collator would look for a target forever.
  """
  smallest = grid * grid
  for u in (i / 1000 for i in range(1001)):
    area = int(grid * grid * (0.15 + 0.05 * u))
    aspect = 0.75 + 0.75 * u
    height = min(round(math.sqrt(area * aspect)), grid - 1)
    width = min(round(math.sqrt(area / aspect)), grid - 1)
    smallest = min(smallest, height * width)
  return min(_MIN_KEEP, smallest - 1)


def _fused_attention(self: Any, x: Any) -> tuple[Any, None]:
  """Their `Attention.forward` with PyTorch's scaled_dot_product_attention."""
  from torch.nn import functional

  qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D/H)
  query, key, value = qkv.permute(2, 0, 3, 1, 4)
  x = functional.scaled_dot_product_attention(query, key, value)
  return self.proj(x.transpose(1, 2).flatten(2)), None


def _refuse(message: str) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  raise SystemExit(2)


if __name__ == '__main__':
  main()
