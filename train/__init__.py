"""Training: not written yet."""
