"""Procedural videos of moving shapes, textures and text; a seed gives the same everywhere."""
