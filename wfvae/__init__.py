"""WF-VAE: train, export once, and stream videos of any length through a wavelet-driven video
autoencoder.

`import wfvae` is cheap: a name is loaded, with torch or ONNX Runtime behind it, when it is first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wfvae.model.config import WFVAEConfig
    from wfvae.model.vae import WFVAE
    from wfvae.runtime import open_bundle

__version__ = "0.1.0"  # the only place; pyproject.toml reads it from here
__all__ = ["WFVAE", "WFVAEConfig", "__version__", "open_bundle"]

_HOME = {"WFVAE": "wfvae.model.vae", "WFVAEConfig": "wfvae.model.config", "open_bundle": "wfvae.runtime"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'wfvae' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
