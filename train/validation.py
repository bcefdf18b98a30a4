"""Reconstruction quality of the averaged weights on held-out clips, as numbers and as pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wfvae.errors import ConfigError, DataError, InputError, MissingExtraError, TrainingError, WFVAEError
from wfvae.metrics.frames import SSIM_WINDOW, Frames, scikit_image, score_frames
from wfvae.model.vae import WFVAE
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.runs import RUN_CHECKPOINTS, newest_of_run
from wfvae.train.config import TrainingConfig
from wfvae.train.data import BadClipLedger, ClipSource, held_out, to_model_range
from wfvae.train.device import memory_for
from wfvae.train.perceptual import MINIMUM_SIDE, PerceptualLoss
from wfvae.train.settings import ValidationSettings

_PERFECT_DB = 100.0
_SHOWN_FRAMES = 5


class NotFiniteScoresError(WFVAEError):
    """A model whose latents or reconstructions are NaN or infinite."""


class Scores(NamedTuple):
    """Means over frames, then over clips, of 8-bit reconstructions."""

    psnr_db: float
    """In dB; a perfect frame counts as 100 dB."""
    ssim: float
    """As `wfvae evaluate` computes it, see `score_frames`."""
    lpips: float | None
    """None without a perceptual network."""


@dataclass
class Validator:
    """Scores a run's model on its held-out clips."""

    settings: ValidationSettings
    directory: Path
    source: ClipSource
    ledger: BadClipLedger
    """Where files that cannot be used are noted."""
    perceptual: PerceptualLoss | None

    def validate(self, model: WFVAE, step: int) -> Scores:
        """Scores the model of a step. Raises `TrainingError` with what to do."""
        pictures = self.directory / "validation" / f"step-{step:08d}"
        purpose = f"the validation of step {step}"
        advice = (
            f"{last_good(self.directory)}; resume it with fewer validation.frames, or a smaller"
            " validation.height and validation.width"
        )
        try:
            with memory_for(purpose, next(model.parameters()).device, advice):
                clips = held_out(self.source, self.settings.clips, self.ledger)
                return validate(model, clips, self.perceptual, pictures, self.settings.pictures)
        except NotFiniteScoresError as error:
            raise TrainingError(
                f"{purpose}: {error}; the run has diverged, in this step or before: remove the newest of"
                f" {self.directory / RUN_CHECKPOINTS}, and --resume from an earlier one with --set"
                " optimizer.learning_rate= (lower) or optimizer.clip_norm=, or train anew"
            ) from error
        except (DataError, InputError) as error:
            raise TrainingError(f"{purpose}: {error}") from error


def last_good(run: Path) -> str:
    """Names the newest checkpoint of a run, for messages."""
    newest = newest_of_run(run)
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint before it"


def check_needs(config: TrainingConfig) -> None:
    """Raises at the start of a run what would otherwise end it at its first validation.

    Raises:
        ConfigError: the clips are smaller than SSIM or LPIPS can score.
        MissingExtraError: scikit-image or, for pictures, pillow is not installed.
    """
    data, settings = config.data, config.validation
    height = settings.crop_height or settings.height or data.height
    width = settings.crop_width or settings.width or data.width
    score, least = ("SSIM", SSIM_WINDOW) if config.loss.perceptual == "none" else ("LPIPS", MINIMUM_SIDE)
    if min(height, width) < least:
        enough = -(-least // SPATIAL_RATIO) * SPATIAL_RATIO
        raise ConfigError(
            f"clips to validate on are {height}x{width} pixels, and {score} needs at least {least}x{least};"
            " set validation.height and validation.width, and validation.crop_height and"
            f" validation.crop_width if they are given, to at least {enough}"
        )
    scikit_image("train")
    if settings.pictures:
        _pillow()


@torch.no_grad()
def validate(
    model: WFVAE,
    clips: Iterable[Tensor],
    perceptual: PerceptualLoss | None = None,
    pictures: Path | None = None,
    shown: int = 0,
) -> Scores:
    """Reconstructs clips from the posterior's mean and scores them.

    Args:
        model: in eval mode.
        clips: uint8 (1, 3, T, H, W) each, at least one.
        perceptual: for LPIPS.
        pictures: directory for `clip-N.png`: rows of original, reconstruction and difference
            (doubled, around grey).
        shown: number of clips that are saved as pictures.

    Raises:
        TrainingError: the pictures cannot be written.
        NotFiniteScoresError: latents or reconstructions are NaN or infinite.
        MissingExtraError: scikit-image or pillow is not installed.
    """
    rows: list[Scores] = []
    device = next(model.parameters()).device
    for number, clip in enumerate(clips):
        video = to_model_range(clip.to(device))
        restored = (_reconstruction(model, video) + 1.0).mul(127.5).round() / 127.5 - 1.0
        before, after = (_pixels(x) for x in (video, restored))
        scores = score_frames(before, after, extra="train")
        psnr = float(np.minimum(scores.psnr, _PERFECT_DB).mean())
        lpips = None if perceptual is None else float(perceptual(video, restored, 1).mean())
        rows.append(Scores(psnr, float(scores.ssim.mean()), lpips))
        if pictures is not None and number < shown:
            _save_picture(pictures / f"clip-{number}.png", before, after)
    psnr, ssim = (float(np.mean(column)) for column in list(zip(*rows, strict=True))[:2])
    return Scores(psnr, ssim, float(np.mean([row.lpips for row in rows])) if perceptual is not None else None)


def _reconstruction(model: WFVAE, video: Tensor) -> Tensor:
    latents = model.encode(video).latent_dist.mode()
    if not latents.isfinite().all():
        raise NotFiniteScoresError("latents are NaN or infinite")
    restored = model.decode(latents).sample
    if not restored.isfinite().all():
        raise NotFiniteScoresError("reconstructions are NaN or infinite")
    return restored.clamp(-1.0, 1.0)


def _pixels(video: Tensor) -> Frames:
    """One clip (1, 3, T, H, W) in [-1, 1] -> (T, H, W, 3) uint8."""
    pixels: Frames = ((video[0] + 1.0) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    return pixels


def _save_picture(path: Path, original: Frames, restored: Frames) -> None:
    picks = np.unique(np.linspace(0, len(original) - 1, _SHOWN_FRAMES).round().astype(int))
    before, after = original[picks].astype(np.int16), restored[picks].astype(np.int16)
    difference = np.clip(2 * (after - before) + 128, 0, 255)
    rows = [np.concatenate(list(row), axis=1) for row in (before, after, difference)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _pillow().fromarray(np.concatenate(rows).astype(np.uint8)).save(path)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error}") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pictures of a validation", "pillow", "train") from error
    return Image
