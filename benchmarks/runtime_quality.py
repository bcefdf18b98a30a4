"""What computing in bf16 costs a trained model in reconstruction, in dB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wfvae.runtime import Bundle
from wfvae.runtime.media.video_reader import open_video
from wfvae.video.synthetic.clips import ProceduralClip

BAR_DB = 0.05
FRAMES = 33
SEEDS = range(100, 104)
"""Of the generated clips."""
BASE = "onnxruntime fp32"

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClipQuality:
    """One clip, encoded and decoded by each backend. All PSNR in dB, video as floats of range 2,
    not rounded to 8 bits.
    """

    source: str
    frames: int
    height: int
    width: int
    psnr_db: dict[str, float]
    """Of the reconstruction against the video."""
    loss_db: dict[str, float]
    """By how much that is worse than on ONNX Runtime in fp32; negative where it is better."""
    agreement_db: dict[str, float]
    """PSNR of the reconstruction against that of ONNX Runtime in fp32."""


def measure_quality(
    base: Bundle, others: Mapping[str, Bundle], videos: Sequence[Path], size: int
) -> Iterator[ClipQuality]:
    """For each of `videos` (their first 33 frames), or for generated clips of size x size if there
    are none.
    """
    for source, frames in _clips(videos, size):
        target = frames / 127.5 - 1
        expected = _reconstruct(base, frames)
        psnr, agreement = {BASE: _psnr(expected, target)}, {}
        for name, bundle in others.items():
            found = _reconstruct(bundle, frames)
            psnr[name], agreement[name] = _psnr(found, target), _psnr(found, expected)
        loss = {name: psnr[BASE] - psnr[name] for name in others}
        yield ClipQuality(source, len(frames), frames.shape[1], frames.shape[2], psnr, loss, agreement)


def largest_loss(clips: Sequence[ClipQuality]) -> dict[str, float]:
    """Of each backend, over all clips."""
    return {name: max(clip.loss_db[name] for clip in clips) for name in clips[0].loss_db}


def print_quality(clip: ClipQuality) -> None:
    rows = ", ".join(f"{name} {psnr:.3f} dB" for name, psnr in clip.psnr_db.items())
    losses = ", ".join(
        f"{name} {loss:+.4f} dB ({clip.agreement_db[name]:.1f} dB beside fp32)"
        for name, loss in clip.loss_db.items()
    )
    print(f"{clip.source}, {clip.frames} frames of {clip.height}x{clip.width}: {rows}; loss {losses}")


def _clips(videos: Sequence[Path], size: int) -> Iterator[tuple[str, Frames]]:
    for path in videos:
        with open_video(path) as reader:
            yield path.name, np.stack(list(islice(iter(reader), FRAMES)))
    for seed in () if videos else SEEDS:
        yield f"generated clip {seed}", ProceduralClip(seed, size, size, FRAMES).frames(0, FRAMES)


def _reconstruct(bundle: Bundle, frames: Frames) -> npt.NDArray[np.float32]:
    channels = int(bundle.manifest.graphs["decoder"].inputs[0].shape[2])
    latents = bundle.encode(frames)[:, :channels]
    return bundle.decode(
        latents, frames=len(frames), height=frames.shape[1], width=frames.shape[2], pixels="float32"
    ).astype(np.float32)


def _psnr(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    error = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return float(10 * np.log10(4 / error)) if error else float("inf")
