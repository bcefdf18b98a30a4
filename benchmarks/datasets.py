"""How fast does `wfvae encode-dataset` encode many videos, against one after another?

    python benchmarks/datasets.py --json benchmarks/results/datasets-cpu.json
    python benchmarks/datasets.py --only memory --preset tiny
    python benchmarks/datasets.py --only speed --preset tiny --videos 4 --frames 9 --runs 1

A model with random weights encodes a folder of videos: in a loop over `encode_video` in one process
with one thread, which opens the bundle once; by `wfvae encode` once per video, of some of them; and
as a data set with 1 and 2 workers of one thread each. Seconds of a data set are those of the whole
job with its planning and the start of its processes; Ray's own start is apart. Jobs take turns;
ratios are medians of those within a turn. A job on one video shows what a start costs.

Then memory: the sum over all processes of what is theirs (proportional set size), while many short
videos are encoded. `--only` measures one part, and keeps the other one of the result file.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from harness.engines import exported, open_on
from harness.record import CommandLine, finish, positive

from wfvae import WFVAE, WFVAEConfig
from wfvae.runtime import encode_video
from wfvae.runtime.dataset.job import encode_dataset
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

THREADS = 1
"""Of each session."""
LOOP, PROCESSES = "loop", "processes"
SAMPLE_SECONDS = 0.25
SHORT_FRAMES, SHORT_SIZE = 5, 64
DISTINCT_VIDEOS = 8
"""The others are links to them."""

Figures = dict[str, float]
"""`seconds`, and `engine_seconds` of them."""


def make_videos(folder: Path, count: int, frames: int, size: int) -> Path:
    """Writes videos of about `frames` frames."""
    folder.mkdir()
    for index in range(count):
        path = folder / f"{index:05d}.mp4"
        if index >= DISTINCT_VIDEOS:
            os.link(folder / f"{index % DISTINCT_VIDEOS:05d}.mp4", path)
            continue
        length = frames + index % 3
        with open_video_writer(path, OutputVideo(size, size, Fraction(24))) as writer:
            writer.write(ProceduralClip(index, size, size, length).frames(0, length))
    return folder


def run_loop(bundle: Path, videos: Sequence[Path], out: Path) -> Figures:
    """Encodes one video after another in this process."""
    begin, engine = time.perf_counter(), 0.0
    out.mkdir()
    with open_on("onnxruntime", bundle, THREADS) as opened:
        for path in videos:
            engine += encode_video(opened, path, out / f"{path.stem}.npy").engine_seconds
    return {"seconds": time.perf_counter() - begin, "engine_seconds": engine}


def run_processes(bundle: Path, videos: Sequence[Path], out: Path) -> Figures:
    """Runs `wfvae encode` on one video after another."""
    begin, engine = time.perf_counter(), 0.0
    out.mkdir()
    for path in videos:
        target = out / f"{path.stem}.npy"
        words = ["encode", bundle, path, target, "--threads", THREADS, "--provider", "cpu", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "wfvae", *map(str, words)], capture_output=True, check=True
        )
        engine += json.loads(done.stdout)["engine_seconds"]
    return {"seconds": time.perf_counter() - begin, "engine_seconds": engine}


def run_dataset(engine: Any, workers: int, bundle: Path, source: Path, out: Path) -> Figures:
    """Encodes a folder or a video as a data set."""
    execution = {"provider": "cpu", "threads": THREADS}
    report = encode_dataset(bundle, str(source), out, engine=engine, workers=workers, execution=execution)
    assert report.complete and not report.failures
    return {"seconds": report.seconds, "engine_seconds": report.engine_seconds}


def measure_speed(bundle: Path, options: Any, folder: Path) -> dict[str, Any]:
    """Returns a row per job, and the seconds that Ray takes to start."""
    videos = make_videos(folder / "videos", options.videos, options.frames, options.size)
    paths = sorted(videos.iterdir())
    lengths = [options.frames + index % DISTINCT_VIDEOS % 3 for index in range(len(paths))]
    some = min(options.processes, len(paths))
    jobs: dict[str, Callable[[Path], Figures]] = {
        LOOP: lambda out: run_loop(bundle, paths, out),
        PROCESSES: lambda out: run_processes(bundle, paths[:some], out),
    }
    first: dict[str, float] = {}
    start = None
    if "ray" in options.engines:
        import ray

        begin = time.perf_counter()
        ray.init(log_to_driver=False, logging_level="WARNING", num_cpus=2)
        start = time.perf_counter() - begin
    for engine, workers in product(options.engines, (1, 2)):
        name = f"{engine}, {workers}"
        jobs[name] = partial(run_dataset, engine, workers, bundle, videos)
        first[name] = run_dataset(engine, workers, bundle, paths[0], folder / f"first-{name}")["seconds"]
    turns = [
        {name: job(folder / f"out-{turn}-{number}") for number, (name, job) in enumerate(jobs.items())}
        for turn in range(options.runs)
    ]
    rows = []
    for name in jobs:
        frames = sum(lengths[:some] if name == PROCESSES else lengths)
        row = {"job": name, "runs": options.runs}
        row["frames_per_second"] = frames / median(turn[name]["seconds"] for turn in turns)
        row["relative"] = median(
            turn[LOOP]["seconds"] / sum(lengths) * frames / turn[name]["seconds"] for turn in turns
        )
        if name.endswith("2"):
            alone = f"{name[:-1]}1"
            row["scaling"] = median(turn[alone]["seconds"] / turn[name]["seconds"] for turn in turns)
        else:
            row["outside_engine"] = median(
                1 - turn[name]["engine_seconds"] / turn[name]["seconds"] for turn in turns
            )
        if name in first:
            row["one_video_seconds"] = first[name]
        rows.append(row)
    if start is not None:
        ray.shutdown()  # its processes would count as memory of what follows
    return {"rows": rows, "ray_start_seconds": start}


def used_mb(process: psutil.Process) -> float:
    """Returns the memory of a process and its children; pages that they share count once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
    return total / 1e6


