"""Time that files, pixels and Python take around the engine, and the choice of the chunk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from runtime_memory import run_program

import wfvae.runtime.feed as feed
from wfvae.runtime import Bundle
from wfvae.runtime.latents.latent_files import open_latents, open_latents_writer
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.runtime.pixels import to_network, to_uint8_frames
from wfvae.runtime.prefetch import BackgroundSink, Prefetch

# What the thread that drives the engine does besides: what it is called here, who does it, under which name.
_STAGES: tuple[tuple[str, Any, str], ...] = (
    ("waiting for the reader", Prefetch, "__next__"),
    ("pixels to network", feed, "to_network"),
    ("network to pixels", feed, "to_uint8_frames"),
    ("waiting for the writer", BackgroundSink, "put"),
    ("last writes", BackgroundSink, "close"),
)
_OTHER = "other"
CHUNKS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Overhead:
    """Of one job, medians; shares are of its wall time."""

    job: str
    seconds: float
    outside_engine: float
    """Share of wall time that is not spent inside the backend."""
    stages: dict[str, float]
    """What that share is made of."""
    background_seconds: dict[str, float]
    """What reading and writing take by themselves, with nothing beside them; in the job they run in threads of their own."""
    serial_share: float
    """The share outside the engine if they did not overlap with it."""


@dataclass(frozen=True)
class ChunkChoice:
    """Of one direction and chunk, medians through the real program."""

    direction: str
    latents: int
    seconds_per_frame: float
    peak_mb: float


@contextmanager
def _stage_clocks() -> Iterator[dict[str, float]]:
    """Adds up the seconds of each stage while the block runs."""
    seconds = {name: 0.0 for name, _, _ in _STAGES}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - begin

        return call

    with ExitStack() as stack:
        for name, owner, attribute in _STAGES:
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield seconds


def measure_overhead(bundle: Bundle, video: Path, folder: Path, runs: int) -> Iterator[Overhead]:
    """`video` through each job, one after the other in every run."""
    latents = folder / "overhead.zarr"
    jobs: dict[str, Callable[[], Any]] = {
        "encode": lambda: bundle.encode_video(video, latents),
        "decode": lambda: bundle.decode_video(latents, folder / "decoded.mp4"),
        "reconstruct": lambda: bundle.reconstruct_video(video, folder / "reconstructed.mp4"),
    }
    reports: dict[str, list[Any]] = {name: [] for name in jobs}
    clocks: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    alone: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    bundle.encode(np.zeros((1, 8, 8, 3), np.uint8))  # loads the sessions
    bundle.decode(np.zeros((1, bundle.encode(np.zeros((1, 8, 8, 3), np.uint8)).shape[1], 1, 1), np.float32))
    for _ in range(runs):
        for name, job in jobs.items():
            with _stage_clocks() as clock:
                reports[name].append(job())
            clocks[name].append(dict(clock))
        times = _background_times(video, latents, folder)
        alone["encode"].append({key: times[key] for key in ("read video", "write latents")})
        alone["decode"].append({key: times[key] for key in ("read latents", "write video")})
        alone["reconstruct"].append({key: times[key] for key in ("read video", "write video")})
    for name in jobs:
        yield _summary(name, reports[name], clocks[name], alone[name])


def _summary(job: str, reports: list[Any], clocks: list[dict[str, float]], alone: list[dict[str, float]]) -> Overhead:
    outside = [(r.seconds - r.engine_seconds) / r.seconds for r in reports]
    stages = {
        name: statistics.median(clock[name] / report.seconds for clock, report in zip(clocks, reports, strict=True)) for name in clocks[0]
    }
    stages[_OTHER] = statistics.median(
        share - sum(clock.values()) / report.seconds for share, clock, report in zip(outside, clocks, reports, strict=True)
    )
    background = {name: statistics.median(times[name] for times in alone) for name in alone[0]}
    seconds = statistics.median(report.seconds for report in reports)
    engine = statistics.median(report.engine_seconds for report in reports)
    conversion = seconds * (stages["pixels to network"] + stages["network to pixels"] + max(stages[_OTHER], 0.0))
    around = sum(background.values()) + conversion
    return Overhead(job, seconds, statistics.median(outside), stages, background, around / (engine + around))


def _background_times(video: Path, latents: Path, folder: Path) -> dict[str, float]:
    """Seconds of reading and writing each file, by itself."""
    times: dict[str, float] = {}
    begin = time.perf_counter()
    with open_video(video) as reader:
        pieces = list(reader.chunks(16))
    times["read video"] = time.perf_counter() - begin
    begin = time.perf_counter()
    with open_latents(latents) as source:
        info = source.info
        parts = list(source.chunks(4))
    times["read latents"] = time.perf_counter() - begin
    begin = time.perf_counter()
    with open_latents_writer(folder / "copy.zarr", info) as store:
        for part in parts:
            store.append(part)
        store.finish(sum(map(len, pieces)))
    times["write latents"] = time.perf_counter() - begin
    height, width = pieces[0].shape[1:3]
    begin = time.perf_counter()
    with open_video_writer(folder / "copy.mp4", OutputVideo(width, height, Fraction(24))) as writer:
        for piece in pieces:
            writer.write(piece)
    times["write video"] = time.perf_counter() - begin
    return times


def pixel_seconds_per_frame(size: int) -> dict[str, float]:
    """Of converting one frame, each way, in one thread."""
    frames = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), np.uint8)
    planes = to_network(frames)
    times: dict[str, list[float]] = {"uint8 to network": [], "network to uint8": []}
    for _ in range(10):
        begin = time.perf_counter()
        to_network(frames)
        middle = time.perf_counter()
        to_uint8_frames(planes, size, size)
        times["uint8 to network"].append((middle - begin) / len(frames))
        times["network to uint8"].append((time.perf_counter() - middle) / len(frames))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_chunks(bundle: Path, video: Path, folder: Path, threads: int, runs: int) -> Iterator[ChunkChoice]:
    """Encode and decode through the real program, with each chunk in turn."""
    latents = folder / "chunks.zarr"
    files = {"encode": (video, latents), "decode": (latents, folder / "chunks.mp4")}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(runs):
        for direction, (source, destination) in files.items():
            for chunk in CHUNKS:
                options = ("--threads", str(threads), "--chunk", str(chunk))
                peak, report = run_program(direction, str(bundle), str(source), str(destination), *options)
                found.setdefault((direction, chunk), []).append((report["engine_seconds"] / report["frames"], peak))
    for (direction, chunk), values in found.items():
        seconds, peaks = zip(*values, strict=True)
        yield ChunkChoice(direction, chunk, statistics.median(seconds), statistics.median(peaks))


def print_overhead(result: Overhead) -> None:
    stages = ", ".join(f"{name} {share:.2%}" for name, share in result.stages.items())
    alone = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result.background_seconds.items())
    print(f"{result.job:12}{result.seconds:8.2f} s, outside the engine {result.outside_engine:.2%}: {stages}")
    print(f"{'':12}by themselves: {alone}; without overlap {result.serial_share:.2%}")


def print_chunk(result: ChunkChoice) -> None:
    print(f"{result.direction:8}{result.latents:>3} latents{result.seconds_per_frame * 1e3:>9.1f} ms/frame{result.peak_mb:>9.0f} MB")
