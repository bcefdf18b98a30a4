"""Procedural videos: endless, varied clips from a seed, for tests, the demo, verification and the
training of small models.

    clip = ProceduralClip(seed=7, height=256, width=256)
    clip.frame(1_000_000)        # (256, 256, 3) uint8, without painting the frames before it
    clip.frames(0, 33)           # (33, 256, 256, 3) uint8
    for frame in clip: ...       # endless, unless `frames` was given

A clip is a row of shots, of about four seconds unless told otherwise, joined by cuts, fades through
black and dissolves. A frame depends on the arguments and its index alone, bit for bit the same on
every machine (see `procedural_noise` for how), and memory does not grow with the length. Seeds are
split by the caller: any integer gives a clip that shares nothing with those of other integers, so
held-out data is just other seeds.
"""

from __future__ import annotations

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

__all__ = [
    "BLUR_SAMPLES",
    "MAX_NOISE",
    "MAX_SHOT_SECONDS",
    "MAX_SIDE",
    "MIN_SIDE",
    "SCENES",
    "SHOT_SECONDS",
    "SHUTTER",
    "ProceduralClip",
    "SceneName",
]

MIN_SIDE = 8
MAX_SIDE = 8192
MAX_NOISE = 64.0
SHOT_SECONDS = 4.0
"""Length of a shot, about, unless another is given."""
MAX_SHOT_SECONDS = 3600.0
BLUR_SAMPLES = (1, 2, 4, 8, 16)
SHUTTER = 0.5
"""Share of the frame time that the shutter of a blurred clip is open."""

SceneName = Literal["mixed", SceneKind]
"""What a clip shows: one of `SCENES` in every shot, or "mixed" for a kind per shot."""

_JOIN_SECONDS = 0.6
_KEPT_SHOTS = 2
_SHOT, _CUT, _GRAIN = 1, 2, 3
_GRAIN_SPREAD = 330.5
"""Standard deviation of the grain's raw integers: sqrt(2**2 + 1) times that of a sum of four bytes."""

Frames = npt.NDArray[np.uint8]