def measure_memory(bundle: Path, options: Any, folder: Path) -> dict[str, Any]:
    """Returns the memory after a tenth of many short videos, and at the end."""
    videos = make_videos(folder / "short", options.memory_videos, SHORT_FRAMES, SHORT_SIZE)
    samples: list[tuple[int, float]] = []
    done, ended = [0], threading.Event()

    def sample() -> None:
        process = psutil.Process()
        while not ended.wait(SAMPLE_SECONDS):
            samples.append((done[0], used_mb(process)))

    def count(stage: str, frames: int, total: int | None) -> None:
        done[0] = frames if stage == "encode" else 0

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        execution = {"provider": "cpu", "threads": THREADS}
        report = encode_dataset(
            bundle, str(videos), folder / "short-out", workers=1, execution=execution, progress=count
        )
    finally:
        ended.set()
        thread.join()
    tenth = max((mb for frames, mb in samples if 0 < frames <= report.frames / 10), default=0.0)
    return {
        "videos": options.memory_videos,
        "after_a_tenth_mb": tenth,
        "peak_mb": max((mb for _, mb in samples), default=0.0),
        "videos_per_second": options.memory_videos / report.seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "datasets-cpu.json", preset="S", size=128, frames=33, runs=3)
    parser.add_argument("--videos", type=positive, default=24, help="of the folder")
    parser.add_argument("--processes", type=positive, default=3, help="of them, encoded by `wfvae encode`")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    parser.add_argument("--memory-videos", type=positive, default=2000, help="for the memory")
    parser.add_argument("--only", choices=["speed", "memory"], help="part to measure")
    options = parser.parse_args(arguments)
    job = {**options.job, "videos": options.videos}
    kept = (
        json.loads(options.json.read_text())
        if options.only and options.json and options.json.is_file()
        else {}
    )
    result = {name: kept[name] for name in ("job", "rows", "ray_start_seconds", "memory") if name in kept}
    model = WFVAE.random(WFVAEConfig.preset(options.preset))
    with exported(model) as (bundle, _), TemporaryDirectory() as folder:
        if options.only != "memory":
            result |= {"job": job, **measure_speed(bundle, options, Path(folder))}
        if options.only != "speed":
            result["memory"] = {"preset": options.preset, **measure_memory(bundle, options, Path(folder))}
    tables = {"rows": "datasets", "memory": "datasets-memory"}
    finish(options, *(table for name, table in tables.items() if name in result), **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
