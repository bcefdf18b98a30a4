"""What does inference in blocks cost in quality (Table 5 of the paper)?

    python benchmarks/blockwise.py --json benchmarks/results/blockwise.json
    python benchmarks/blockwise.py --data videos/ --weights wan=Wan2.1/vae --tile-scale 1 --size 512

Compares each method with its own direct inference of the same clip: the WF-VAE that ships, and
small peers with random weights. FILE.svg shows where they differ. With random weights the figures
show that and where block-wise inference differs, not by how much a trained model suffers. Ends with
code 1 if a stream of WF-VAE has other bits than the whole clip.
"""

import argparse
import gc
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import charts
import numpy as np
import numpy.typing as npt
import torch
from harness.engines import exported, latent_channels, open_on
from harness.processes import reason_of
from harness.record import CommandLine, finish, positive
from peers import CHECKOUTS, PEERS, PeerModel
from peers.checkouts import parse_checkout
from torch import Tensor

from wfvae import WFVAE
from wfvae.errors import InputError, WFVAEError
from wfvae.evaluation.protocol import Protocol, open_prepared
from wfvae.evaluation.video_files import find_videos
from wfvae.export.parity.plans import Job, run_chunks, run_direct, run_odd_pushes
from wfvae.runtime import Bundle
from wfvae.video.synthetic.clips import ProceduralClip

Frames = npt.NDArray[np.uint8]
Video = npt.NDArray[np.float32]
"""(T, H, W, 3) in [-1, 1]."""
Row = dict[str, Any]

OURS = "wfvae"
SEED, CLIP_SEED = 0, 7
PEAK = 2.0
FAILURES = (WFVAEError, RuntimeError, MemoryError)
"""What a model may raise that becomes a row of the table: PyTorch raises `RuntimeError` where it
lacks memory, or cannot do a shape.
"""


@dataclass(frozen=True)
class Error:
    """How far one clip's block-wise result is from the direct one, and both from the video."""

    equal_bits: bool
    max_abs: float
    mean_square: float
    relative: float
    """RMS of the difference by the standard deviation of the direct result."""
    direct_psnr: float
    blockwise_psnr: float
    heat: npt.NDArray[np.float64]
    """(H, W): RMS of the difference over frames and colours."""
    per_frame: npt.NDArray[np.float64]
    """(T,): RMS of the difference over a frame."""


def compare(video: Video, direct: tuple[Any, Video], blocks: tuple[Any, Video]) -> Error:
    """Compares two results, each latents and a reconstruction.

    Raises:
        InputError: shapes differ.
    """
    shapes = [tuple(array.shape for array in result) for result in (direct, blocks)]
    if shapes[0] != shapes[1] or direct[1].shape != video.shape:
        raise InputError(
            f"direct inference gives latents and video of {shapes[0]}, block-wise {shapes[1]}, for a"
            f" video of {video.shape}; they cannot be compared"
        )
    square = np.square(direct[1].astype(np.float64) - blocks[1])
    mean = float(square.mean())
    return Error(
        equal_bits=all(a.tobytes() == b.tobytes() for a, b in zip(direct, blocks, strict=True)),
        max_abs=math.sqrt(square.max()),
        mean_square=mean,
        relative=math.sqrt(mean) / float(direct[1].std(dtype=np.float64)),
        direct_psnr=psnr(video, direct[1]),
        blockwise_psnr=psnr(video, blocks[1]),
        heat=np.sqrt(square.mean(axis=(0, 3))),
        per_frame=np.sqrt(square.mean(axis=(1, 2, 3))),
    )


def psnr(video: Video, result: Video) -> float:
    """Returns dB with peak 2. The result is clamped to [-1, 1], as it is shown."""
    return decibels(float(np.square(video.astype(np.float64) - np.clip(result, -1, 1)).mean()))


def decibels(mean_square: float) -> float:
    return 10 * math.log10(PEAK**2 / mean_square) if mean_square else math.inf


def summary(model: str, mode: str, blocks: str, weights: str, errors: Sequence[Error]) -> Row:
    """Returns a method's row: means over the clips, and the largest difference."""
    distances = [decibels(error.mean_square) for error in errors if error.mean_square]
    equal = all(error.equal_bits for error in errors)
    direct = fmean(error.direct_psnr for error in errors)
    blockwise = fmean(error.blockwise_psnr for error in errors)
    # A random network's result has no quality that could suffer.
    scored = equal or not weights.startswith("random")
    return {
        "model": model,
        "mode": mode,
        "blocks": blocks,
        "weights": weights,
        "equal_bits": equal,
        "max_abs": max(error.max_abs for error in errors),
        "psnr_to_direct_db": fmean(distances) if distances else None,
        "relative_error": fmean(error.relative for error in errors),
        "direct_psnr_db": direct if scored else None,
        "difference_db": blockwise - direct if scored else None,
    }


