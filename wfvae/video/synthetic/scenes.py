"""The scenes of the procedural videos. A scene is built once from dice and then painted at any time
t, in seconds from its start.

Every length is a share of the longer side of the frame and every time is in seconds, so that a seed
shows about the same scene at any size and frame rate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from wfvae.video.synthetic.font import text_mask
from wfvae.video.synthetic.noise import (
    FIELD_MAX,
    Dice,
    Field,
    cosine,
    fractal_field,
    fractal_line,
    hill_shade,
    leaves,
    paint,
    palette,
    ridged,
    sine,
    smoothstep,
    soften,
    warped_field,
)
from wfvae.video.synthetic.paint import (
    FIXED_BITS,
    Packed,
    Plane,
    Stage,
    Texture,
    Weight,
    blend,
    dim,
    outline,
    pack,
    pack_colour,
    sample_mask,
    to_fixed,
    to_weight,
    window,
)

_ALL_ROWS = slice(None)
_FIELD_SPAN = FIELD_MAX + 1
_WORDS = (
    "WAVELET", "ENERGY FLOW", "CAUSAL", "LATENT SPACE", "Light and shade", "Stream 42", "A quiet morning", "North by east", "f/2.8  1/50",
    "Low tide 06:45", "chapter 3", "the far side", "98.6 MHz", "Room 101", "Nothing moves, all flows", "KEEP RIGHT", "12.5 km", "Reel #7",
)  # fmt: skip
_SHAPES = ("disc", "disc", "box", "box", "ring", "star", "polygon3", "polygon5", "polygon6")


class Scene(ABC):
    """Something that can be painted at any time."""

    @abstractmethod
    def render(self, t: float) -> Packed:
        """The picture at t seconds (any sign) as (H, W) packed pixels."""


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
        """Displacement of the view in shares of the frame: two incommensurate swings per axis, as
        of a camera held by hand.
        """
        a, b, c, d = self._shake_phase
        x = sine(1.3 * t + a) + 0.5 * sine(3.1 * t + b)
        y = sine(1.7 * t + c) + 0.5 * sine(2.9 * t + d)
        return self._shake * x, self._shake * y

    def placement(self, t: float, depth: float = 1.0) -> tuple[tuple[float, float], float, float]:
        """Centre texel, texels per pixel and rotation in turns at time t; depth > 1 moves less, as
        things far away do.
        """
        view = self._view * (1.0 + self._zoom * sine(self._zoom_rate * t + self._zoom_phase))
        scale = view * self._side
        shake_x, shake_y = self.shake(t)
        across = (self._velocity[0] * t + shake_x) / depth * scale
        down = (self._velocity[1] * t + shake_y) / depth * scale
        return (
            (self._start[0] + across, self._start[1] + down),
            scale / self._stage.unit,
            self._angle + self._spin * t,
        )


def _hill_texture(dice: Dice, side: int) -> Texture:
    """Lit relief: ground, rock, skin, cloth."""
    roughness = dice.uniform(0.56, 0.76)
    height = (
        warped_field(dice, side, roughness, dice.uniform(0.05, 0.25))
        if dice.chance(0.6)
        else fractal_field(dice, side, roughness)
    )
    if dice.chance(0.3):
        height = ridged(height)
    level = (height + fractal_field(dice, side, 0.7)) >> 1 if dice.chance(0.5) else height
    shade = hill_shade(soften(height), dice.uniform(0.2, 0.65))
    return Texture.of(soften(paint(dice, level, shade)))


def _leaf_texture(dice: Dice, side: int) -> Texture:
    """Overlapping leaves, pebbles, crowds."""
    level, shade = leaves(dice, side)
    return Texture.of(soften(paint(dice, level, shade)))


def _woven_texture(dice: Dice, side: int) -> Texture:
    """Cloth or bricks: a regular pattern, disturbed by noise."""
    noise = fractal_field(dice, side, 0.75)
    position = np.arange(side, dtype=np.int32)
    cells = dice.choice((4, 8, 16))
    cell = side // cells
    shift = (position[:, None] // cell & 1) * (cell // 2)
    gap = max(side // (cells * 9), 1)
    mortar = ((position[:, None] % cell) < gap) | (((position[None, :] + shift) % cell) < gap)
    brick = (position[:, None] // cell * 7 + (position[None, :] + shift) // cell * 13) % 5 * 260
    level = np.clip(brick + noise * 2 // 3, 0, FIELD_MAX)
    shade = np.where(mortar, 130, 256).astype(np.int32) * hill_shade(soften(noise), 0.35) >> 8
    return Texture.of(soften(paint(dice, level, shade)))


_TEXTURES: tuple[Callable[[Dice, int], Texture], ...] = (
    _hill_texture,
    _hill_texture,
    _leaf_texture,
    _woven_texture,
)


class Sprite:
    """One shape that moves, turns and carries a texture, with a soft shadow."""

    def __init__(self, dice: Dice, stage: Stage, texture: Texture) -> None:
        self._stage, self._texture = stage, texture
        self._kind = dice.choice(_SHAPES)
        self._radius = dice.uniform(0.06, 0.2)
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
        """Draw the shape into the picture, in place."""
        stage, unit = self._stage, self._stage.unit
        x = stage.width / 2 + unit * (
            self._middle[0] + self._swing[0] * sine(self._rate[0] * t + self._phase[0])
        )
        y = stage.height / 2 + unit * (
            self._middle[1] + self._swing[1] * sine(self._rate[1] * t + self._phase[1])
        )
        radius = self._radius * unit
        rows, columns = window(stage, x, y, 1.7 * radius + 2)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        patch = picture[rows, columns]
        blur = max(0.35 * radius, 1.0)
        shadow_across, shadow_down = self._local(rows, columns, x + 0.12 * radius, y + 0.18 * radius, t)
        shadow = to_weight(outline(self._kind, shadow_across, shadow_down, radius, self._aspect), blur)
        patch = dim(patch, np.uint64(256) - ((shadow * np.uint64(110)) >> np.uint64(8)))
        across, down = self._local(rows, columns, x, y, t)
        cover = to_weight(outline(self._kind, across, down, radius, self._aspect))
        picture[rows, columns] = blend(
            patch, self._surface(across, down), (cover * self._opacity) >> np.uint64(8)
        )

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

    def __init__(self, dice: Dice, stage: Stage, row: float | None = None, text: str | None = None) -> None:
        self._stage = stage
        words = text if text is not None else dice.choice(_WORDS)
        room = 0.9 * stage.width / (len(words) * 6)
        self._dot = min(dice.uniform(0.009, 0.022) * stage.unit, max(room, 0.5))
        scale = min(max(math.ceil(self._dot), 1), 16)
        self._mask = np.pad(text_mask(words, scale) * np.uint8(255), 2)
        self._scale = scale
        self._middle = dice.uniform(-0.15, 0.15), dice.uniform(-0.35, 0.35) if row is None else row
        self._velocity = dice.signed(0.0, 0.12), dice.signed(0.0, 0.05)
        self._turn = dice.signed(0.0, 0.02) if dice.chance(0.4) else 0.0
        self._colour = pack_colour(*(dice.integer(215, 255) for _ in range(3)))
        self._appear, self._stay = dice.uniform(-0.5, 1.0), dice.uniform(1.5, 4.0)
        self._period = self._appear + self._stay + dice.uniform(0.5, 2.0)

    def paint(self, picture: Packed, t: float) -> None:
        """Draw the text into the picture, in place."""
        t = t - math.floor(t / self._period) * self._period if t > self._period else t
        fade = smoothstep((t - self._appear) / 0.5) * smoothstep((self._appear + self._stay - t) / 0.5)
        if fade <= 0.0:
            return
        stage, step = self._stage, self._scale / self._dot
        x = stage.width / 2 + stage.width * self._middle[0] + stage.unit * self._velocity[0] * (t - 1.5)
        y = stage.height / 2 + stage.height * self._middle[1] + stage.unit * self._velocity[1] * (t - 1.5)
        height, width = self._mask.shape
        rows, columns = window(stage, x, y, (width + height) / step / 2 + 2)
        tall = (height + width * abs(sine(self._turn))) / step / 2 + 2
        rows = slice(max(rows.start, math.floor(y - tall)), min(rows.stop, math.ceil(y + tall)))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        dx = np.arange(columns.start, columns.stop, dtype=np.int64)[None, :] * (1 << FIXED_BITS) + to_fixed(
            0.5 - x
        )
        dy = np.arange(rows.start, rows.stop, dtype=np.int64)[:, None] * (1 << FIXED_BITS) + to_fixed(0.5 - y)
        c, s = to_fixed(step * cosine(self._turn)), to_fixed(step * sine(self._turn))
        u = ((dx * c + dy * s) >> FIXED_BITS) + to_fixed(width / 2 - 0.5)
        v = ((dy * c - dx * s) >> FIXED_BITS) + to_fixed(height / 2 - 0.5)
        dot = to_fixed(0.6 * self._scale)
        strength = np.uint64(int(fade * 256))
        patch = picture[rows, columns]
        shadow = (sample_mask(self._mask, u - dot, v - dot) * strength) >> np.uint64(8)
        patch = dim(patch, np.uint64(256) - ((shadow * np.uint64(170)) >> np.uint64(8)))
        picture[rows, columns] = blend(
            patch, self._colour, (sample_mask(self._mask, u, v) * strength) >> np.uint64(8)
        )


class Ground(Scene):
    """The camera passes over one texture."""

    def __init__(self, dice: Dice, stage: Stage, texture: Texture) -> None:
        self._stage, self._texture = stage, texture
        self._camera = Camera(dice, stage, texture.side)

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        u, v = self._stage.coordinates(*self._camera.placement(t), _ALL_ROWS)
        return dim(self._texture.sample(u, v), self._stage.vignette)


def _gradient(dice: Dice, stage: Stage, low: tuple[int, int, int], high: tuple[int, int, int]) -> Packed:
    """(H, 1) packed: a vertical gradient between two colours of 8-bit levels."""
    exponent = dice.chance(0.5)
    share = (np.arange(stage.height, dtype=np.int64) * 256) // max(stage.height - 1, 1)
    weight = (share * share >> 8 if exponent else share).view(np.uint64)[:, None]
    return blend(pack_colour(*high), pack_colour(*low), weight)


Sky = tuple[tuple[int, int, int], tuple[int, int, int]]
"""The colours of a sky at the horizon and at the top, 8-bit levels."""

_SKIES: tuple[Sky, ...] = (
    ((196, 218, 236), (66, 118, 186)),
    ((240, 206, 170), (92, 110, 160)),
    ((250, 176, 110), (58, 44, 92)),
    ((206, 210, 214), (136, 146, 158)),
    ((120, 140, 170), (14, 22, 46)),
)


class Clouds(Scene):
    """Clouds that drift and change: where the sum of two noise fields, moving at different speeds,
    is high.
    """

    def __init__(self, dice: Dice, stage: Stage, sky: Sky) -> None:
        self._stage = stage
        low, high = sky
        self._sky = _gradient(dice, stage, low, high)
        self._fields = [_scalar_texture(fractal_field(dice, stage.side, 0.6)) for _ in range(2)]
        self._cameras = [Camera(dice, stage, stage.side, turn=False, speed=0.5) for _ in range(2)]
        cover, softness = dice.uniform(0.3, 0.6), dice.uniform(0.12, 0.4)
        level = np.arange(2 * _FIELD_SPAN, dtype=np.float32) / np.float32(2 * _FIELD_SPAN)
        rise = np.clip((level - np.float32(1 - cover - softness / 2)) / np.float32(softness), 0, 1)
        self._cover = (rise * 250).astype(np.uint64)
        bright = pack_colour(*(min(c + 45, 255) for c in low))
        dark = pack_colour(*((a + b) * 3 // 8 for a, b in zip(low, high, strict=True)))
        self._cloud = blend(bright, dark, np.clip((level - np.float32(0.5)) * 460, 0, 256).astype(np.uint64))

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        levels = []
        for field, camera in zip(self._fields, self._cameras, strict=True):
            u, v = self._stage.coordinates(*camera.placement(t), _ALL_ROWS)
            levels.append(field.sample(u, v))
        total = (levels[0] + levels[1]).view(np.int64)
        return blend(self._sky, self._cloud.take(total), self._cover.take(total))


def _scalar_texture(field: Field) -> Texture:
    """A field as a texture with only its lowest lane in use; sampling it gives 0..FIELD_MAX."""
    return Texture(field.astype(np.uint64).reshape(-1), field.shape[0])


class Water(Scene):
    """A texture seen through moving ripples, with glints where the ripples are steep."""

    def __init__(self, dice: Dice, stage: Stage, texture: Texture) -> None:
        self._stage, self._texture = stage, texture
        self._camera = Camera(dice, stage, texture.side, speed=0.4)
        self._ripples = [
            _scalar_texture(fractal_field(dice, stage.side, dice.uniform(0.3, 0.5), coarsest=8))
            for _ in range(2)
        ]
        self._drift = [Camera(dice, stage, stage.side, turn=False, speed=1.2) for _ in range(2)]
        self._depth = to_fixed(dice.uniform(0.02, 0.06) * texture.side / _FIELD_SPAN)
        self._glint = pack_colour(*(dice.integer(215, 255) for _ in range(3)))
        self._threshold = dice.integer(500, 900)

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        waves = []
        for ripple, camera in zip(self._ripples, self._drift, strict=True):
            u, v = self._stage.coordinates(*camera.placement(t), _ALL_ROWS)
            waves.append(ripple.sample(u, v).view(np.int64) - FIELD_MAX // 2)
        u, v = self._stage.coordinates(*self._camera.placement(t), _ALL_ROWS)
        picture = self._texture.sample(u + waves[0] * self._depth, v + waves[1] * self._depth)
        steep = np.clip(170 - (np.abs(waves[0] + waves[1] - self._threshold) >> 1), 0, 170).view(np.uint64)
        return dim(blend(picture, self._glint, steep), self._stage.vignette)


class Landscape(Scene):
    """Hills behind hills under a sky; the near ones pass faster and the far ones are hazy."""

    def __init__(self, dice: Dice, stage: Stage) -> None:
        self._stage = stage
        sky = dice.choice(_SKIES)
        self._haze = pack_colour(*sky[0])
        self._clouds = Clouds(dice, stage, sky)
        self._texture = _hill_texture(dice, stage.side)
        self._camera = Camera(dice, stage, stage.side, turn=False)
        self._pace = dice.signed(0.03, 0.3)
        self._layers = [self._ridge(dice, share) for share in (0.0, 0.35, 0.65, 1.0)]

    def _ridge(self, dice: Dice, nearness: float) -> tuple[float, Plane]:
        """One line of hills: its nearness, and its height over one period of 1024 samples in shares
        of the frame's height.
        """
        roughness = 0.5 + 0.1 * nearness
        profile = fractal_line(dice, 1024, roughness, coarsest=8 if nearness > 0.5 else 16)
        base = 0.42 + 0.42 * nearness
        return nearness, (profile.astype(np.float32) / np.float32(FIELD_MAX) - np.float32(0.5)) * np.float32(
            0.34
        ) + np.float32(base)

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        stage = self._stage
        picture = self._clouds.render(t)
        shake_x, shake_y = self._camera.shake(t)
        for index, (nearness, profile) in enumerate(self._layers):
            pace = self._pace * (0.15 + 0.85 * nearness)
            offset = (pace * t + shake_x) * stage.width
            position = (np.arange(stage.width, dtype=np.float64) + offset) * (
                1024 / (2.6 * stage.unit)
            ) + index * 397
            whole = np.floor(position)
            left = whole.astype(np.int64)
            share = (position - whole).astype(np.float32)
            crest = profile[left & 1023] * (1 - share) + profile[(left + 1) & 1023] * share
            crest = crest * np.float32(stage.height) + np.float32(shake_y * stage.height * (0.3 + nearness))
            first = min(max(int(crest.min()) - 1, 0), stage.height)
            rows = slice(first, stage.height)
            if first == stage.height:
                continue
            y = np.arange(first, stage.height, dtype=np.float32)[:, None] + np.float32(0.5)
            cover = to_weight(crest[None, :] - y)
            step = stage.side * (0.75 - 0.35 * nearness) / (1.4 * stage.unit)
            u, v = stage.coordinates(
                (offset * step + index * 97.0, index * 61.0 + shake_y * stage.side), step, 0.0, rows
            )
            land = blend(
                self._texture.sample(u, v),
                self._haze,
                np.uint64(int(205 * (1 - nearness) * (1 - 0.3 * nearness))),
            )
            picture[rows] = blend(picture[rows], land, cover)
        return picture


class Titles(Scene):
    """Text over a soft, dark or light ground: a caption, scrolling lines and a running counter."""

    def __init__(self, dice: Dice, stage: Stage) -> None:
        self._stage = stage
        soft = fractal_field(dice, 64, 0.4)
        self._texture = Texture.of(paint(dice, soft, np.full_like(soft, dice.integer(90, 200))))
        self._camera = Camera(dice, stage, 64, speed=0.5)
        self._captions = [Caption(dice, stage, row) for row in (-0.3, 0.0, 0.28)]
        lines = "\n".join(dice.choice(_WORDS) for _ in range(12))
        self._dot = max(stage.unit * dice.uniform(0.009, 0.016), 1.0)
        self._scale = max(math.ceil(self._dot), 1)
        self._credits = np.pad(text_mask(lines, self._scale) * np.uint8(200), 2) if dice.chance(0.6) else None
        self._scroll = dice.uniform(0.06, 0.2)
        self._left = dice.uniform(0.02, 0.35)

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        stage = self._stage
        u, v = stage.coordinates(*self._camera.placement(t), _ALL_ROWS)
        picture = self._texture.sample(u, v)
        if self._credits is not None:
            picture = blend(picture, pack_colour(236, 234, 226), self._credit_weight(t))
            return picture
        for caption in self._captions:
            caption.paint(picture, t)
        return picture

    def _credit_weight(self, t: float) -> Weight:
        """(H, W) weights of the scrolling lines, which start again when they have passed."""
        assert self._credits is not None
        stage, step = self._stage, self._scale / self._dot
        length = self._credits.shape[0] / step + stage.height
        travelled = (self._scroll * stage.unit * t + stage.height * 0.6) % length
        x = np.arange(stage.width, dtype=np.int64)[None, :] * to_fixed(step) - to_fixed(
            self._left * stage.width * step
        )
        y = np.arange(stage.height, dtype=np.int64)[:, None] * to_fixed(step) - to_fixed(
            (stage.height - travelled) * step
        )
        return sample_mask(self._credits, x, y)


class Soft(Scene):
    """A plain gradient whose brightness breathes: what codecs band on."""

    def __init__(self, dice: Dice, stage: Stage) -> None:
        self._stage = stage
        colours = palette(dice)
        self._from, self._to = (pack(colours[dice.integer(0, FIELD_MAX)]) for _ in range(2))
        self._turn, self._spin = dice.unit(), dice.signed(0.0, 0.05)
        self._rate, self._phase = dice.uniform(0.05, 0.3), dice.unit()

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        stage, turn = self._stage, self._turn + self._spin * t
        slope = 150.0 / stage.unit
        across = stage.columns * to_fixed(slope * cosine(turn)) + stage.rows * to_fixed(slope * sine(turn))
        weight = np.clip(
            (across >> FIXED_BITS) + 128 + int(50 * sine(self._rate * t + self._phase)), 0, 256
        ).view(np.uint64)
        return blend(self._from, self._to, weight)


class Composed(Scene):
    """A background with shapes and captions on it."""

    def __init__(self, background: Scene, sprites: list[Sprite], captions: list[Caption]) -> None:
        self._background, self._sprites, self._captions = background, sprites, captions

    def render(self, t: float) -> Packed:
        """See `Scene.render`."""
        picture = self._background.render(t)
        for sprite in self._sprites:
            sprite.paint(picture, t)
        for caption in self._captions:
            caption.paint(picture, t)
        return picture


def _background(kind: str, dice: Dice, stage: Stage) -> Scene:
    """The background of a scene kind."""
    if kind == "clouds":
        return Clouds(dice, stage, dice.choice(_SKIES))
    if kind == "landscape":
        return Landscape(dice, stage)
    if kind == "titles":
        return Titles(dice, stage)
    if kind == "water":
        return Water(dice, stage, dice.choice(_TEXTURES)(dice, stage.side))
    if kind == "leaves":
        return Ground(dice, stage, _leaf_texture(dice, stage.side))
    if kind == "shapes" and dice.chance(0.5):
        return Soft(dice, stage)
    return Ground(dice, stage, dice.choice((_hill_texture, _hill_texture, _woven_texture))(dice, stage.side))


SceneKind = Literal["terrain", "leaves", "clouds", "water", "landscape", "shapes", "titles"]
SCENES: tuple[SceneKind, ...] = get_args(SceneKind)
"""The scene kinds that can be asked for by name."""


def build_scene(kind: str, dice: Dice, stage: Stage) -> Scene:
    """One scene of a kind in SCENES, the shapes and captions on it chosen by the dice."""
    background = _background(kind, dice, stage)
    if kind == "titles":
        return background
    count = dice.integer(3, 7) if kind == "shapes" else dice.integer(1, 3) if dice.chance(0.35) else 0
    textures = [dice.choice(_TEXTURES)(dice, max(stage.side // 2, 16)) for _ in range(min(count, 2))]
    sprites = [Sprite(dice, stage, textures[index % 2 if len(textures) > 1 else 0]) for index in range(count)]
    captions = [Caption(dice, stage)] if dice.chance(0.3) else []
    return Composed(background, sprites, captions)
