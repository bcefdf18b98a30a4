"""The backends by name. Each one's module is imported when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wfvae.errors import BundleError, InputError

if TYPE_CHECKING:
    from wfvae.runtime.backends.base import Backend, BackendOptions
    from wfvae.spec.manifest import Manifest

BACKENDS = ("auto", "onnxruntime", "tensorrt", "openvino")


def open_backend(name: str, path: Path, manifest: Manifest, options: BackendOptions) -> Backend:
    """Opens the backend `name`, one of `BACKENDS`, for the bundle at `path`."""
    if name == "tensorrt":
        from wfvae.runtime.backends.nvidia.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(path, manifest, options)
    if name == "openvino":
        from wfvae.runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, manifest.files, options)
    from wfvae.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, manifest.files, options)


def check_backend(name: str, options: BackendOptions) -> None:
    """Raises `BundleError` if there is no such backend, `InputError` if it lacks an option."""
    if name not in BACKENDS:
        raise BundleError(f"backend is {name!r}; this version has {', '.join(BACKENDS)}")
    if options.precision_hint is not None and name != "openvino":
        raise InputError(
            f"the precision hint {options.precision_hint} was given for the backend {name}; only openvino"
            " has one"
        )
    if options.provider == "cuda" and name == "openvino":
        raise InputError(
            "the provider cuda was given for the backend openvino, which runs on the CPU; leave it out, or"
            " use onnxruntime"
        )
