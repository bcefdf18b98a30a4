"""How good is the trained tiny model that ships, on video that it was not trained on?

    python benchmarks/tiny_model.py --json benchmarks/results/tiny-model.json
    python benchmarks/tiny_model.py --videos FOLDER          also scores your videos

    held out   clips of 17 frames of 128x128: windows of 256x256 paintings (as the model was
               trained), and paintings at 128x128 (twice as much detail per pixel)
    length     the same last four frames of clips of 9, 17 and 33 frames
    cuts       frames before and behind a cut, at each place in a latent

Videos are resized to cover 256x256, and windows of that are scored.
"""

import hashlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from harness.record import CommandLine, finish
from torch import Tensor

import wfvae
from wfvae import WFVAE
from wfvae.model.checkpoint import WEIGHTS_NAME
from wfvae.train.data import (
    Crops,
    FixedCrops,
    ProceduralClips,
    VideoFolder,
    held_out,
    stack_clips,
    to_model_range,
)
from wfvae.train.validation import validate
from wfvae.video.synthetic.clips import ProceduralClip

WEIGHTS = Path(wfvae.__file__).parent / "weights" / "tiny" / WEIGHTS_NAME
SIDE, SEED, NOISE, FRAMES = 128, 20_000, 2.0, 17
LENGTHS, SCORED = (9, 17, 33), 4
CLIPS_PER_VIDEO = 8
CUT_SEEDS, CUT_FROM, CUT_FRAMES, BEHIND = range(200, 208), 21, 45, 8
"""Held-out clips, each followed by that of the next seed; the first frame of the latent that the
cut falls into; frames in all; frames behind the cut that are reported."""


def scored_clips(clips: int, side: int, frames: int = FRAMES) -> FixedCrops:
    """Returns windows of held-out paintings of side x side."""
    paintings = ProceduralClips(SEED, clips, frames, (side, side), split="held-out", max_noise=NOISE)
    return FixedCrops(paintings, Crops(SIDE, SIDE))


def score(model: WFVAE, clips: int, side: int) -> dict[str, Any]:
    """Returns the mean PSNR and SSIM, and those of each clip."""
    each = [validate(model, [clip]) for clip in held_out(scored_clips(clips, side), clips)]
    psnr, ssim = [one.psnr_db for one in each], [one.ssim for one in each]
    means = {"psnr_db": statistics.mean(psnr), "ssim": statistics.mean(ssim)}
    return {"clips": clips, **means, "psnr_db_each": psnr, "ssim_each": ssim}


def reconstruct(model: WFVAE, video: Tensor) -> Tensor:
    """Encodes and decodes clips (B, 3, T, H, W) in [-1, 1], whole."""
    with torch.inference_mode():
        return model.decode(model.encode(video).latent_dist.mean).sample.clamp(-1, 1)


def frame_psnr(model: WFVAE, video: Tensor) -> Tensor:
    """Returns the PSNR of every frame, (B, T)."""
    error = (reconstruct(model, video) - video).square().mean(dim=(1, 3, 4))
    return 10 * torch.log10(4 / error)


def lengths(model: WFVAE, clips: int) -> dict[str, float]:
    """Returns the PSNR of the same last frames, by the length of the clip."""
    longest = max(LENGTHS)
    found: dict[str, list[float]] = {str(length): [] for length in LENGTHS}
    for clip in held_out(scored_clips(clips, 2 * SIDE, longest), clips):
        video = to_model_range(clip)
        for length in LENGTHS:
            part = video[:, :, longest - length :]
            error = (reconstruct(model, part) - part)[:, :, -SCORED:].square().mean(dim=(1, 2, 3, 4))
            found[str(length)] += (10 * torch.log10(4 / error)).tolist()
    return {length: statistics.mean(values) for length, values in found.items()}


def cuts(model: WFVAE, seeds: Sequence[int] = CUT_SEEDS) -> list[dict[str, Any]]:
    """Returns mean PSNR around a cut, by the place in a latent of the first frame behind it."""
    ratio, side = model.config.temporal_compression, 2 * SIDE
    window = slice(SIDE // 2, SIDE // 2 + SIDE)
    clips = [
        ProceduralClip(seed, side, side, cuts=False).frames(0, CUT_FRAMES)[:, window, window]
        for seed in seeds
    ]
    found = []
    for place in range(ratio):
        cut = CUT_FROM + place
        joined = [
            np.concatenate([before[:cut], after[cut:]])
            for before, after in zip(clips, clips[1:] + clips[:1], strict=True)
        ]
        psnr = torch.cat([frame_psnr(model, to_tensor(frames)) for frames in joined]).mean(dim=0).tolist()
        before, behind = psnr[cut - 1], psnr[cut : cut + BEHIND]
        found.append({"place_in_latent": place, "psnr_db_before": before, "psnr_db_behind": behind})
    return found


def to_tensor(frames: npt.NDArray[np.uint8]) -> Tensor:
    """(T, H, W, 3) to (1, 3, T, H, W) in [-1, 1]."""
    return to_model_range(torch.from_numpy(frames)[None].movedim(-1, 1))


def score_videos(model: WFVAE, folder: Path) -> dict[str, Any]:
    """Returns the means per file, over windows at places drawn by a fixed seed."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = VideoFolder(folder, FRAMES, (2 * SIDE, 2 * SIDE), index_path=Path(temporary) / "index.json")
        for item in range(len(source)):
            windows = []
            for place in range(CLIPS_PER_VIDEO):
                rng = np.random.default_rng([item, place])
                windows.append(stack_clips([Crops(SIDE, SIDE).cut(source.clip(item, rng), rng)]))
            scores = validate(model, windows)
            found[source.name(item)] = {"psnr_db": scores.psnr_db, "ssim": scores.ssim}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "tiny-model.json")
    text = "held-out clips of each kind"
    parser.add_argument("--clips", type=int, default=48, help=text)
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="videos to score, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = WFVAE.from_pretrained("tiny")
    about = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": WEIGHTS.stat().st_size,
        "weights_sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
    }
    paintings = {"windows_of_256x256": 2 * SIDE, "paintings_at_128x128": SIDE}
    result = {
        "held_out": {kind: score(model, options.clips, side) for kind, side in paintings.items()},
        "psnr_db_of_last_frames": lengths(model, options.clips),
        "cuts": cuts(model, CUT_SEEDS[: options.clips]),
        "videos": score_videos(model, options.videos) if options.videos else {},
    }
    finish(options, "tiny-model", model=about, **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
