"""Parts of a certificate: hashes of arrays, versions of packages."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from wfvae.export.parity.difference import Array

FORMAT = "wfvae-parity/1"
_PACKAGES = (
    "wfvae",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "polygraphy",
    "tensorrt",
    "torch",
)


def frame_hashes(frames: Array) -> tuple[str, ...]:
    """Returns the SHA-256 of each entry along the first axis, row-major, little-endian."""
    portable = frames.astype(frames.dtype.newbyteorder("<"), copy=False)
    return tuple(array_sha256(frame) for frame in portable)


def array_sha256(array: Array) -> str:
    """Returns the SHA-256 of an array's bytes, row-major."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def installed_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
