"""PSNR, SSIM and LPIPS of frames, by scikit-image and lpips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import torch

Frames = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
LPIPS = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Two batches (B, 3, H, W) in [-1, 1] to (B,) distances."""

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_BATCH_PIXELS = 8 * 256 * 256
"""Pixels given to LPIPS at a time, so that memory does not grow with the videos' length."""


@dataclass(frozen=True)
class FrameScores:
    """Scores of T frames."""

    psnr: Values
    """dB, over all pixels and channels of a frame; infinite for identical frames."""
    ssim: Values
    lpips: Values | None
    """None where LPIPS is not measured."""


def score_frames(
    real: Frames, reconstruction: Frames, lpips: LPIPS | None = None, *, extra: str = "eval"
) -> FrameScores:
    """Scores frames against their originals, both (T, H, W, 3) uint8, T >= 1.

    PSNR with peak 255. SSIM as its authors define it, on [0, 1]: 11 x 11 Gaussian window of sigma
    1.5, K1 = 0.01, K2 = 0.03, population covariance, averaged over the windows that lie wholly
    inside the frame and over R, G and B.

    `extra` is this package's extra that brings scikit-image for the caller, for the error. Raises
    `InputError` if the shapes differ, or frames are smaller than the window.

    Example:
        >>> black = np.zeros((2, 16, 16, 3), np.uint8)
        >>> score_frames(black, black + np.uint8(1)).psnr.round(2).tolist()
        [48.13, 48.13]
    """
    if real.shape != reconstruction.shape or real.ndim != 4 or not len(real):
        shapes = f"frames have shape {real.shape} and their reconstruction {reconstruction.shape}"
        raise InputError(f"{shapes}; expected the same (T, H, W, 3)")
    if min(real.shape[1:3]) < SSIM_WINDOW:
        size, least = f"{real.shape[1]}x{real.shape[2]}", f"{SSIM_WINDOW}x{SSIM_WINDOW}"
        raise InputError(f"frames are {size}; expected at least {least}, the window of SSIM")
    psnr, ssim = scikit_image(extra)
    decibels, similarity = np.empty(len(real)), np.empty(len(real))
    for index, (before, after) in enumerate(zip(real, reconstruction, strict=True)):
        decibels[index] = np.inf if np.array_equal(before, after) else psnr(before, after, data_range=255)
        similarity[index] = ssim(
            before / 255.0,  # in float64: in float32 the variances cancel, and SSIM is off by 3e-5
            after / 255.0,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
    distances = None if lpips is None else _distances(real, reconstruction, lpips)
    return FrameScores(decibels, similarity, distances)


def _distances(real: Frames, reconstruction: Frames, lpips: LPIPS) -> Values:
    import torch

    def signed(frames: Frames) -> torch.Tensor:
        return torch.from_numpy(frames.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)

    batch = max(1, _BATCH_PIXELS // (real.shape[1] * real.shape[2]))
    parts = []
    with torch.inference_mode():
        for k in range(0, len(real), batch):
            found = lpips(signed(reconstruction[k : k + batch]), signed(real[k : k + batch]))
            parts.append(found.reshape(-1).double().numpy())
    return np.concatenate(parts)


def scikit_image(extra: str) -> tuple[Any, Any]:
    """Returns its PSNR and SSIM. Raises `MissingExtraError` naming the extra that brings it."""
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ModuleNotFoundError as error:
        raise MissingExtraError("scoring reconstructions", str(error.name), extra) from error
    return peak_signal_noise_ratio, structural_similarity
