"""How much of a job's time is spent outside the engine, from video file to latents and back?

    python benchmarks/overhead.py --json benchmarks/results/overhead-cpu.json
    python benchmarks/overhead.py --preset tiny --size 64 --frames 9 --runs 1

Reading and writing run in threads beside the engine; what the engine's thread waits for them is
part of the job's time, as is opening and closing files. Jobs take turns; figures are medians.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.engines import open_on, random_bundles
from harness.record import CommandLine, finish
from memory import make_video

from wfvae.runtime import Bundle, decode_video, encode_video, reconstruct_video


def run_jobs(bundle: Bundle, video: Path) -> Iterator[tuple[str, float, float]]:
    """Yields each job with its seconds and the share of them outside the engine."""
    latents = video.with_suffix(".zarr")
    jobs: dict[str, Any] = {
        "encode": (encode_video, video, latents),
        "decode": (decode_video, latents, video.with_suffix(".decoded.mp4")),
        "reconstruct": (reconstruct_video, video, video.with_suffix(".reconstructed.mp4")),
    }
    for name, (job, *paths) in jobs.items():
        begin = time.perf_counter()
        report = job(bundle, *paths)
        seconds = time.perf_counter() - begin
        yield name, seconds, 1 - report.engine_seconds / seconds


def measure(bundle: Bundle, options: Any, folder: Path) -> list[dict[str, Any]]:
    """Returns a row per job."""
    # The first run loads sessions, codecs and what else is loaded at first use.
    list(run_jobs(bundle, make_video(folder / "warm-up.mp4", 5, 64)))
    video = make_video(folder / "video.mp4", options.frames, options.size)
    turns = [list(run_jobs(bundle, video)) for _ in range(options.runs)]
    rows = []
    for runs in zip(*turns, strict=True):
        names, seconds, outside = zip(*runs, strict=True)
        medians = {"seconds": statistics.median(seconds), "outside_engine": statistics.median(outside)}
        rows.append({"job": names[0], "runs": options.runs, **medians})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "overhead-cpu.json", preset="S", size=256, frames=13, runs=3)
    options = parser.parse_args(arguments)
    with (
        random_bundles([options.preset], options.threads) as bundles,
        open_on("onnxruntime", bundles[options.preset], options.threads) as bundle,
        tempfile.TemporaryDirectory() as folder,
    ):
        rows = measure(bundle, options, Path(folder))
    finish(options, "overhead", job=options.job, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
