"""The stride of a clip: every how many frames of a video one is taken. Clips of one frame that is
repeated have a stride of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Strides", "strides_complaint"]


@dataclass(frozen=True)
class Strides:
    """What the clips of a source have.

    Attributes:
        largest: >= 1.
        smallest: 1..`largest`.
        stills: share of the clips that show one frame all the time, 0..1.
    """

    largest: int
    smallest: int
    stills: float = 0.0

    def draw(self, rng: np.random.Generator) -> int:
        """A stride, or 0 for a still. Where there is nothing to choose nothing is drawn, and what
        `rng` gives next stays the same.
        """
        if self.stills and rng.random() < self.stills:
            return 0
        return (
            self.largest
            if self.smallest == self.largest
            else int(rng.integers(self.smallest, self.largest + 1))
        )


def strides_complaint(largest: int, smallest: int, stills: float) -> str:
    """What is wrong with `min_stride` (0: always `largest`) or with `stills`, begins with the name;
    "" if nothing. `largest` is right.
    """
    if isinstance(smallest, bool) or not isinstance(smallest, int) or not 0 <= smallest <= largest:
        return f"min_stride is {smallest!r}; expected 0 (always {largest}) or an integer in 1..{largest}"
    if (
        isinstance(stills, bool)
        or not isinstance(stills, int | float)
        or not 0.0 <= stills <= 1.0
        or math.isnan(stills)
    ):
        return (
            f"stills is {stills!r}; expected the share of the clips that show one frame all the time, 0 to 1"
        )
    return ""
