"""What the trained tiny model that ships with the package reaches on procedural video that it was
not trained on.

    python benchmarks/tiny_model.py                       scores, a 300-frame stream, pictures: benchmarks/results/tiny-model.*
    python benchmarks/tiny_model.py --ship RUN            first makes the package's checkpoint from this run (in fp16)
                          --mean-with CHECKPOINT          ... from the mean of that run's weights and these
    python benchmarks/tiny_model.py --videos FOLDER       also scores videos of your own, file by file

Scores are means over held-out clips of 17 frames of 128x128 pixels: windows of 256x256 paintings
(as the later stages were trained), and paintings at 128x128 (twice as much detail per pixel). Your
own videos are resized to cover 256x256, and windows of that are scored. What the frames before do
is told by the last four frames of 33, in clips that begin 8, 16 and 32 frames before the last:
models trained on short clips may get worse with length. Whether letters keep their shape while they
move is told by titles that pass at whole pixels per frame: along the motion nothing of the original
changes, so what changes in the reconstruction is shimmer. What a cut costs is told by clips that
others follow, at each place in a latent. The stream goes through the exported bundle and ONNX
Runtime.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from record import machine, write_json

from wfvae import WFVAE
from wfvae.export.bundle import export_bundle
from wfvae.model.checkpoint import WEIGHTS_NAME, write_checkpoint
from wfvae.report.plots import draw_line, plot_style, svg_text
from wfvae.runtime import open_bundle
from wfvae.train.data import Crops, FixedCrops, ProceduralClips, VideoFolder, held_out, to_model_range
from wfvae.train.data.batch import Batch, stack_clips
from wfvae.train.validation import validate
from wfvae.video.synthetic.clips import ProceduralClip

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "wfvae" / "weights" / "tiny"
RESULTS = ROOT / "benchmarks" / "results"
SEED = 20_000
NOISE = 2.0
STREAM_SEED, STREAM_FRAMES, SIDE, STREAM_SIDE = 7, 300, 128, 256
CHUNK = 2
CONSECUTIVE, WINDOW = range(17, 25), slice(64, 192)
"""Two latents of the stream, and rows and columns of them, as a picture, above its last two whole
ones: what moves there moves fast.
"""
STILL_LEVELS = 1
"""Of 255: a pixel that changes by no more from one frame to the next stands still."""
AREA = 8
"""Side of the squares of pixels, over whose means coarse errors are told."""
AFAR = (4, 8, 8)
"""Frames, rows and columns from anything that moves."""
FRAMES, CLIPS_PER_VIDEO = 17, 8
PASSING_SEEDS, PASSING_MOMENT, PASSING_FRAMES, SPEEDS = range(100, 108), 50, 25, (0, 1, 2, 3, 4)
"""Held-out titles, the frame of them that passes, for how many frames, and by how many pixels
upwards in each.
"""
CUT_SEEDS, CUT_FROM, CUT_FRAMES, BEHIND = range(200, 208), 21, 45, 8
"""Held-out clips, each followed by that of the next seed; the first frame of the latent that the
cut falls into; frames in all; and frames behind the cut that are told one by one."""
MINIMUM_CLIPS = 2
HISTORIES, SCORED = (8, 16, 32), 4
"""Frames before the last one, and how many of the last are scored."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ship", type=Path, metavar="RUN", help="run whose weights become the package's")
    parser.add_argument(
        "--mean-with", metavar="CHECKPOINT", help="ship the mean of these weights and the run's"
    )
    parser.add_argument(
        "--clips", type=int, default=64, help="held-out clips of each kind (default: %(default)s)"
    )
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="videos to score, too")
    parser.add_argument(
        "--frames",
        type=int,
        default=STREAM_FRAMES,
        help=(
            f"frames of the stream, at least {CONSECUTIVE.stop}; other than the default needs --out (default:"
            " %(default)s)"
        ),
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the results go (default: over the committed ones)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(arguments)
    if args.clips < MINIMUM_CLIPS:
        parser.error(f"--clips is {args.clips}; expected at least {MINIMUM_CLIPS}: quartiles are stated")
    if args.frames < CONSECUTIVE.stop:
        parser.error(
            f"--frames is {args.frames}; expected at least {CONSECUTIVE.stop}: a picture shows frames up to"
            " that"
        )
    if args.frames != STREAM_FRAMES and args.out is None:
        parser.error(
            f"--frames is not {STREAM_FRAMES}: name a folder with --out, the committed results have a stream"
            " of that length"
        )
    if args.mean_with and not args.ship:
        parser.error("--mean-with names weights for what is shipped: name a run with --ship")
    args.out = args.out or RESULTS
    return args


def main() -> None:
    args = parse_arguments()
    if args.ship:
        ship(args.ship, args.mean_with)
    args.out.mkdir(parents=True, exist_ok=True)
    model = WFVAE.from_pretrained(SHIPPED)
    result = {
        "machine": machine(torch.get_num_threads(), "wfvae", "torch", "onnxruntime"),
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "weights_bytes": (SHIPPED / WEIGHTS_NAME).stat().st_size,
            "weights_sha256": hashlib.sha256((SHIPPED / WEIGHTS_NAME).read_bytes()).hexdigest(),
        },
        "held_out": {
            "windows_of_256x256": score(model, args.clips, 2 * SIDE),
            "paintings_at_128x128": score(model, args.clips, SIDE),
        },
        "psnr_db_after_frames": histories(model, args.clips),
        "passing_titles": passing_titles(model),
        "cuts": cuts(model),
        "stream": stream(model, args.frames, args.out),
    }
    if args.videos is not None:
        result["videos"] = score_videos(model, args.videos)
    write_json(args.out / "tiny-model.json", result)
    print(json.dumps(result, indent=2) if args.json else summary(result))


