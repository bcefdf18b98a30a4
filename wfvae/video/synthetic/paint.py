"""Painting for the procedural videos: sampling, blending and shapes on packed pixels, in integers.

A packed pixel is one uint64 with red, green and blue in lanes of 21 bits. Colours take 12 bits of a
lane and weights 8 bits, so one multiplication blends all three channels without a lane spilling
into the next, which makes numpy fast enough here. Weights run 0..256, 256 = all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from wfvae.video.synthetic.noise import Field, cosine, sine

Packed = npt.NDArray[np.uint64]
Weight = npt.NDArray[np.uint64]
Plane = npt.NDArray[np.float32]
Coordinate = npt.NDArray[np.int64]
Window = tuple[slice, slice]

COLOUR_MAX = 255 * 16
"""Colours have 16 steps per 8-bit level, so that slow fades and sub-pixel motion don't jump."""
FIXED_BITS = 16

_LANE = 21
_LANES = np.uint64(0xFFF | 0xFFF << _LANE | 0xFFF << 2 * _LANE)
_HALF = np.uint64(128 | 128 << _LANE | 128 << 2 * _LANE)
_WHOLE = np.uint64(256)
_EIGHT = np.uint64(8)


def pack(colours: Field) -> Packed:
    """(..., 3) int32 in 0..COLOUR_MAX -> (...) packed."""
    wide = colours.astype(np.uint64)
    packed: Packed = wide[..., 0] << np.uint64(2 * _LANE) | wide[..., 1] << np.uint64(_LANE) | wide[..., 2]
    return packed


def pack_colour(red: int, green: int, blue: int) -> np.uint64:
    """One colour of 8-bit levels as a packed pixel."""
    return np.uint64(red * 16 << 2 * _LANE | green * 16 << _LANE | blue * 16)


def blend(below: Packed | np.uint64, above: Packed | np.uint64, weight: Weight | np.uint64) -> Packed:
    """`above` over `below` with weights 0..256, rounded to nearest."""
    return _divided(below * (_WHOLE - weight) + above * weight)


def dim(pixels: Packed, weight: Weight | np.uint64) -> Packed:
    """Multiplies pixels with weights 0..256 (256 = unchanged)."""
    return _divided(pixels * weight)


def _divided(weighted: Packed) -> Packed:
    """Divides each lane by 256, rounded to nearest; reuses the array."""
    weighted += _HALF
    weighted >>= _EIGHT
    weighted &= _LANES
    return weighted


def average(pictures: list[Packed]) -> Packed:
    """The mean of 2**n pictures, n <= 4."""
    total: Packed = np.add.reduce(pictures)
    return total >> np.uint64(len(pictures).bit_length() - 1) & _LANES


def to_pixels(pixels: Packed, grain: Field | None = None) -> npt.NDArray[np.uint8]:
    """Converts (H, W) packed to (H, W, 3) uint8.

    grain: (H, W, 3) int32 at 16 steps per level, added before rounding.
    """
    colours = np.empty((*pixels.shape, 3), dtype=np.int32)
    for channel, shift in enumerate((2 * _LANE, _LANE, 0)):
        colours[..., channel] = pixels >> np.uint64(shift) & np.uint64(0xFFF)
    if grain is not None:
        colours += grain
        np.clip(colours, 0, COLOUR_MAX, out=colours)
    return ((colours + 8) >> 4).astype(np.uint8)


@dataclass(frozen=True)
class Texture:
    """A periodic picture that is sampled anywhere: (side * side,) packed, side a power of two."""

    texels: Packed
    side: int

    @classmethod
    def of(cls, colours: Field) -> Texture:
        """From (side, side, 3) int32 in 0..COLOUR_MAX."""
        return cls(pack(colours).reshape(-1), colours.shape[0])

    @classmethod
    def of_levels(cls, field: Field) -> Texture:
        """From (side, side) int32 in 0..FIELD_MAX, which sampling returns in the lowest lane."""
        return cls(field.astype(np.uint64).reshape(-1), field.shape[0])

    def sample(self, u: Coordinate, v: Coordinate) -> Packed:
        """Bilinear lookup at columns u, rows v (broadcast), int64 with FIXED_BITS fraction bits."""
        last = self.side - 1
        shift = last.bit_length()
        column, row = u >> FIXED_BITS, v >> FIXED_BITS
        left, right = column & last, (column + 1) & last
        top, bottom = (row & last) << shift, ((row + 1) & last) << shift
        weight_u = ((u >> 8) & 255).view(np.uint64)
        weight_v = ((v >> 8) & 255).view(np.uint64)
        upper = blend(self.texels.take(top | left), self.texels.take(top | right), weight_u)
        lower = blend(self.texels.take(bottom | left), self.texels.take(bottom | right), weight_u)
        return blend(upper, lower, weight_v)


