"""The stride of a clip: every how many frames of a video one is taken."""

from __future__ import annotations

import numpy as np

__all__ = ["draw_stride", "expected_min_stride"]


def expected_min_stride(smallest: int, largest: int) -> str:
    """What a smallest stride should have been, or "" if it is 0 (always the largest) or in 1..`largest`."""
    if not isinstance(smallest, bool) and isinstance(smallest, int) and 0 <= smallest <= largest:
        return ""
    return f"0 (always {largest}) or an integer in 1..{largest}"


def draw_stride(rng: np.random.Generator, smallest: int, largest: int) -> int:
    """A stride from `smallest` to `largest`, both included. With equal ones nothing is drawn, and what `rng` gives next stays the same."""
    return largest if smallest == largest else int(rng.integers(smallest, largest + 1))
