"""How far a block-wise result is from the direct one, and a picture of where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from wfvae.errors import InputError
from wfvae.report.plots import draw_line, plot_style, svg_text

Array = npt.NDArray[Any]

PEAK = 2.0
LEVELS = 127.5
"""8-bit levels per unit of video in [-1, 1]."""
_COLOURS = np.array(
    [(12, 12, 30), (64, 26, 110), (158, 42, 99), (226, 88, 52), (250, 166, 46), (252, 252, 190)],
    dtype=np.float64,
)
"""From no difference to the largest, even in lightness."""


@dataclass(frozen=True)
class Error:
    """One clip."""

    equal_bits: bool
    max_abs: float
    latents_max_abs: float
    mean_square: float
    deviation: float
    """Standard deviation of the direct result."""
    direct_psnr: float
    blockwise_psnr: float
    heat: npt.NDArray[np.float64]
    """(H, W): RMS of the difference over frames and colours."""
    per_frame: npt.NDArray[np.float64]
    """(T,): RMS of the difference over a frame."""

    @classmethod
    def of(
        cls, video: Array, direct: Array, blocks: Array, direct_latents: Array, blocks_latents: Array
    ) -> Error:
        """Compares results (T, H, W, 3) in about [-1, 1] with each other and with the video they
        are of.

        Raises `InputError` where shapes differ: nothing can be said of frames or pixels that one
        result lacks.
        """
        if (
            direct.shape != blocks.shape
            or direct.shape != video.shape
            or direct_latents.shape != blocks_latents.shape
        ):
            raise InputError(
                f"direct inference gives {direct.shape} of latents {direct_latents.shape}, and block-wise"
                f" {blocks.shape} of latents {blocks_latents.shape}, for a video {video.shape}; they cannot"
                " be compared"
            )
        square = (direct.astype(np.float64) - blocks) ** 2
        return cls(
            equal_bits=direct.tobytes() == blocks.tobytes()
            and direct_latents.tobytes() == blocks_latents.tobytes(),
            max_abs=float(np.sqrt(square.max())),
            latents_max_abs=float(np.abs(direct_latents.astype(np.float64) - blocks_latents).max()),
            mean_square=float(square.mean()),
            deviation=float(direct.std(dtype=np.float64)),
            direct_psnr=psnr(video, direct),
            blockwise_psnr=psnr(video, blocks),
            heat=np.sqrt(square.mean(axis=(0, 3))),
            per_frame=np.sqrt(square.mean(axis=(1, 2, 3))),
        )


def psnr(video: Array, result: Array) -> float:
    """dB, peak 2; the result is clamped to [-1, 1], as it is shown."""
    error = float(((video.astype(np.float64) - np.clip(result, -1, 1)) ** 2).mean())
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


class Totals:
    """Several clips together: means of dB, the largest of differences."""

    def __init__(self, errors: Sequence[Error]) -> None:
        self._errors = errors

    def numbers(self) -> dict[str, Any]:
        """The fields of a result."""
        errors = self._errors
        different = [error for error in errors if error.mean_square > 0]
        direct, blocks = (
            fmean(error.direct_psnr for error in errors),
            fmean(error.blockwise_psnr for error in errors),
        )
        return {
            "equal_bits": all(error.equal_bits for error in errors),
            "max_abs": max(error.max_abs for error in errors),
            "latents_max_abs": max(error.latents_max_abs for error in errors),
            "psnr_to_direct_db": (
                fmean(10 * math.log10(PEAK**2 / error.mean_square) for error in different)
                if different
                else None
            ),
            "relative_error": fmean(
                math.sqrt(error.mean_square) / error.deviation if error.mean_square else 0.0
                for error in errors
            ),
            "direct_psnr_db": direct,
            "blockwise_psnr_db": blocks,
            "difference_db": blocks - direct,
        }


def picture_of(error: Error, title: str, note: str) -> str:
    """An SVG file: the difference over height and width as a heat map, and per frame as a line."""
    top = float(error.heat.max())
    scale = f"black: equal; brightest: {top * LEVELS:.3g} 8-bit levels" if top else "equal everywhere"
    # In the unit that keeps three digits before the point or one after it.
    values = [float(value) * LEVELS for value in error.per_frame]
    power = max(0, -math.floor(math.log10(max(values)) / 3)) * 3 if max(values) > 0 else 0
    unit = "8-bit levels" if power == 0 else f"1e-{power} 8-bit levels"
    curve = [value * 10**power for value in values]
    with plot_style():
        figure = Figure((9.8, 6.5))
        figure.suptitle(f"{title}: block-wise against direct\n{note}", fontsize=9)
        heat, line = figure.subplots(2, height_ratios=(2, 1))
        heat.imshow(heat_colours(error.heat), interpolation="none")
        heat.set_axis_off()
        heat.set_title(f"RMS difference over height and width ({scale})")
        draw_line(line, curve, "frame", "RMS difference", unit, least_span=0.1, from_zero=True)
        return svg_text(figure, f"{title}: block-wise against direct")


def heat_colours(heat: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """(H, W) of values >= 0 to (H, W, 3): from dark for 0 to bright for the largest."""
    top = heat.max()
    place = (heat / top if top else heat) * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - below)[..., None]
    result: npt.NDArray[np.uint8] = (
        _COLOURS[below] * (1 - share) + _COLOURS[below + 1] * share + 0.5
    ).astype(np.uint8)
    return result
