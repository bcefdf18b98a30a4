"""Procedural clips as a data set: endless for training, fixed for measuring."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from wfvae.train.data.clip_source import EVERY_FRAME, Clip, ClipSource, Strides
from wfvae.video.synthetic.clips import ProceduralClip

Split = Literal["train", "held-out"]

HELD_OUT_SEEDS = range(1 << 32)
"""Seeds of `ProceduralClip` that training never sees, the small ones that people type included."""
TRAINING_SEEDS = range(1 << 32, 1 << 63)

_FPS = 25
_SPAN_SECONDS = 16
"""Clips begin within this time, which holds about four shots and the changes between them."""
_NOISY, _BLURRED = 0.3, 0.3
"""Shares of the clips with film grain and with motion blur."""
_BLUR = 4


class ProceduralClips(ClipSource):
    """Clips of painted videos, in two sets that share no video: for training, and held out.

    With split "train" the generator passed to `clip` chooses the video and its moment, so every
    epoch shows new ones. With "held-out", clip `index` is always the same for one `seed`. The two
    splits use disjoint seeds of `ProceduralClip`.

    Args:
        seed: >= 0; another one is another set.
        count: clips per epoch.
        frames, size: of the clips; the size is (height, width) in pixels.
        strides: of videos of 25 frames per second.
        scenes: each clip draws one of these `SceneName`s.
        max_noise: largest standard deviation of film grain, in levels of 255; 0 for none.

    Raises:
        InputError: a size, a scene or the noise is outside its range.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        frames: int,
        size: tuple[int, int],
        strides: Strides = EVERY_FRAME,
        *,
        split: Split = "train",
        scenes: Sequence[str] = ("mixed",),
        max_noise: float = 8.0,
    ) -> None:
        for scene in scenes:  # refuses wrong values here, not in a worker
            ProceduralClip(0, size[0], size[1], scene=scene, noise=max_noise)
        self.seed, self.count, self.frames, self.size = seed, count, frames, size
        self.strides, self.split, self.scenes, self.max_noise = strides, split, tuple(scenes), max_noise

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """See `ClipSource.name`."""
        return f"procedural {self.split} clip {index}"

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """See `ClipSource.clip`; the held-out split does not use `rng`."""
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
        return ProceduralClip(seed, height, width, fps=_FPS, scene=scene, noise=noise, motion_blur=blur)
