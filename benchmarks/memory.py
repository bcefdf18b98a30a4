"""Does memory grow with the length of a video? Peak of `wfvae encode` and `wfvae decode`.

    python benchmarks/memory.py --json benchmarks/results/memory-cpu.json
    python benchmarks/memory.py --videos S=100,500 --runs 1

Runs the program in a fresh process and takes the median of the peaks of resident memory. Weights
are random: memory does not depend on them.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from harness.engines import random_bundles
from harness.memory import peak_mb
from harness.processes import NotMeasured, run_isolated
from harness.record import CommandLine, finish, lengths

from wfvae.cli.main import main as wfvae
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

_PAINTED = 100


def make_video(path: Path, frames: int, size: int) -> Path:
    """Writes a procedural clip as H.264; long ones repeat themselves."""
    painted = list(ProceduralClip(seed=1, height=size, width=size, frames=min(frames, _PAINTED)))
    with open_video_writer(path, OutputVideo(size, size, Fraction(24))) as writer:
        for frame in islice(cycle(painted), frames):
            writer.write(frame[None])
    return path


def run_program(job: dict[str, Any]) -> dict[str, Any]:
    """Runs `wfvae` in this process, which is a fresh one."""
    if code := wfvae([*job["arguments"], "--json"]):
        raise NotMeasured(f"wfvae {job['arguments'][0]} ended with code {code}")
    return {"peak_mb": peak_mb()}


def measure(
    preset: str, counts: Sequence[int], bundle: str, folder: Path, options: Any
) -> Iterator[dict[str, Any]]:
    """Yields a row per direction."""
    for name in ("encode", "decode"):
        peaks = {}
        for frames in counts:
            video = make_video(folder / f"{frames}.mp4", frames, options.size)
            latents, decoded = (str(folder / f"{preset}-{frames}{end}") for end in (".zarr", ".mp4"))
            paths = (str(video), latents) if name == "encode" else (latents, decoded)
            job = {"arguments": [name, bundle, *paths, "--threads", str(options.threads)]}
            runs = [run_isolated("memory:run_program", job, options.threads) for _ in range(options.runs)]
            peaks[frames] = statistics.median(run["peak_mb"] for run in runs)
        growth = peaks[counts[-1]] / peaks[counts[0]]
        yield {"preset": preset, "job": name, "size": options.size, "peak_mb": peaks, "ratio": growth}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "memory-cpu.json", size=128, runs=3)
    videos = [("tiny", [100, 2000]), ("S", [100, 500])]
    parser.add_argument("--videos", type=lengths, nargs="+", default=videos, metavar="PRESET=N,N")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    presets = [preset for preset, _ in options.videos]
    with random_bundles(presets, options.threads) as bundles, tempfile.TemporaryDirectory() as folder:
        for preset, counts in options.videos:
            rows += measure(preset, counts, bundles[preset], Path(folder), options)
    finish(options, "memory", runs=options.runs, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
