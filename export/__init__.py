"""Checkpoint to bundle, and the proof that the bundle is right. Needs the extra `export`."""
