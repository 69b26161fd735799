"""Figures of known accelerators, for utilisation and for plans.

Rates are the vendors' peaks, which no program reaches. Sources: the data sheets
"NVIDIA A100 Tensor Core GPU" (2021), "NVIDIA H100 Tensor Core GPU", "NVIDIA
H200 Tensor Core GPU", SXM parts without sparsity; "DGX A100", "DGX H100", "DGX
H200" and "DGX B200", for hosts, network and all of B200; and Google's pages
docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture".
"""

import dataclasses

# Share of the peak rate that the matrix products of a training step are taken
# to reach, with all the time in which there are none. Megatron-LM has 44 % for
# 1.7 billion parameters of width 2304 on A100 (Narayanan et al., SC 2021,
# table 1). Ours are 1280 to 1664 wide, with a predictor of 384.
UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device and how it is connected.

  Attributes:
    kinds: the names that JAX has for it (`device_kind`). Parts of the same name
      with other rates are not among them, as H100 PCIe.
    flops: dense bfloat16 matrix products, FLOP/s.
    memory: bytes; vendors' GB are 10^9 here, of which GPUs have 5-7 % more.
    memory_rate: bytes per second of its memory.
    near: devices that are joined by the fast network.
    near_rate: bytes per second that a device sends there, to its neighbours
      in a ring: of NVLink all, of a TPU's torus the two links of one axis.
    far_rate: bytes per second for each device between hosts or slices.
    usable: share of `memory` for a program: of a GPU what JAX reserves unless
      XLA_CLIENT_MEM_FRACTION says otherwise, of a TPU what its runtime leaves,
      about.
  """

  kinds: tuple[str, ...]
  flops: float
  memory: float
  memory_rate: float
  near: int
  near_rate: float
  far_rate: float
  usable: float

  @property
  def is_gpu(self) -> bool:
    """Whether JAX reserves its memory by a share."""
    return self.kinds[0].startswith('NVIDIA')


_NVIDIA_RESERVED, _TPU_LEFT = 0.75, 0.95

# Per GPU one network card: 200 Gb/s (DGX A100), 400 Gb/s (the others). NVLink
# is sold by both directions together: 600, 900, 900 and 1800 GB/s.
ACCELERATORS = {
  'a100-40gb': Accelerator(
    ('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
    312e12,
    40e9,
    1.555e12,
    8,
    300e9,
    25e9,
    _NVIDIA_RESERVED,
  ),
  'a100-80gb': Accelerator(
    ('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe'),
    312e12,
    80e9,
    2.039e12,
    8,
    300e9,
    25e9,
    _NVIDIA_RESERVED,
  ),
  'h100-80gb': Accelerator(
    ('NVIDIA H100 80GB HBM3',),
    989e12,
    80e9,
    3.35e12,
    8,
    450e9,
    50e9,
    _NVIDIA_RESERVED,
  ),
  'h200-141gb': Accelerator(
    ('NVIDIA H200',), 989e12, 141e9, 4.8e12, 8, 450e9, 50e9, _NVIDIA_RESERVED
  ),
  'b200-180gb': Accelerator(
    ('NVIDIA B200',), 2250e12, 180e9, 8e12, 8, 900e9, 50e9, _NVIDIA_RESERVED
  ),
  # All links of a chip, in and out, have 600 (v4), 400 (v5e), 1200 (v5p) and
  # 800 (v6e) GB/s: 6, 4, 6 and 4 links. Google names no rate between slices
  # for v4; v5p's is taken.
  'tpu-v4': Accelerator(
    ('TPU v4',), 275e12, 32e9, 1.2e12, 4096, 100e9, 6.25e9, _TPU_LEFT
  ),
  'tpu-v5e': Accelerator(
    ('TPU v5 lite', 'TPU v5e'),
    197e12,
    16e9,
    0.819e12,
    256,
    100e9,
    3.125e9,
    _TPU_LEFT,
  ),
  'tpu-v5p': Accelerator(
    ('TPU v5', 'TPU v5p'),
    459e12,
    95e9,
    2.765e12,
    8960,
    200e9,
    6.25e9,
    _TPU_LEFT,
  ),
  'tpu-v6e': Accelerator(
    ('TPU v6 lite', 'TPU v6e'),
    918e12,
    32e9,
    1.638e12,
    256,
    200e9,
    12.5e9,
    _TPU_LEFT,
  ),
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of one device, or None when it is not known."""
  for accelerator in ACCELERATORS.values():
    if device_kind in accelerator.kinds:
      return accelerator.flops
  return None
