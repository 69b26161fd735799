"""Peak rates of known accelerators, for model FLOP utilisation."""

# Dense bfloat16 matrix products in FLOP/s, by the start of JAX's
# `device_kind`. Sources: the vendors' data sheets (NVIDIA A100, H100, H200,
# B200 without sparsity; Google Cloud TPU system architecture).
_PEAK_BF16 = {
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of one device, or None when it is not known."""
  for kind, peak in _PEAK_BF16.items():
    if device_kind.startswith(kind):
      return peak
  return None
