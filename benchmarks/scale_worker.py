"""One clip, stream or pool of streams in a process of its own, for `scale.py`.

Input is made piece by piece and results are dropped, so that memory is the runtime's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

from harness.engines import noise, open_on, pushes
from harness.memory import peak_mb, resident_mb, restart_peak, trim_heap
from harness.turns import timed

from wfvae.runtime import Bundle
from wfvae.spec.frames import latent_frames

DIRECT, STREAM, POOL = "direct", "stream", "pool"
WARM_UP = 9
"""Frames of a clip that warms up."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measures seconds and peak memory of one job."""
    with open_on(job["engine"], job["bundle"], job["threads"]) as bundle:
        load = bundle.direct_session if job["way"] == DIRECT else bundle.step_session
        load(job["direction"])
        trim_heap()  # loading leaves 130 to 320 MB behind (preset S), not the same in every process
        loaded = resident_mb()
        run(bundle, {**job, "frames": min(WARM_UP, job["frames"])})
        restart_peak()
        seconds = timed(lambda: run(bundle, job))
        return {"seconds": seconds, "peak_mb": peak_mb(), "loaded_mb": loaded}


def run(bundle: Bundle, job: dict[str, Any]) -> None:
    """Runs the job once."""
    direction, size, chunk = job["direction"], job["size"], job["chunk"]
    if job["way"] == DIRECT:
        bundle.direct_session(direction).run(noise(bundle, direction, job["frames"], size))
    elif job["way"] == STREAM:
        open_stream = bundle.encoder if direction == "encoder" else bundle.decoder
        with open_stream(height=size, width=size, chunk=chunk) as stream:
            for part in parts(bundle, job):
                stream.push(part)
            stream.finish()
    else:
        rows = job["rows"]
        open_pool = bundle.encoder_pool if direction == "encoder" else bundle.decoder_pool
        with open_pool(height=size, width=size, rows=rows, chunk=chunk) as pool:
            for _ in pool.run({row: parts(bundle, job) for row in range(rows)}):
                pass


def parts(bundle: Bundle, job: dict[str, Any]) -> Iterator[Any]:
    """Yields a clip in pieces of one step: the same noise again and again."""
    direction, chunk = job["direction"], job["chunk"]
    count, step = job["frames"], chunk * bundle.ratio
    if direction == "decoder":
        count, step = latent_frames(count, bundle.ratio), chunk
    piece = pushes(bundle, direction, noise(bundle, direction, 1 + chunk * bundle.ratio, job["size"]), chunk)[
        0
    ]
    yield from islice(repeat(piece), count // step)
    if count % step:
        yield piece[: count % step]
