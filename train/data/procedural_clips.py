"""Procedural clips as a data set: endless for training, fixed for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from wfvae.errors import InputError
from wfvae.train.data.clip_source import Clip
from wfvae.train.strides import Strides, strides_complaint
from wfvae.video.synthetic.clips import MAX_NOISE, MAX_SIDE, MIN_SIDE, ProceduralClip, SceneName

__all__ = ["HELD_OUT_SEEDS", "TRAINING_SEEDS", "ProceduralClips", "Split"]

Split = Literal["train", "held-out"]

HELD_OUT_SEEDS = range(1 << 32)
"""Seeds of `ProceduralClip` that training never sees. They include the small ones that people type."""
TRAINING_SEEDS = range(1 << 32, 1 << 63)

_FPS = 25
_SPAN_SECONDS = 16
"""Clips begin within this time, so that four shots of the usual length and the changes between them
come up.
"""
_NOISY, _BLURRED = 0.3, 0.3
"""Shares of the clips with film grain and with motion blur."""
_BLUR = 4


class ProceduralClips:
    """Clips of painted videos: shapes, textures, text, camera moves, cuts, fades, grain and motion
    blur.

    With split "train" the family has no end: the generator passed to `clip` chooses the video and
    its moment, so every epoch shows new ones. With "held-out", clip `index` is always the same for
    one `seed`. The two splits use disjoint seeds of `ProceduralClip`, so nothing that is measured
    on the second has been trained on, whatever the seeds here.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        frames: int,
        size: tuple[int, int],
        stride: int = 1,
        *,
        min_stride: int = 0,
        stills: float = 0.0,
        split: Split = "train",
        scenes: Sequence[str] = ("mixed",),
        max_noise: float = 8.0,
    ) -> None:
        """Describe the set; nothing is painted yet.

        Args:
            seed: any integer >= 0; another one is another set.
            count: clips per epoch, >= 1.
            frames: frames per clip, >= 1.
            size: (height, width) in pixels, each 8..8192.
            stride: every stride-th frame of a video of 25 frames per second is taken, >= 1.
            min_stride: each clip draws its stride from this to `stride`, both included; 0 for
                `stride` always.
            stills: share of the clips that show one frame all the time, 0..1.
            split: "train" or "held-out".
            scenes: names of `procedural.SceneName`, one or more; each clip draws one, so a name
                given twice comes twice as often.
            max_noise: film grain of the noisy clips goes up to this standard deviation, 0..64
                levels of 255; 0 for none.

        Raises:
            InputError: an argument is outside its range.
        """
        for what, value, low in (
            ("seed", seed, 0),
            ("count", count, 1),
            ("frames", frames, 1),
            ("stride", stride, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(
                    f"{what} of procedural clips is {value!r}; expected an integer of at least {low}"
                )
        if wrong := strides_complaint(stride, min_stride, stills):
            raise InputError(wrong)
        if len(size) != 2 or not all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in size):
            raise InputError(
                f"size of procedural clips is {size!r}; expected (height, width) in pixels, each"
                f" {MIN_SIDE}..{MAX_SIDE}"
            )
        if split not in get_args(Split):
            raise InputError(
                f"split of procedural clips is {split!r}; expected one of {', '.join(get_args(Split))}"
            )
        if not 0 <= max_noise <= MAX_NOISE:
            raise InputError(
                f"max_noise is {max_noise!r}; expected a standard deviation of 0 to {MAX_NOISE:g} levels"
                " of 255"
            )
        if not scenes or isinstance(scenes, str):
            raise InputError(
                f"scenes is {scenes!r}; expected a list of one or more of {', '.join(get_args(SceneName))}"
            )
        for scene in scenes:
            ProceduralClip(0, size[0], size[1], scene=scene)  # refuses an unknown scene here, not in a worker
        self.seed, self.count, self.frames, self.size = seed, count, frames, (size[0], size[1])
        self.strides = Strides(stride, min_stride or stride, float(stills))
        self.split, self.scenes, self.max_noise = split, tuple(scenes), float(max_noise)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """See `ClipSource.name`."""
        return f"procedural {self.split} clip {index}"

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """(T, H, W, 3) uint8; `rng` is not used by the held-out split, `index` alone not by the
        training split.
        """
        if self.split == "held-out":
            rng = np.random.default_rng([self.seed, index])
            seeds = HELD_OUT_SEEDS
        else:
            rng = np.random.default_rng([self.seed, int(rng.integers(1 << 62)), index])
            seeds = TRAINING_SEEDS
        video = self._video(int(rng.integers(seeds.start, seeds.stop)), rng)
        start = int(rng.integers(_SPAN_SECONDS * _FPS))
        stride = self.strides.draw(rng)
        clip = np.empty((self.frames, *self.size, 3), np.uint8)
        for position in range(self.frames if stride else 1):
            clip[position] = video.frame(start + position * stride)
        if not stride:
            clip[1:] = clip[0]
        return clip

    def _video(self, seed: int, rng: np.random.Generator) -> ProceduralClip:
        noise = float(rng.uniform(0.0, self.max_noise)) if rng.random() < _NOISY else 0.0
        blur = _BLUR if rng.random() < _BLURRED else 1
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        height, width = self.size
        return ProceduralClip(
            seed,
            height,
            width,
            fps=_FPS,
            scene=scene,
            noise=noise,
            motion_blur=blur,
        )
