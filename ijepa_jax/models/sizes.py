"""Named sizes of the encoder (paper, appendix A.1; reference: `models/`)."""

import dataclasses
import fractions


@dataclasses.dataclass(frozen=True)
class Size:
  """Shape of a vision transformer.

  Attributes:
    width: channels of a token, `D`.
    depth: number of blocks.
    heads: attention heads, `H`.
    mlp_ratio: hidden channels of a block's MLP over `width`.
  """

  width: int
  depth: int
  heads: int
  mlp_ratio: fractions.Fraction = fractions.Fraction(4)

  @property
  def hidden(self) -> int:
    """Hidden channels of a block's MLP (truncated, as in the reference)."""
    return int(self.width * self.mlp_ratio)


SIZES = {
  # Not in the paper: small enough to learn on a CPU within minutes.
  'vit_micro': Size(96, 4, 3),
  'vit_tiny': Size(192, 12, 3),
  'vit_small': Size(384, 12, 6),
  'vit_base': Size(768, 12, 12),
  'vit_large': Size(1024, 24, 16),
  'vit_huge': Size(1280, 32, 16),
  'vit_giant': Size(1408, 40, 16, fractions.Fraction(48, 11)),
  # ViT-G, 1.8 billion parameters (Zhai et al., CVPR 2022, table 2).
  'vit_gigantic': Size(1664, 48, 16, fractions.Fraction(64, 13)),
}
