"""What `gpu_check.py` runs, in order of importance, and at which sizes."""

import functools
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import gpu_attention
import gpu_correctness
import gpu_speed
from gpu_tasks import Process, Task
from ml_collections import ConfigDict

from ijepa_jax.config import command

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Images per update, as the authors had on each of their GPUs.
BATCH = 128

# cuDNN's backward pass adds in any order unless XLA is told otherwise.
_DETERMINISTIC = '--xla_gpu_exclude_nondeterministic_ops=true'
# The memory does not depend on the algorithms that tuning would choose.
_UNTUNED = '--xla_gpu_autotune_level=0'


def load(name: str, **fields: Any) -> ConfigDict:
  """A config of this project; fields are named with `__` for the dot."""
  arguments = [
    f'--config.{field.replace("__", ".")}={value}'
    for field, value in fields.items()
  ]
  file = ROOT / 'configs' / f'{name}.py'
  config, _ = command.parse([sys.argv[0], f'--config={file}', *arguments])
  return config


def plan(
  *,
  smoke: bool = False,
  only: str = '',
  reference: pathlib.Path | None = None,
  reference_python: str = sys.executable,
) -> list[Process]:
  """All processes with their tasks.

  Args:
    smoke: tiny sizes, for a CPU.
    only: a regular expression that a task's name contains; the device is
      always looked at.
    reference: folder of the authors' code.
    reference_python: the interpreter that has PyTorch.
  """
  processes = _smoke() if smoke else _full()
  if reference:
    processes[_BEFORE_REFERENCE:_BEFORE_REFERENCE] = _reference(
      reference, reference_python, smoke
    )
  return [
    Process(tasks, process.flags, process.environment)
    for process in processes
    if (
      tasks := tuple(
        task
        for task in process.tasks
        if task.name == 'device' or re.search(only, task.name)
      )
    )
  ]


# The reference comes after the card, correctness, and our own targets.
_BEFORE_REFERENCE = 7


def _full() -> list[Process]:
  base = load('vitb16', batch_size=4)
  rates = ((8192, 8192, 8192), (BATCH * 256, 1280, 5120), (63488, 384, 1536))
  return [
    Process(
      (
        Task('device', 5, functools.partial(gpu_speed.device, False)),
        Task(
          'matrix rate', 10, functools.partial(gpu_speed.matrix_rate, rates)
        ),
        Task('copy rate', 5, functools.partial(gpu_speed.copy_rate, 1 << 29)),
      )
    ),
    Process((*_gradients(base), *_attention(gpu_attention.VITH14, 8))),
    Process((_step('vith14', 'xla', 'none', 75),)),
    Process((_step('vith14', 'cudnn', 'none', 75),)),
    Process((_step('vitl16', 'cudnn', 'none', 55),)),
    Process((_step('vitb16', 'cudnn', 'none', 45),)),
    Process((_again('vith14', 30),)),
    Process(tuple(_attention(gpu_attention.OTHERS, 8))),
    Process(tuple(_twice('vitb16', 40))),
    Process((_step('vith14', 'cudnn', 'dots', 75),)),
    Process(tuple(_memory((128,), 20)), _UNTUNED),
    Process((_step('vitl16', 'xla', 'none', 55),)),
    Process((_step('vitb16', 'xla', 'none', 45),)),
    Process((_same('vitb16', 30),), environment=_NO_CACHE),
    Process(
      (_twice('vitb16', 40, prefix='deterministic ')[1],), _DETERMINISTIC
    ),
    Process((_step('vith14', 'xla', 'dots', 75),)),
    Process((_step('vith14', 'cudnn', 'full', 75),)),
    Process((_step('vith14', 'xla', 'full', 75),)),
    Process((_step('vitl16', 'cudnn', 'none', 65, batch_size=256),)),
    Process((_step('vitb16', 'cudnn', 'none', 55, batch_size=512),)),
    Process(tuple(_memory((64, 256, 512), 20)), _UNTUNED),
    Process((_step('vith14', 'cudnn', 'none', 240, model__unroll=True),)),
  ]


# Otherwise the second process would get the first one's compiled program.
_NO_CACHE = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}

# For `--smoke`: seconds instead of minutes on a CPU. All tasks have the same
# program as far as they can, so that most find it compiled.
_TINY: dict[str, Any] = {
  'batch_size': 4,
  'model__unroll': False,
  'predictor__width': 24,
  'predictor__depth': 1,
}
_COMPILE_FAST = '--xla_backend_optimization_level=0'


