"""TensorRT engines from a bundle's graphs (experimental: not yet run on a GPU)."""
