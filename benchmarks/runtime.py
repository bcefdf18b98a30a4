"""Speed, memory and overhead of the runtime on a CPU, with ONNX Runtime.

    python benchmarks/runtime.py [--only speed memory overhead chunks] [--threads 2] [--runs 5] [--json FILE]

    speed      preset S, 128x128: ONNX Runtime direct and streamed, against the published code's form and our model in PyTorch
    memory     peak of the program `wfvae encode` and `decode`, short and long videos
    overhead   preset S, 256x256: share of time outside the engine, from a video file to a video file
    chunks     preset S, 256x256: time per frame and memory by the number of latents per step

Weights are random: speed and memory do not depend on them. What is compared runs turn by turn, and ratios are medians over the turns,
so that a busy machine slows all alike. A result file keeps the sections that are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from record import load_average, machine, write_json
from runtime_memory import make_video, measure_memory, print_memory
from runtime_overhead import (
    measure_chunks,
    measure_overhead,
    pixel_seconds_per_frame,
    print_chunk,
    print_overhead,
)
from runtime_speed import measure_speed, print_clip, print_steady, steady_ratios

from wfvae import WFVAE, WFVAEConfig
from wfvae.config import Preset
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.runtime import Bundle, open_bundle

T = TypeVar("T")

MINIMUM_RUNS = 5
SPEED_SIZE = 128
SPEED_LENGTHS = [17, 33, 65]
MEMORY_SIZE = 128
MEMORY_JOBS: dict[str, tuple[int, ...]] = {"tiny": (100, 2000)}
MEMORY_RUNS = 3
FILE_SIZE = 256
FILE_FRAMES = 25
FILE_RUNS = 3
CHUNK_FRAMES = 29
CHUNK_RUNS = 1


class Benchmark:
    """What the sections share: exported bundles in a temporary folder."""

    def __init__(self, folder: Path, threads: int, runs: int, lengths: list[int]) -> None:
        self.folder = folder
        self.threads = threads
        self.runs = runs
        self.lengths = lengths
        self._paths: dict[str, Path] = {}

    def model(self, preset: Preset) -> WFVAE:
        torch.manual_seed(0)
        return WFVAE(WFVAEConfig.preset(preset)).eval().requires_grad_(False)

    def path(self, preset: Preset) -> Path:
        if preset not in self._paths:
            self._paths[preset] = self.folder / preset
            export_bundle(self.model(preset), self._paths[preset], ExportOptions(direct=True))
        return self._paths[preset]

    def open(self, preset: Preset) -> Bundle:
        return open_bundle(self.path(preset), provider="cpu", threads=self.threads, verify=False)

    def speed(self) -> dict[str, Any]:
        with self.open("S") as bundle:
            clips = printed(print_clip, measure_speed(self.model("S"), bundle, SPEED_SIZE, self.lengths, self.runs))
        steady = steady_ratios(clips)
        print_steady(steady)
        return {"preset": "S", "size": SPEED_SIZE, "clips": [asdict(clip) for clip in clips], "steady": steady}

    def memory(self) -> dict[str, Any]:
        presets: tuple[Preset, ...] = ("tiny", "S")
        paths: dict[str, Path] = {preset: self.path(preset) for preset in presets}
        results = printed(print_memory, measure_memory(paths, MEMORY_JOBS, MEMORY_SIZE, self.threads, MEMORY_RUNS, self.folder))
        return {"size": MEMORY_SIZE, "runs": MEMORY_RUNS, "jobs": [asdict(result) for result in results]}

    def overhead(self) -> dict[str, Any]:
        video = make_video(self.folder / "overhead.mp4", FILE_FRAMES, FILE_SIZE)
        with self.open("S") as bundle:
            results = printed(print_overhead, measure_overhead(bundle, video, self.folder, FILE_RUNS))
        pixels = pixel_seconds_per_frame(FILE_SIZE)
        print(", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in pixels.items()) + " per frame")
        job = {"preset": "S", "size": FILE_SIZE, "frames": FILE_FRAMES, "runs": FILE_RUNS}
        return {**job, "jobs": [asdict(result) for result in results], "pixel_seconds_per_frame": pixels}

    def chunks(self) -> dict[str, Any]:
        video = make_video(self.folder / "chunks-source.mp4", CHUNK_FRAMES, FILE_SIZE)
        results = printed(print_chunk, measure_chunks(self.path("S"), video, self.folder, self.threads, CHUNK_RUNS))
        job = {"preset": "S", "size": FILE_SIZE, "frames": CHUNK_FRAMES, "runs": CHUNK_RUNS}
        return {**job, "chunks": [asdict(result) for result in results]}


def printed(show: Callable[[T], None], results: Iterable[T]) -> list[T]:
    """All results, each shown as soon as it is there."""
    found = []
    for result in results:
        show(result)
        sys.stdout.flush()
        found.append(result)
    return found


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        result = json.loads(options.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        benchmark = Benchmark(Path(folder), options.threads, options.runs, options.lengths)
        for name in options.only:
            section: Callable[[], dict[str, Any]] = getattr(benchmark, name)
            before = load_average()
            print(f"{name} (load average {before:.2f})")
            found = section()
            facts = machine(options.threads, "torch", "onnxruntime", "numpy", "av")
            result[name] = {"machine": facts, "load_average_before": before, "load_average_after": load_average(), **found}
            print()
            if options.json is not None:
                write_json(options.json, result)


def parse_arguments() -> argparse.Namespace:
    names = ("speed", "memory", "overhead", "chunks")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=f"of {', '.join(names)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS, help=f"turns of the speed section, at least {MINIMUM_RUNS}")
    parser.add_argument("--lengths", type=int, nargs="+", default=SPEED_LENGTHS, help="frames of the speed section's clips")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    if options.runs < MINIMUM_RUNS:
        parser.error(f"--runs is {options.runs}; expected at least {MINIMUM_RUNS}")
    return options


if __name__ == "__main__":
    main()
