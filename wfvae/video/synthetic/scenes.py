"""The scenes of the procedural videos, built once from dice and painted at any time in seconds."""

import math
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from wfvae.video.synthetic.font import text_mask
from wfvae.video.synthetic.noise import FIELD_MAX, FIELD_SPAN, Dice, cosine, fractal_field, fractal_line, sine
from wfvae.video.synthetic.objects import WORDS, Camera, Caption, Sprite, light_colour
from wfvae.video.synthetic.paint import (
    FIXED_BITS,
    Packed,
    Plane,
    Stage,
    Texture,
    Weight,
    blend,
    dim,
    pack,
    pack_colour,
    sample_mask,
    to_fixed,
    to_weight,
)
from wfvae.video.synthetic.textures import MAKERS, colour, hill_texture, leaf_texture, palette, wall_texture

SceneKind = Literal["terrain", "leaves", "clouds", "water", "landscape", "shapes", "titles"]
SCENES: tuple[SceneKind, ...] = get_args(SceneKind)

Sky = tuple[tuple[int, int, int], tuple[int, int, int]]
"""The colours of a sky at the horizon and at the top, 8-bit levels."""

_SKIES: tuple[Sky, ...] = (
    ((196, 218, 236), (66, 118, 186)),
    ((240, 206, 170), (92, 110, 160)),
    ((250, 176, 110), (58, 44, 92)),
    ((206, 210, 214), (136, 146, 158)),
    ((120, 140, 170), (14, 22, 46)),
)
_RIDGE_SAMPLES = 1024


class Scene(Protocol):
    """Something that can be painted at any time, in seconds of any sign."""

    def render(self, t: float) -> Packed: ...


class Ground:
    """The camera passes over one texture."""

    def __init__(self, dice: Dice, stage: Stage, texture: Texture) -> None:
        self._stage, self._texture = stage, texture
        self._camera = Camera(dice, stage, texture.side)

    def render(self, t: float) -> Packed:
        return dim(self._texture.sample(*self._camera.look(t)), self._stage.vignette)


