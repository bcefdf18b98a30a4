"""How a served model opens its bundle and runs streams.

`wfvae triton --platform python` writes it, `wfvae.runtime.serving` reads it.
"""

from typing import Annotated, Literal

from msgspec import Meta

from wfvae.spec.records import Record
from wfvae.spec.stream import Size

BUNDLE_FOLDER = "bundle"
"""Folder of the bundle, beside the `model.py` that serves it."""
SERVING_PARAMETER = "wfvae_serving"
"""Key of the model parameter with these options, as JSON."""


class ServingOptions(Record, frozen=True, kw_only=True):
    """Options of one served direction of a bundle. Those of `open_bundle` have its meaning."""

    backend: str = "auto"
    threads: Size | None = None
    tf32: bool = False
    cuda_graphs: bool = False
    precision_hint: Literal["fp32", "bf16"] | None = None
    memory_limit: Size | None = None
    """Bytes for the streams of one video size that share a step."""
    chunk: Size | None = None
    """Most latents per step; None: the tuned length, else 4."""
    rows: Size = 4
    """Streams that share one step."""
    idle_seconds: Annotated[float, Meta(gt=0)] = 60
    """A stream without a request for this long is dropped."""
    pixels: Literal["uint8", "float32"] = "uint8"
    """Type of the frames that a decoder returns."""
