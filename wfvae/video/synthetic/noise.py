"""Random numbers, curves and textures of the procedural videos, the same bits on every machine.

What makes them so: random numbers are taken only from the raw output of PCG64, whose stream numpy
promises to keep (the distributions of `Generator` carry no such promise); pictures are built in
integers; the few real numbers use + - * / and sqrt, which IEEE 754 rounds in one way, and never
sin, exp or a sum whose order is numpy's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.int32]
Palette = npt.NDArray[np.int32]
Choice = TypeVar("Choice")

FIELD_BITS = 12
FIELD_MAX = (1 << FIELD_BITS) - 1
COLOUR_MAX = 255 * 16
"""Colours are kept at 16 steps per 8-bit level, so that slow fades and sub-pixel motion do not move
in jumps.
"""


class Dice:
    """A stream of random numbers that is fully named by its key, a few non-negative integers."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(list(key)))

    def fork(self) -> Dice:
        """Dice of their own for a part whose number of throws varies (with the frame's size), so
        that what comes after does not.
        """
        return Dice(*(int(word) for word in self._bits.random_raw(2)))

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """`count` uniform bytes, little end of each raw word first whatever the machine's byte
        order.
        """
        words = np.asarray(self._bits.random_raw(-(-count // 8)), dtype="<u8")
        return words.view(np.uint8)[:count]

    def centred(self, count: int) -> Field:
        """`count` uniform integers in -32768..32767, int32."""
        return self.bytes(2 * count).view("<u2").astype(np.int32) - 32768

    def unit(self) -> float:
        """A uniform number in [0, 1)."""
        return int(self._bits.random_raw() >> 11) / float(1 << 53)

    def uniform(self, low: float, high: float) -> float:
        """A uniform number in [low, high)."""
        return low + (high - low) * self.unit()

    def signed(self, low: float, high: float) -> float:
        """A number of random sign whose magnitude is uniform in [low, high)."""
        return self.uniform(low, high) * (1 if self.chance(0.5) else -1)

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def choice(self, options: Sequence[Choice]) -> Choice:
        """One of the options, each as likely as the others."""
        return options[self.integer(0, len(options) - 1)]


def sine(turns: float) -> float:
    """sin(2 pi turns) to about 1e-9, from IEEE-exact operations only (the C library's sin differs
    between machines).
    """
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
    """Double the length of an axis by cubic B-spline subdivision with periodic borders."""
    before, after = np.roll(field, 1, axis), np.roll(field, -1, axis)
    even = (before + 6 * field + after) >> 3
    odd = (field + after) >> 1
    shape = list(field.shape)
    shape[axis] *= 2
    return np.stack((even, odd), axis=axis + 1).reshape(shape)


def stretch(field: Field) -> Field:
    """Map a field onto 0..FIELD_MAX so that its 1st and 99th percentile lie near the ends."""
    ordered = (
        np.sort(field, axis=None) if field.size <= 4096 else np.sort(field.reshape(-1)[:: field.size // 4096])
    )
    low, high = int(ordered[ordered.size // 100]), int(ordered[-1 - ordered.size // 100])
    scaled = (field.astype(np.int64) - low) * FIELD_MAX // max(high - low, 1)
    return np.clip(scaled, 0, FIELD_MAX).astype(np.int32)


def fractal_field(dice: Dice, side: int, roughness: float, coarsest: int = 4) -> Field:
    """Periodic fractal noise: a pyramid of white noise, each octave `roughness` times as strong as
    the coarser one.

    Args:
        side: a power of two, >= coarsest.
        roughness: 1 gives the power spectrum 1/f^2 of natural pictures, 0.5 gives hills and clouds
            (1/f^4).
        coarsest: side of the coarsest octave, a power of two.

    Returns:
        (side, side) int32 in 0..FIELD_MAX.
    """
    dice = dice.fork()
    size = coarsest
    field = dice.centred(size * size).reshape(size, size)
    strength = 256
    while size < side:
        size *= 2
        strength = int(strength * roughness)
        octave = dice.centred(size * size).reshape(size, size)
        field = upsample_wrapped(upsample_wrapped(field, 0), 1) + ((octave * strength) >> 8)
    return stretch(field)


def fractal_line(dice: Dice, length: int, roughness: float, coarsest: int) -> Field:
    """The one-dimensional `fractal_field`: (length,) int32 in 0..FIELD_MAX."""
    line = dice.centred(coarsest)
    strength = 256
    while line.size < length:
        strength = int(strength * roughness)
        line = upsample_wrapped(line, 0) + ((dice.centred(2 * line.size) * strength) >> 8)
    return stretch(line)


def look_up_wrapped(field: Field, row_offset: Field, column_offset: Field) -> Field:
    """The field read at every position moved by integer offsets, with periodic borders."""
    side = field.shape[0]
    position = np.arange(side, dtype=np.int32)
    rows = (position[:, None] + row_offset) & (side - 1)
    columns = (position[None, :] + column_offset) & (side - 1)
    found: Field = field.reshape(-1).take(rows * side + columns)
    return found


def warped_field(dice: Dice, side: int, roughness: float, warp: float) -> Field:
    """Fractal noise whose positions are displaced by smoother noise: veins, eddies, eroded rock.
    `warp` is a share of the side.
    """
    field = fractal_field(dice, side, roughness)
    reach = int(warp * side)
    smooth = [fractal_field(dice, side, 0.42) - FIELD_MAX // 2 for _ in range(2)]
    return look_up_wrapped(field, (smooth[0] * reach) >> FIELD_BITS, (smooth[1] * reach) >> FIELD_BITS)


def ridged(field: Field) -> Field:
    """Fold a field at its middle, so that its mid-level contours become crests."""
    return FIELD_MAX - np.abs(2 * field - FIELD_MAX)


def hill_shade(field: Field, strength: float) -> Field:
    """How a surface of this height looks under light from the upper left: (side, side) int32, 256 =
    flat, 64..448.

    The strength is relative to the mean slope, so that a field looks alike at every texture size.
    """
    slope = (field - np.roll(field, 1, 0)) + (field - np.roll(field, 1, 1))
    mean_slope = max(int(np.abs(slope).sum(dtype=np.int64)) // slope.size, 1)
    shade: Field = np.clip(256 + slope * int(strength * 64) // mean_slope, 64, 448).astype(np.int32)
    return shade


_PALETTES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((28, 38, 20), (58, 74, 34), (104, 116, 58), (150, 148, 92), (196, 186, 142)),  # meadow
    ((62, 40, 28), (122, 80, 48), (176, 128, 80), (212, 172, 122), (238, 216, 178)),  # desert
    ((8, 22, 40), (18, 54, 82), (40, 96, 120), (96, 150, 160), (196, 218, 214)),  # sea
    ((36, 20, 14), (96, 40, 20), (158, 76, 26), (198, 128, 44), (222, 186, 96)),  # autumn
    ((34, 36, 42), (78, 80, 86), (126, 124, 122), (174, 172, 170), (230, 232, 236)),  # rock and snow
    ((22, 18, 40), (70, 42, 78), (140, 70, 92), (208, 118, 96), (246, 192, 136)),  # dusk
    ((14, 30, 24), (26, 62, 44), (52, 98, 60), (98, 138, 82), (162, 182, 124)),  # moss
    ((40, 26, 24), (98, 64, 54), (160, 112, 92), (208, 162, 138), (240, 212, 194)),  # clay
    ((16, 18, 24), (34, 42, 58), (70, 74, 88), (138, 124, 112), (226, 200, 152)),  # street at night
    ((20, 40, 66), (58, 100, 148), (120, 160, 200), (182, 206, 226), (240, 246, 250)),  # sky
)


def palette(dice: Dice) -> Palette:
    """A gradient through five natural colours with a random change of brightness and tint:
    (FIELD_MAX + 1, 3) int32 in 0..COLOUR_MAX.
    """
    stops = np.array(dice.choice(_PALETTES), dtype=np.int32) * 16
    gain = [int(256 * dice.uniform(0.9, 1.1)) for _ in range(3)]
    common = int(256 * dice.uniform(0.85, 1.15))
    stops = np.clip(((stops * np.array(gain, dtype=np.int32)) >> 8) * common >> 8, 0, COLOUR_MAX)
    step = (FIELD_MAX + 1) // (len(stops) - 1)
    level = np.arange(FIELD_MAX + 1, dtype=np.int32)
    left = np.minimum(level // step, len(stops) - 2)
    weight = (level - left * step)[:, None]
    gradient: Palette = ((stops[left] * (step - weight) + stops[left + 1] * weight) // step).astype(np.int32)
    return gradient


def paint(dice: Dice, level: Field, shade: Field, patches: float = 0.45) -> Field:
    """Colour a field from two palettes that share the surface in patches, as moss and stone do.

    Args:
        level: (side, side) int32 in 0..FIELD_MAX, the place in the palettes.
        shade: (side, side) int32, brightness with 256 = unchanged.
        patches: roughness of the patches' borders.

    Returns:
        (side, side, 3) int32 in 0..COLOUR_MAX.
    """
    first, second = palette(dice).take(level, axis=0), palette(dice).take(level, axis=0)
    share = np.clip((fractal_field(dice, level.shape[0], patches) - dice.integer(900, 2600)) >> 2, 0, 256)[
        ..., None
    ]
    mixed = (first * (256 - share) + second * share) >> 8
    lit: Field = np.clip((mixed * shade[..., None]) >> 8, 0, COLOUR_MAX).astype(np.int32)
    return lit


def leaves(dice: Dice, side: int) -> tuple[Field, Field]:
    """A dead-leaves tile: ellipses of power-law size that cover one another, the simplest model
    with the edges of natural scenes.

    Returns:
        level: (side, side) int32 in 0..FIELD_MAX, one value per leaf with fine texture on it.
        shade: (side, side) int32 around 256, darker towards each leaf's rim.
    """
    level = fractal_field(dice, side, 0.7)
    shade = np.full((side, side), 224, dtype=np.int32)
    grain = fractal_field(dice, side, 0.95)
    smallest, largest = side / 64, side / 6
    spread = 1.0 - (smallest / largest) * (smallest / largest)
    for _ in range(640):
        radius = smallest / math.sqrt(1.0 - dice.unit() * spread)
        _paint_leaf(dice, level, shade, grain, radius)
    return level, shade


def _paint_leaf(dice: Dice, level: Field, shade: Field, grain: Field, radius: float) -> None:
    """Cover one ellipse of a dead-leaves tile, in place."""
    side = level.shape[0]
    centre_row, centre_column = dice.integer(0, side - 1), dice.integer(0, side - 1)
    angle, flatness = dice.unit(), dice.uniform(0.4, 1.0)
    base, contrast = dice.integer(200, FIELD_MAX - 200), dice.integer(300, 1400)
    reach = int(radius) + 1
    offset = np.arange(-reach, reach + 1, dtype=np.float32)
    along = offset[None, :] * np.float32(cosine(angle) / radius) + offset[:, None] * np.float32(
        sine(angle) / radius
    )
    across = offset[:, None] * np.float32(cosine(angle) / radius) - offset[None, :] * np.float32(
        sine(angle) / radius
    )
    across = across * np.float32(1.0 / flatness)
    distance = along * along + across * across
    inside = distance < 1.0
    span = np.arange(-reach, reach + 1)
    window = np.ix_((centre_row + span) & (side - 1), (centre_column + span) & (side - 1))
    spot = window[0] * side + window[1]
    target = spot[inside]
    texture = ((grain.reshape(-1)[target] - FIELD_MAX // 2) * contrast) >> FIELD_BITS
    vein = (np.abs(across[inside]) * 500.0).astype(np.int32)
    level.reshape(-1)[target] = np.clip(base + texture + vein, 0, FIELD_MAX)
    shade.reshape(-1)[target] = 300 - (distance[inside] * 128.0).astype(np.int32)


def soften(field: Field) -> Field:
    """Average every value with its right and lower neighbours, (side, side, ...), against stair
    steps.
    """
    return (field + np.roll(field, -1, 0) + np.roll(field, -1, 1) + np.roll(field, (-1, -1), (0, 1)) + 2) >> 2
