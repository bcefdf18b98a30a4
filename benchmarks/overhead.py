"""How much of a job's time is spent outside the engine, from video file to latents and back?

    python benchmarks/overhead.py --json benchmarks/results/overhead-cpu.json
    python benchmarks/overhead.py --preset tiny --size 64 --frames 9 --runs 1

Reading and writing run in threads beside the engine; what the engine's thread waits for them is
part of the job's time, as is opening and closing files. Jobs take turns; figures are medians.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from harness import tables
from harness.engines import open_on
from harness.processes import run_isolated
from harness.record import command_line, finish, machine, side
from harness.turns import timed
from memory import make_video

from wfvae.model.config import Preset
from wfvae.runtime import Bundle, decode_video, encode_video, reconstruct_video


def jobs_of(bundle: Bundle, video: Path, folder: Path) -> dict[str, Callable[[], Any]]:
    """Returns the jobs by name, each of which gives its report; `decode` needs `encode` first."""
    latents = folder / f"{video.stem}.zarr"
    return {
        "encode": partial(encode_video, bundle, video, latents),
        "decode": partial(decode_video, bundle, latents, folder / f"{video.stem}-decoded.mp4"),
        "reconstruct": partial(reconstruct_video, bundle, video, folder / f"{video.stem}-reconstructed.mp4"),
    }


def measure(bundle: Bundle, video: Path, folder: Path, runs: int) -> list[dict[str, Any]]:
    """Returns a row per job."""
    warm_up = make_video(folder / "warm-up.mp4", 5, 64)
    for job in jobs_of(bundle, warm_up, folder).values():
        job()  # loads sessions, codecs and what else is loaded at first use
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(runs):
        for name, job in jobs_of(bundle, video, folder).items():
            reports: list[Any] = []
            seconds = timed(lambda job=job, reports=reports: reports.append(job()))
            found.setdefault(name, []).append((seconds, reports[0].engine_seconds))
    return [
        {
            "job": name,
            "runs": runs,
            "seconds": statistics.median(seconds for seconds, _ in values),
            "outside_engine": statistics.median(1 - engine / seconds for seconds, engine in values),
        }
        for name, values in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, "overhead-cpu.json")
    parser.add_argument("--preset", choices=get_args(Preset), default="S")
    parser.add_argument("--size", type=side, default=256, help="height and width (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=13, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args(arguments)
    facts = machine(options.threads)
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as name:
        folder = Path(name)
        export = {"preset": options.preset, "bundle": str(folder / "bundle")}
        run_isolated("harness.engines:export_random", export, options.threads)
        with open_on("onnxruntime", folder / "bundle", options.threads) as bundle:
            video = make_video(folder / "video.mp4", options.frames, options.size)
            rows = measure(bundle, video, folder, options.runs)
    job = {key: getattr(options, key) for key in ("preset", "size", "frames", "runs")}
    finish({"machine": facts, "job": job, "rows": rows}, options.json, tables.overhead)
    return 0


if __name__ == "__main__":
    sys.exit(main())
