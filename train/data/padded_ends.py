"""Clips that end as videos of any length end in a stream: their last latent is completed by copies of the last frame."""

from __future__ import annotations

import numpy as np

from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, FiniteSource, InspectedSource

__all__ = ["PaddedEnds"]


class PaddedEnds:
    """Another source's clips, some of which hold copies of a frame in place of their last 1 to `ratio` - 1 frames.

    A video whose length is not 1 + r n is padded so (r frames per latent), and what a model makes of a movement that stops within a
    latent it only knows if it has seen it.
    """

    def __init__(self, source: ClipSource, share: float, ratio: int) -> None:
        """Describe the clips: a share of them, 0..1, is padded; `source` gives 1 + r n frames, n >= 1, and `ratio` is r."""
        self.source, self.share, self.ratio = source, share, ratio

    def __len__(self) -> int:
        return len(self.source)

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """What the source has left out."""
        return self.source.unusable if isinstance(self.source, InspectedSource) else ()

    @property
    def fingerprint(self) -> str:
        """That of the source; "" where its items cannot change."""
        return self.source.fingerprint if isinstance(self.source, FiniteSource) else ""

    def name(self, index: int) -> str:
        """The name of the source's clip."""
        return self.source.name(index)

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """(T, H, W, 3) uint8, as the source gives it or with its end padded. Raises what the source does."""
        clip = self.source.clip(index, rng)
        if rng.random() < self.share:
            copies = int(rng.integers(1, self.ratio))
            clip[-copies:] = clip[-copies - 1]
        return clip