def _smoke() -> list[Process]:
  tiny = load('quickstart', **_TINY)
  rates = ((64, 64, 64),)
  return [
    Process(
      (
        Task('device', 0, functools.partial(gpu_speed.device, True)),
        Task('matrix rate', 0, functools.partial(gpu_speed.matrix_rate, rates)),
        Task('copy rate', 0, functools.partial(gpu_speed.copy_rate, 1 << 14)),
        *_gradients(tiny),
        *_attention(gpu_attention.TINY, 3),
      ),
      _COMPILE_FAST,
    ),
    Process(
      (
        _step('quickstart', 'xla', 'none', 0, **_TINY),
        _step('quickstart', 'cudnn', 'none', 0, **_TINY),
        *_twice('quickstart', 0, **_TINY),
        *_memory((4,), 0, 'quickstart', ('none',), **_TINY),
      ),
      _COMPILE_FAST,
    ),
    Process(
      (
        _again('quickstart', 0, **_TINY),
        _same('quickstart', 0, **_TINY),
      ),
      _COMPILE_FAST,
    ),
  ]


# --- Tasks -----------------------------------------------------------------


def _gradients(config: ConfigDict) -> list[Task]:
  compare = gpu_correctness.bfloat16_against_float32
  return [
    Task(
      'float32 against CPU',
      40,
      functools.partial(gpu_correctness.float32_against_cpu, config),
    ),
    *(
      Task(
        f'bfloat16 {attention} against float32',
        30,
        functools.partial(compare, config, attention),
      )
      for attention in ('cudnn', 'xla')
    ),
  ]


def _attention(shapes: Sequence[gpu_attention.Shape], batch: int) -> list[Task]:
  return [
    Task(
      f'attention {implementation} {shape}',
      3,
      functools.partial(gpu_attention.check, shape, implementation, batch),
    )
    for shape in shapes
    for implementation in ('cudnn', 'xla')
  ]


def _step(
  name: str, attention: str, remat: str, seconds: float, **fields: Any
) -> Task:
  fields = {'batch_size': BATCH} | fields
  config = load(name, model__attention=attention, model__remat=remat, **fields)
  unrolled = ' unrolled' if config.model.unroll else ''
  title = f'{name} batch {config.batch_size} {attention} {remat}{unrolled}'
  smoke = name == 'quickstart'
  run = functools.partial(
    gpu_speed.training_step,
    config,
    3 if smoke else 40,
    1.0 if smoke else 12.0,
  )
  return Task(f'step {title}', seconds, run)


def _again(name: str, seconds: float, **fields: Any) -> Task:
  config = load(name, **({'batch_size': BATCH} | fields))
  run = functools.partial(gpu_speed.start_again, config)
  return Task(f'start of {name} with the cache', seconds, run)


def _twice(
  name: str, seconds: float, *, prefix: str = '', **fields: Any
) -> list[Task]:
  return [
    Task(
      f'{prefix}two runs {attention}',
      seconds,
      functools.partial(
        gpu_correctness.same_twice,
        load(name, **({'batch_size': 64} | fields), model__attention=attention),
        attention == 'xla' or bool(prefix),
      ),
    )
    for attention in ('xla', 'cudnn')
  ]


def _same(name: str, seconds: float, **fields: Any) -> Task:
  config = load(name, **({'batch_size': 64} | fields))
  run = functools.partial(gpu_correctness.same_as, config, 'two runs xla')
  return Task('two processes xla', seconds, run)


def _memory(
  batches: Sequence[int],
  seconds: float,
  name: str = 'vith14',
  policies: Sequence[str] = ('none', 'dots', 'full'),
  **fields: Any,
) -> list[Task]:
  return [
    Task(
      f'memory {name} batch {batch} {attention} {remat}',
      seconds,
      functools.partial(
        gpu_speed.planned_memory,
        load(
          name,
          **(fields | {'batch_size': batch}),
          model__attention=attention,
          model__remat=remat,
        ),
      ),
    )
    for batch in batches
    for attention in ('cudnn', 'xla')
    for remat in policies
  ]


# Arguments of reference_step.py: what is measured beside it, and a tiny one.
_HUGE = f"""--variant vit_huge --patch-size 14 --image-size 224
  --batch-size {BATCH} --predictor-depth 12 --steps 20 --seconds 12
  --autocast --device cuda"""
_TINY_REFERENCE = """--variant vit_tiny --patch-size 16 --image-size 96
  --batch-size 2 --predictor-depth 1 --steps 2 --device cpu"""


def _reference(folder: pathlib.Path, python: str, smoke: bool) -> list[Process]:
  """The authors' code as it is, and made faster by what PyTorch offers."""
  script = str(ROOT / 'benchmarks' / 'reference_step.py')
  line = [python, script, '--reference', str(folder)]
  line += shlex.split(_TINY_REFERENCE if smoke else _HUGE)
  faster = [*line, '--sdpa']
  if not smoke:
    # Their lengths change with every batch: it compiles more than once.
    faster += ['--compile', '--warmup', '8']
  return [
    Process((Task(name, seconds, functools.partial(gpu_speed.reference, x)),))
    for name, seconds, x in (
      ('reference, eager', 0 if smoke else 50, line),
      ('reference, SDPA and torch.compile', 0 if smoke else 150, faster),
    )
  ]
