"""How fast a bundle streams with chunks of several lengths, and the choice among them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wfvae.runtime.backends.base import Array
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.jobs.report import Progress, no_progress
from wfvae.runtime.pixels import Frames
from wfvae.spec.frames import latent_size, padded_size
from wfvae.spec.stream import Direction
from wfvae.video.synthetic.clips import ProceduralClip

WITHIN = 0.03
"""How much slower than the fastest a chunk may be to be chosen for being shorter."""


@dataclass(frozen=True)
class ChunkSpeed:
    """One direction, one length: medians over the runs."""

    direction: Direction
    chunk: int
    """Latents per step."""
    frames: int
    """Video frames per step."""
    seconds: float
    """Per chunk, from the push to its result."""
    outside_engine: float
    """Share of that time that is not spent in the backend."""
    planned_bytes: int
    """Memory that the stream needs by the bundle's formula."""
    runs: int

    @property
    def seconds_per_frame(self) -> float:
        return self.seconds / self.frames

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "seconds_per_frame": self.seconds_per_frame,
            "frames_per_second": self.frames_per_second,
        }


def measure_direction(
    bundle: Bundle,
    direction: Direction,
    size: tuple[int, int],
    chunks: Iterable[int],
    runs: int,
    progress: Progress = no_progress,
) -> list[ChunkSpeed]:
    """Times one running stream, fed chunk by chunk.

    In each run every length has its turn, so that a busy moment slows all alike, and all lengths do
    about the same work. The first chunk of a turn is not counted: engines prepare for a shape that
    differs from the last one.

    Args:
        size: (height, width) of the video.
        chunks: latents per step, each >= 1.
        runs: turns of each length that count, >= 1. One before them does not.
        progress: called with frames done and in all.

    Raises as `Bundle.encoder` and `Bundle.decoder` do.
    """
    height, width = size
    lengths = sorted(set(chunks))
    pushes = {chunk: max(1, round(lengths[-1] / chunk)) for chunk in lengths}
    total = bundle.ratio * (runs + 1) * sum(chunk * (pushes[chunk] + 1) for chunk in lengths)
    timings: dict[int, list[tuple[float, float]]] = {chunk: [] for chunk in lengths}
    stream: Any
    if direction == "encoder":
        stream = bundle.encoder(height=height, width=width, chunk=lengths[-1])
    else:
        stream = bundle.decoder(height=height, width=width, chunk=lengths[-1])
    done = 0
    with stream:
        feed = _feeder(bundle, direction, height, width, lengths[-1])
        stream.push(
            feed(1)[: 1 if direction == "encoder" else None]
        )  # after its head, n r frames make n latents
        for turn in range(runs + 1):
            for chunk in lengths:
                data = feed(chunk)
                stream.push(data)
                begin, engine = time.perf_counter(), stream.engine_seconds
                for _ in range(pushes[chunk]):
                    stream.push(data)
                if turn:
                    timings[chunk].append(
                        (
                            (time.perf_counter() - begin) / pushes[chunk],
                            (stream.engine_seconds - engine) / pushes[chunk],
                        )
                    )
                done += bundle.ratio * chunk * (pushes[chunk] + 1)
                progress(done, total)
    return [_summary(bundle, direction, size, chunk, timings[chunk]) for chunk in lengths]


def choose(speeds: Sequence[ChunkSpeed]) -> ChunkSpeed:
    """The shortest chunk that is within 3 % of the fastest: shorter ones cost less memory, and
    results come sooner.
    """
    fastest = min(speed.seconds_per_frame for speed in speeds)
    return min(
        (s for s in speeds if s.seconds_per_frame <= fastest * (1 + WITHIN)), key=lambda speed: speed.chunk
    )


def _summary(
    bundle: Bundle,
    direction: Direction,
    size: tuple[int, int],
    chunk: int,
    timings: Sequence[tuple[float, float]],
) -> ChunkSpeed:
    return ChunkSpeed(
        direction=direction,
        chunk=chunk,
        frames=bundle.ratio * chunk,
        seconds=statistics.median(wall for wall, _ in timings),
        outside_engine=statistics.median(1 - engine / wall for wall, engine in timings),
        planned_bytes=bundle.plan(direction, height=size[0], width=size[1], chunk=chunk).total_bytes,
        runs=len(timings),
    )


def _feeder(
    bundle: Bundle, direction: Direction, height: int, width: int, longest: int
) -> Callable[[int], Array | Frames]:
    """Gives the input of n latents: frames (r n, H, W, 3) uint8, or latents (n, D, h, w)."""
    rows, columns = latent_size(height, width)
    data: Array | Frames
    if direction == "encoder":
        clip = ProceduralClip(0, *padded_size(height, width), bundle.ratio * longest)
        data = np.ascontiguousarray(clip.frames(0, bundle.ratio * longest)[:, :height, :width])
        return lambda latents: data[: bundle.ratio * latents]
    channels = int(bundle.manifest.graphs["decoder"].inputs[0].shape[2])
    data = np.random.default_rng(0).standard_normal((longest, channels, rows, columns), dtype=np.float32)
    return lambda latents: data[:latents]
