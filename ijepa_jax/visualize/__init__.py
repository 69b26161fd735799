"""Pictures of masks, training and features, as PNG files."""
