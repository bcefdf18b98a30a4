"""Whether a stream of the trained tiny model flickers to the eye: what differs from the original,
apart from what stays the same.

    python benchmarks/flicker.py                          the model that ships: a table, benchmarks/results/flicker.json and .md
    python benchmarks/flicker.py --checkpoint RUN         another one
                          --controls                      with what cannot flicker, what does nothing else, and x264
                          --parts                         what would be left without a part of the flicker: a scale, luma or colour

A measure of all differences tells softness more than flicker. So the error of each frame is
averaged along the motion of the original, over one period of a latent and over three; the original
plus that mean is the reference, and what is compared with it the stream. What differs then is what
comes and goes. ColorVideoVDP (Mantiuk et al., ACM Trans. Graph. 2024), a calibrated model of
vision, counts it in JOD: 10 is no difference that could be seen, and one less is what three of four
people see. Its display is `standard_fhd`, 30 frames a second.

Where nothing is found that the error could be averaged with, as beside what moves fast, it counts
as steady. How much of the means is missing is stated, and over the longer period what the flicker
is at most: as if nothing were wrong in the frames that are missing.

Beside whole shots, each quarter of the picture counts by itself, 24 frames at a time: what flickers
in one place only. The model of vision has filters of a quarter of a second, and takes the first
frame that it is given to have stood for as long. So it is given the whole stream, cuts and all, and
what it has of each frame is picked from that: alone, what shows for one frame behind a cut would
count as if it stood.

Needs `pip install cvvdp opencv-python-headless` (the motion is OpenCV's DIS optical flow), which no
extra of the package has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import torch
from record import machine, write_json, write_text
from scipy.ndimage import gaussian_filter
from torch.nn.functional import grid_sample

from wfvae import WFVAE
from wfvae.export.bundle import export_bundle
from wfvae.export.weights import state_dict_sha256
from wfvae.metrics.torchvision_operators import make_torchvision_importable
from wfvae.runtime import open_bundle
from wfvae.video.synthetic.clips import ProceduralClip


def luma(video: torch.Tensor) -> torch.Tensor:
    """BT.709's luma of RGB: (B, 3, T, H, W) to (B, T, H, W), of the same range."""
    return torch.einsum("bcthw,c->bthw", video, video.new_tensor((0.2126, 0.7152, 0.0722)))


