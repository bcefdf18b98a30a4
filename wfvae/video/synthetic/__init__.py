"""Procedural videos: moving shapes, textures and text, the same for the same seed on every machine."""
