"""Reconstruction quality of the averaged weights on held-out clips, as numbers and as pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wfvae.errors import MissingExtraError, TrainingError
from wfvae.model import WFVAE
from wfvae.torchvision_operators import make_torchvision_importable
from wfvae.train.data import Batch, to_model_range
from wfvae.train.perceptual import PerceptualLoss

_WORST_MSE = 1e-10
_SHOWN = 5


class Scores(NamedTuple):
    """Means over frames, then over clips, of 8-bit reconstructions."""

    psnr_db: float
    """On [0, 1], in dB; a perfect frame counts as 100 dB."""
    ssim: float
    """11x11 Gaussian window, sigma 1.5, on [0, 1]."""
    lpips: float | None
    """None without a perceptual network."""


@torch.no_grad()
def validate(
    model: WFVAE, batches: Iterable[Batch], perceptual: PerceptualLoss | None = None, pictures: Path | None = None, shown: int = 0
) -> Scores:
    """Reconstructs clips from the posterior's mean and scores them.

    Args:
        model: in eval mode.
        batches: clips, uint8 (B, 3, T, H, W).
        perceptual: for LPIPS.
        pictures: directory for `clip-N.png`: rows of original, reconstruction and difference (doubled, around grey).
        shown: how many clips are saved as pictures.

    Raises:
        TrainingError: no clips, or the pictures cannot be written.
        MissingExtraError: torchmetrics or pillow is not installed.
    """
    psnr: list[float] = []
    ssim: list[float] = []
    lpips: list[float] = []
    device = next(model.parameters()).device
    for batch in batches:
        for clip in batch.frames.unbind():
            video = to_model_range(clip[None].to(device))
            restored = model.decode(model.encode(video).latent_dist.mode()).sample.clamp(-1.0, 1.0)
            # Scored as people see it: rounded to 8 bits.
            restored = ((restored + 1.0) * 127.5).round() / 127.5 - 1.0
            a, b = ((x[0].movedim(1, 0) + 1.0) / 2.0 for x in (video, restored))
            mse = (a - b).square().mean(dim=(1, 2, 3)).clamp_min(_WORST_MSE)
            psnr.append(float((-10.0 * mse.log10()).mean()))
            ssim.append(_ssim(a, b))
            if perceptual is not None:
                lpips.append(float(perceptual(video, restored, 1).mean()))
            if pictures is not None and len(psnr) <= shown:
                _save_picture(pictures / f"clip-{len(psnr) - 1}.png", a, b)
    if not psnr:
        raise TrainingError("there are no held-out clips to validate on; set validation.clips")
    return Scores(float(np.mean(psnr)), float(np.mean(ssim)), float(np.mean(lpips)) if lpips else None)


def _ssim(a: Tensor, b: Tensor) -> float:
    make_torchvision_importable("validation", "train")  # torchmetrics imports it where it is installed
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise MissingExtraError("validation", "torchmetrics", "train") from error
    value = structural_similarity_index_measure(b, a, sigma=1.5, kernel_size=11, data_range=1.0)
    return float(value)  # type: ignore[arg-type]  # a tensor, as long as the full image is not asked for


def _save_picture(path: Path, original: Tensor, restored: Tensor) -> None:
    """A few frames, (T, 3, H, W) in [0, 1] each."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pictures of a validation", "pillow", "train") from error
    picks = np.unique(np.linspace(0, len(original) - 1, _SHOWN).round().astype(int)).tolist()
    rows = [original[picks], restored[picks], ((restored - original)[picks] * 2.0 + 0.5).clamp(0.0, 1.0)]
    strips = [torch.cat(list(row), dim=2) for row in rows]
    pixels = (torch.cat(strips, dim=1) * 255.0).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error}") from error