class ProceduralClip:
    """A deterministic video that is painted frame by frame on demand.

    Attributes:
        seed, height, width, fps, scene, noise, motion_blur, cuts, shot_seconds: as given.
        length: number of frames, None for a clip without end.

    Not safe for several threads at once (it keeps the two latest shots); give each thread its own
    clip, they are small until used.
    """

    def __init__(
        self,
        seed: int,
        height: int,
        width: int,
        frames: int | None = None,
        fps: int | float | Fraction = 25,
        *,
        scene: str = "mixed",
        noise: float = 0.0,
        motion_blur: int = 1,
        cuts: bool = True,
        shot_seconds: float = SHOT_SECONDS,
    ) -> None:
        """Describe a clip; nothing is painted yet.

        Args:
            seed: any integer >= 0.
            height, width: pixels, each 8..8192.
            frames: number of frames, >= 1; None for no end.
            fps: frames per second, > 0; motion is laid out in seconds, so a higher rate means
                smaller steps.
            scene: one of `SCENES`, or "mixed" for a kind per shot.
            noise: standard deviation of film grain in 8-bit levels, 0..64.
            motion_blur: pictures averaged per frame over half the frame time: 1 (off), 2, 4, 8 or
                16; the time taken grows alike.
            cuts: False for a single shot without end.
            shot_seconds: length of a shot, above 0 and at most 3600, but at least 8 frames; each is
                up to half as much longer or shorter.

        Raises:
            InputError: an argument is outside its range.
        """
        _check_integer("seed", seed, 0, None)
        _check_integer("height", height, MIN_SIDE, MAX_SIDE)
        _check_integer("width", width, MIN_SIDE, MAX_SIDE)
        if frames is not None:
            _check_integer("frames", frames, 1, None)
        if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction) or not 0 < fps <= 10_000:
            raise InputError(f"fps is {fps!r}; expected frames per second above 0 and at most 10000")
        if scene not in get_args(SceneName):
            raise InputError(f"scene is {scene!r}; expected 'mixed' or one of {', '.join(SCENES)}")
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= MAX_NOISE:
            raise InputError(
                f"noise is {noise!r}; expected a standard deviation of 0 to {MAX_NOISE:g} levels of 255"
            )
        if motion_blur not in BLUR_SAMPLES or isinstance(motion_blur, bool):
            raise InputError(
                f"motion_blur is {motion_blur!r}; expected the pictures to average, one of {BLUR_SAMPLES} (1"
                " = off)"
            )
        if wrong := shot_seconds_complaint(shot_seconds):
            raise InputError(wrong)
        self.seed, self.height, self.width, self.length = int(seed), int(height), int(width), frames
        self.fps, self.scene, self.noise, self.motion_blur, self.cuts = (
            fps,
            scene,
            noise,
            int(motion_blur),
            cuts,
        )
        self.shot_seconds, self._rate = float(shot_seconds), float(fps)
        self._shot_frames = max(round(self.shot_seconds * self._rate), 8)
        self._join_frames = min(round(_JOIN_SECONDS * self._rate), self._shot_frames // 4)
        self._stage = Stage(self.height, self.width)
        self._shots: OrderedDict[int, Scene] = OrderedDict()

    def __repr__(self) -> str:
        length = "endless" if self.length is None else f"{self.length} frames"
        return (
            f"ProceduralClip(seed={self.seed}, {self.height}x{self.width}, {length}, {self.fps} fps,"
            f" scene={self.scene!r})"
        )

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(
                "this clip has no end and so no len(); give `frames` to limit it, or read frames(start, stop)"
            )
        return self.length

    def __iter__(self) -> Iterator[Frames]:
        index = 0
        while self.length is None or index < self.length:
            yield self.frame(index)
            index += 1

    def frame(self, index: int) -> Frames:
        """The frame at an index: (H, W, 3) uint8 RGB.

        Raises:
            InputError: index is negative or not below `length`.
        """
        _check_integer("index", index, 0, None if self.length is None else self.length - 1)
        return to_pixels(self._exposed(int(index)), self._grain(int(index)))

    def frames(self, start: int, stop: int) -> Frames:
        """The frames start..stop-1: (stop - start, H, W, 3) uint8 RGB.

        Raises:
            InputError: not 0 <= start <= stop <= length.
        """
        _check_integer("start", start, 0, self.length)
        _check_integer("stop", stop, int(start), self.length)
        taken = np.empty((stop - start, self.height, self.width, 3), dtype=np.uint8)
        for position, index in enumerate(range(start, stop)):
            taken[position] = self.frame(index)
        return taken

    def _exposed(self, index: int) -> Packed:
        """One frame, averaged over the time that the shutter is open."""
        samples = self.motion_blur
        if samples == 1:
            return self._joined(index, float(index))
        return average([self._joined(index, index + SHUTTER * step / samples) for step in range(samples)])

    def _joined(self, index: int, moment: float) -> Packed:
        """The picture at a moment (in frames), with the shot changes near the frame `index`
        applied.
        """
        shot, start, following = self._locate(index)
        picture = self._shot(shot).render((moment - start) / self._rate)
        half = self._join_frames / 2
        if shot > 0 and index - start < half:
            return self._join(shot, start, index, moment, picture, is_new=True)
        if following is not None and following - index <= half:
            return self._join(shot + 1, following, index, moment, picture, is_new=False)
        return picture

    def _join(
        self, shot: int, start: int, index: int, moment: float, picture: Packed, is_new: bool
    ) -> Packed:
        """A picture close to the change to `shot`, which starts at frame `start`: cut, fade through
        black, or dissolve.
        """
        manner = Dice(self.seed, _CUT, shot, 1).unit()
        progress = (index - start) / self._join_frames + 0.5
        if manner < 0.6:
            return picture
        if manner < 0.8:
            return dim(picture, np.uint64(int(256 * abs(2 * progress - 1))))
        other = shot - 1 if is_new else shot
        other_start = self._shot_start(other)
        beside = self._shot(other).render((moment - other_start) / self._rate)
        weight = np.uint64(int(256 * min(max(progress, 0.0), 1.0)))
        return blend(beside, picture, weight) if is_new else blend(picture, beside, weight)

    def shot_starts(self, frames: int) -> list[int]:
        """The first frames of the shots that begin within so many frames, in order; [0] without
        cuts.
        """
        starts = [0]
        while self.cuts and (start := self._shot_start(len(starts))) < frames:
            starts.append(start)
        return starts

    def _shot_start(self, shot: int) -> int:
        """The first frame of a shot: every shot has a slot of equal length and begins up to a
        quarter of it early or late.
        """
        if shot == 0:
            return 0
        quarter = self._shot_frames // 4
        return shot * self._shot_frames + Dice(self.seed, _CUT, shot, 0).integer(-quarter, quarter)

    def _locate(self, index: int) -> tuple[int, int, int | None]:
        """The shot that a frame belongs to, its first frame, and the first frame of the next one."""
        if not self.cuts:
            return 0, 0, None
        shot = index // self._shot_frames
        start, following = self._shot_start(shot), self._shot_start(shot + 1)
        if index < start:
            return shot - 1, self._shot_start(shot - 1), start
        if index >= following:
            return shot + 1, following, self._shot_start(shot + 2)
        return shot, start, following

    def _shot(self, shot: int) -> Scene:
        """A shot's scene, built when first needed; only the latest are kept, so that memory stays
        constant.
        """
        scene = self._shots.get(shot)
        if scene is None:
            dice = Dice(self.seed, _SHOT, shot)
            kind = dice.choice(SCENES)
            scene = build_scene(kind if self.scene == "mixed" else self.scene, dice, self._stage)
            self._shots[shot] = scene
            while len(self._shots) > _KEPT_SHOTS:
                self._shots.popitem(last=False)
        self._shots.move_to_end(shot)
        return scene

    def _grain(self, index: int) -> Field | None:
        """Film grain, mostly in brightness: (H, W, 3) int32 at 16 steps per level, or None without
        noise.
        """
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


def shot_seconds_complaint(seconds: float) -> str:
    """What is wrong with a length of shots, begins with `shot_seconds`; "" if nothing."""
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 < seconds <= MAX_SHOT_SECONDS
    ):
        return f"shot_seconds is {seconds!r}; expected seconds above 0 and at most {MAX_SHOT_SECONDS:g}"
    return ""


def _check_integer(name: str, value: int, low: int, high: int | None) -> None:
    """Raise InputError unless value is an integer (numpy's count, bool does not) in low..high."""
    wanted = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or value < low
        or (high is not None and value > high)
    ):
        raise InputError(f"{name} is {value!r}; expected {wanted}")
