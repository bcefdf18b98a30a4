"""One clip, stream or pool of streams through a bundle, in a process of its own. Started by
`scale.py`.

Input is made chunk by chunk and results are dropped, so that memory is that of the runtime.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from bundle_engines import open_on
from isolated import answer
from process_memory import peak_mb, resident_mb, restart_peak, trim_heap

from wfvae.runtime import Bundle
from wfvae.spec.frames import latent_frames

DIRECT, STREAM, POOL = "direct", "stream", "pool"
WARM_UP = 9
"""Frames of a clip that warms up."""


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peak of one job."""
    with open_on(job["engine"], job["bundle"], job["threads"]) as bundle:
        if job["way"] == DIRECT:
            bundle.direct_session(job["direction"])
        else:
            bundle.step_session(job["direction"])
        trim_heap()  # loading leaves 130 to 320 MB behind (preset S), not the same in every process
        loaded = resident_mb()
        run(bundle, {**job, "frames": min(WARM_UP, job["frames"])})
        apart = restart_peak()
        begin = time.perf_counter()
        given = run(bundle, job)
        seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "peak_mb": peak_mb(),
        "loaded_mb": loaded,
        "peaks_apart": apart,
        "given": given,
    }


def run(bundle: Bundle, job: dict[str, Any]) -> int:
    """Latents or frames that came out, of all streams."""
    if job["way"] == DIRECT:
        return _direct(bundle, job)
    return _stream(bundle, job) if job["way"] == STREAM else _pool(bundle, job)


def _direct(bundle: Bundle, job: dict[str, Any]) -> int:
    direction, size, count = job["direction"], job["size"], _count(bundle, job)
    session = bundle.direct_session(direction)
    shape = (
        (1, count, 3, size, size)
        if direction == "encoder"
        else (1, count, _channels(bundle), size // 8, size // 8)
    )
    return int(session.run(np.random.default_rng(0).standard_normal(shape, np.float32)).shape[1])


def _stream(bundle: Bundle, job: dict[str, Any]) -> int:
    size, chunk, given = job["size"], job["chunk"], 0
    opener = bundle.encoder if job["direction"] == "encoder" else bundle.decoder
    with opener(height=size, width=size, chunk=chunk) as stream:
        for part in _parts(bundle, job):
            given += len(stream.push(part))
        return given + len(stream.finish())


def _pool(bundle: Bundle, job: dict[str, Any]) -> int:
    size, rows = job["size"], job["rows"]
    opener = bundle.encoder_pool if job["direction"] == "encoder" else bundle.decoder_pool
    with opener(height=size, width=size, rows=rows, chunk=job["chunk"]) as pool:
        return sum(len(result) for _, result in pool.run({row: _parts(bundle, job) for row in range(rows)}))


def _parts(bundle: Bundle, job: dict[str, Any]) -> Any:
    """A clip in pieces of one step: the same noise again and again."""
    size, left = job["size"], _count(bundle, job)
    rng = np.random.default_rng(0)
    if job["direction"] == "encoder":
        step = job["chunk"] * bundle.ratio
        piece: Any = rng.integers(0, 256, (step, size, size, 3), np.uint8)
    else:
        step = job["chunk"]
        piece = rng.standard_normal((step, _channels(bundle), size // 8, size // 8), np.float32)
    while left:
        yield piece[:left]
        left -= min(left, step)


def _count(bundle: Bundle, job: dict[str, Any]) -> int:
    frames: int = job["frames"]
    return frames if job["direction"] == "encoder" else latent_frames(frames, bundle.ratio)


def _channels(bundle: Bundle) -> int:
    return int(bundle.manifest.model["latent_dim"])


if __name__ == "__main__":
    answer(work)
