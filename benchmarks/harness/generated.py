"""Videos to learn from, and those that a model generates: files, pictures and scores."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from wfvae.evaluation.frechet import FeatureMoments, frechet_distance
from wfvae.evaluation.inception import SPLITS, inception_score
from wfvae.evaluation.protocol import Protocol, open_prepared
from wfvae.evaluation.video_features import VideoFeatures
from wfvae.evaluation.video_files import find_videos
from wfvae.files import write_whole
from wfvae.report.plots import plot_style
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip
from wfvae.video.synthetic.scenes import SCENES

Clip = npt.NDArray[np.uint8]
"""(T, H, W, 3)."""
FPS = Fraction(25)
LABEL = "scene"
_SHOWN_FRAMES = 5
_DOTS_PER_INCH = 100


def write_lossless(path: Path, frames: Clip) -> None:
    """Writes RGB frames so that reading returns equal ones."""
    height, width = frames.shape[1:3]
    video = OutputVideo(width=width, height=height, fps=FPS, codec="ffv1", pixel_format="bgr0")
    with open_video_writer(path, video) as writer:
        writer.write(frames)


def procedural_videos(folder: Path, count: int, frames: int, size: int) -> Path:
    """Writes videos of one scene each, where missing, and returns their table with a `scene`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    lines = csv.writer(table)
    lines.writerow(("path", LABEL))
    for number in range(count):
        scene = SCENES[number % len(SCENES)]
        path = folder / f"{scene}-{number:06d}.mkv"
        if not path.exists():
            clip = ProceduralClip(number, size, size, fps=FPS, scene=scene, cuts=False)
            write_lossless(path, clip.frames(0, frames))
        lines.writerow((path.name, scene))
    write_whole(folder / "videos.csv", table.getvalue())
    return folder / "videos.csv"


def clips_of(source: Path, count: int, frames: int, size: int | None, seed: int = 0) -> Iterator[Clip]:
    """Yields up to `count` clips of a folder's videos, prepared as `wfvae evaluate` does.

    The videos are in an order drawn from the seed, and give equally many consecutive clips each.

    Raises:
        InputError: there are no videos, or one cannot be read.
    """
    paths = list(find_videos(source).values())
    order = np.random.default_rng(seed).permutation(len(paths))
    each, left = math.ceil(count / len(paths)), count
    for path in (paths[place] for place in order):
        with open_prepared(path, Protocol(frames=None, size=size)) as video:
            for _ in range(min(each, left)):
                clip = list(islice(video.frames, frames))
                if len(clip) < frames:
                    break
                left -= 1
                yield np.stack(clip)
        if not left:
            return


def distance(network: VideoFeatures, real: Iterable[Clip], generated: Iterable[Clip]) -> dict[str, Any]:
    """Returns FVD, the number of clips of both sets, and that of features.

    Raises as `VideoFeatures.of`, and `InputError` for fewer than two clips.
    """
    moments = []
    for clips in (real, generated):
        moments.append(FeatureMoments())
        for clip in clips:
            moments[-1].add(network.of(clip))
    counts = {"real_clips": moments[0].count, "clips": moments[1].count, "features": len(moments[0].mean)}
    return {"value": frechet_distance(*moments), **counts}


def score_classes(network: VideoFeatures, generated: Iterable[Clip], *, logits: bool) -> dict[str, Any]:
    """Returns the Inception Score, in ten splits, or fewer for fewer clips.

    Raises as `VideoFeatures.of` and `inception_score`.
    """
    from scipy.special import softmax

    rows = np.concatenate([network.of(clip) for clip in generated])
    found = inception_score(softmax(rows, axis=1) if logits else rows, min(SPLITS, len(rows)))
    return {"mean": found.mean, "deviation": found.deviation, "splits": found.splits, "clips": len(rows)}


def write_contact_sheet(path: Path, groups: Mapping[str, Sequence[Clip]]) -> None:
    """Writes a PNG: a column per group, a row per clip, of frames from its first to its last."""
    sheets = {}
    for name, clips in groups.items():
        shown = np.linspace(0, len(clips[0]) - 1, _SHOWN_FRAMES).round().astype(int)
        sheets[name] = np.concatenate([np.concatenate(list(clip[shown]), axis=1) for clip in clips])
    height, width = next(iter(sheets.values())).shape[:2]
    with plot_style():
        scale = 1.1 / _DOTS_PER_INCH
        figure = Figure((len(sheets) * width * scale, height * scale + 0.4), dpi=_DOTS_PER_INCH)
        for axes, (name, sheet) in zip(
            figure.subplots(1, len(sheets), squeeze=False).flat, sheets.items(), strict=True
        ):
            axes.imshow(sheet, interpolation="nearest")
            axes.set_title(name)
            axes.set_axis_off()
        content = io.BytesIO()
        figure.savefig(content, format="png")
    write_whole(path, content.getvalue())


def write_grid(path: Path, clips: Sequence[Clip]) -> None:
    """Writes a video of clips side by side, as many rows as columns."""
    side = math.isqrt(len(clips))
    rows = [np.concatenate(clips[row * side : (row + 1) * side], axis=2) for row in range(side)]
    frames = np.concatenate(rows, axis=1)
    height, width = frames.shape[1:3]
    with open_video_writer(path, OutputVideo(width=width, height=height, fps=FPS)) as writer:
        writer.write(np.ascontiguousarray(frames))