RESULTS = Path(__file__).parent / "results"
SEED, FRAMES, SIDE, CHUNK = 7, 300, 256, 2
"""The stream of `tiny_model.py`, unless another seed is given."""
DISPLAY, RATE = "standard_fhd", 30
RATIO = 4
REACHES = {"one_latent": RATIO // 2, "three_latents": 3 * RATIO // 2}
"""Frames before and after, over which the error is averaged: the outermost count half, so that a
period of the model is a whole one.
"""
ALIKE = 10
"""Levels of 255: where the original, moved, differs by more in a channel, the motion is not what
was found, and nothing is averaged.
"""
GROUP = 24
"""Frames of a quarter that are judged at once."""
SEEN = 9.0
"""JOD below which three of four people see a difference."""
LOWEST = 5
"""Quarters that are told one by one."""
SCALES = (1.5, 4.0)
"""Pixels, standard deviation of the blurs that divide the flicker into its scales."""
CRF = (23, 28)

Video = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Flow = Callable[[Video, Video], Floats]
"""From two pictures (H, W, 3) where each pixel of the first is in the second: (H, W, 2), by how
many pixels to the right and down.
"""

Motion = Mapping[tuple[int, int], Floats]
"""Flows by both frames' numbers."""


Span = tuple[int, int]
"""First frame, and the one after the last."""


class Judge(Protocol):
    """JOD of spans of a video beside its reference, (T, H, W, 3) in levels of 255. What went before
    a span is seen, but not counted.
    """

    def __call__(self, video: Floats, reference: Floats, spans: Sequence[Span]) -> list[float]: ...


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        default="tiny",
        help="as `wfvae export` takes it (default: %(default)s, the one that ships)",
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help=(
            "also a softened original of the stream's PSNR, its error turned over in every second frame, and"
            " x264"
        ),
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="also what is left of the flicker over 13 frames without each of its parts",
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the clip (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON; a table beside it (default: benchmarks/results/flicker.json)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(arguments)
    if args.out is None and (args.checkpoint, args.seed) != ("tiny", SEED):
        parser.error(
            "name a file with --out: the committed results are of the model that ships, and its stream"
        )
    args.out = args.out or RESULTS / "flicker.json"
    return args


def main() -> None:
    args = parse_arguments()
    flow, judge = optical_flow(), color_video_vdp()
    clip = ProceduralClip(args.seed, SIDE, SIDE)
    original = clip.frames(0, FRAMES)
    shots = list(pairwise([*clip.shot_starts(FRAMES), FRAMES]))
    model = WFVAE.from_pretrained(args.checkpoint)
    videos = {"stream": reconstruct(model, original)}
    if args.controls:
        videos["softened original"] = softened(original, videos["stream"], shots)
        videos["error turned over"] = turned_over(original, videos["stream"])
        videos |= {f"x264, crf {crf}": through_x264(original, crf) for crf in CRF}
    result: dict[str, Any] = {
        "machine": machine(
            torch.get_num_threads(), "wfvae", "torch", "onnxruntime", "cvvdp", "opencv-python-headless", "av"
        ),
        "checkpoint": Path(args.checkpoint).name,
        "checkpoint_sha256": state_dict_sha256(model.state_dict()),
        "seed": args.seed,
        "display": DISPLAY,
        "frames_per_second": RATE,
        "shots": [[start, stop - 1] for start, stop in shots],
    }
    motions = [motion(original[start:stop], max(REACHES.values()), flow) for start, stop in shots]
    result["jod"] = judged(original, videos, shots, motions, judge)
    if args.parts:
        result["stream_without"] = without_parts(original, videos["stream"], shots, motions, judge)
    write_json(args.out, result)
    write_text(args.out.with_suffix(".md"), table(result))
    print(json.dumps(result, indent=2) if args.json else table(result), end="")


def judged(
    original: Video,
    videos: Mapping[str, Video],
    shots: Sequence[Span],
    motions: Sequence[Motion],
    judge: Judge,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per video and reach of the mean: JOD of shots, of the worst quarters, and how many are below
    `SEEN`; over the longest, at most.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, video in videos.items():
        after = video.astype(np.float32)
        result[name] = {"all_differences": {"shots": judge(after, original.astype(np.float32), shots)}}
        for label, reach in REACHES.items():
            steady, least, missing = steady_versions(original, video, reach, shots, motions)
            result[name][label] = {**flicker_between(after, steady, shots, judge), "missing_share": missing}
            if reach == max(REACHES.values()):
                result[name][label]["at_most"] = flicker_between(after, least, shots, judge)
    return result


def flicker_between(after: Floats, steady: Floats, shots: Sequence[Span], judge: Judge) -> dict[str, Any]:
    """What a judge has of shots and of quarters of the picture."""
    spans, of_quarters = groups(shots), []
    for corner in quarters(after.shape):
        rows, columns = ([side.start, side.stop - 1] for side in corner)
        part = (slice(None), *corner)
        for (start, stop), jod in zip(spans, judge(after[part], steady[part], spans), strict=True):
            of_quarters.append({"jod": jod, "frames": [start, stop - 1], "rows": rows, "columns": columns})
    of_quarters.sort(key=lambda quarter: quarter["jod"])
    return {
        "shots": judge(after, steady, shots),
        "worst_quarter": of_quarters[0]["jod"],
        "quarters": len(of_quarters),
        "quarters_seen": sum(quarter["jod"] < SEEN for quarter in of_quarters),
        "lowest_quarters": of_quarters[:LOWEST],
    }


def without_parts(
    original: Video, video: Video, shots: Sequence[Span], motions: Sequence[Motion], judge: Judge
) -> dict[str, list[float]]:
    """Per part of the flicker over the longest reach: JOD of each shot, were that part not there."""
    after = video.astype(np.float32)
    steady, *_ = steady_versions(original, video, max(REACHES.values()), shots, motions)
    return {name: judge(after - part, steady, shots) for name, part in parts(after - steady).items()}


def parts(flicker: Floats) -> dict[str, Floats]:
    """What adds up to it, twice over: of (T, H, W, 3), its scales, and its luma and colour."""
    fine, coarse = (gaussian_filter(flicker, (0, sigma, sigma, 0)) for sigma in SCALES)
    grey = np.broadcast_to(
        luma(torch.from_numpy(flicker).movedim(-1, 0)[None])[0].numpy()[..., None], flicker.shape
    )
    scales = {"finer": flicker - fine, "between": fine - coarse, "coarser": coarse}
    return {**scales, "luma": grey, "colour": flicker - grey}


def groups(shots: Sequence[Span]) -> list[Span]:
    """`GROUP` frames each, from the first of each shot on. The last of a shot reach into the next,
    and those of the stream end with it.
    """
    end = shots[-1][1]
    starts = [min(at, max(end - GROUP, 0)) for start, stop in shots for at in range(start, stop, GROUP)]
    return [(start, min(start + GROUP, end)) for start in dict.fromkeys(starts)]


def quarters(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the four quarters of (T, H, W, 3)."""
    height, width = shape[1:3]
    for top in (0, height // 2):
        for left in (0, width // 2):
            yield slice(top, top + height // 2), slice(left, left + width // 2)


def motion(shot: Video, reach: int, flow: Flow) -> Motion:
    """From each frame to those up to `reach` before and after it in the same shot, by both frames'
    numbers.
    """
    found = {}
    for at in range(len(shot)):
        for other in range(max(at - reach, 0), min(at + reach, len(shot) - 1) + 1):
            if other != at:
                found[at, other] = flow(shot[at], shot[other])
    return found


def steady_versions(
    original: Video, video: Video, reach: int, shots: Sequence[Span], motions: Sequence[Motion]
) -> tuple[Floats, Floats, list[float]]:
    """What a video is compared with: the original plus the part of the error that stays, and plus
    the least that may stay.

    And for each shot the share of the mean's frames that are missing.
    """
    missing: list[float] = []
    steady, least = original.astype(np.float32), original.astype(np.float32)
    error = video.astype(np.float32) - steady
    for (start, stop), moved in zip(shots, motions, strict=True):
        stays, share = steady_error(original[start:stop], error[start:stop], reach, moved)
        steady[start:stop] += stays
        least[start:stop] += stays * share
        missing.append(1 - float(share.mean()))
    return steady, least, missing


def steady_error(shot: Video, error: Floats, reach: int, moved: Motion) -> tuple[Floats, Floats]:
    """The part of the error that stays: its mean along the motion, over `reach` frames to each
    side, those at the ends counting half.

    And the share of those frames of the shot that the mean is of, (T, H, W, 1): what the original
    does not show there, too, is left out.

    Args:
        shot: the original, (T, H, W, 3).
        error: of its reconstruction, likewise.
        moved: what `motion` returns, for this reach or a larger one.
    """
    steady, share = np.empty_like(error), np.empty((*error.shape[:3], 1), np.float32)
    for at in range(len(shot)):
        total, weights, whole = error[at].copy(), np.ones((*error.shape[1:3], 1), np.float32), np.float32(1)
        for other in range(max(at - reach, 0), min(at + reach, len(shot) - 1) + 1):
            if other == at:
                continue
            there = warped(
                np.concatenate([shot[other].astype(np.float32), error[other]], axis=-1), moved[at, other]
            )
            alike = np.abs(there[..., :3] - shot[at]).max(axis=-1, keepdims=True) <= ALIKE
            weight = np.float32(0.5 if abs(other - at) == reach else 1.0)
            total += np.where(alike, weight * there[..., 3:], 0)
            weights += np.where(alike, weight, 0)
            whole += weight
        steady[at], share[at] = total / weights, weights / whole
    return steady, share


def warped(picture: Floats, flow: Floats) -> Floats:
    """(H, W, C) seen from where `flow` starts; infinite beyond its edges, where nothing is known."""
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    grid = torch.from_numpy(np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1))[None]
    planes = torch.from_numpy(picture).movedim(-1, 0)[None]
    found = grid_sample(planes, grid, padding_mode="border", align_corners=True)[0].movedim(0, -1).numpy()
    within = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return np.where(within[..., None], found, np.float32(np.inf))


def reconstruct(model: WFVAE, original: Video) -> Video:
    """Through the exported bundle, as streams go."""
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(model, Path(folder) / "bundle")
        with open_bundle(Path(folder) / "bundle") as bundle:
            return bundle.decode(bundle.encode(original, chunk=CHUNK), frames=len(original), chunk=CHUNK)


def softened(original: Video, stream: Video, shots: Sequence[Span]) -> Video:
    """Each shot blurred, all its frames alike, to the mean squared error that the stream has in it."""
    result = np.empty_like(original)
    for start, stop in shots:
        shot = original[start:stop].astype(np.float32)
        aim = np.square(stream[start:stop] - shot).mean()
        low, high = 0.0, 16.0
        for _ in range(12):
            sigma = (low + high) / 2
            blurred = gaussian_filter(shot, (0, sigma, sigma, 0))
            low, high = (sigma, high) if np.square(blurred - shot).mean() < aim else (low, sigma)
        result[start:stop] = blurred.round().clip(0, 255)
    return result


def turned_over(original: Video, stream: Video) -> Video:
    """The error of the stream with its sign changed in every second frame: as large as it was, and
    none of it steady.
    """
    result = stream.copy()
    difference = stream[1::2].astype(np.int16) - original[1::2]
    result[1::2] = (original[1::2] - difference).clip(0, 255)
    return result


def through_x264(original: Video, crf: int) -> Video:
    """Encoded and decoded, 4:2:0 as is usual."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "video.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "medium"})
            stream.height, stream.width, stream.pix_fmt = *original.shape[1:3], "yuv420p"
            for picture in original:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        with av.open(path) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def optical_flow() -> Flow:
    """OpenCV's DIS flow, of luma."""
    try:
        import cv2
    except ImportError as error:
        raise SystemExit(f"{error}; the motion needs OpenCV: pip install opencv-python-headless") from error
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(first: Video, second: Video) -> Floats:
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second)]
        found: Floats = search.calc(*grey, None)
        return found

    return flow


