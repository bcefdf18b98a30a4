"""Mutated files of every format: how they are made, and what runs on them."""
