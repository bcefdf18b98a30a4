"""Triton model repositories from a bundle (experimental: not yet served on a GPU)."""
