"""Bundle to streams: encode and decode videos of any length. Needs numpy, ONNX Runtime and PyAV;
never PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wfvae.runtime.bundle import Bundle as Bundle
    from wfvae.runtime.bundle import open_bundle as open_bundle

__all__ = ["Bundle", "open_bundle"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the shared parts can be imported without ONNX Runtime's start-up time.
    if name in __all__:
        from wfvae.runtime import bundle

        return getattr(bundle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
