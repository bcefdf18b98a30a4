"""What does a first clip cost? Opening a bundle, its first decode, and warm ones; and their memory.

    python benchmarks/startup.py --json benchmarks/results/startup-cpu.json
    python benchmarks/startup.py --preset tiny --size 16 --runs 1

Every run is a fresh process, which opens the bundle with its hashes checked. Ratios are of times
within one process, and medians over processes. Weights are random: times do not depend on them.
Engines in bf16 get the bundle of `--target openvino`.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness.engines import ENGINES, open_on
from harness.memory import peak_mb
from harness.processes import run_isolated, run_turns
from harness.record import CommandLine, finish

from wfvae.spec.frames import SPATIAL_RATIO, latent_frames

WARM = 3
"""Further decodes, of which the median counts."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the fresh process: opens, decodes, and decodes again."""
    began = time.perf_counter()
    bundle = open_on(job["engine"], job["bundle"], job["threads"], verify=True)
    opened = time.perf_counter()
    place = (job["size"] // SPATIAL_RATIO,) * 2
    channels = int(bundle.manifest.graphs["decoder"].inputs[0].shape[2])
    shape = (latent_frames(job["frames"], bundle.ratio), channels, *place)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    times = [time.perf_counter()]
    for _ in range(1 + WARM):
        bundle.decode(latents)
        times.append(time.perf_counter())
    first, *warm = np.diff(times).tolist()
    found = {"open_seconds": opened - began, "first_seconds": first, "warm_seconds": statistics.median(warm)}
    # 1 s is for what a warm decode does not do at all: files, graphs, weights.
    start = opened - began + first
    return {**found, "start_less_1s_by_warm": (start - 1) / found["warm_seconds"], "peak_mb": peak_mb()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "startup-cpu.json", preset="S", frames=5, size=128, runs=5)
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        paths = {target: f"{folder}/{target}" for target in ("auto", "openvino")}
        for target, path in paths.items():
            job = {"preset": options.preset, "target": target, "bundle": path}
            run_isolated("harness.engines:export_random", job, options.threads)
        common = {"threads": options.threads, "frames": options.frames, "size": options.size}
        jobs = [
            {**common, "engine": engine, "bundle": paths["openvino" if engine.endswith("bf16") else "auto"]}
            for engine in ENGINES
        ]
        runs = run_turns("startup:measure", jobs, options.runs, options.threads)
    rows: list[dict[str, Any]] = []
    for job, found in zip(jobs, runs, strict=True):
        row: dict[str, Any] = {"engine": job["engine"]}
        if isinstance(found, str):
            rows.append({**row, "not_measured": found})
        else:
            rows.append(row | {key: statistics.median(run[key] for run in found) for key in found[0]})
    finish(options, "startup", job=options.job, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