def color_video_vdp() -> Judge:
    """Videos in levels of 255, on `DISPLAY`."""
    make_torchvision_importable("ColorVideoVDP", "eval")
    try:
        import pycvvdp
    except ImportError as error:
        raise SystemExit(f"{error}; the model of vision is not installed: pip install cvvdp") from error
    metric = pycvvdp.cvvdp(display_name=DISPLAY, quiet=True)

    def judge(video: Floats, reference: Floats, spans: Sequence[Span]) -> list[float]:
        pair = [
            torch.from_numpy(np.ascontiguousarray(part / np.float32(255))).clamp(0, 1)
            for part in (video, reference)
        ]
        _, found = metric.predict(*pair, dim_order="FHWC", frames_per_second=RATE)
        of_frames = torch.from_numpy(found["Q_per_ch"]).to(metric.device)  # (1, channels, frames, bands)
        # Each frame twice, which changes no mean: a single one would be taken for a still picture,
        # which is seen for longer.
        return [
            float(metric.do_pooling_and_jods(of_frames[:, :, start:stop].repeat(1, 1, 2, 1)))
            for start, stop in spans
        ]

    return judge


def table(result: Mapping[str, Any]) -> str:
    """The result for people, as Markdown."""
    shots = [f"frames {first} to {last}" for first, last in result["shots"]]
    titles = {
        "all_differences": "all differences",
        "one_latent": "flicker, 5 frames",
        "three_latents": "flicker, 13 frames",
    }
    lines = [
        f"JOD | {' | '.join(shots)} | worst quarter | quarters below {SEEN:g}",
        "--- | " * (len(shots) + 2) + "---",
    ]
    for name, kinds in result["jod"].items():
        for kind, found in kinds.items():
            for label, told in ((titles[kind], found), (f"{titles[kind]}, at most", found.get("at_most"))):
                if told is None:
                    continue
                cells = [f"{jod:.2f}" for jod in told["shots"]]
                quarters = (
                    [f"{told['worst_quarter']:.2f}", f"{told['quarters_seen']} of {told['quarters']}"]
                    if "quarters" in told
                    else []
                )
                lines.append(f"{name}, {label} | {' | '.join(cells + (quarters or ['', '']))}")
    low, high = (f"{sigma:g}" for sigma in SCALES)
    names = {
        "finer": f"what is finer than {low} pixels",
        "between": f"{low} to {high} pixels",
        "coarser": f"what is coarser than {high} pixels",
    }
    for part, jods in result.get("stream_without", {}).items():
        cells = [*(f"{jod:.2f}" for jod in jods), "", ""]
        lines.append(
            f"stream, {titles['three_latents']}, without {names.get(part, part)} | {' | '.join(cells)}"
        )
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    main()
