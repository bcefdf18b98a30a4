"""The stride of a clip: of how many frames of a video one is taken. A still has a stride of 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Strides:
    """The strides that the clips of a source draw from.

    Attributes:
        largest, smallest: 1 <= smallest <= largest.
        stills: share of the clips that show one frame all the time, 0..1.
    """

    largest: int
    smallest: int
    stills: float = 0.0

    def draw(self, rng: np.random.Generator) -> int:
        """Draws a stride, or 0 for a still. Where there is no choice, `rng` is not used."""
        if self.stills and rng.random() < self.stills:
            return 0
        if self.smallest == self.largest:
            return self.largest
        return int(rng.integers(self.smallest, self.largest + 1))


def strides_complaint(largest: int, smallest: int, stills: float) -> str:
    """Returns what is wrong with `min_stride` or `stills`, or "".

    >>> strides_complaint(2, 3, 0.0)
    'min_stride is 3; expected 0 (always 2) or an integer in 1..2'
    """
    if not 0 <= smallest <= largest:
        return f"min_stride is {smallest!r}; expected 0 (always {largest}) or an integer in 1..{largest}"
    if not 0.0 <= stills <= 1.0:
        return f"stills is {stills!r}; expected the share of the clips that show one frame, 0 to 1"
    return ""
