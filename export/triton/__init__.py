"""Triton model repositories of a bundle."""
