"""Bundle to streams: encodes and decodes videos of any length. Needs numpy, ONNX Runtime and PyAV,
never PyTorch.

To read it: bundle, stream, feed, step, then one of the backends; jobs handle whole files.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle, open_bundle
    from wfvae.runtime.jobs import Report, decode_video, encode_video, reconstruct_video

# ONNX Runtime reads it when it is imported. Without it, it writes an identifier of the device into
# the home folder and sends events; whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Bundle", "Report", "decode_video", "encode_video", "open_bundle", "reconstruct_video"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the shared parts can be imported without ONNX Runtime's start-up time.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "bundle" if name in ("Bundle", "open_bundle") else "jobs"
    return getattr(import_module(f"wfvae.runtime.{home}"), name)
