"""The sizes of the mesh's axes, by arithmetic."""

import math
from collections.abc import Mapping

from ijepa_jax import errors

# In this order, the last one among the nearest devices. The batch is split
# over data and fsdp, the parameters over fsdp and tensor.
AXES = ('data', 'fsdp', 'tensor')


def shape(mesh: Mapping[str, int], devices: int | None) -> tuple[int, int, int]:
  """Devices along `AXES`, where -1 takes all that the others leave.

  Args:
    mesh: sizes by axis.
    devices: of all hosts together; None: the fewest that there may be.

  Raises:
    UserError: the axes do not make up the devices.
  """
  sizes = [mesh[axis] for axis in AXES]
  for axis, size in zip(AXES, sizes):
    if size == 0:
      raise errors.UserError(f'mesh.{axis}=0: expected -1 or more; nearest: -1')
  filled = [axis for axis, size in zip(AXES, sizes) if size == -1]
  if len(filled) > 1:
    raise errors.UserError(
      f'mesh.{filled[1]}=-1: mesh.{filled[0]} already takes all devices that '
      'are left; nearest: 1'
    )
  known = math.prod(size for size in sizes if size != -1)
  devices = known if devices is None else devices
  if devices % known if filled else devices != known:
    raise errors.UserError(_does_not_fit(sizes, known, devices, bool(filled)))
  data, fsdp, tensor = (
    devices // known if size == -1 else size for size in sizes
  )
  return data, fsdp, tensor


def nearest_divisor(size: int, number: int) -> int:
  """The divisor of `number` that is nearest to `size`."""
  divisors = (n for n in range(1, number + 1) if number % n == 0)
  return min(divisors, key=lambda n: abs(n - size))


def _does_not_fit(
  sizes: list[int], known: int, devices: int, filled: bool
) -> str:
  """What is wrong, of the axis that is most likely meant otherwise."""
  named = ' x '.join(
    f'mesh.{axis}={size}' for axis, size in zip(AXES, sizes) if size > 1
  )
  if not filled:
    return (
      f'{named or "mesh.data=1"}: makes {known}, expected the number of '
      f'devices, {devices}; nearest: mesh.data=-1 (all that are left)'
    )
  largest = max(sizes)
  axis = AXES[sizes.index(largest)]
  others = known // largest
  nearest = (
    nearest_divisor(largest, devices // others) if devices % others == 0 else 1
  )
  return (
    f'{named}: expected a divisor of the number of devices, {devices}; '
    f'nearest: mesh.{axis}={nearest}'
  )
