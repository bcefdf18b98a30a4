"""How do time per frame and memory grow with the length of a clip and the number of streams?

    python benchmarks/scale.py --json benchmarks/results/scale-cpu.json
    python benchmarks/scale.py --only length --lengths tiny=33,5001

    length     one clip from 33 frames on: streamed, and whole up to `--direct-length`
    streams    a pool of 1, 2, 4 ... streams in one batch

Every measurement is a fresh process; all take turns; figures are medians. FILE.svg is drawn, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import charts
from harness import tables
from harness.engines import DIRECTIONS, ENGINES
from harness.processes import run_isolated, run_turns
from harness.record import command_line, finish, machine, side, whole_clip
from scale_worker import DIRECT, POOL, STREAM

from wfvae.model.config import Preset

SECTIONS = ("length", "streams")


def summary(request: dict[str, Any], runs: list[dict[str, Any]] | str) -> dict[str, Any]:
    """Returns medians, or the reason why there are none."""
    keys = ("direction", "way", "preset", "frames", "size", "chunk", "rows")
    row = {key: request[key] for key in keys if key in request}
    if isinstance(runs, str):
        return {**row, "not_measured": runs}
    seconds = [run["seconds"] for run in runs]
    frames = request["frames"] * request.get("rows", 1)
    return {
        **row,
        "runs": len(runs),
        "all_seconds": seconds,
        "ms_per_frame": statistics.median(seconds) / frames * 1e3,
        "peak_mb": statistics.median(run["peak_mb"] for run in runs),
        "loaded_mb": statistics.median(run["loaded_mb"] or 0.0 for run in runs),
    }


def plan_jobs(options: argparse.Namespace, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns all measurements by their section."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for preset, lengths in options.lengths if "length" in options.only else ():
        for frames in lengths:
            for way in (STREAM, DIRECT) if frames <= options.direct_length else (STREAM,):
                requests.append(("length", {"way": way, "preset": preset, "frames": frames}))
    for rows in options.rows if "streams" in options.only else ():
        request = {"way": POOL, "preset": options.preset, "frames": options.frames, "rows": rows}
        requests.append(("streams", request))
    common = {key: getattr(options, key) for key in ("engine", "threads", "chunk", "size")}
    return [
        (section, {**common, **one, "direction": direction, "bundle": str(folder / one["preset"])})
        for section, one in requests
        for direction in DIRECTIONS.values()
    ]


def parse_lengths(text: str) -> tuple[str, list[int]]:
    """Parses "S=33,129": a preset, and lengths of 1 + 4 n frames."""
    preset, _, numbers = text.partition("=")
    if preset not in get_args(Preset):
        raise argparse.ArgumentTypeError(f"{text!r} is not PRESET=N,N")
    return preset, [whole_clip(number) for number in numbers.split(",")]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__, "scale-cpu.json")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        "--lengths",
        type=parse_lengths,
        nargs="+",
        default=[("S", [33, 129, 1001]), ("tiny", [33, 129, 1001, 5001])],
        metavar="PRESET=N,N",
        help="of the section length (default: S=33,129,1001 tiny=33,129,1001,5001)",
    )
    parser.add_argument("--direct-length", type=int, default=129, help="frames up to which clips run whole")
    parser.add_argument("--preset", choices=get_args(Preset), default="S", help="of streams")
    parser.add_argument("--frames", type=whole_clip, default=17, help="of streams, 1 + 4 n")
    parser.add_argument("--size", type=side, default=64, help="height and width (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="streams in a pool")
    parser.add_argument("--chunk", type=int, default=4, help="latents per step of a stream")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--runs", type=int, default=3, help="turns (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    facts = machine(options.threads)
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as name:
        jobs = plan_jobs(options, Path(name))
        for bundle, preset in {job["bundle"]: job["preset"] for _, job in jobs}.items():
            export = {"preset": preset, "bundle": bundle}
            run_isolated("harness.engines:export_random", export, options.threads)
        requests = [job for _, job in jobs]
        found = run_turns("scale_worker:measure", requests, options.runs, options.threads)
    sections: dict[str, list[dict[str, Any]]] = {section: [] for section in options.only}
    for (section, job), runs in zip(jobs, found, strict=True):
        sections[section].append(summary(job, runs))
    result = {"machine": facts, "engine": options.engine, "sections": sections}
    finish(result, options.json, tables.scale)
    if options.json is not None and "length" in sections:
        charts.draw(charts.scale(result), options.json.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
