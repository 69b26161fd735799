"""Pictures of masks and training, drawn with matplotlib as PNG files."""
