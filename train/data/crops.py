"""Random windows of clips: several small pictures from each clip that was read or painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource


@dataclass(frozen=True)
class Crops:
    """Windows of `height` x `width` pixels, over all frames of a clip, `per_clip` of each clip.

    Reading a clip costs the same whether one window of it is used or many. Those of one clip are
    spread over a few batches, see `Sampling`.
    """

    height: int
    width: int
    per_clip: int = 1

    def cut(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Cuts a random window, (T, height, width, 3), out of a clip (T, H, W, 3).

        Raises:
            DataError: the clip is smaller than the window.
        """
        rows, columns = clip.shape[1:3]
        if self.height > rows or self.width > columns:
            raise DataError(
                f"a crop of {self.height}x{self.width} pixels does not fit a clip of {rows}x{columns}; make"
                " the crop smaller"
            )
        top, left = int(rng.integers(rows - self.height + 1)), int(rng.integers(columns - self.width + 1))
        return np.ascontiguousarray(clip[:, top : top + self.height, left : left + self.width])


class FixedCrops(ClipSource):
    """One window of each of another source's clips, always the same: for validation."""

    def __init__(self, source: ClipSource, crops: Crops) -> None:
        self.source, self.crops = source, crops

    def __len__(self) -> int:
        return len(self.source)

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """See `ClipSource.unusable`."""
        return self.source.unusable

    def name(self, index: int) -> str:
        """See `ClipSource.name`."""
        return self.source.name(index)

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """See `ClipSource.clip`."""
        return self.crops.cut(self.source.clip(index, rng), np.random.default_rng(index))
