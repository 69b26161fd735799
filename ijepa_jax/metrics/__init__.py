"""What a run tells its user: files of figures, progress, warnings, summary."""