def ship(run: Path, mean_with: str | None = None) -> None:
    """Writes the package's checkpoint from a run, in fp16.

    With `mean_with`, halfway from the weights that a stage began with to those that it ended with,
    what it learned is in part kept, and what it forgot in part restored (Wortsman et al., arXiv
    2109.01903).
    """
    model = WFVAE.from_pretrained(run)
    if mean_with is not None:
        others = WFVAE.from_pretrained(mean_with).state_dict()
        model.load_state_dict(
            {name: (weight + others[name]) / 2 for name, weight in model.state_dict().items()}
        )
    # Half the size; Haar taps stay fp32, since their synthesis inverts them exactly.
    trained = {name for name, _ in model.named_parameters()}
    weights = {name: t.half() if name in trained else t for name, t in model.state_dict().items()}
    write_checkpoint(SHIPPED, model.config, weights)


def score(model: WFVAE, clips: int, side: int) -> dict[str, Any]:
    """Means, the spread over clips, and the clips' own."""
    each = [validate(model, [batch]) for batch in held_out(scored_clips(clips, side), clips)]
    psnr, ssim = [s.psnr_db for s in each], [s.ssim for s in each]
    return {
        "clips": clips,
        "psnr_db": statistics.mean(psnr),
        "ssim": statistics.mean(ssim),
        "psnr_db_quartiles": statistics.quantiles(psnr, n=4),
        "ssim_quartiles": statistics.quantiles(ssim, n=4),
        "psnr_db_lowest": min(psnr),
        "psnr_db_each": psnr,
        "ssim_each": ssim,
    }


def scored_clips(clips: int, side: int) -> FixedCrops:
    """Windows of held-out paintings of side x side."""
    return FixedCrops(
        ProceduralClips(SEED, clips, FRAMES, (side, side), split="held-out", max_noise=NOISE),
        Crops(SIDE, SIDE),
    )


def reconstruction(model: WFVAE, video: torch.Tensor) -> torch.Tensor:
    """What direct inference makes of clips (B, 3, T, H, W), both in [-1, 1]."""
    with torch.inference_mode():
        return model.decode(model.encode(video).latent_dist.mean).sample.clamp(-1, 1)


