"""Peak memory of `wfvae encode` and `wfvae decode`, short and long videos, through the real program
in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class PeakMemory:
    """Megabytes (10^6 bytes), medians, by number of frames."""

    preset: str
    direction: str
    peak_mb: dict[str, float]
    ratio: float
    """Longest by shortest."""


def run_program(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Runs `wfvae` and returns its peak resident megabytes and its JSON report."""
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-m", "wfvae", *arguments, "--json"]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"wfvae {arguments[0]} failed: {finished.stderr.strip()}")
    report, _, peak = finished.stdout.strip().rpartition("\n")
    return int(peak) * _KILOBYTE / 1e6, json.loads(report)


def make_video(path: Path, frames: int, size: int) -> Path:
    """A procedural clip as H.264; long ones repeat themselves."""
    clip = ProceduralClip(seed=1, height=size, width=size, frames=min(frames, _PAINTED))
    painted = list(clip)
    with open_video_writer(path, OutputVideo(size, size, Fraction(24))) as writer:
        for frame in islice(cycle(painted), frames):
            writer.write(frame[None])
    return path


def measure_memory(
    bundle: Path, preset: str, lengths: Sequence[int], size: int, threads: int, runs: int, folder: Path
) -> Iterator[PeakMemory]:
    """`lengths`: numbers of frames, the shortest first."""
    peaks: dict[str, dict[str, list[float]]] = {"encode": {}, "decode": {}}
    for frames in lengths:
        video = make_video(folder / f"{frames}.mp4", frames, size)
        latents, out = folder / f"{frames}.zarr", folder / f"{frames}-decoded.mp4"
        for _ in range(runs):
            for name, source, destination in (("encode", video, latents), ("decode", latents, out)):
                peak, report = run_program(
                    name, str(bundle), str(source), str(destination), "--threads", str(threads)
                )
                assert report["frames"] == frames
                peaks[name].setdefault(str(frames), []).append(peak)
    for name, by_frames in peaks.items():
        medians = {frames: statistics.median(values) for frames, values in by_frames.items()}
        yield PeakMemory(preset, name, medians, medians[str(lengths[-1])] / medians[str(lengths[0])])


def print_memory(result: PeakMemory) -> None:
    peaks = ", ".join(f"{frames} frames {peak:.1f} MB" for frames, peak in result.peak_mb.items())
    print(f"{result.preset:6}{result.direction:8}{peaks}; ratio {result.ratio:.3f}")
