"""Speed of the authors' mask collator (github.com/facebookresearch/ijepa).

  python benchmarks/reference_masks.py --reference=DIR --patch-size=16 \
      --image-size=224 --batch-size=128

DIR is a checkout of theirs, which is under another licence than this project.
Samples of one context and four targets per second of CPU time, with one thread
of PyTorch, as in one of their loader's workers. The last line is JSON, for
`python -m ijepa_jax.benchmark masks --vs='...'`. Needs PyTorch, and nothing of
ijepa_jax.
"""

import argparse
import json
import pathlib
import statistics
import time

import reference_step


def main() -> None:
  """Prints the result as the last line."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--reference', required=True, type=pathlib.Path, metavar='DIR')
  add('--patch-size', type=int, default=16)
  add('--image-size', type=int, default=224)
  add('--batch-size', type=int, default=128)
  add('--batches', type=int, default=10, help='measured; one before them')
  args = parser.parse_args()
  torch = reference_step.import_torch(args.reference)
  torch.manual_seed(0)
  torch.set_num_threads(1)
  collator = reference_step.make_collator(args.image_size, args.patch_size)
  seconds = []
  for _ in range(args.batches + 1):
    start = time.process_time()
    collator([0] * args.batch_size)
    seconds.append(time.process_time() - start)
  result = {
    'samples_per_second': args.batch_size / statistics.median(seconds[1:]),
    'seconds': seconds[1:],
    'torch': torch.__version__,
    'patch_size': args.patch_size,
    'image_size': args.image_size,
    'batch_size': args.batch_size,
  }
  print(json.dumps(result))


if __name__ == '__main__':
  main()
