"""Procedural videos: endless, varied clips from a seed, for tests, the demo and training.

A clip is a row of shots of about four seconds, joined by cuts, fades through black and dissolves.
A frame depends on the arguments and its index alone and has the same bits on every machine (the
module `noise` describes how); memory does not grow with the length.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.video.synthetic.noise import Dice, Field
from wfvae.video.synthetic.paint import Packed, Stage, average, blend, dim, to_pixels
from wfvae.video.synthetic.scenes import SCENES, Scene, SceneKind, build_scene

MIN_SIDE = 8
MAX_SIDE = 8192
MAX_NOISE = 64.0
BLUR_SAMPLES = (1, 2, 4, 8, 16)
SHUTTER = 0.5  # share of the frame time that the shutter of a blurred clip is open

SceneName = Literal["mixed", SceneKind]
"""What a clip shows: one of `SCENES` in every shot, or "mixed" for a kind per shot."""

_SHOT_SECONDS = 4.0
_JOIN_SECONDS = 0.6
_KEPT_SHOTS = 2
_SHOT, _CUT, _GRAIN = 1, 2, 3
_GRAIN_SPREAD = 330.5
"""Standard deviation of raw grain: sqrt(2**2 + 1) times that of a sum of four bytes."""

Frames = npt.NDArray[np.uint8]


class ProceduralClip:
    """A deterministic video that is painted frame by frame on demand.

    Different seeds give unrelated clips, so held-out data is other seeds. A clip is not safe for
    several threads at once (it keeps the two latest shots); give each thread its own.

    Example:
        >>> clip = ProceduralClip(seed=7, height=32, width=48)
        >>> clip.frames(0, 5).shape
        (5, 32, 48, 3)
        >>> clip.frame(1_000_000).dtype  # without painting the frames before it
        dtype('uint8')
    """

    def __init__(
        self,
        seed: int,
        height: int,
        width: int,
        frames: int | None = None,
        fps: float | Fraction = 25,
        *,
        scene: str = "mixed",
        noise: float = 0.0,
        motion_blur: int = 1,
        cuts: bool = True,
    ) -> None:
        """Describes a clip; nothing is painted yet.

        Args:
            frames: number of frames, None for no end.
            fps: a higher rate means smaller steps of the same motion.
            scene: one of `SCENES`, or "mixed" for a kind per shot.
            noise: standard deviation of film grain in 8-bit levels, 0..64.
            motion_blur: pictures averaged per frame over half the frame time: 1 (off), 2, 4, 8 or
                16; painting takes as many times longer.
            cuts: False for a single shot without end.

        Raises:
            InputError: a size, the scene, the noise or the blur is outside its range.
        """
        sides = range(MIN_SIDE, MAX_SIDE + 1)
        _check("height", height, height in sides, f"an integer in {MIN_SIDE}..{MAX_SIDE}")
        _check("width", width, width in sides, f"an integer in {MIN_SIDE}..{MAX_SIDE}")
        _check("scene", scene, scene in get_args(SceneName), f"'mixed' or one of {', '.join(SCENES)}")
        is_noise = 0 <= noise <= MAX_NOISE
        _check("noise", noise, is_noise, f"a standard deviation of 0 to {MAX_NOISE:g} levels of 255")
        is_blur = motion_blur in BLUR_SAMPLES
        _check("motion_blur", motion_blur, is_blur, f"the pictures to average, one of {BLUR_SAMPLES}")
        self.seed, self.height, self.width, self.length = seed, height, width, frames
        self.scene, self.noise, self.motion_blur, self.cuts = scene, noise, motion_blur, cuts
        self._rate = float(fps)
        self._shot_frames = max(round(_SHOT_SECONDS * self._rate), 8)
        self._join_frames = min(round(_JOIN_SECONDS * self._rate), self._shot_frames // 4)
        self._stage = Stage(self.height, self.width)
        self._shots: OrderedDict[int, Scene] = OrderedDict()

    def __iter__(self) -> Iterator[Frames]:
        indices = itertools.count() if self.length is None else range(self.length)
        yield from map(self.frame, indices)

    def frame(self, index: int) -> Frames:
        """Paints the frame at an index: (H, W, 3) uint8 RGB."""
        is_inside = index >= 0 and (self.length is None or index < self.length)
        _check("index", index, is_inside, f"the number of a frame, below {self.length}")
        samples = self.motion_blur
        open_shutter = [index + SHUTTER * step / samples for step in range(samples)]
        exposed = average([self._joined(index, moment) for moment in open_shutter])
        return to_pixels(exposed, self._grain(index))

    def frames(self, start: int, stop: int) -> Frames:
        """Paints the frames start..stop-1: (stop - start, H, W, 3) uint8 RGB."""
        return np.stack([self.frame(index) for index in range(start, stop)])

    def _joined(self, index: int, moment: float) -> Packed:
        """The picture at a moment (in frames), with a shot change near the frame `index`."""
        shot, start, following = self._locate(index)
        half = self._join_frames / 2
        if shot > 0 and index - start < half:
            return self._changing(shot - 1, shot, start, index, moment)
        if following is not None and following - index <= half:
            return self._changing(shot, shot + 1, following, index, moment)
        return self._picture(shot, moment)

    def _changing(self, old: int, new: int, start: int, index: int, moment: float) -> Packed:
        """The picture near `start`, where `old` changes to `new`: a cut, a fade or a dissolve."""
        kind = Dice(self.seed, _CUT, new, 1).unit()
        progress = (index - start) / self._join_frames + 0.5
        if kind < 0.8:
            picture = self._picture(new if index >= start else old, moment)
            return picture if kind < 0.6 else dim(picture, np.uint64(int(256 * abs(2 * progress - 1))))
        weight = np.uint64(int(256 * min(max(progress, 0.0), 1.0)))
        return blend(self._picture(old, moment), self._picture(new, moment), weight)

    def _picture(self, shot: int, moment: float) -> Packed:
        return self._shot(shot).render((moment - self._shot_start(shot)) / self._rate)

    def _shot_start(self, shot: int) -> int:
        """The first frame of a shot, up to a quarter of its length early or late."""
        if shot == 0:
            return 0
        quarter = self._shot_frames // 4
        return shot * self._shot_frames + Dice(self.seed, _CUT, shot, 0).integer(-quarter, quarter)

    def _locate(self, index: int) -> tuple[int, int, int | None]:
        """The shot of a frame, its first frame, and the first frame of the next shot."""
        if not self.cuts:
            return 0, 0, None
        shot = index // self._shot_frames
        if index < self._shot_start(shot):
            shot -= 1
        elif index >= self._shot_start(shot + 1):
            shot += 1
        return shot, self._shot_start(shot), self._shot_start(shot + 1)

    def _shot(self, shot: int) -> Scene:
        """A shot's scene, built when first needed. Only the latest are kept."""
        if shot not in self._shots:
            dice = Dice(self.seed, _SHOT, shot)
            kind = dice.choice(SCENES)
            self._shots[shot] = build_scene(kind if self.scene == "mixed" else self.scene, dice, self._stage)
            while len(self._shots) > _KEPT_SHOTS:
                self._shots.popitem(last=False)
        self._shots.move_to_end(shot)
        return self._shots[shot]

    def _grain(self, index: int) -> Field | None:
        """Film grain, mostly in brightness: (H, W, 3) int32 at 16 steps per level, or None."""
        if self.noise == 0:
            return None
        count = self.height * self.width
        raw = Dice(self.seed, _GRAIN, index).bytes(16 * count).reshape(4, 4 * count)
        # The sum of four bytes is close enough to a normal distribution, and it is exact.
        bell = raw.sum(axis=0, dtype=np.int32).reshape(self.height, self.width, 4) - 510
        mixed = 2 * bell[..., 3:] + bell[..., :3]
        gain = int(self.noise * 16 / _GRAIN_SPREAD * 65536)
        grain: Field = (mixed * gain + 32768) >> 16
        return grain


def _check(name: str, value: object, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise InputError(f"{name} is {value!r}; expected {expected}")