class Benchmark:
    """Collects the rows, and the first clip's errors for the picture."""

    def __init__(self, clips: Sequence[Frames]) -> None:
        self.clips = clips
        self.rows: list[Row] = []
        self.errors: dict[str, Error] = {}
        self.checkpoint_sha256: str | None = None
        """Of WF-VAE."""

    def add(self, model: str, mode: str, blocks: str, weights: str, errors: Sequence[Error]) -> None:
        self.rows.append(summary(model, mode, blocks, weights, errors))
        self.errors[f"{model}, {mode}"] = errors[0]
        print(f"{model}, {mode}: done", file=sys.stderr)

    def missing(self, model: str, mode: str, reason: str) -> None:
        self.rows.append({"model": model, "mode": mode, "not_measured": reason})


def load_clips(options: argparse.Namespace) -> tuple[list[Frames], str]:
    """Returns the clips, (T, H, W, 3), and what they are."""
    if options.data is None:
        clip = ProceduralClip(CLIP_SEED, options.size, options.size, options.frames)
        return [clip.frames(0, options.frames)], f"procedural clip, seed {CLIP_SEED}"
    clips = []
    for path in find_videos(options.data).values():
        with open_prepared(path, Protocol(options.frames, options.size)) as prepared:
            clips.append(np.stack(list(prepared.frames)))
    return clips, f"{len(clips)} videos"


def measure_ours(benchmark: Benchmark, bundle: Bundle, weights: str) -> None:
    """Streams in three plans against the whole clip through the graphs without state."""
    ratio = bundle.ratio
    ways: dict[str, tuple[str, Callable[[Job], Any]]] = {
        "stream, 1 latent a step": (f"{ratio} frames, causal cache", partial(run_chunks, chunk=1)),
        "stream, 4 latents a step": (f"{4 * ratio} frames, causal cache", partial(run_chunks, chunk=4)),
        "stream, odd pushes": ("1, 3, 5 or 7 frames at a time, causal cache", run_odd_pushes),
    }
    videos = [frames.astype(np.float32) / 127.5 - 1 for frames in benchmark.clips]
    direct = [through(bundle, frames, run_direct) for frames in benchmark.clips]
    for mode, (blocks, run) in ways.items():
        streamed = (through(bundle, frames, run) for frames in benchmark.clips)
        errors = list(map(compare, videos, direct, streamed))
        benchmark.add("WF-VAE", mode, blocks, weights, errors)


def through(bundle: Bundle, frames: Frames, run: Callable[[Job], Any]) -> tuple[Any, Video]:
    """Returns latents and reconstruction by one way to run both graphs."""
    count, height, width = frames.shape[:3]
    latents = run(Job(bundle, "encoder", frames, count, height, width))
    clipped = latents[:, : latent_channels(bundle)]
    return latents, run(Job(bundle, "decoder", clipped, count, height, width))


def measure_peer(benchmark: Benchmark, options: argparse.Namespace, name: str) -> None:
    """Every mode of a peer against its direct mode."""
    peer: Any = PEERS.get(name) or CHECKOUTS[name]
    title = peer.title if name in PEERS else peer.title_of(options.checkout.get(name))
    try:
        model, weights, fit = build_peer(options, name)
        clips = [fit(to_tensor(frames)) for frames in benchmark.clips]
        direct = [reconstruct(model, clip) for clip in clips]
    except FAILURES as error:
        benchmark.missing(title, "all", reason_of(error))
        return
    for mode in peer.modes:
        try:
            model.use(mode.name)
            blockwise = (reconstruct(model, clip) for clip in clips)
            errors = list(map(compare, map(to_video, clips), direct, blockwise))
        except FAILURES as error:
            benchmark.missing(title, mode.name, reason_of(error))
            continue
        blocks = mode.blocks + (" (the library's default)" if mode.default else "")
        benchmark.add(title, mode.name, blocks, weights, errors)