@dataclass(frozen=True)
class Stage:
    """The frame that is painted: its size, and the length that all others are measured in."""

    height: int
    width: int

    @property
    def unit(self) -> int:
        """The longer side in pixels."""
        return max(self.height, self.width)

    @property
    def side(self) -> int:
        """The texture side that gives about one texel per pixel: a power of two, 16..2048."""
        return min(max(1 << (int(self.unit * 1.4) - 1).bit_length(), 16), 2048)

    @cached_property
    def columns(self) -> Coordinate:
        """(1, W) twice the distance of pixel centres from the middle of the frame, in pixels."""
        return (2 * np.arange(self.width, dtype=np.int64) + 1 - self.width)[None, :]

    @cached_property
    def rows(self) -> Coordinate:
        """(H, 1), as `columns`."""
        return (2 * np.arange(self.height, dtype=np.int64) + 1 - self.height)[:, None]

    @cached_property
    def vignette(self) -> Weight:
        """(H, W) weights that darken the corners a little."""
        x = self.columns.astype(np.float32) / np.float32(self.unit)
        y = self.rows.astype(np.float32) / np.float32(self.unit)
        darker = np.minimum((x * x + y * y) * np.float32(34.0), np.float32(60.0))
        return (np.float32(256.0) - darker).astype(np.uint64)

    def coordinates(
        self, centre: tuple[float, float], step: float, turns: float, rows: slice = slice(None)
    ) -> tuple[Coordinate, Coordinate]:
        """Texture columns and rows of every pixel in some rows of the frame, for `Texture.sample`.

        centre: the texel under the middle of the frame. step: texels per pixel. turns: rotation.
        """
        along, across = to_fixed(step * cosine(turns) / 2), to_fixed(step * sine(turns) / 2)
        y = self.rows[rows]
        u = (to_fixed(centre[0]) + self.columns * along) - y * across
        v = (to_fixed(centre[1]) + self.columns * across) + y * along
        return u, v

    def window(self, x: float, y: float, reach: float, tall: float | None = None) -> Window | None:
        """The rows and columns within `reach` pixels of a point; None if none are in the frame.

        tall: the reach in rows, if it is another one.
        """
        tall = reach if tall is None else tall
        rows = slice(max(math.floor(y - tall), 0), min(math.ceil(y + tall), self.height))
        columns = slice(max(math.floor(x - reach), 0), min(math.ceil(x + reach), self.width))
        return None if rows.start >= rows.stop or columns.start >= columns.stop else (rows, columns)


def to_fixed(number: float) -> int:
    """A real number as an integer with FIXED_BITS fraction bits."""
    return math.floor(number * (1 << FIXED_BITS) + 0.5)


def to_weight(distance: Plane, softness: float = 1.0) -> Weight:
    """Converts signed distance (negative inside) to coverage 0..256, the edge `softness` wide."""
    cover = np.float32(128.0) - distance * np.float32(256.0 / softness)
    covered: Weight = np.clip(cover, 0.0, 256.0).astype(np.uint64)
    return covered


def outline(kind: str, x: Plane, y: Plane, radius: float, aspect: float) -> Plane:
    """Signed distance (about pixels, negative inside) to a shape round the origin.

    kind: "disc", "ring", "box", "star" or "polygon<n>".
    """
    size = np.float32(radius)
    if kind in ("disc", "ring"):
        disc: Plane = np.sqrt(x * x + y * y) - size
        rim = size * np.float32(0.25)
        return disc if kind == "disc" else np.abs(disc + rim) - rim
    if kind == "box":
        corner = size * np.float32(0.2)
        dx = np.maximum(np.abs(x) - size * np.float32(0.95) + corner, 0)
        dy = np.maximum(np.abs(y) - size * np.float32(aspect) + corner, 0)
        rounded: Plane = np.sqrt(dx * dx + dy * dy) - corner
        return rounded
    if kind == "star":  # the union of two triangles
        apothem = size * np.float32(0.55)
        return np.minimum(_polygon(x, y, 3, apothem), _polygon(x, -y, 3, apothem))
    return _polygon(x, y, int(kind.removeprefix("polygon")), size * np.float32(0.8))


def _polygon(x: Plane, y: Plane, corners: int, apothem: np.float32) -> Plane:
    """Distance to a regular polygon: the largest of the distances to its sides."""
    turns = [k / corners + 0.25 for k in range(corners)]
    sides = [x * np.float32(cosine(turn)) + y * np.float32(sine(turn)) for turn in turns]
    distance: Plane = np.maximum.reduce(sides)
    return distance - apothem


def sample_mask(mask: npt.NDArray[np.uint8], u: Coordinate, v: Coordinate) -> Weight:
    """Bilinear lookup of weights 0..255 in an (h, w) mask with empty borders, zero outside.

    u, v: columns and rows, int64 with FIXED_BITS fraction bits.
    """
    height, width = mask.shape
    u = np.clip(u, 0, (width - 1 << FIXED_BITS) - 1)
    v = np.clip(v, 0, (height - 1 << FIXED_BITS) - 1)
    column, row = u >> FIXED_BITS, v >> FIXED_BITS
    weight_u, weight_v = (u >> 8) & 255, (v >> 8) & 255
    corner = row * width + column
    flat = mask.reshape(-1).astype(np.int64)
    upper = flat.take(corner) * (256 - weight_u) + flat.take(corner + 1) * weight_u
    lower = flat.take(corner + width) * (256 - weight_u) + flat.take(corner + width + 1) * weight_u
    weight: Weight = ((upper * (256 - weight_v) + lower * weight_v) >> 16).view(np.uint64)
    return weight