class Clouds:
    """Clouds where the sum of two noise fields that move at different speeds is high."""

    def __init__(self, dice: Dice, stage: Stage, sky: Sky) -> None:
        low, high = sky
        self._sky = self._gradient(dice, stage, sky)
        self._fields = [Texture.of_levels(fractal_field(dice, stage.side, 0.6)) for _ in range(2)]
        self._cameras = [Camera(dice, stage, stage.side, turn=False, speed=0.5) for _ in range(2)]
        cover, softness = dice.uniform(0.3, 0.6), dice.uniform(0.12, 0.4)
        level = np.arange(2 * FIELD_SPAN, dtype=np.float32) / np.float32(2 * FIELD_SPAN)
        rise = np.clip((level - np.float32(1 - cover - softness / 2)) / np.float32(softness), 0, 1)
        self._cover = (rise * 250).astype(np.uint64)
        bright = pack_colour(*(min(c + 45, 255) for c in low))
        dark = pack_colour(*((a + b) * 3 // 8 for a, b in zip(low, high, strict=True)))
        self._cloud = blend(bright, dark, np.clip((level - np.float32(0.5)) * 460, 0, 256).astype(np.uint64))

    def render(self, t: float) -> Packed:
        views = zip(self._fields, self._cameras, strict=True)
        first, second = (field.sample(*camera.look(t)) for field, camera in views)
        total = (first + second).view(np.int64)
        return blend(self._sky, self._cloud.take(total), self._cover.take(total))

    def _gradient(self, dice: Dice, stage: Stage, sky: Sky) -> Packed:
        """(H, 1) packed: from the top of the sky to the horizon."""
        is_curved = dice.chance(0.5)
        share = (np.arange(stage.height, dtype=np.int64) * 256) // max(stage.height - 1, 1)
        weight = (share * share >> 8 if is_curved else share).view(np.uint64)[:, None]
        return blend(pack_colour(*sky[1]), pack_colour(*sky[0]), weight)


class Water:
    """A texture seen through moving ripples, with glints where the ripples are steep."""

    def __init__(self, dice: Dice, stage: Stage, texture: Texture) -> None:
        self._stage, self._texture = stage, texture
        self._camera = Camera(dice, stage, texture.side, speed=0.4)
        fields = [fractal_field(dice, stage.side, dice.uniform(0.3, 0.5), coarsest=8) for _ in range(2)]
        self._ripples = [Texture.of_levels(field) for field in fields]
        self._drift = [Camera(dice, stage, stage.side, turn=False, speed=1.2) for _ in range(2)]
        self._depth = to_fixed(dice.uniform(0.02, 0.06) * texture.side / FIELD_SPAN)
        self._glint = light_colour(dice)
        self._threshold = dice.integer(500, 900)

    def render(self, t: float) -> Packed:
        views = zip(self._ripples, self._drift, strict=True)
        across, down = (field.sample(*view.look(t)).view(np.int64) - FIELD_MAX // 2 for field, view in views)
        u, v = self._camera.look(t)
        picture = self._texture.sample(u + across * self._depth, v + down * self._depth)
        steep = np.clip(170 - (np.abs(across + down - self._threshold) >> 1), 0, 170).view(np.uint64)
        return dim(blend(picture, self._glint, steep), self._stage.vignette)


class Landscape:
    """Hills behind hills under a sky; the near ones pass faster and the far ones are hazy."""

    def __init__(self, dice: Dice, stage: Stage) -> None:
        self._stage = stage
        sky = dice.choice(_SKIES)
        self._haze = pack_colour(*sky[0])
        self._clouds = Clouds(dice, stage, sky)
        self._texture = hill_texture(dice, stage.side)
        self._camera = Camera(dice, stage, stage.side, turn=False)
        self._pace = dice.signed(0.03, 0.3)
        self._ridges = [(nearness, self._ridge(dice, nearness)) for nearness in (0.0, 0.35, 0.65, 1.0)]

    def _ridge(self, dice: Dice, nearness: float) -> Plane:
        """The height of one line of hills over one period, in shares of the frame's height."""
        coarsest = 8 if nearness > 0.5 else 16
        profile = fractal_line(dice, _RIDGE_SAMPLES, 0.5 + 0.1 * nearness, coarsest).astype(np.float32)
        centred = profile / np.float32(FIELD_MAX) - np.float32(0.5)
        return centred * np.float32(0.34) + np.float32(0.42 + 0.42 * nearness)

    def render(self, t: float) -> Packed:
        picture = self._clouds.render(t)
        shake_x, shake_y = self._camera.shake(t)
        for index, (nearness, ridge) in enumerate(self._ridges):
            offset = (self._pace * (0.15 + 0.85 * nearness) * t + shake_x) * self._stage.width
            crest = self._crest(index, ridge, offset, shake_y * self._stage.height * (0.3 + nearness))
            self._paint_hills(picture, index, nearness, crest, offset, shake_y)
        return picture

    def _crest(self, index: int, ridge: Plane, offset: float, lower: float) -> Plane:
        """(W,) the rows at which the hills begin, moved down by `lower`."""
        stage = self._stage
        step = _RIDGE_SAMPLES / (2.6 * stage.unit)
        position = (np.arange(stage.width, dtype=np.float64) + offset) * step + index * 397
        whole = np.floor(position)
        left = whole.astype(np.int64)
        share = (position - whole).astype(np.float32)
        last = _RIDGE_SAMPLES - 1
        crest: Plane = ridge[left & last] * (1 - share) + ridge[(left + 1) & last] * share
        return crest * np.float32(stage.height) + np.float32(lower)

    def _paint_hills(
        self, picture: Packed, index: int, nearness: float, crest: Plane, offset: float, shake_y: float
    ) -> None:
        stage = self._stage
        first = min(max(int(crest.min()) - 1, 0), stage.height)
        if first == stage.height:
            return
        rows = slice(first, stage.height)
        y = np.arange(first, stage.height, dtype=np.float32)[:, None] + np.float32(0.5)
        step = stage.side * (0.75 - 0.35 * nearness) / (1.4 * stage.unit)
        centre = offset * step + index * 97.0, index * 61.0 + shake_y * stage.side
        land = self._texture.sample(*stage.coordinates(centre, step, 0.0, rows))
        haze = np.uint64(int(205 * (1 - nearness) * (1 - 0.3 * nearness)))
        picture[rows] = blend(picture[rows], blend(land, self._haze, haze), to_weight(crest[None, :] - y))


class Titles:
    """Text over a soft ground: captions, or lines that scroll."""

    def __init__(self, dice: Dice, stage: Stage) -> None:
        self._stage = stage
        soft = fractal_field(dice, 64, 0.4)
        self._texture = Texture.of(colour(dice, soft, np.full_like(soft, dice.integer(90, 200))))
        self._camera = Camera(dice, stage, 64, speed=0.5)
        self._captions = [Caption(dice, stage, row) for row in (-0.3, 0.0, 0.28)]
        lines = "\n".join(dice.choice(WORDS) for _ in range(12))
        self._dot = max(stage.unit * dice.uniform(0.009, 0.016), 1.0)
        self._scale = max(math.ceil(self._dot), 1)
        self._credits = np.pad(text_mask(lines, self._scale) * np.uint8(200), 2) if dice.chance(0.6) else None
        self._scroll = dice.uniform(0.06, 0.2)
        self._left = dice.uniform(0.02, 0.35)

    def render(self, t: float) -> Packed:
        picture = self._texture.sample(*self._camera.look(t))
        if self._credits is not None:
            return blend(picture, pack_colour(236, 234, 226), self._scrolled(self._credits, t))
        for caption in self._captions:
            caption.paint(picture, t)
        return picture

    def _scrolled(self, lines: npt.NDArray[np.uint8], t: float) -> Weight:
        """(H, W) weights of the scrolling lines, which start again when they have passed."""
        stage, step = self._stage, self._scale / self._dot
        length = lines.shape[0] / step + stage.height
        travelled = (self._scroll * stage.unit * t + stage.height * 0.6) % length
        left, top = to_fixed(self._left * stage.width * step), to_fixed((stage.height - travelled) * step)
        x = np.arange(stage.width, dtype=np.int64)[None, :] * to_fixed(step) - left
        y = np.arange(stage.height, dtype=np.int64)[:, None] * to_fixed(step) - top
        return sample_mask(lines, x, y)


class Soft:
    """A plain gradient whose brightness breathes: what codecs band on."""

    def __init__(self, dice: Dice, stage: Stage) -> None:
        self._stage = stage
        colours = palette(dice)
        self._from, self._to = (pack(colours[dice.integer(0, FIELD_MAX)]) for _ in range(2))
        self._turn, self._spin = dice.unit(), dice.signed(0.0, 0.05)
        self._rate, self._phase = dice.uniform(0.05, 0.3), dice.unit()

    def render(self, t: float) -> Packed:
        stage, turn = self._stage, self._turn + self._spin * t
        slope = 150.0 / stage.unit
        across = stage.columns * to_fixed(slope * cosine(turn)) + stage.rows * to_fixed(slope * sine(turn))
        middle = 128 + int(50 * sine(self._rate * t + self._phase))
        weight = np.clip((across >> FIXED_BITS) + middle, 0, 256).view(np.uint64)
        return blend(self._from, self._to, weight)


class Composed:
    """A background with shapes and captions on it."""

    def __init__(self, background: Scene, objects: list[Sprite | Caption]) -> None:
        self._background, self._objects = background, objects

    def render(self, t: float) -> Packed:
        picture = self._background.render(t)
        for item in self._objects:
            item.paint(picture, t)
        return picture


def _background(kind: str, dice: Dice, stage: Stage) -> Scene:
    match kind:
        case "clouds":
            return Clouds(dice, stage, dice.choice(_SKIES))
        case "landscape":
            return Landscape(dice, stage)
        case "titles":
            return Titles(dice, stage)
        case "water":
            return Water(dice, stage, dice.choice(MAKERS)(dice, stage.side))
        case "leaves":
            return Ground(dice, stage, leaf_texture(dice, stage.side))
        case "shapes" if dice.chance(0.5):
            return Soft(dice, stage)
        case _:
            texture = dice.choice((hill_texture, hill_texture, wall_texture))
            return Ground(dice, stage, texture(dice, stage.side))


def build_scene(kind: str, dice: Dice, stage: Stage) -> Scene:
    """Builds a scene, with the shapes and captions that the dice put on it."""
    background = _background(kind, dice, stage)
    if kind == "titles":
        return background
    count = dice.integer(3, 7) if kind == "shapes" else dice.integer(1, 3) if dice.chance(0.35) else 0
    textures = [dice.choice(MAKERS)(dice, max(stage.side // 2, 16)) for _ in range(min(count, 2))]
    sprites = [Sprite(dice, stage, textures[index % len(textures)]) for index in range(count)]
    captions = [Caption(dice, stage)] if dice.chance(0.3) else []
    return Composed(background, [*sprites, *captions])
