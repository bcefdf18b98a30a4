"""Latents on disk: safetensors and npy for clips, Zarr for streams without end."""
