"""How fast a bundle streams with chunks of several lengths, and the choice among them."""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wfvae.runtime.bundle import Bundle
from wfvae.runtime.jobs.report import Progress, no_progress
from wfvae.runtime.stream import DecoderStream, EncoderStream
from wfvae.spec.frames import latent_size, padded_size
from wfvae.spec.stream import Direction
from wfvae.video.synthetic.clips import ProceduralClip

WITHIN = 0.03
"""How much slower than the fastest a shorter chunk may be to be chosen."""


@dataclass(frozen=True)
class ChunkSpeed:
    """One direction and chunk length: medians over the runs."""

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
        """Returns the fields and both rates, for JSON."""
        rates = {"seconds_per_frame": self.seconds_per_frame, "frames_per_second": self.frames_per_second}
        return asdict(self) | rates


def measure_direction(
    bundle: Bundle,
    direction: Direction,
    size: tuple[int, int],
    chunks: Iterable[int],
    runs: int,
    progress: Progress = no_progress,
) -> list[ChunkSpeed]:
    """Times one running stream, fed chunk by chunk.

    In each run every length takes its turn, with about the same work, so that a busy moment slows
    all alike. The first chunk of a turn is not counted: engines prepare for a shape that differs
    from the last one.

    Args:
        chunks: latents per step, each >= 1.
        runs: turns of each length that count, >= 1; one before them does not.

    Raises as `Bundle.encoder` and `Bundle.decoder` do.
    """
    lengths = sorted(set(chunks))
    pushes = {chunk: max(1, round(lengths[-1] / chunk)) for chunk in lengths}
    total = bundle.ratio * (runs + 1) * sum(chunk * (pushes[chunk] + 1) for chunk in lengths)
    timings: dict[int, list[tuple[float, float]]] = {chunk: [] for chunk in lengths}
    done = 0
    stream, data = _stream_and_input(bundle, direction, *size, lengths[-1])
    step = bundle.ratio if direction == "encoder" else 1
    with stream:
        stream.push(data[:1])  # the head; after it, n r frames make n latents
        for turn in range(runs + 1):
            for chunk in lengths:
                piece, count = data[: step * chunk], pushes[chunk]
                stream.push(piece)
                began, engine = time.perf_counter(), stream.engine_seconds
                for _ in range(count):
                    stream.push(piece)
                wall = time.perf_counter() - began
                if turn:
                    timings[chunk].append((wall / count, (stream.engine_seconds - engine) / count))
                done += bundle.ratio * chunk * (count + 1)
                progress(done, total)
    return [
        ChunkSpeed(
            direction=direction,
            chunk=chunk,
            frames=bundle.ratio * chunk,
            seconds=statistics.median(wall for wall, _ in found),
            outside_engine=statistics.median(1 - engine / wall for wall, engine in found),
            planned_bytes=bundle.plan(direction, height=size[0], width=size[1], chunk=chunk).total_bytes,
            runs=len(found),
        )
        for chunk, found in timings.items()
    ]


def choose(speeds: Sequence[ChunkSpeed]) -> ChunkSpeed:
    """Returns the shortest chunk within 3 % of the fastest: it needs less memory."""
    limit = (1 + WITHIN) * min(speed.seconds_per_frame for speed in speeds)
    fast = [speed for speed in speeds if speed.seconds_per_frame <= limit]
    return min(fast, key=lambda speed: speed.chunk)


def _stream_and_input(
    bundle: Bundle, direction: Direction, height: int, width: int, longest: int
) -> tuple[EncoderStream | DecoderStream, Any]:
    """Opens a stream, and makes the input of its longest step."""
    if direction == "encoder":
        count = bundle.ratio * longest
        frames = ProceduralClip(0, *padded_size(height, width), count).frames(0, count)
        encoder = bundle.encoder(height=height, width=width, chunk=longest)
        return encoder, np.ascontiguousarray(frames[:, :height, :width])
    decoder = bundle.decoder(height=height, width=width, chunk=longest)
    shape = (longest, decoder.channels, *latent_size(height, width))
    return decoder, np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
