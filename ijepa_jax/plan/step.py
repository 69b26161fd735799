"""The training step, compiled for devices that are not there."""

import contextlib
import math
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from ijepa_jax import program, resume, sharding, train_step
from ijepa_jax.config import validate
from ijepa_jax.plan import hlo, memory, work

# The program is read as the partitioner leaves it; how well a CPU would run it
# does not matter.
_OPTIONS: dict[str, Any] = {
  'xla_dump_hlo_pass_re': 'call-inliner',
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}
# Files are numbered; the last of these is right after the partitioner, or, for
# one device, the first with all calls in place.
_PARTITIONED = '*.after_call-inliner.*'


class Step(NamedTuple):
  """What a step asks of each device.

  Attributes:
    shape: devices along data, fsdp and tensor.
    images: per device and at a time: of a part, if `optim.accumulate` makes
      parts.
    state_bytes: parameters, target encoder and Adam moments.
    gradient_bytes: as long as all are there at once.
    timeline: bytes wherever memory may rise: all of it, with the batch.
    flops: of matrix products, padding included.
    moved_bytes: what matrix products and the update read and write.
    collectives: what is sent.
  """

  shape: tuple[int, int, int]
  images: int
  state_bytes: int
  gradient_bytes: int
  timeline: Sequence[int]
  flops: int
  moved_bytes: int
  collectives: list[work.Collective]

  @property
  def peak_bytes(self) -> int:
    """Bytes at the worst moment."""
    return max(self.timeline)


def compile_step(config: ConfigDict, devices: int, near: int) -> Step:
  """Compiles the step, and counts.

  Args:
    config: the run's config, resolved.
    devices: that the mesh shall have, at most those that are simulated.
    near: devices on the fast network.

  Raises:
    UserError: the config does not fit the devices.
  """
  validate.validate(config, devices)
  mesh = make_mesh(config, devices)
  state = resume.abstract_state(config, mesh)
  text, _ = partition_step(config, mesh)
  one = hlo.parse(text)
  arguments = memory.argument_bytes(one)
  state_bytes = device_bytes(state)
  gradient_bytes = device_bytes(state.params)
  data, fsdp, _ = shape = tuple(mesh.shape.values())
  return Step(
    shape=shape,
    images=config.batch_size // (data * fsdp * config.optim.accumulate),
    state_bytes=state_bytes,
    gradient_bytes=gradient_bytes,
    timeline=[arguments + live for live in memory.timeline(one)],
    flops=work.flops(one),
    moved_bytes=work.product_bytes(one) + 2 * (state_bytes + gradient_bytes),
    collectives=work.collectives(one, near),
  )


def make_mesh(config: ConfigDict, devices: int) -> jax.sharding.Mesh:
  """The mesh of a config on the first of the simulated devices."""
  return sharding.make_mesh(config, jax.devices()[:devices])


def partition_step(
  config: ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[str, Any]:
  """The program of one device, and what memory a CPU would need for it."""
  learner = train_step.Learner(config, sharding.constrain(mesh))
  state = resume.abstract_state(config, mesh)
  longest = max(program.target_lengths(config))
  return partition(program.lower_step(config, learner, state, mesh, longest))


def partition(lowered: jax.stages.Lowered) -> tuple[str, Any]:
  """A program as XLA's partitioner leaves it, and XLA's plan of its memory."""
  with tempfile.TemporaryDirectory() as folder, _without_cache():
    compiled = lowered.compile(_OPTIONS | {'xla_dump_to': folder})
    *_, last = sorted(pathlib.Path(folder).glob(_PARTITIONED))
    return last.read_text(), compiled.memory_analysis()


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """A program from the compilation cache would not be partitioned again."""
  enabled = jax.config.values['jax_enable_compilation_cache']
  _enable_cache(False)
  try:
    yield
  finally:
    _enable_cache(enabled)


def _enable_cache(enabled: bool) -> None:
  jax.config.update('jax_enable_compilation_cache', enabled)
  compilation_cache.reset_cache()  # JAX looks at the flag only once


def device_bytes(tree: Any) -> int:
  """Bytes on one device of arrays with shardings, or of their shapes."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
