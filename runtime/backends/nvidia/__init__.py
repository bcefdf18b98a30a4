"""NVIDIA GPUs: TensorRT as backend, the part of CUDA that it drives, and versions of what is
installed. Importing this package imports none of NVIDIA's.
"""