def histories(model: WFVAE, clips: int) -> dict[str, float]:
    """Mean PSNR of the same last frames, by how many frames come before the last."""
    longest = max(HISTORIES) + 1
    source = FixedCrops(
        ProceduralClips(SEED, clips, longest, (2 * SIDE, 2 * SIDE), split="held-out", max_noise=NOISE),
        Crops(SIDE, SIDE),
    )
    found: dict[str, list[float]] = {str(history): [] for history in HISTORIES}
    for batch in held_out(source, clips):
        video = to_model_range(batch.frames)
        for history in HISTORIES:
            part = video[:, :, longest - history - 1 :]
            error = (reconstruction(model, part) - part)[:, :, -SCORED:].square().mean(dim=(1, 2, 3, 4))
            found[str(history)] += (10 * torch.log10(4 / error)).tolist()
    return {history: statistics.mean(values) for history, values in found.items()}


def passing_titles(model: WFVAE) -> dict[str, dict[str, float]]:
    """Mean PSNR, and how the reconstruction changes along the motion from frame to frame, in levels
    of 255, by pixels per frame.
    """
    side = 2 * SIDE
    titles = [
        ProceduralClip(seed, side, side, scene="titles", cuts=False).frame(PASSING_MOMENT)
        for seed in PASSING_SEEDS
    ]
    found = {}
    for speed in SPEEDS:
        psnr, change = [], []
        for picture in titles:
            frames = np.stack(
                [
                    picture[speed * i : speed * i + SIDE, SIDE // 2 : SIDE // 2 + SIDE]
                    for i in range(PASSING_FRAMES)
                ]
            )
            video = to_model_range(torch.from_numpy(frames)[None].movedim(-1, 1))
            result = reconstruction(model, video)
            psnr.append(10 * np.log10(4 / float((result - video).square().mean())))
            change.append(
                float((result[:, :, 1:, : SIDE - speed] - result[:, :, :-1, speed:]).abs().mean()) * 127.5
            )
        found[str(speed)] = {
            "psnr_db": statistics.mean(psnr),
            "change_along_motion_levels": statistics.mean(change),
        }
    return found


def cuts(model: WFVAE) -> list[dict[str, Any]]:
    """By the place in a latent that is the first behind a cut: mean PSNR of the frame before, of
    those behind, and of a later latent.
    """
    ratio, side = model.config.temporal_compression, 2 * SIDE
    clips = [
        ProceduralClip(seed, side, side, cuts=False).frames(0, CUT_FRAMES)[:, WINDOW, WINDOW]
        for seed in CUT_SEEDS
    ]
    found = []
    for place in range(ratio):
        cut, psnr = CUT_FROM + place, []
        for before, after in zip(clips, clips[1:] + clips[:1], strict=True):
            frames = np.concatenate([before[:cut], after[cut:]])
            video = to_model_range(torch.from_numpy(frames)[None].movedim(-1, 1))
            result = reconstruction(model, video)
            psnr.append(10 * torch.log10(4 / (result - video).square().mean(dim=(0, 1, 3, 4))))
        mean = torch.stack(psnr).mean(dim=0).tolist()
        later = statistics.mean(mean[-ratio - 1 : -1])  # the last latent is poor by itself
        found.append(
            {
                "place_in_latent": place,
                "psnr_db_before": mean[cut - 1],
                "psnr_db_behind": mean[cut : cut + BEHIND],
                "psnr_db_later": later,
            }
        )
    return found


def score_videos(model: WFVAE, folder: Path) -> dict[str, Any]:
    """Means per file, of windows at places drawn by a fixed seed."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = VideoFolder(folder, FRAMES, (2 * SIDE, 2 * SIDE), index_path=Path(temporary) / "index.json")
        for item in range(len(source)):
            batches = []
            for place in range(CLIPS_PER_VIDEO):
                rng = np.random.default_rng([item, place])
                clip = Crops(SIDE, SIDE).cut(source.clip(item, rng), rng)
                batches.append(Batch(stack_clips([clip]), (source.name(item),), (), place, 0, place))
            scores = validate(model, batches)
            found[source.name(item)] = {
                "windows": CLIPS_PER_VIDEO,
                "psnr_db": scores.psnr_db,
                "ssim": scores.ssim,
            }
    return found


def stream(model: WFVAE, count: int, out: Path) -> dict[str, Any]:
    """So many frames through the exported bundle: quality per frame, and whether the seams of
    chunks are visible. Draws into `out`.
    """
    clip = ProceduralClip(STREAM_SEED, STREAM_SIDE, STREAM_SIDE)
    frames = clip.frames(0, count)
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(model, Path(folder) / "bundle")
        with open_bundle(Path(folder) / "bundle") as bundle:
            ratio, drop = bundle.ratio, bundle.manifest.graphs["decoder"].stream.drop
            latents = bundle.encode(frames, chunk=CHUNK)
            pixels = bundle.decode(latents, frames=count, chunk=CHUNK)
    before, after = frames.astype(np.float32), pixels.astype(np.float32)
    psnr = 10 * np.log10(255.0**2 / np.maximum(((before - after) ** 2).mean(axis=(1, 2, 3)), 1e-3))
    # What moves in the error from frame to frame is what would be seen as flicker.
    flicker = np.abs(np.diff(after - before, axis=0)).mean(axis=(1, 2, 3))
    # Over areas it is seen more easily than in single pixels, of which it is a small part.
    coarse_flicker = np.abs(np.diff(area_means(after - before), axis=0)).mean(axis=(1, 2, 3))
    # Worst where nothing moves: there nothing hides it. Near what moves it is the blur of that.
    still = np.abs(np.diff(before, axis=0)).max(axis=-1) <= STILL_LEVELS
    change = np.abs(np.diff(after, axis=0)).mean(axis=-1)
    trembling, trembling_afar = change[still], change[far_from(~still)]
    index = np.arange(1, count)
    starts = [*clip.shot_starts(count), count]
    shots = [
        {"frames": [start, stop - 1], **by_place(psnr, flicker, coarse_flicker, ratio, start, stop)}
        for start, stop in pairwise(starts)
        if stop - start > 2 * ratio
    ]
    # A seam would make it larger where steps meet than at the same place among the frames of a
    # latent within a step. Encoding, a step begins with as many copies of the first frame as
    # complete a latent; decoding, it comes `drop` frames late.
    seams = {}
    for direction, ahead in (("encode", ratio - 1), ("decode", drop)):
        meets, alike = ((index + ahead) % frames_per == 0 for frames_per in (CHUNK * ratio, ratio))
        seams[direction] = float(flicker[meets].mean() / flicker[alike & ~meets].mean())
    picks = [0, count // 4, count // 2, count - 1]
    sheet = np.concatenate([np.concatenate([frames[i], pixels[i]], axis=0) for i in picks], axis=1)
    Image.fromarray(sheet).save(out / "tiny-model-stream.png", optimize=True)
    last = 1 + ratio * ((count - 1) // ratio - 2)
    shown = (CONSECUTIVE, range(last, last + 2 * ratio))
    rows = [
        np.concatenate([video[i, WINDOW, WINDOW] for i in those], axis=1)
        for those in shown
        for video in (frames, pixels)
    ]
    Image.fromarray(np.concatenate(rows, axis=0)).save(out / "tiny-model-consecutive.png", optimize=True)
    title = (
        f"A stream through the tiny model: procedural clip, seed {STREAM_SEED}, {count} frames of"
        f" {STREAM_SIDE}x{STREAM_SIDE}, in steps of {CHUNK} latents"
    )
    with plot_style():
        figure = Figure((9.8, 6))
        figure.suptitle(title)
        above, below = figure.subplots(2)
        draw_line(above, psnr.tolist(), "frame", "PSNR", "dB", least_span=5.0)
        draw_line(below, flicker.tolist(), "frame", "change of the error", "levels", from_zero=True)
        (out / "tiny-model-stream.svg").write_text(svg_text(figure, title), encoding="utf-8")
    return {
        "frames": count,
        "latents_per_step": CHUNK,
        "psnr_db": float(psnr.mean()),
        "psnr_db_lowest": float(psnr.min()),
        "error_change_levels": float(flicker.mean()),
        "error_change_at_seams_over_within_steps": seams,
        **by_place(psnr, flicker, coarse_flicker, ratio, 0, count),
        "shots": shots,
        "video_change_levels": float(np.abs(np.diff(before, axis=0)).mean()),
        "still_share": float(still.mean()),
        **levels("still", trembling),
        "afar_share": trembling_afar.size / change.size,
        **levels("afar", trembling_afar),
    }


def levels(where: str, change: npt.NDArray[np.float32]) -> dict[str, float | None]:
    """How pictures change where something holds; None where it holds nowhere."""
    mean, percentile = (
        (float(change.mean()), float(np.percentile(change, 99))) if change.size else (None, None)
    )
    return {f"{where}_change_levels": mean, f"{where}_change_levels_99th_percentile": percentile}


def area_means(video: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(T, H, W, 3) as (T, H / `AREA`, W / `AREA`, 3)."""
    frames, height, width, channels = video.shape
    return video.reshape(frames, height // AREA, AREA, width // AREA, AREA, channels).mean(axis=(2, 4))


def by_place(
    psnr: npt.NDArray[Any],
    flicker: npt.NDArray[Any],
    coarse_flicker: npt.NDArray[Any],
    ratio: int,
    start: int,
    stop: int,
) -> dict[str, list[float]]:
    """Means over frames `start` to `stop`, by their place in a latent: frame 0 is one by itself,
    then come frames 1 to 4, 5 to 8 ...

    `psnr` is of each frame, the others of each but the first: how the error changes from the frame
    before, in pixels and in means over areas. That of places 0 lies where latents meet.
    """
    places: list[list[int]] = [
        [i for i in range(max(start, 1), stop) if (i - 1) % ratio == place] for place in range(ratio)
    ]
    # The change into a shot is no flicker.
    changes = [[i - 1 for i in those if i != start] for those in places]
    return {
        "psnr_db_by_place_in_latent": [float(psnr[those].mean()) for those in places],
        "error_change_by_place_in_latent": [float(flicker[those].mean()) for those in changes],
        "coarse_error_change_by_place_in_latent": [float(coarse_flicker[those].mean()) for those in changes],
    }


def far_from(moving: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where nothing moves within `AFAR` frames and pixels, (T, H, W)."""
    volume = torch.from_numpy(moving.astype(np.float32))[None]
    near = torch.nn.functional.max_pool3d(volume, [2 * reach + 1 for reach in AFAR], 1, list(AFAR))
    return near[0].numpy() == 0


def summary(result: dict[str, Any]) -> str:
    """For people."""
    lines = []
    for name, scores in result["held_out"].items():
        lines.append(
            f"{name}: PSNR {scores['psnr_db']:.2f} dB, SSIM {scores['ssim']:.4f} over {scores['clips']} clips"
        )
    for name, scores in result.get("videos", {}).items():
        lines.append(
            f"{name}: PSNR {scores['psnr_db']:.2f} dB, SSIM {scores['ssim']:.4f} over {scores['windows']}"
            " windows"
        )
    after = ", ".join(
        f"{psnr:.2f} dB after {history}" for history, psnr in result["psnr_db_after_frames"].items()
    )
    lines.append(f"the last {SCORED} frames, by how many come before the last one: {after}")
    for speed, scores in result["passing_titles"].items():
        change = f"they change {scores['change_along_motion_levels']:.2f} levels a frame along it"
        lines.append(f"titles that pass at {speed} pixels a frame: PSNR {scores['psnr_db']:.2f} dB, {change}")
    for scores in result["cuts"]:
        behind = ", ".join(f"{psnr:.2f}" for psnr in scores["psnr_db_behind"])
        lines.append(
            f"cuts before place {scores['place_in_latent']} of a latent: PSNR {scores['psnr_db_before']:.2f}"
            f" dB in the last frame before, {behind} in the next ones, {scores['psnr_db_later']:.2f} later"
        )
    told = result["stream"]
    seams = ", ".join(
        f"{name} {ratio:.2f} x" for name, ratio in told["error_change_at_seams_over_within_steps"].items()
    )
    lines.append(
        f"stream of {told['frames']} frames: PSNR {told['psnr_db']:.2f} dB; the error changes"
        f" {told['error_change_levels']:.2f} levels per frame, where steps meet by within them: {seams}"
    )
    for where, key in (("where nothing moves", "still"), ("far from all that moves", "afar")):
        mean, percentile = told[f"{key}_change_levels"], told[f"{key}_change_levels_99th_percentile"]
        change = (
            ""
            if mean is None
            else f", where pictures change {mean:.2f} levels, the 99th percentile {percentile:.1f}"
        )
        lines.append(f"{where}: {told[f'{key}_share']:.0%} of the pixels{change}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
