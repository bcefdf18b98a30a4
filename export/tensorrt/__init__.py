"""TensorRT engines from a bundle's graphs. Nothing in here has ever run on a GPU; see
`docs/tensorrt.md`.
"""
