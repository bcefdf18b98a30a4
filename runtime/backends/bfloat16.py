"""bfloat16, which numpy has not: the upper half of a float32's bits, held in uint16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]
_NAN = 0x7FC0


def widen(bits: Bits) -> npt.NDArray[np.float32]:
    """The float32 of each bfloat16, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: npt.NDArray[np.float32]) -> Bits:
    """The nearest bfloat16 of each float32, ties to even; exact for what `widen` gave. NaN stays
    NaN.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(_NAN), rounded)
