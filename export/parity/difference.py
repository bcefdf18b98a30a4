"""How far two arrays differ: bits, units in the last place, absolute error, PSNR."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PEAK_TO_PEAK = 2.0
"""Range of video in [-1, 1], to which PSNR refers."""


@dataclass(frozen=True)
class Difference:
    """The result of `measure`. With a `problem`, the numbers are NaN or None."""

    elements: int
    equal_bits: bool
    """Every value has the same bits, the sign of zero included."""
    equal_share: float
    max_abs: float
    max_ulp: int | None
    """Largest distance in steps between neighbouring float32 numbers; -0 and +0 are the same."""
    psnr_db: float | None
    """Over [-1, 1]; infinite for equal arrays; None where no picture was compared."""
    ulp_histogram: Mapping[str, int] = field(default_factory=dict)
    """Values by distance: "0", "1", "2-3", "4-7", ..."""
    problem: str | None = None
    """Why no bound can hold: nothing to compare, another shape, NaN."""


def measure(actual: Array, expected: Array, *, picture: bool) -> Difference:
    """Compares `actual` with `expected` (float32, or float64 for a more precise reference).

    Bits and ULP are those of float32, to which a float64 reference is rounded; the absolute error
    is computed in float64.

    Args:
        picture: the arrays are video in [-1, 1], so that PSNR is defined.

    Example:
        >>> found = measure(np.float32([1.0, 2.0]), np.float32([1.0, 2.0000002]), picture=False)
        >>> found.equal_share, found.max_ulp
        (0.5, 1)
    """
    if actual.shape != expected.shape:
        return not_compared(f"shape {actual.shape} instead of {expected.shape}")
    if actual.size == 0:
        return not_compared("nothing was compared")
    given, wanted = (np.ascontiguousarray(array, dtype=np.float32) for array in (actual, expected))
    same_bits = given.view(np.int32) == wanted.view(np.int32)
    share = float(np.count_nonzero(same_bits)) / same_bits.size
    for name, array in (("result", actual), ("reference", expected)):
        if np.isnan(array).any():
            return Difference(actual.size, False, share, math.nan, None, None, {}, f"NaN in the {name}")
    with np.errstate(invalid="ignore"):
        error = np.abs(actual.astype(np.float64) - expected)
    error[actual == expected] = 0.0  # equal infinities, too
    distance = ulp_distance(given, wanted)
    return Difference(
        elements=actual.size,
        equal_bits=bool(same_bits.all()),
        equal_share=share,
        max_abs=float(error.max()),
        max_ulp=int(distance.max()),
        psnr_db=_psnr(error) if picture else None,
        ulp_histogram=_histogram(distance),
    )


def not_compared(problem: str) -> Difference:
    return Difference(0, False, 0.0, math.nan, None, None, {}, problem)


def ulp_distance(a: Array, b: Array) -> npt.NDArray[np.int64]:
    """Counts float32 numbers from `a` to `b`, without NaN: 0 for equal values, 1 for neighbours."""
    distance: npt.NDArray[np.int64] = np.abs(_ordered(a) - _ordered(b))
    return distance


def _ordered(values: Array) -> npt.NDArray[np.int64]:
    """Returns integers in the order of the float32 values; both zeros are 0."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    # Floats are stored as sign and magnitude; the magnitude's bits are in the order of the values.
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _psnr(error: npt.NDArray[np.float64]) -> float:
    mean_square = float(np.mean(np.square(error)))
    if mean_square == 0:
        return math.inf
    return 10 * math.log10(PEAK_TO_PEAK**2 / mean_square) if math.isfinite(mean_square) else -math.inf


def _histogram(distance: npt.NDArray[np.int64]) -> dict[str, int]:
    # frexp's exponent is 0 for 0, 1 for 1, 2 for 2-3, 3 for 4-7, ...: exact below 2**53.
    counts = np.bincount(np.frexp(distance.astype(np.float64))[1].reshape(-1))
    labels = ["0", "1", *(f"{1 << k}-{(2 << k) - 1}" for k in range(1, 33))]
    return {labels[k]: int(count) for k, count in enumerate(counts) if count}
