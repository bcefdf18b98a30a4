"""Random crops of another source's clips: small pictures with the detail of large ones, for cheap training."""

from __future__ import annotations

import numpy as np

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, InspectedSource

__all__ = ["RandomCrops"]


class RandomCrops:
    """Clips of `source`, each cut to one random window over all its frames."""

    def __init__(self, source: ClipSource, size: tuple[int, int]) -> None:
        """Describe the crops.

        Args:
            source: of clips at least as large.
            size: (height, width) of the window in pixels, each >= 1.

        Raises:
            DataError: a side is below 1.
        """
        if min(size) < 1:
            raise DataError(f"crops of {size[0]}x{size[1]} pixels were asked for; expected at least 1x1")
        self.source, self.size = source, (size[0], size[1])

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """The name of the source's clip."""
        return self.source.name(index)

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """What the source has left out for good."""
        return self.source.unusable if isinstance(self.source, InspectedSource) else ()

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """A window of the source's clip: (T, height, width, 3) uint8.

        Raises:
            BadClip: the source's clip cannot be used.
            DataError: the clip is smaller than the window.
        """
        whole = self.source.clip(index, rng)
        (height, width), (rows, columns) = self.size, whole.shape[1:3]
        if height > rows or width > columns:
            raise DataError(f"a crop of {height}x{width} pixels does not fit a clip of {rows}x{columns}; make the crop smaller")
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        return np.ascontiguousarray(whole[:, top : top + height, left : left + width])
