"""Does memory grow with the length of a video? Peak of `wfvae encode` and `wfvae decode`.

    python benchmarks/memory.py --json benchmarks/results/memory-cpu.json
    python benchmarks/memory.py --videos S=100,500 --runs 1

Runs the real program in a process of its own and takes the median of the peaks of resident memory.
Weights are random: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any, get_args

from harness import tables
from harness.processes import run_isolated
from harness.record import command_line, finish, machine, side

from wfvae.model.config import Preset
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

# A small process between this one and the program: a child's peak is never below that of the
# process that started it.
_LAUNCHER = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print()
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_PAINTED = 100
_KILOBYTE = 1 if sys.platform == "darwin" else 1024


def make_video(path: Path, frames: int, size: int) -> Path:
    """Writes a procedural clip as H.264; long ones repeat themselves."""
    painted = list(ProceduralClip(seed=1, height=size, width=size, frames=min(frames, _PAINTED)))
    with open_video_writer(path, OutputVideo(size, size, Fraction(24))) as writer:
        for frame in islice(cycle(painted), frames):
            writer.write(frame[None])
    return path


def peak_of(*arguments: str) -> float:
    """Runs `wfvae` with these arguments and returns its peak of resident memory in MB."""
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-m", "wfvae", *arguments, "--json"]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"wfvae {arguments[0]} failed: {finished.stderr.strip()}")
    report, _, peak = finished.stdout.strip().rpartition("\n")
    assert json.loads(report)["complete"]
    return int(peak) * _KILOBYTE / 1e6


def measure(preset: str, lengths: Sequence[int], folder: Path, options: Any) -> Iterator[dict[str, Any]]:
    """Yields a row per direction."""
    bundle = folder / preset
    run_isolated("harness.engines:export_random", {"preset": preset, "bundle": str(bundle)}, options.threads)
    files = {frames: [folder / f"{preset}-{frames}{end}" for end in (".zarr", ".mp4")] for frames in lengths}
    for name in ("encode", "decode"):
        peaks = {}
        for frames, (latents, decoded) in files.items():
            video = make_video(folder / f"{frames}.mp4", frames, options.size)
            paths = (bundle, video, latents) if name == "encode" else (bundle, latents, decoded)
            command = [name, *map(str, paths), "--threads", str(options.threads)]
            peaks[frames] = statistics.median(peak_of(*command) for _ in range(options.runs))
        growth = peaks[lengths[-1]] / peaks[lengths[0]]
        yield {"preset": preset, "job": name, "size": options.size, "peak_mb": peaks, "ratio": growth}


def parse_videos(text: str) -> tuple[str, list[int]]:
    """Parses "tiny=100,2000": a preset, and lengths in frames."""
    preset, _, lengths = text.partition("=")
    counts = sorted(int(length) for length in lengths.split(",") if length.isdigit())
    if preset not in get_args(Preset) or len(counts) < 2 or counts[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not PRESET=SHORT,LONG in frames")
    return preset, counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, "memory-cpu.json")
    parser.add_argument(
        "--videos",
        type=parse_videos,
        nargs="+",
        default=[("tiny", [100, 2000]), ("S", [100, 500])],
        metavar="PRESET=N,N",
        help="lengths in frames (default: tiny=100,2000 S=100,500)",
    )
    parser.add_argument("--size", type=side, default=128, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of each job (default: %(default)s)")
    options = parser.parse_args(arguments)
    facts = machine(options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        for preset, lengths in options.videos:
            rows += measure(preset, lengths, Path(folder), options)
    finish({"machine": facts, "runs": options.runs, "rows": rows}, options.json, tables.memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