def measure_apart(benchmark: Benchmark, options: argparse.Namespace, name: str) -> None:
    """Runs `measure_peer` in a process of its own, which the code of a checkout needs."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        part = processes.submit(_measured_peer, benchmark.clips, options, name).result()
    benchmark.rows += part.rows
    benchmark.errors |= part.errors


def _measured_peer(clips: Sequence[Frames], options: argparse.Namespace, name: str) -> Benchmark:
    torch.set_num_threads(options.threads)
    benchmark = Benchmark(clips)
    measure_peer(benchmark, options, name)
    return benchmark


def build_peer(options: argparse.Namespace, name: str) -> tuple[PeerModel, str, Callable[[Tensor], Tensor]]:
    """Returns a model in direct mode, what its weights are, and what cuts a clip for it."""
    if name in CHECKOUTS:
        if name not in options.checkout:
            raise InputError(f"needs a local checkout, --checkout {name}=CODE[,WEIGHTS]")
        checkout = options.checkout[name]
        model: PeerModel = CHECKOUTS[name].build(checkout, seed=SEED, tile_scale=options.tile_scale)
        return model, checkout.label, CHECKOUTS[name].fit
    peer, folder, scale = PEERS[name], options.weights.get(name), options.tile_scale
    model = peer.build(full=options.full, seed=SEED, weights=folder, tile_scale=scale)
    width = "published width" if options.full else "reduced width"
    weights = f"random, {width}" if folder is None else "/".join(Path(folder).parts[-2:])
    return model, weights, partial(peer.covered, tile_scale=scale)


def to_tensor(frames: Frames) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_video(tensor: Tensor) -> Video:
    result: Video = tensor[0].permute(1, 2, 3, 0).contiguous().numpy()
    return result


def reconstruct(model: PeerModel, clip: Tensor) -> tuple[Any, Video]:
    latents = model.encode(clip)
    return latents.numpy(), to_video(model.decode(latents, clip.shape[2]))


def parse_weights(text: str) -> tuple[str, str]:
    """Parses NAME=DIR from the command line."""
    name, _, folder = text.partition("=")
    if name not in PEERS or not folder:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=DIR with a NAME of {', '.join(PEERS)}")
    return name, folder


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names, checkout = (OURS, *PEERS, *CHECKOUTS), "NAME=CODE[,WEIGHTS]"
    parser = CommandLine(__doc__, "blockwise.json", frames=41, size=160)
    add = parser.add_argument
    add("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add("--checkpoint", default="tiny", help="of WF-VAE (default: the model that ships)")
    add("--data", type=Path, help="video or folder of videos (default: a generated clip)")
    add("--full", action="store_true", help="peers in their published width")
    text = "local weights in diffusers' format"
    add("--weights", type=parse_weights, nargs="+", default=[], metavar="NAME=DIR", help=text)
    add("--checkout", type=parse_checkout, nargs="+", default=[], metavar=checkout)
    text = "divides peers' tiles and overlaps in space, for a small clip"
    add("--tile-scale", type=positive, default=4, help=text)
    options = parser.parse_args(arguments)
    options.weights, options.checkout = dict(options.weights), dict(options.checkout)
    return options


def measure(options: argparse.Namespace, benchmark: Benchmark) -> None:
    """Runs what was selected."""
    if OURS in options.only:
        model = WFVAE.from_pretrained(options.checkpoint)
        with (
            exported(model, direct=True) as (path, manifest),
            open_on("onnxruntime", path, options.threads) as bundle,
        ):
            benchmark.checkpoint_sha256 = manifest.checkpoint_sha256
            measure_ours(benchmark, bundle, f"trained, {options.checkpoint}")
    for name in [name for name in options.only if name != OURS]:
        (measure_apart if name in options.checkout else measure_peer)(benchmark, options, name)
        gc.collect()  # before the next one is built


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    try:
        clips, source = load_clips(options)
        benchmark = Benchmark(clips)
        measure(options, benchmark)
    except WFVAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    job = {**options.job, "tile_scale": options.tile_scale}
    about = {"checkpoint_sha256": benchmark.checkpoint_sha256, "source": source, "job": job}
    finish(options, "blockwise", **about, rows=benchmark.rows)
    if options.json is not None and benchmark.errors:
        charts.draw(charts.blockwise, benchmark.errors, options.json.with_suffix(".svg"))
    return int(any(row["model"] == "WF-VAE" and not row.get("equal_bits") for row in benchmark.rows))


if __name__ == "__main__":
    sys.exit(main())
