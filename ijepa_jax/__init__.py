"""I-JEPA pre-training in JAX and Flax (Assran et al., CVPR 2023)."""

__version__ = '0.1.0'
