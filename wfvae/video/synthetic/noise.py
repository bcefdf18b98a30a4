"""Random numbers, curves and noise fields of the procedural videos, the same bits on every machine.

Random numbers come only from the raw output of PCG64, whose stream numpy guarantees (it does not
guarantee the distributions of `Generator`). Pictures are built in integers. The few real numbers
use + - * / and sqrt, which IEEE 754 rounds in one way, and never sin, exp, or a sum whose order is
numpy's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.int32]
Choice = TypeVar("Choice")

FIELD_BITS = 12
FIELD_SPAN = 1 << FIELD_BITS
FIELD_MAX = FIELD_SPAN - 1


class Dice:
    """A stream of random numbers that its key, a few non-negative integers, determines."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(list(key)))

    def fork(self) -> Dice:
        """Returns new dice, so that a part may take more numbers at larger frame sizes."""
        return Dice(*(int(word) for word in self._bits.random_raw(2)))

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """`count` uniform bytes, low end of each raw word first on every machine."""
        words = np.asarray(self._bits.random_raw(-(-count // 8)), dtype="<u8")
        return words.view(np.uint8)[:count]

    def centred(self, *shape: int) -> Field:
        """Uniform integers in -32768..32767, int32."""
        return self.bytes(2 * math.prod(shape)).view("<u2").astype(np.int32).reshape(shape) - 32768

    def unit(self) -> float:
        return int(self._bits.random_raw() >> 11) / float(1 << 53)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def signed(self, low: float, high: float) -> float:
        """A number of random sign whose magnitude is uniform in [low, high)."""
        return self.uniform(low, high) * (1 if self.chance(0.5) else -1)

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def choice(self, options: Sequence[Choice]) -> Choice:
        return options[self.integer(0, len(options) - 1)]


def sine(turns: float) -> float:
    """sin(2 pi turns) to about 1e-9; the C library's sin differs between machines."""
    x = turns - math.floor(turns)
    sign = 1.0
    if x >= 0.5:
        x, sign = x - 0.5, -1.0
    if x > 0.25:
        x = 0.5 - x
    x = x * (2.0 * math.pi)
    square = x * x
    series = 1.0
    for n in (14, 12, 10, 8, 6, 4, 2):
        series = 1.0 - square / (n * (n + 1)) * series
    return sign * x * series


def cosine(turns: float) -> float:
    """cos(2 pi turns), see `sine`."""
    return sine(turns + 0.25)


def smoothstep(x: float) -> float:
    """0 below 0, 1 above 1, and a curve of continuous slope between."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


def upsample_wrapped(field: Field, axis: int) -> Field:
    """Doubles the length of an axis by cubic B-spline subdivision with periodic borders."""
    before, after = np.roll(field, 1, axis), np.roll(field, -1, axis)
    even, odd = (before + 6 * field + after) >> 3, (field + after) >> 1
    shape = list(field.shape)
    shape[axis] *= 2
    return np.stack((even, odd), axis=axis + 1).reshape(shape)


def stretch(field: Field) -> Field:
    """Maps a field onto 0..FIELD_MAX so that its 1st and 99th percentile lie near the ends."""
    ordered = np.sort(field.reshape(-1)[:: max(field.size // 4096, 1)])
    low, high = int(ordered[ordered.size // 100]), int(ordered[-1 - ordered.size // 100])
    scaled = (field.astype(np.int64) - low) * FIELD_MAX // max(high - low, 1)
    return np.clip(scaled, 0, FIELD_MAX).astype(np.int32)


def fractal_field(dice: Dice, side: int, roughness: float, coarsest: int = 4) -> Field:
    """Periodic fractal noise: octaves of white noise, each `roughness` times as strong as the last.

    Args:
        side: of the result, in 0..FIELD_MAX; a power of two, as is `coarsest`.
        roughness: 1 gives the power spectrum 1/f^2 of natural pictures, 0.5 gives hills and clouds
            (1/f^4).
    """
    return _fractal(dice.fork(), 2, side, roughness, coarsest)


def fractal_line(dice: Dice, length: int, roughness: float, coarsest: int) -> Field:
    """The one-dimensional `fractal_field`: (length,) int32 in 0..FIELD_MAX."""
    return _fractal(dice, 1, length, roughness, coarsest)


def _fractal(dice: Dice, rank: int, side: int, roughness: float, coarsest: int) -> Field:
    field = dice.centred(*[coarsest] * rank)
    strength = 256
    while (size := 2 * len(field)) <= side:
        strength = int(strength * roughness)
        for axis in range(rank):
            field = upsample_wrapped(field, axis)
        field = field + ((dice.centred(*[size] * rank) * strength) >> 8)
    return stretch(field)


def warped_field(dice: Dice, side: int, roughness: float, warp: float) -> Field:
    """Fractal noise displaced by up to `warp` times the side, as in veins and rock."""
    field = fractal_field(dice, side, roughness)
    reach = int(warp * side)
    position = np.arange(side, dtype=np.int32)
    down, across = ((fractal_field(dice, side, 0.42) - FIELD_MAX // 2) * reach >> FIELD_BITS for _ in "vu")
    rows, columns = (position[:, None] + down) & (side - 1), (position[None, :] + across) & (side - 1)
    warped: Field = field.reshape(-1).take(rows * side + columns)
    return warped


def soften(field: Field) -> Field:
    """Averages every value of (side, side, ...) with its right and lower neighbours."""
    return (field + np.roll(field, -1, 0) + np.roll(field, -1, 1) + np.roll(field, (-1, -1), (0, 1)) + 2) >> 2
