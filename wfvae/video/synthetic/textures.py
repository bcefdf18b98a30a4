"""The textures of the procedural videos, coloured from natural palettes."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wfvae.video.synthetic.noise import (
    FIELD_BITS,
    FIELD_MAX,
    FIELD_SPAN,
    Dice,
    Field,
    cosine,
    fractal_field,
    sine,
    soften,
    warped_field,
)
from wfvae.video.synthetic.paint import COLOUR_MAX, Texture

Palette = npt.NDArray[np.int32]

_PALETTES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((28, 38, 20), (58, 74, 34), (104, 116, 58), (150, 148, 92), (196, 186, 142)),  # meadow
    ((62, 40, 28), (122, 80, 48), (176, 128, 80), (212, 172, 122), (238, 216, 178)),  # desert
    ((8, 22, 40), (18, 54, 82), (40, 96, 120), (96, 150, 160), (196, 218, 214)),  # sea
    ((36, 20, 14), (96, 40, 20), (158, 76, 26), (198, 128, 44), (222, 186, 96)),  # autumn
    ((34, 36, 42), (78, 80, 86), (126, 124, 122), (174, 172, 170), (230, 232, 236)),  # rock, snow
    ((22, 18, 40), (70, 42, 78), (140, 70, 92), (208, 118, 96), (246, 192, 136)),  # dusk
    ((14, 30, 24), (26, 62, 44), (52, 98, 60), (98, 138, 82), (162, 182, 124)),  # moss
    ((40, 26, 24), (98, 64, 54), (160, 112, 92), (208, 162, 138), (240, 212, 194)),  # clay
    ((16, 18, 24), (34, 42, 58), (70, 74, 88), (138, 124, 112), (226, 200, 152)),  # street at night
    ((20, 40, 66), (58, 100, 148), (120, 160, 200), (182, 206, 226), (240, 246, 250)),  # sky
)
_LEAVES = 640


def palette(dice: Dice) -> Palette:
    """A gradient through five natural colours: (FIELD_SPAN, 3) int32 in 0..COLOUR_MAX."""
    stops = np.array(dice.choice(_PALETTES), dtype=np.int32) * 16
    tint = np.array([int(256 * dice.uniform(0.9, 1.1)) for _ in range(3)], dtype=np.int32)
    light = int(256 * dice.uniform(0.85, 1.15))
    stops = np.clip(((stops * tint) >> 8) * light >> 8, 0, COLOUR_MAX)
    step = FIELD_SPAN // (len(stops) - 1)
    level = np.arange(FIELD_SPAN, dtype=np.int32)
    left = np.minimum(level // step, len(stops) - 2)
    weight = (level - left * step)[:, None]
    gradient: Palette = ((stops[left] * (step - weight) + stops[left + 1] * weight) // step).astype(np.int32)
    return gradient


def colour(dice: Dice, level: Field, shade: Field) -> Field:
    """Colours a surface from two palettes that share it in patches, as moss and stone do.

    Args:
        level: (side, side), the place in the palettes, 0..FIELD_MAX.
        shade: (side, side), brightness with 256 = unchanged.
    """
    first, second = palette(dice).take(level, axis=0), palette(dice).take(level, axis=0)
    patches = fractal_field(dice, level.shape[0], 0.45) - dice.integer(900, 2600)
    share = np.clip(patches >> 2, 0, 256)[..., None]
    mixed = (first * (256 - share) + second * share) >> 8
    lit: Field = np.clip((mixed * shade[..., None]) >> 8, 0, COLOUR_MAX).astype(np.int32)
    return lit


def hill_shade(height: Field, strength: float) -> Field:
    """The brightness of a relief under light from the upper left: int32, 256 = flat, 64..448.

    The strength is relative to the mean slope, so that a field looks alike at every texture size.
    """
    slope = (height - np.roll(height, 1, 0)) + (height - np.roll(height, 1, 1))
    mean_slope = max(int(np.abs(slope).sum(dtype=np.int64)) // slope.size, 1)
    shade: Field = np.clip(256 + slope * int(strength * 64) // mean_slope, 64, 448).astype(np.int32)
    return shade


def hill_texture(dice: Dice, side: int) -> Texture:
    """Lit relief: ground, rock, skin, cloth."""
    roughness = dice.uniform(0.56, 0.76)
    if dice.chance(0.6):
        height = warped_field(dice, side, roughness, dice.uniform(0.05, 0.25))
    else:
        height = fractal_field(dice, side, roughness)
    if dice.chance(0.3):  # contours of the middle height become crests
        height = FIELD_MAX - np.abs(2 * height - FIELD_MAX)
    level = (height + fractal_field(dice, side, 0.7)) >> 1 if dice.chance(0.5) else height
    shade = hill_shade(soften(height), dice.uniform(0.2, 0.65))
    return Texture.of(soften(colour(dice, level, shade)))


def wall_texture(dice: Dice, side: int) -> Texture:
    """Cloth or bricks: a regular pattern, disturbed by noise."""
    noise = fractal_field(dice, side, 0.75)
    position = np.arange(side, dtype=np.int32)
    cells = dice.choice((4, 8, 16))
    cell = side // cells
    rows = position[:, None]
    columns = position[None, :] + (rows // cell & 1) * (cell // 2)
    gap = max(side // (cells * 9), 1)
    mortar = (rows % cell < gap) | (columns % cell < gap)
    brick = (rows // cell * 7 + columns // cell * 13) % 5 * 260
    level = np.clip(brick + noise * 2 // 3, 0, FIELD_MAX)
    shade = np.where(mortar, 130, 256).astype(np.int32) * hill_shade(soften(noise), 0.35) >> 8
    return Texture.of(soften(colour(dice, level, shade)))


def leaf_texture(dice: Dice, side: int) -> Texture:
    """Ellipses of power-law size that cover each other ("dead leaves"): leaves, pebbles, crowds."""
    level = fractal_field(dice, side, 0.7)
    shade = np.full((side, side), 224, dtype=np.int32)
    grain = fractal_field(dice, side, 0.95)
    smallest, largest = side / 64, side / 6
    spread = 1.0 - (smallest / largest) * (smallest / largest)
    for _ in range(_LEAVES):
        radius = smallest / math.sqrt(1.0 - dice.unit() * spread)
        _paint_leaf(dice, level, shade, grain, radius)
    return Texture.of(soften(colour(dice, level, shade)))


def _paint_leaf(dice: Dice, level: Field, shade: Field, grain: Field, radius: float) -> None:
    """Paints one ellipse with fine texture and a darker rim, in place."""
    side = level.shape[0]
    centre_row, centre_column = dice.integer(0, side - 1), dice.integer(0, side - 1)
    angle, flatness = dice.unit(), dice.uniform(0.4, 1.0)
    base, contrast = dice.integer(200, FIELD_MAX - 200), dice.integer(300, 1400)
    reach = int(radius) + 1
    span = np.arange(-reach, reach + 1)
    x, y = span.astype(np.float32)[None, :], span.astype(np.float32)[:, None]
    c, s = np.float32(cosine(angle) / radius), np.float32(sine(angle) / radius)
    along, across = x * c + y * s, (y * c - x * s) * np.float32(1.0 / flatness)
    distance = along * along + across * across
    inside = distance < 1.0
    rows, columns = (centre_row + span) & (side - 1), (centre_column + span) & (side - 1)
    target = (rows[:, None] * side + columns[None, :])[inside]
    texture = ((grain.reshape(-1)[target] - FIELD_MAX // 2) * contrast) >> FIELD_BITS
    vein = (np.abs(across[inside]) * 500.0).astype(np.int32)
    level.reshape(-1)[target] = np.clip(base + texture + vein, 0, FIELD_MAX)
    shade.reshape(-1)[target] = 300 - (distance[inside] * 128.0).astype(np.int32)


TextureMaker = Callable[[Dice, int], Texture]
MAKERS: tuple[TextureMaker, ...] = (hill_texture, hill_texture, leaf_texture, wall_texture)
"""To choose from; relief is twice as likely."""
