"""Energy and entropy of the eight 3-D Haar sub-bands of a video, in one pass and constant memory.

The transform is the orthonormal Haar of 2 x 2 x 2 blocks of pixels (stride 2 in time, rows and
columns), as at the head of the WF-VAE encoder. Of eight 8-bit pixels a coefficient is an integer
divided by sqrt(8), so one exact histogram of these integers per band is kept; energies and
entropies of any bin width follow from it.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError

BAND_COUNT = 8
BAND_NAMES = ("LLL", "LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH")
"""By band index; the letters stand for time, height, width: "LHL" holds differences of rows."""
BAND_AXES = ("", "W", "H", "HW", "T", "TW", "TH", "THW")
"""The axes along which each band is high-pass, by band index."""
NORM = math.sqrt(8.0)
_LARGEST = 8 * 255
"""Largest magnitude of the sum of eight signed 8-bit pixels."""
_BLOCK_ROWS = 256
"""Rows transformed at a time, so that the scratch memory does not grow with the frame's height."""

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Subband:
    """Statistics of one sub-band."""

    name: str
    """One of BAND_NAMES."""
    energy: float
    """Sum of squared coefficients, in squared 8-bit levels."""
    share: float
    """Its part of the energy of all bands, 0..1; 0 for a black video."""
    entropy: float
    """Bits per coefficient of the histogram with the given bin width."""


class SubbandStatistics:
    """Accumulates the sub-bands of one video.

    Frames are taken in pairs: an odd one waits for the next call. An odd last row or column is left
    out. The three colour channels count alike.

    Example:
        >>> statistics = SubbandStatistics()
        >>> statistics.update(np.full((2, 4, 4, 3), 77, np.uint8))
        >>> [band.share for band in statistics.bands()]
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self) -> None:
        self._histogram = np.zeros((BAND_COUNT, 2 * _LARGEST + 1), dtype=np.int64)
        self._waiting: Frames | None = None
        self._size: tuple[int, int] | None = None

    @property
    def coefficients(self) -> int:
        """Coefficients counted so far per band; times eight, the pixel values counted."""
        return int(self._histogram[0].sum())

    def update(self, frames: Frames) -> None:
        """Adds frames (T, H, W, 3) uint8, H and W >= 2, of the same size in every call."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            given = f"{frames.dtype} of shape {frames.shape}"
            raise InputError(f"frames are {given}; expected uint8 of shape (T, H, W, 3)")
        height, width = (int(side) for side in frames.shape[1:3])
        if min(height, width) < 2:
            raise InputError(f"frames are {height}x{width}; expected at least 2x2, the size of a Haar block")
        self._size = self._size or (height, width)
        if (height, width) != self._size:
            before = "x".join(map(str, self._size))
            problem = f"frames are {height}x{width} after {before}"
            raise InputError(f"{problem}; use one SubbandStatistics per video")
        for frame in frames:
            if self._waiting is None:
                self._waiting = frame.copy()  # the caller may reuse its buffer
            else:
                self._count_pair(self._waiting, frame)
                self._waiting = None

    def bands(self, bin_width: float = 1.0, zero_level: int = 0) -> tuple[Subband, ...]:
        """Returns the eight bands in the order of BAND_NAMES.

        Args:
            bin_width: width of the histogram's bins in 8-bit levels; a bin is centred on zero. The
                coefficients are multiples of 1/sqrt(8) = 0.354 levels: finer bins add nothing.
            zero_level: twice the pixel level that counts as zero in the energy of the first band: 0
                for black, 255 for the middle of the range, which is zero for the encoder.
        """
        if not bin_width > 0 or not math.isfinite(bin_width):
            raise InputError(f"bin_width is {bin_width!r}; expected a number of 8-bit levels above 0")
        if self.coefficients == 0:
            raise InputError("no pair of frames was counted; call update() with two frames or more first")
        energies = [self._energy(band, 4 * zero_level if band == 0 else 0) for band in range(BAND_COUNT)]
        total = sum(energies) or 1
        return tuple(
            Subband(name, energies[band] / 8.0, energies[band] / total, self._entropy(band, bin_width))
            for band, name in enumerate(BAND_NAMES)
        )

    def _count_pair(self, first: Frames, second: Frames) -> None:
        height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
        for top in range(0, height, _BLOCK_ROWS):
            rows = slice(top, min(top + _BLOCK_ROWS, height))
            pair = np.stack((first[rows, :width], second[rows, :width])).astype(np.int16)
            for band, sums in enumerate(_haar_sums(pair)):
                self._histogram[band] += np.bincount(sums.reshape(-1) + _LARGEST, minlength=2 * _LARGEST + 1)

    def _energy(self, band: int, zero: int) -> int:
        """Returns 8 x the energy about `zero`: an integer, exact however long the video."""
        counts = self._histogram[band]
        values = np.flatnonzero(counts)
        return sum((int(value) - _LARGEST - zero) ** 2 * int(counts[value]) for value in values)

    def _entropy(self, band: int, bin_width: float) -> float:
        counts = self._histogram[band]
        values = np.flatnonzero(counts)
        bins = np.floor((values - _LARGEST) / (NORM * bin_width) + 0.5)
        _, places = np.unique(bins, return_inverse=True)
        share = np.bincount(places.reshape(-1), weights=counts[values]) / counts.sum()
        return float(max(-(share * np.log2(share)).sum(), 0.0))


def _haar_sums(pair: npt.NDArray[np.int16]) -> list[npt.NDArray[np.int16]]:
    """Returns the eight bands of a pair of frames (2, H, W, C), each coefficient times sqrt(8).

    By band index: sums where a bit of the index is clear, first minus second where it is set.
    """
    bands = []
    for time in (pair[0] + pair[1], pair[0] - pair[1]):
        for rows in (time[0::2] + time[1::2], time[0::2] - time[1::2]):
            bands += [rows[:, 0::2] + rows[:, 1::2], rows[:, 0::2] - rows[:, 1::2]]
    return bands
