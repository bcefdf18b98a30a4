"""Latents on disk: `.safetensors` and `.npy` for a clip, a Zarr store for a stream without end."""
