"""How much quality does bf16 on OpenVINO cost a trained model?

    python benchmarks/bf16_quality.py --json benchmarks/results/bf16-quality-cpu.json
    python benchmarks/bf16_quality.py --checkpoint DIR --videos a.mp4 b.mp4

Encodes and decodes clips on OpenVINO with both precision hints and on ONNX Runtime in fp32, and
compares PSNR. Ends with code 1 if bf16 loses more than 0.05 dB on a clip.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness.engines import exported, latent_channels, open_all
from harness.record import CommandLine, finish, side

from wfvae import WFVAE
from wfvae.runtime import Bundle
from wfvae.runtime.media.video_reader import open_video
from wfvae.video.synthetic.clips import ProceduralClip

BASE = "onnxruntime"
BAR_DB = 0.05
SEEDS = range(100, 104)
"""Of the generated clips."""

Frames = npt.NDArray[np.uint8]


def clips(videos: Sequence[Path], sizes: Sequence[int], frames: int) -> Iterator[tuple[str, Frames]]:
    """Yields the first frames of each video, or of generated clips if there are none."""
    for path in videos:
        with open_video(path) as reader:
            yield path.name, np.stack(list(islice(iter(reader), frames)))
    for size in () if videos else sizes:
        for seed in SEEDS:
            yield f"generated clip {seed}", ProceduralClip(seed, size, size, frames).frames(0, frames)


def compare(bundles: Mapping[str, Bundle], source: str, frames: Frames) -> dict[str, Any]:
    """Returns the PSNR of each engine's reconstruction in dB, and what it loses against `BASE`."""
    found = {engine: psnr(reconstruct(bundle, frames), frames) for engine, bundle in bundles.items()}
    return {
        "source": source,
        "frames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "psnr_db": found,
        "loss_db": {engine: found[BASE] - value for engine, value in found.items() if engine != BASE},
    }


def reconstruct(bundle: Bundle, frames: Frames) -> npt.NDArray[np.float32]:
    """Encodes and decodes a clip. Returns it in [-1, 1], not rounded to 8 bits."""
    count, height, width = frames.shape[:3]
    latents = bundle.encode(frames)[:, : latent_channels(bundle)]
    decoded = bundle.decode(latents, frames=count, height=height, width=width, pixels="float32")
    return decoded.astype(np.float32)


def psnr(found: npt.NDArray[np.floating], frames: Frames) -> float:
    """Returns the PSNR in dB of video in [-1, 1] (peak 2)."""
    error = float(np.mean((found.astype(np.float64) - (frames / 127.5 - 1)) ** 2))
    return float(10 * np.log10(4 / error)) if error else float("inf")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "bf16-quality-cpu.json", frames=33)
    parser.add_argument("--checkpoint", default="tiny", help="trained model")
    parser.add_argument("--videos", type=Path, nargs="+", default=[], help="default: generated clips")
    parser.add_argument("--sizes", type=side, nargs="+", default=[128, 256], help="of generated clips")
    options = parser.parse_args(arguments)
    model = WFVAE.from_pretrained(options.checkpoint)
    with exported(model) as (path, manifest), open_all(path, options.threads) as (bundles, missing):
        found = clips(options.videos, options.sizes, options.frames)
        rows = [compare(bundles, source, frames) for source, frames in found]
    about = {"checkpoint_sha256": manifest.checkpoint_sha256, "bar_db": BAR_DB}
    finish(options, "bf16-quality", **about, rows=rows, not_measured=missing)
    return int(any(loss > BAR_DB for row in rows for loss in row["loss_db"].values()))


if __name__ == "__main__":
    sys.exit(main())
