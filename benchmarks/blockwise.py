"""What block-by-block inference costs in quality (Table 5 of the paper): each method against its
own direct inference of the same clip.

    python benchmarks/blockwise.py                                         # the WF-VAE that ships, and small peers with random weights
    python benchmarks/blockwise.py --bundle bundle/ --data videos/ --weights cogvideox=CogVideoX-2b/vae --tile-scale 1 --size 512
    python benchmarks/blockwise.py --out results/                          # blockwise.json, blockwise.md and a picture per method

With random weights the figures show that, and where, block-wise inference differs; not by how much
a trained model suffers.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from blockwise_error import Error, Totals, picture_of
from peers import CHECKOUTS, DIRECT, PEERS
from record import load_average, machine, write_json, write_text

from wfvae import WFVAE, WFVAEConfig
from wfvae.errors import InputError, WFVAEError
from wfvae.evaluation.protocol import Protocol, open_prepared
from wfvae.evaluation.video_files import find_videos
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.export.parity.direct import run_direct
from wfvae.export.parity.plans import Job, chunked, odd_pushes
from wfvae.runtime import Bundle, open_bundle
from wfvae.video.synthetic.clips import ProceduralClip

Frames = npt.NDArray[np.uint8]
Video = npt.NDArray[np.float32]
"""(T, H, W, 3) in [-1, 1]."""

SEED, CLIP_SEED = 0, 7
FRAMES, SIZE, TILE_SCALE = 41, 160, 4
NOT_MEASURED = "not measured"
FAILURES = (WFVAEError, RuntimeError, MemoryError)
"""What a model may raise that is a row of the table: PyTorch says `RuntimeError` where it has no
memory, or cannot do a shape.
"""
TO_THE_VIDEO = ("direct_psnr_db", "blockwise_psnr_db", "difference_db")
"""Fields of a result that say how good it is, not how far it is from the direct one."""
RANDOM_NOTE = (
    "random weights: these figures show that and where the result differs, not by how much a trained model"
    " suffers"
)


@dataclass(frozen=True)
class Result:
    """One way to run one model block by block, against its direct inference; means over the clips."""

    model: str
    mode: str
    what: str
    weights: str
    parameters: int
    clips: int
    shape: tuple[int, int, int]
    """Frames, height and width."""
    equal_bits: bool
    max_abs: float
    """Largest difference of video in [-1, 1]."""
    latents_max_abs: float
    psnr_to_direct_db: float | None
    """Peak 2; None for equal results."""
    relative_error: float
    """RMS of the difference by the standard deviation of the direct result: random networks have
    outputs of any scale.
    """
    direct_psnr_db: float | None
    """Of the direct result to the video. This and the next two are None where weights are random
    and bits differ: what a random network gives has no quality that could suffer."""
    blockwise_psnr_db: float | None
    difference_db: float | None
    """Block-wise minus direct."""
    picture: str | None


@dataclass(frozen=True)
class Missing:
    """A method that was not measured."""

    model: str
    mode: str
    reason: str


@dataclass
class Benchmark:
    """What all methods share."""

    clips: list[Frames]
    out: Path | None
    results: list[Result]
    missing: list[Missing]
    checkpoint_sha256: str | None = None
    """Of our model, once it has been measured."""

    def measure(
        self,
        model: str,
        mode: str,
        what: str,
        weights: str,
        parameters: int,
        runs: Sequence[tuple[Video, Error]],
        pixels: tuple[int, ...],
    ) -> None:
        """Adds the result of a method over all clips, and draws its picture."""
        totals = Totals([error for _, error in runs])
        picture = None
        if self.out is not None:
            picture = f"blockwise/{model}-{mode}.svg".lower().replace(" ", "-").replace(",", "")
            (self.out / "blockwise").mkdir(parents=True, exist_ok=True)
            (self.out / picture).write_text(
                picture_of(runs[0][1], f"{model}, {mode}", f"{what}; {weights}"), encoding="utf-8"
            )
        shape = (pixels[0], pixels[1], pixels[2])
        numbers = totals.numbers()
        if is_random(weights) and not numbers["equal_bits"]:
            numbers |= dict.fromkeys(TO_THE_VIDEO)
        result = Result(model, mode, what, weights, parameters, len(runs), shape, **numbers, picture=picture)
        self.results.append(result)
        print(line(result), flush=True)


def clip_inputs(options: argparse.Namespace) -> tuple[list[Frames], str]:
    """The clips, (T, H, W, 3) uint8, and what they are."""
    if options.data is None:
        clip = ProceduralClip(CLIP_SEED, options.size, options.size, options.frames)
        return [clip.frames(0, options.frames)], f"procedural clip, seed {CLIP_SEED}"
    protocol = Protocol(options.frames, options.size)
    clips = []
    for path in find_videos(options.data).values():
        with open_prepared(path, protocol) as prepared:
            clips.append(np.stack(list(prepared.frames)))
    return clips, f"{len(clips)} videos"


def to_tensor(frames: Frames) -> torch.Tensor:
    """(1, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_video(tensor: torch.Tensor) -> Video:
    result: Video = tensor[0].permute(1, 2, 3, 0).contiguous().numpy()
    return result


# WF-VAE -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def wfvae_bundle(path: Path | None, preset: Any, threads: int) -> Iterator[tuple[Bundle, str]]:
    """The bundle given, the trained model that ships, or a preset with random weights."""
    with tempfile.TemporaryDirectory(prefix="wfvae-blockwise-") as folder:
        weights = "as in the bundle"
        if path is None:
            path = Path(folder) / "bundle"
            if preset == "tiny":
                model, weights = WFVAE.from_pretrained("tiny"), "trained, preset tiny as it ships"
            else:
                model, weights = (
                    WFVAE.random(WFVAEConfig.preset(preset), SEED),
                    f"random, seed {SEED}, preset {preset}",
                )
            export_bundle(model, path, ExportOptions(direct=True))
        with open_bundle(path, provider="cpu", threads=threads) as bundle:
            yield bundle, weights


def measure_wfvae(benchmark: Benchmark, bundle: Bundle, weights: str) -> None:
    """Streams in three plans against the whole clip through the graphs without state."""
    ways: dict[str, tuple[str, Callable[[Job], Any]]] = {
        "stream, 1 latent a step": (f"{bundle.ratio} frames a step, causal cache", partial(chunked, chunk=1)),
        "stream, 4 latents a step": (
            f"{4 * bundle.ratio} frames a step, causal cache",
            partial(chunked, chunk=4),
        ),
        "stream, odd pushes": ("1, 3, 5 or 7 frames at a time, causal cache", odd_pushes),
    }
    runs: dict[str, list[tuple[Video, Error]]] = {way: [] for way in ways}
    for frames in benchmark.clips:
        video = frames.astype(np.float32) / 127.5 - 1
        latents, direct = through(bundle, frames, run_direct)
        for way, (_, run) in ways.items():
            streamed_latents, streamed = through(bundle, frames, run)
            runs[way].append((video, Error.of(video, direct, streamed, latents, streamed_latents)))
    for way, (what, _) in ways.items():
        benchmark.measure(
            "WF-VAE", way, what, weights, bundle.manifest.parameters, runs[way], benchmark.clips[0].shape
        )


def through(bundle: Bundle, frames: Frames, run: Callable[[Job], Any]) -> tuple[Any, Video]:
    """Latents and reconstruction by one way to run both graphs."""
    count, height, width = frames.shape[:3]
    latents = run(Job(bundle, "encoder", frames, count, height, width))
    channels = int(bundle.manifest.graphs["decoder"].inputs[0].shape[2])
    return latents, run(Job(bundle, "decoder", latents[:, :channels], count, height, width))


# Peers --------------------------------------------------------------------------------------------


def measure_model(
    benchmark: Benchmark, model: Any, weights: str, fit: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Every mode of a peer against its direct mode."""
    peer = model.peer
    clips = [fit(to_tensor(frames)) for frames in benchmark.clips]
    model.use(DIRECT)
    direct = [reconstruct(model, clip) for clip in clips]
    for mode in peer.modes:
        try:
            model.use(mode.name)
            runs = []
            for clip, (latents, whole) in zip(clips, direct, strict=True):
                blocks_latents, blocks = reconstruct(model, clip)
                runs.append(
                    (to_video(clip), Error.of(to_video(clip), whole, blocks, latents, blocks_latents))
                )
        except FAILURES as error:
            benchmark.missing.append(Missing(peer.title, mode.name, reason_of(error)))
            continue
        what = mode.what + (" (the library's default)" if mode.on_by_default else "")
        benchmark.measure(
            peer.title, mode.name, what, weights, model.parameters, runs, tuple(clips[0].shape[2:])
        )


def reason_of(error: BaseException) -> str:
    """In one line; an error without words says what it is."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def reconstruct(model: Any, clip: torch.Tensor) -> tuple[Any, Video]:
    latents = model.encode(clip)
    return latents.numpy(), to_video(model.decode(latents, clip.shape[2]))


def measure_peers(benchmark: Benchmark, options: argparse.Namespace, done: Callable[[], None]) -> None:
    """All peers that were asked for; `done` is called after each."""
    for name in [name for name in options.only if name in PEERS or name in CHECKOUTS]:
        # A function of its own each: one model must be gone before the next is built.
        (measure_peer if name in PEERS else measure_checkout)(benchmark, options, name)
        gc.collect()
        done()


def measure_peer(benchmark: Benchmark, options: argparse.Namespace, name: str) -> None:
    """A model of diffusers."""
    peer, folder = PEERS[name], options.weights.get(name)
    try:
        model = peer.build(full=options.full, seed=SEED, weights=folder, tile_scale=options.tile_scale)
        width = "published width" if options.full else "reduced width"
        label = f"random, seed {SEED}, {width}" if folder is None else "/".join(Path(folder).parts[-2:])
        measure_model(benchmark, model, label, partial(peer.fit, tile_scale=options.tile_scale))
    except FAILURES as error:
        benchmark.missing.append(Missing(peer.title, "all", reason_of(error)))


def measure_checkout(benchmark: Benchmark, options: argparse.Namespace, name: str) -> None:
    """A model of a local checkout."""
    checkout, given = CHECKOUTS[name], options.checkout.get(name)
    if given is None:
        benchmark.missing.append(
            Missing(checkout.title, "all", f"needs a local checkout, --checkout {name}=CODE,WEIGHTS")
        )
        return
    try:
        model = checkout.build(Path(given[0]), Path(given[1]), given[2] if len(given) > 2 else None)
        ratio = checkout.compression[0]
        measure_model(
            benchmark,
            model,
            Path(given[1]).name,
            lambda clip: clip[:, :, : 1 + (clip.shape[2] - 1) // ratio * ratio],
        )
    except FAILURES as error:
        benchmark.missing.append(Missing(checkout.title, "all", reason_of(error)))


# Results ------------------------------------------------------------------------------------------


def line(result: Result) -> str:
    to_direct = "equal bits" if result.equal_bits else f"{result.psnr_to_direct_db:.2f} dB to direct"
    return f"{result.model}, {result.mode}: {to_direct}, max {result.max_abs:.3g}, {difference(result)}"


def difference(result: Result) -> str:
    """Of the PSNR to the video, in words."""
    if result.equal_bits:
        return "0.00 dB"
    return "–" if result.difference_db is None else f"{result.difference_db:+.2f} dB"


def about_text(source: str, frames: int, size: int, tile_scale: int) -> str:
    """What was measured on."""
    text = f"{source[0].upper()}{source[1:]}, {frames} frames of {size}x{size}."
    if tile_scale > 1:
        text += (
            f" Peers' tiles and overlaps have 1/{tile_scale} of the sizes named here in height and width, as"
            " the clip is small; receptive fields do not shrink with them, which overstates the difference."
        )
    return text


def is_random(weights: str) -> bool:
    """Whether these are weights that nobody trained."""
    return weights.startswith("random")


def to_markdown(results: Sequence[Result], missing: Sequence[Missing], about: str) -> str:
    rows = [
        "# Block-wise inference against direct inference",
        "",
        about,
        "",
        (
            "| Method | blocks | weights | PSNR to its own direct result | largest difference | relative"
            " error | PSNR to the video, block-wise - direct |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        to_direct = "equal bits" if one.equal_bits else f"{one.psnr_to_direct_db:.2f} dB"
        name = f"{one.model}, {one.mode}"
        linked = f"[{name}]({one.picture})" if one.picture else name
        error = "0" if one.equal_bits else f"{100 * one.relative_error:.3g} %"
        rows.append(
            f"| {linked} | {one.what} | {one.weights} | {to_direct} | {one.max_abs:.3g} | {error} |"
            f" {difference(one)} |"
        )
    rows += [
        f"| {one.model}, {one.mode} | – | – | {NOT_MEASURED}: {one.reason} | – | – | – |" for one in missing
    ]
    rows += [
        "",
        (
            "Video is in [-1, 1]. PSNR has peak 2. The relative error is the RMS of the difference by the"
            " standard deviation of the direct result."
        ),
        "Behind each name is a picture of where the difference sits: over height and width, and per frame.",
    ]
    if any(is_random(one.weights) for one in results):
        rows += ["", f"Rows with {RANDOM_NOTE}."]
    return "\n".join(rows) + "\n"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = ("wfvae", *PEERS, *CHECKOUTS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--bundle", type=Path, help="bundle of WF-VAE, exported with --direct (default: --preset)"
    )
    parser.add_argument(
        "--preset",
        default="tiny",
        choices=("tiny", "S", "M", "L"),
        help="tiny is the model that ships, others get random weights",
    )
    parser.add_argument("--data", type=Path, help="video or folder of videos (default: a generated clip)")
    parser.add_argument(
        "--frames", type=int, default=FRAMES, help="first frames of each video (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=SIZE, help="side of the square that is cropped (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="peers at their published width")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="local weights in diffusers' format; published width",
    )
    parser.add_argument(
        "--checkout",
        nargs="+",
        default=[],
        metavar="NAME=CODE,WEIGHTS[,MODULE:ATTRIBUTE]",
        help="checkouts of authors' code",
    )
    parser.add_argument(
        "--tile-scale",
        type=int,
        default=TILE_SCALE,
        help="tiles and overlaps in space divided by this, for a small clip (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for blockwise.json, blockwise.md and pictures")
    options = parser.parse_args(arguments)
    if min(options.frames, options.size, options.tile_scale, options.threads) < 1:
        parser.error("--frames, --size, --tile-scale and --threads are at least 1")
    options.weights = _named(parser, options.weights, PEERS)
    options.checkout = {
        name: value.split(",") for name, value in _named(parser, options.checkout, CHECKOUTS).items()
    }
    if any(len(value) not in (2, 3) for value in options.checkout.values()):
        parser.error("--checkout takes NAME=CODE,WEIGHTS or NAME=CODE,WEIGHTS,MODULE:ATTRIBUTE")
    return options


def _named(parser: argparse.ArgumentParser, items: Sequence[str], known: Any) -> dict[str, str]:
    pairs = {name: value for name, _, value in (item.partition("=") for item in items)}
    if wrong := [name for name, value in pairs.items() if name not in known or not value]:
        parser.error(f"{wrong[0]!r} is not NAME=DIR with a NAME of {', '.join(known)}")
    return pairs


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    try:
        clips, source = clip_inputs(options)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        benchmark = Benchmark(clips, options.out, [], [])
        save = partial(write, options, benchmark, source)
        if "wfvae" in options.only:
            with wfvae_bundle(options.bundle, options.preset, options.threads) as (bundle, weights):
                benchmark.checkpoint_sha256 = bundle.manifest.checkpoint_sha256
                measure_wfvae(benchmark, bundle, weights)
            save()
        measure_peers(benchmark, options, save)
    except (InputError, WFVAEError) as error:
        sys.stderr.write(f"blockwise: {error}\n")
        return 2
    for one in benchmark.missing:
        print(f"{one.model}, {one.mode}: {NOT_MEASURED}: {one.reason}")
    # Equal bits are the claim of this project's rows, and only of them.
    return 0 if all(result.equal_bits for result in benchmark.results if result.model == "WF-VAE") else 1


def write(options: argparse.Namespace, benchmark: Benchmark, source: str) -> None:
    """Writes what there is so far beside the pictures, if a folder was given."""
    if options.out is None:
        return
    packages = ["torch", "onnxruntime", "numpy"] + ["diffusers"] * any(
        result.model != "WF-VAE" for result in benchmark.results
    )
    about = about_text(source, options.frames, options.size, options.tile_scale)
    write_json(
        options.out / "blockwise.json",
        {
            "machine": machine(options.threads, *packages),
            "load_average": load_average(),
            "source": source,
            "frames": options.frames,
            "size": options.size,
            "tile_scale": options.tile_scale,
            "wfvae_checkpoint_sha256": benchmark.checkpoint_sha256,
            "note": RANDOM_NOTE if any(is_random(result.weights) for result in benchmark.results) else "",
            "methods": json.loads(json.dumps([asdict(result) for result in benchmark.results])),
            NOT_MEASURED.replace(" ", "_"): [asdict(one) for one in benchmark.missing],
        },
    )
    write_text(options.out / "blockwise.md", to_markdown(benchmark.results, benchmark.missing, about))


if __name__ == "__main__":
    sys.exit(main())
