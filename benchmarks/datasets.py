"""How fast does `wfvae encode-dataset` encode many videos, against one after another?

    python benchmarks/datasets.py --json benchmarks/results/datasets-cpu.json
    python benchmarks/datasets.py --videos 4 --frames 9 --size 32 --runs 1 --memory-videos 20

The tiny model encodes a folder of videos: in a loop in one process with one thread, which opens the
bundle once, and as a data set with 1 and 2 workers of one thread each. Seconds of a data set are
those of the whole job with its planning and the start of its processes; Ray's own start is apart.
Jobs take turns; figures are medians. Then memory: the sum over all processes of what is theirs
(proportional set size), while many short videos are encoded.
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from harness.engines import exported, open_on
from harness.record import CommandLine, finish, positive

from wfvae import WFVAE
from wfvae.runtime import encode_video
from wfvae.runtime.dataset.job import encode_dataset
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

THREADS = 1
"""Of each session."""
SAMPLE_SECONDS = 0.25
SHORT_FRAMES, SHORT_SIZE = 5, 64
DISTINCT_VIDEOS = 8
"""The others are links to them."""


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


def run_loop(bundle: Path, videos: Path, out: Path) -> dict[str, float]:
    """Encodes one video after another in this process."""
    begin, engine = time.perf_counter(), 0.0
    out.mkdir()
    with open_on("onnxruntime", bundle, THREADS) as opened:
        for path in sorted(videos.iterdir()):
            engine += encode_video(opened, path, out / f"{path.stem}.npy").engine_seconds
    return {"seconds": time.perf_counter() - begin, "engine_seconds": engine}


def run_dataset(engine: Any, workers: int, bundle: Path, videos: Path, out: Path) -> dict[str, float]:
    """Encodes the folder as a data set."""
    execution = {"provider": "cpu", "threads": THREADS}
    report = encode_dataset(bundle, str(videos), out, engine=engine, workers=workers, execution=execution)
    assert report.complete and not report.failures
    return {"seconds": report.seconds, "engine_seconds": report.engine_seconds}


def measure_speed(bundle: Path, options: Any, folder: Path) -> dict[str, Any]:
    """Returns a row per job, and the seconds that Ray takes to start."""
    videos = make_videos(folder / "videos", options.videos, options.frames, options.size)
    jobs: dict[str, Callable[[Path], dict[str, float]]] = {"loop": lambda out: run_loop(bundle, videos, out)}
    for engine in options.engines:
        for workers in (1, 2):
            jobs[f"{engine}, {workers}"] = lambda out, engine=engine, workers=workers: run_dataset(
                engine, workers, bundle, videos, out
            )
    start = None
    if "ray" in options.engines:
        import ray

        begin = time.perf_counter()
        ray.init(log_to_driver=False, logging_level="WARNING", num_cpus=2)
        start = time.perf_counter() - begin
    found: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for turn in range(options.runs):
        for number, (name, job) in enumerate(jobs.items()):
            found[name].append(job(folder / f"out-{turn}-{number}"))
    frames = sum(options.frames + index % DISTINCT_VIDEOS % 3 for index in range(options.videos))
    rows = []
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        share = statistics.median(1 - run["engine_seconds"] / run["seconds"] for run in runs)
        workers = int(name[-1]) if name != "loop" else 1
        outside = {"outside_engine": share} if workers == 1 else {}
        rows.append({"job": name, "runs": options.runs, "frames_per_second": frames / seconds, **outside})
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
    parser = CommandLine(__doc__, "datasets-cpu.json", size=128, frames=33, runs=3)
    parser.add_argument("--videos", type=positive, default=48, help="of the folder")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    parser.add_argument("--memory-videos", type=positive, default=2000, help="for the memory")
    options = parser.parse_args(arguments)
    with exported(WFVAE.from_pretrained("tiny")) as (bundle, _), TemporaryDirectory() as folder:
        memory = measure_memory(bundle, options, Path(folder))
        speed = measure_speed(bundle, options, Path(folder))
    job = {**options.job, "videos": options.videos}
    finish(options, "datasets", "datasets-memory", job=job, memory=memory, **speed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
