"""What moves in the procedural videos: cameras, shapes and captions.

Every length is a share of the longer side of the frame and every time is in seconds, so that a seed
shows about the same at any size and frame rate.
"""

import math

import numpy as np

from wfvae.video.synthetic.font import text_mask
from wfvae.video.synthetic.noise import Dice, cosine, sine, smoothstep
from wfvae.video.synthetic.paint import (
    FIXED_BITS,
    Coordinate,
    Packed,
    Plane,
    Stage,
    Texture,
    Window,
    blend,
    dim,
    outline,
    pack_colour,
    sample_mask,
    to_fixed,
    to_weight,
)

WORDS = (
    *("WAVELET", "ENERGY FLOW", "CAUSAL", "LATENT SPACE", "Light and shade", "Stream 42"),
    *("A quiet morning", "North by east", "f/2.8  1/50", "Low tide 06:45", "chapter 3", "the far side"),
    *("98.6 MHz", "Room 101", "Nothing moves, all flows", "KEEP RIGHT", "12.5 km", "Reel #7"),
)
_SHAPES = ("disc", "disc", "box", "box", "ring", "star", "polygon3", "polygon5", "polygon6")
_EIGHT = np.uint64(8)
_WHOLE = np.uint64(256)


def light_colour(dice: Dice) -> np.uint64:
    return pack_colour(*(dice.integer(215, 255) for _ in range(3)))


class Camera:
    """A view of a periodic texture that drifts, turns, zooms and, on some seeds, shakes."""

    def __init__(self, dice: Dice, stage: Stage, side: int, turn: bool = True, speed: float = 1.0) -> None:
        self._side, self._stage = side, stage
        self._start = dice.uniform(0, side), dice.uniform(0, side)
        heading, pace = dice.unit(), dice.uniform(0.02, 0.22) * speed
        self._velocity = pace * cosine(heading), pace * sine(heading)
        self._view = dice.uniform(0.28, 0.5)
        self._zoom = dice.uniform(0.0, 0.3) if dice.chance(0.7) else 0.0
        self._zoom_rate, self._zoom_phase = dice.uniform(0.04, 0.16), dice.unit()
        self._angle = dice.unit() if turn else 0.0
        self._spin = dice.signed(0.005, 0.04) if turn and dice.chance(0.5) else 0.0
        self._shake = dice.uniform(0.001, 0.005) if dice.chance(0.35) else 0.0
        self._shake_phase = [dice.unit() for _ in range(4)]

    def shake(self, t: float) -> tuple[float, float]:
        """Displacement in shares of the frame, as of a camera held by hand: two swings per axis."""
        a, b, c, d = self._shake_phase
        x = sine(1.3 * t + a) + 0.5 * sine(3.1 * t + b)
        y = sine(1.7 * t + c) + 0.5 * sine(2.9 * t + d)
        return self._shake * x, self._shake * y

    def look(self, t: float) -> tuple[Coordinate, Coordinate]:
        """The texture coordinates of every pixel of the frame, for `Texture.sample`."""
        scale = self._view * (1.0 + self._zoom * sine(self._zoom_rate * t + self._zoom_phase)) * self._side
        shake_x, shake_y = self.shake(t)
        x = self._start[0] + (self._velocity[0] * t + shake_x) * scale
        y = self._start[1] + (self._velocity[1] * t + shake_y) * scale
        return self._stage.coordinates((x, y), scale / self._stage.unit, self._angle + self._spin * t)


