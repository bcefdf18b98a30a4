"""A picture as PNG, for pages that need it inside themselves."""

from __future__ import annotations

import base64
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError


def png_data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A picture as a data URI, see `encode_png`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) uint8, H and W at least 1, as the bytes of a PNG file.

    Raises:
        InputError: another type or shape.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(
            f"a picture is {image.dtype} of shape {image.shape}; expected uint8 of shape (H, W, 3)"
        )
    codec: Any = av.CodecContext.create("png", "w")
    codec.height, codec.width = image.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1, 1)
    # The best of PNG's row filters for each row, and zlib's best level.
    codec.options = {"pred": "mixed", "compression_level": "9"}
    packets = [*codec.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *codec.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
