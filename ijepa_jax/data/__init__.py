"""Reading images: sources, decoding, transforms, masks, the pipeline.

Nothing in this package imports JAX or TensorFlow.
"""