class Sprite:
    """A textured shape that moves and turns, with a soft shadow."""

    def __init__(self, dice: Dice, stage: Stage, texture: Texture) -> None:
        self._stage, self._texture = stage, texture
        self._kind = dice.choice(_SHAPES)
        self._radius = dice.uniform(0.06, 0.2) * stage.unit
        self._aspect = dice.uniform(0.35, 0.95)
        self._middle = dice.uniform(-0.25, 0.25), dice.uniform(-0.25, 0.25)
        self._swing = dice.uniform(0.1, 0.45), dice.uniform(0.1, 0.4)
        self._rate = dice.signed(0.05, 0.3), dice.signed(0.05, 0.3)
        self._phase = dice.unit(), dice.unit()
        self._turn, self._spin = dice.unit(), dice.signed(0.0, 0.3)
        self._cut_out = dice.uniform(0, texture.side), dice.uniform(0, texture.side)
        self._grain = dice.uniform(0.3, 0.9) * texture.side / (1.4 * stage.unit)
        self._opacity = np.uint64(dice.integer(190, 256) if dice.chance(0.4) else 256)
        self._tint = pack_colour(*(dice.integer(20, 235) for _ in range(3)))
        self._tint_weight = np.uint64(dice.integer(0, 110))

    def paint(self, picture: Packed, t: float) -> None:
        radius = self._radius
        x, y = self._position(t)
        window = self._stage.window(x, y, 1.7 * radius + 2)
        if window is None:
            return
        across, down = self._local(*window, x + 0.12 * radius, y + 0.18 * radius, t)
        shadow = to_weight(outline(self._kind, across, down, radius, self._aspect), max(0.35 * radius, 1.0))
        patch = dim(picture[window], _WHOLE - ((shadow * np.uint64(110)) >> _EIGHT))
        across, down = self._local(*window, x, y, t)
        cover = to_weight(outline(self._kind, across, down, radius, self._aspect))
        picture[window] = blend(patch, self._surface(across, down), (cover * self._opacity) >> _EIGHT)

    def _position(self, t: float) -> tuple[float, float]:
        across, down = (
            self._middle[axis] + self._swing[axis] * sine(self._rate[axis] * t + self._phase[axis])
            for axis in (0, 1)
        )
        stage = self._stage
        return stage.width / 2 + stage.unit * across, stage.height / 2 + stage.unit * down

    def _local(self, rows: slice, columns: slice, x: float, y: float, t: float) -> tuple[Plane, Plane]:
        """Coordinates of the window's pixels in the shape's own turned frame."""
        turn = self._turn + self._spin * t
        dx = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + np.float32(0.5 - x)
        dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - y)
        c, s = np.float32(cosine(turn)), np.float32(sine(turn))
        return dx * c + dy * s, dy * c - dx * s

    def _surface(self, across: Plane, down: Plane) -> Packed:
        """The texture on the shape, which turns with it."""
        scale = np.float32(self._grain * (1 << FIXED_BITS))
        u = (across * scale).astype(np.int64) + to_fixed(self._cut_out[0])
        v = (down * scale).astype(np.int64) + to_fixed(self._cut_out[1])
        return blend(self._texture.sample(u, v), self._tint, self._tint_weight)


class Caption:
    """A line of text that drifts, turns slightly, and fades in and out."""

    def __init__(self, dice: Dice, stage: Stage, row: float | None = None) -> None:
        self._stage = stage
        words = dice.choice(WORDS)
        room = 0.9 * stage.width / (len(words) * 6)
        self._dot = min(dice.uniform(0.009, 0.022) * stage.unit, max(room, 0.5))
        self._scale = min(max(math.ceil(self._dot), 1), 16)
        self._mask = np.pad(text_mask(words, self._scale) * np.uint8(255), 2)
        self._middle = dice.uniform(-0.15, 0.15), dice.uniform(-0.35, 0.35) if row is None else row
        self._velocity = dice.signed(0.0, 0.12), dice.signed(0.0, 0.05)
        self._turn = dice.signed(0.0, 0.02) if dice.chance(0.4) else 0.0
        self._colour = light_colour(dice)
        self._appear, self._stay = dice.uniform(-0.5, 1.0), dice.uniform(1.5, 4.0)
        self._period = self._appear + self._stay + dice.uniform(0.5, 2.0)

    def paint(self, picture: Packed, t: float) -> None:
        t = t - math.floor(t / self._period) * self._period if t > self._period else t
        fade = smoothstep((t - self._appear) / 0.5) * smoothstep((self._appear + self._stay - t) / 0.5)
        if fade <= 0.0:
            return
        stage, step = self._stage, self._scale / self._dot
        x = stage.width / 2 + stage.width * self._middle[0] + stage.unit * self._velocity[0] * (t - 1.5)
        y = stage.height / 2 + stage.height * self._middle[1] + stage.unit * self._velocity[1] * (t - 1.5)
        height, width = self._mask.shape
        tall = (height + width * abs(sine(self._turn))) / step / 2 + 2
        window = stage.window(x, y, (width + height) / step / 2 + 2, tall)
        if window is None:
            return
        u, v = self._local(window, x, y, step)
        dot = to_fixed(0.6 * self._scale)
        strength = np.uint64(int(fade * 256))
        shadow = (sample_mask(self._mask, u - dot, v - dot) * strength) >> _EIGHT
        patch = dim(picture[window], _WHOLE - ((shadow * np.uint64(170)) >> _EIGHT))
        ink = (sample_mask(self._mask, u, v) * strength) >> _EIGHT
        picture[window] = blend(patch, self._colour, ink)

    def _local(self, window: Window, x: float, y: float, step: float) -> tuple[Coordinate, Coordinate]:
        """Columns and rows of the mask at the window's pixels, in fixed point."""
        rows, columns = window
        height, width = self._mask.shape
        one = 1 << FIXED_BITS
        dx = np.arange(columns.start, columns.stop, dtype=np.int64)[None, :] * one + to_fixed(0.5 - x)
        dy = np.arange(rows.start, rows.stop, dtype=np.int64)[:, None] * one + to_fixed(0.5 - y)
        c, s = to_fixed(step * cosine(self._turn)), to_fixed(step * sine(self._turn))
        u = ((dx * c + dy * s) >> FIXED_BITS) + to_fixed(width / 2 - 0.5)
        v = ((dy * c - dx * s) >> FIXED_BITS) + to_fixed(height / 2 - 0.5)
        return u, v
