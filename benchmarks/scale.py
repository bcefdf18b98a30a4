"""How do time per frame and memory grow with the length of a clip and the number of streams?

    python benchmarks/scale.py --json benchmarks/results/scale-cpu.json
    python benchmarks/scale.py --rows --lengths tiny=33,5001

Runs one clip from 33 frames on, streamed, and whole up to `--direct-length`; then a pool of 1, 2, 4
... streams in one batch. Every measurement is a fresh process; all take turns; figures are medians.
Input is made piece by piece and results are dropped, so that memory is the runtime's.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

from harness.engines import DIRECTIONS, ENGINES, noise, open_on, pushes, random_bundles
from harness.memory import peak_mb, resident_mb, restart_peak, trim_heap
from harness.processes import run_turns
from harness.record import CommandLine, finish, lengths
from harness.turns import timed

from wfvae.runtime import Bundle
from wfvae.spec.frames import latent_frames

DIRECT, STREAM, POOL = "direct", "stream", "pool"
WARM_UP = 9
"""Frames of a clip that warms up."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measures seconds and peak memory of one job, in a process of its own."""
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
    direction, chunk = job["direction"], job["chunk"]
    settings = {"height": job["size"], "width": job["size"], "chunk": chunk}
    if job["way"] == DIRECT:
        bundle.direct_session(direction).run(noise(bundle, direction, job["frames"], job["size"]))
    elif job["way"] == STREAM:
        open_stream = bundle.encoder if direction == "encoder" else bundle.decoder
        with open_stream(**settings) as stream:
            for part in parts(bundle, job):
                stream.push(part)
            stream.finish()
    else:
        open_pool = bundle.encoder_pool if direction == "encoder" else bundle.decoder_pool
        with open_pool(rows=job["rows"], **settings) as pool:
            for _ in pool.run({row: parts(bundle, job) for row in range(job["rows"])}):
                pass


def parts(bundle: Bundle, job: dict[str, Any]) -> Iterator[Any]:
    """Yields a clip in pieces of one step: the same noise again and again."""
    direction, chunk = job["direction"], job["chunk"]
    count, step = job["frames"], chunk * bundle.ratio
    clip = noise(bundle, direction, 1 + step, job["size"])
    piece = pushes(bundle, direction, clip, chunk)[0]
    if direction == "decoder":
        count, step = latent_frames(count, bundle.ratio), chunk
    yield from islice(repeat(piece), count // step)
    if count % step:
        yield piece[: count % step]


def plan_jobs(options: Any, bundles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns all measurements."""
    jobs: list[dict[str, Any]] = []
    for preset, counts in options.lengths:
        for frames in counts:
            for way in (STREAM, DIRECT) if frames <= options.direct_length else (STREAM,):
                jobs.append({"section": "length", "way": way, "preset": preset, "frames": frames})
    for rows in options.rows:
        job = {"section": "streams", "way": POOL, "preset": options.preset, "frames": options.frames}
        jobs.append({**job, "rows": rows})
    common = {key: getattr(options, key) for key in ("engine", "threads", "chunk", "size")}
    return [
        {**common, **job, "direction": direction, "bundle": bundles[job["preset"]]}
        for job in jobs
        for direction in DIRECTIONS.values()
    ]


def summary(job: dict[str, Any], runs: list[dict[str, Any]] | str) -> dict[str, Any]:
    """Returns medians, or the reason why there are none."""
    keys = ("direction", "way", "preset", "frames", "size", "chunk", "rows")
    row = {key: job[key] for key in keys if key in job}
    if isinstance(runs, str):
        return {**row, "not_measured": runs}
    seconds, peak, loaded = ([one[key] for one in runs] for key in ("seconds", "peak_mb", "loaded_mb"))
    return {
        **row,
        "runs": len(runs),
        "all_seconds": seconds,
        "ms_per_frame": statistics.median(seconds) / (job["frames"] * job.get("rows", 1)) * 1e3,
        "peak_mb": statistics.median(peak),
        "loaded_mb": statistics.median(loaded),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "scale-cpu.json", preset="S", size=64, frames=17, runs=3)
    counts = [("S", [33, 129, 1001]), ("tiny", [33, 129, 1001, 5001])]
    parser.add_argument("--lengths", type=lengths, nargs="*", default=counts, metavar="PRESET=N,N")
    parser.add_argument("--direct-length", type=int, default=129, help="frames up to which clips run whole")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 2, 4, 8], help="streams in a pool")
    parser.add_argument("--chunk", type=int, default=4, help="latents per step of a stream")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    options = parser.parse_args(arguments)
    presets = dict.fromkeys([preset for preset, _ in options.lengths] + [options.preset] * bool(options.rows))
    with random_bundles(presets, options.threads) as bundles:
        jobs = plan_jobs(options, bundles)
        found = run_turns("scale:measure", jobs, options.runs, options.threads)
    sections: dict[str, list[dict[str, Any]]] = {}
    for job, runs in zip(jobs, found, strict=True):
        sections.setdefault(job["section"], []).append(summary(job, runs))
    finish(options, "scale", engine=options.engine, sections=sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
