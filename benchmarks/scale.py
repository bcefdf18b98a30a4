"""Time per frame and peak memory as clips get longer, frames larger and streams more; whole clips
against streams.

    python benchmarks/scale.py [--json benchmarks/results/scale-cpu.json] [--only length size
    streams] python benchmarks/scale.py --only length --lengths tiny=33,5001

    length     one clip from 33 frames on: streamed, and in one piece as far as `--direct-length` goes
    size       one clip at several frame sizes, both ways
    streams    a pool of 1, 2, 4 ... streams, time per frame of all of them

Every measurement is a fresh process; all take turns; figures are medians, and jobs of more than
`--long` frames run once. Where a clip in one piece no longer fits `--limit` is predicted, twice:
from the weights and activations that the bundle's manifest states as a formula, and from the same
formula scaled to the largest clip that was measured: to what each process grew by over its own
memory with the graph loaded, the median of that. The tables say what is measured and what is
predicted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from bundle_engines import ENGINES
from charts import Chart, Series, draw
from isolated import NotMeasured, run_isolated
from record import load_average, machine, machine_line, markdown_table, write_report

from wfvae.model.config import Preset
from wfvae.spec.frames import latent_frames
from wfvae.spec.manifest import GraphSpec, Manifest

WORKER = Path(__file__).with_name("scale_worker.py")
EXPORTER = Path(__file__).with_name("peers_worker.py")
SECTIONS = ("length", "size", "streams")
DIRECTIONS = ("encoder", "decoder")
DIRECT, STREAM, POOL = "direct", "stream", "pool"
GIGABYTE = 10**9
LONG = 10**4
"""Beyond all that is measured by default: the longest, 5,001 frames on the preset tiny, takes
seconds.
"""
LONGEST = 10**7
"""Frames up to which a crossover is looked for."""


@dataclass
class Job:
    """One measurement, repeated."""

    section: str
    request: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None

    @property
    def frames(self) -> int:
        """Frames of all streams."""
        return int(self.request["frames"] * self.request.get("rows", 1))

    def summary(self) -> dict[str, Any]:
        """Medians, or why there are none."""
        keys = ("direction", "way", "preset", "frames", "size", "chunk", "rows")
        row = {key: self.request[key] for key in keys if key in self.request}
        if not self.runs:
            return {**row, "not_measured": self.problem or "left out"}
        seconds = [run["seconds"] for run in self.runs]
        middle = statistics.median(seconds)
        peaks, loaded = ([run[key] for run in self.runs] for key in ("peak_mb", "loaded_mb"))
        # Of one process each: processes differ by more than a short clip needs.
        grown = (
            None if None in loaded else [peak - before for peak, before in zip(peaks, loaded, strict=True)]
        )
        return {
            **row,
            "measured": True,
            "runs": len(self.runs),
            "seconds": middle,
            "all_seconds": seconds,
            "ms_per_frame": middle / self.frames * 1e3,
            "peak_mb": statistics.median(peaks),
            "all_peak_mb": peaks,
            "loaded_mb": None if grown is None else statistics.median(loaded),
            "all_loaded_mb": loaded,
            "grown_mb": None if grown is None else statistics.median(grown),
        }


def plan_jobs(options: argparse.Namespace, bundles: dict[str, Path]) -> list[Job]:
    """All measurements of the sections that were asked for."""
    common = {"engine": options.engine, "threads": options.threads, "chunk": options.chunk}
    jobs = []

    def add(section: str, way: str, **request: Any) -> None:
        for direction in DIRECTIONS:
            bundle = str(bundles[request["preset"]])
            jobs.append(
                Job(section, {**common, **request, "direction": direction, "way": way, "bundle": bundle})
            )

    for section in options.only:
        if section == "length":
            for preset, lengths in options.lengths.items():
                for frames in lengths:
                    add(section, STREAM, preset=preset, frames=frames, size=options.size)
                    if frames <= options.direct_length:
                        add(section, DIRECT, preset=preset, frames=frames, size=options.size)
        elif section == "size":
            for size in options.sizes:
                for way in (STREAM, DIRECT):
                    add(section, way, preset=options.preset, frames=options.frames, size=size)
        else:
            for rows in options.rows:
                add(section, POOL, preset=options.preset, frames=options.frames, size=options.size, rows=rows)
    return jobs


def measure(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Turn by turn."""
    for turn in range(options.runs):
        for job in jobs:
            if job.problem is not None or (turn and job.frames > options.long):
                continue
            try:
                job.runs.append(run_isolated(WORKER, job.request, options.threads))
            except NotMeasured as reason:
                job.problem = str(reason)
            print(f"turn {turn + 1}: {_line(job)}", flush=True)


def _line(job: Job) -> str:
    request = job.request
    what = (
        f"{job.section}: {request['preset']} {request['direction']} {request['way']}, {request['frames']}"
        f" frames of {request['size']}"
    )
    rows = f" x {request['rows']}" if "rows" in request else ""
    if job.problem is not None:
        return f"{what}{rows}: not measured: {job.problem}"
    run = job.runs[-1]
    return f"{what}{rows}: {run['seconds'] / job.frames * 1e3:.2f} ms/frame, {run['peak_mb']:.0f} MB"


def stated_bytes(graph: GraphSpec, frames: int, size: int) -> int:
    """Weights, activations, input and output of a clip in one piece, as the direct graph needs
    them.

    The activations are the largest of the sums of products in the manifest (`GraphSpec.scratch_bytes`).
    """
    ratio = graph.stream.ratio
    latents = latent_frames(frames, ratio)
    symbols = {
        "batch": 1,
        "latents": latents,
        "groups": latents - 1,
        "height/8": size // 8,
        "width/8": size // 8,
    }
    activations = 0
    for peak in graph.scratch_bytes:
        total = 0
        for term in peak:
            factor = int(term[0])
            for symbol in term[1:]:
                factor *= symbols[str(symbol)]
            total += factor
        activations = max(activations, total)
    channels = next(int(t.shape[2]) for t in (*graph.inputs, *graph.outputs) if t.name == "latents")
    arrays = 4 * (frames * 3 * size * size + latents * channels * (size // 8) ** 2)
    return graph.weights_bytes + activations + arrays


@dataclass(frozen=True)
class MemoryModel:
    """Peak bytes of a clip in one piece: `base`, and `factor` times what the graph states beyond
    its weights.
    """

    base: float
    factor: float

    @classmethod
    def stated(cls, graph: GraphSpec) -> MemoryModel:
        """As the graph states it: weights and arrays, without the process and without what an
        engine adds.
        """
        return cls(graph.weights_bytes, 1.0)

    @classmethod
    def fitted(cls, graph: GraphSpec, row: Mapping[str, Any]) -> MemoryModel | None:
        """As one measurement has it: `base` is the process with the graph loaded. None where the
        clip was too short to tell.
        """
        beyond = stated_bytes(graph, row["frames"], row["size"]) - graph.weights_bytes
        if row["grown_mb"] is None or row["grown_mb"] <= 0:
            return None
        return cls(row["loaded_mb"] * 1e6, row["grown_mb"] * 1e6 / beyond)

    def peak(self, graph: GraphSpec, frames: int, size: int) -> float:
        """Bytes for a clip."""
        return self.base + self.factor * (stated_bytes(graph, frames, size) - graph.weights_bytes)


def longest_clip(graph: GraphSpec, size: int, limit: float, memory: MemoryModel) -> int:
    """Frames, 1 + r n, of the longest clip whose peak is within `limit` bytes; 0 if not even one
    frame's is.
    """
    ratio = graph.stream.ratio
    low, high = -1, LONGEST // ratio
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory.peak(graph, 1 + ratio * middle, size) <= limit else (low, middle)
    return 0 if low < 0 else 1 + ratio * low


def crossovers(
    rows: Sequence[dict[str, Any]], manifests: dict[str, Manifest], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Per preset, direction and frame size: where a clip in one piece stops to fit, predicted."""
    found = []
    for preset, manifest in manifests.items():
        for direction in DIRECTIONS:
            graph = manifest.graphs[f"{direction}.direct"]
            mine = [
                row
                for row in rows
                if (row["preset"], row["direction"], row["way"]) == (preset, direction, DIRECT)
                and "measured" in row
            ]
            anchor = max(mine, key=lambda row: row["frames"] * row["size"] ** 2, default=None)
            fitted = None if anchor is None else MemoryModel.fitted(graph, anchor)
            for size in sorted({options.size, *options.sizes, *options.predicted_sizes}):
                found.append(
                    {
                        "preset": preset,
                        "direction": direction,
                        "size": size,
                        "measured": False,
                        "limit_bytes": options.limit,
                        "longest_by_graph": longest_clip(
                            graph, size, options.limit, MemoryModel.stated(graph)
                        ),
                        "base_bytes": None if fitted is None else fitted.base,
                        "measured_by_stated": None if fitted is None else fitted.factor,
                        "anchor_frames": None if anchor is None else anchor["frames"],
                        "anchor_size": None if anchor is None else anchor["size"],
                        "longest_by_measurement": (
                            None if fitted is None else longest_clip(graph, size, options.limit, fitted)
                        ),
                    }
                )
    return found


def tables(
    sections: dict[str, list[dict[str, Any]]], crossing: Sequence[dict[str, Any]], limit: float
) -> str:
    """All results as Markdown."""
    text = ""
    for section, rows in sections.items():
        header = [section, "frames", "frame size", "streams", "ms/frame", "peak, MB", "runs"]
        lines = []
        for row in rows:
            name = f"{row['preset']} {row['direction']}, {row['way']}"
            place = [str(row["frames"]), f"{row['size']}x{row['size']}", str(row.get("rows", 1))]
            if "not_measured" in row:
                lines.append([name, *place, f"not measured: {row['not_measured']}", "", ""])
            else:
                lines.append(
                    [name, *place, f"{row['ms_per_frame']:.4g}", f"{row['peak_mb']:,.0f}", str(row["runs"])]
                )
        text += f"\n## {section}\n\n{markdown_table(header, lines)}"
    if crossing:
        header = [
            "predicted",
            "frame size",
            "by the graph, frames",
            "by measurement, frames",
            "measured / stated, at",
        ]
        lines = []
        for row in crossing:
            ratio, at = (
                row["measured_by_stated"],
                f"{row['anchor_frames']} x {row['anchor_size']}x{row['anchor_size']}",
            )
            fitted = "-" if ratio is None else f"{row['longest_by_measurement']:,}"
            name = f"{row['preset']} {row['direction']}"
            size = f"{row['size']}x{row['size']}"
            lines.append(
                [
                    name,
                    size,
                    f"{row['longest_by_graph']:,}",
                    fitted,
                    "-" if ratio is None else f"{ratio:.2f}, {at}",
                ]
            )
        text += (
            f"\n## The longest clip in one piece within {limit / GIGABYTE:g} GB"
            f" (predicted)\n\n{markdown_table(header, lines)}"
        )
        text += "\nStreams need the same memory for any length.\n"
    return text


def figure(sections: dict[str, list[dict[str, Any]]]) -> str | None:
    """Time and memory of each section."""
    axes = {
        "length": ("frames", "frames"),
        "size": ("size", "frame height = width, pixels"),
        "streams": ("rows", "streams"),
    }
    charts = []
    for section, rows in sections.items():
        key, label = axes[section]
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if "measured" in row:
                groups.setdefault((row["preset"], row["direction"], row["way"]), []).append(row)
        kinds = sorted({(preset, direction) for preset, direction, _ in groups})
        for what, name in (("ms_per_frame", "ms per frame"), ("peak_mb", "peak memory, MB")):
            lines = [
                Series(
                    f"{preset} {direction}, {way}",
                    sorted((row[key], row[what]) for row in found),
                    colour=kinds.index((preset, direction)),
                    dash=int(way == DIRECT),
                )
                for (preset, direction, way), found in groups.items()
            ]
            if lines:
                charts.append(Chart(f"{section}: {name}", label, name, lines, log_x=True, log_y=True))
    return draw(charts) if charts else None


def parse_lengths(words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`S=33,129` and the like."""
    found = {}
    for word in words:
        preset, _, numbers = word.partition("=")
        counts = tuple(int(number) for number in numbers.split(",") if number)
        if (
            preset not in get_args(Preset)
            or not counts
            or any(count < 1 or count % 4 != 1 for count in counts)
        ):
            raise ValueError(f"{word!r}; expected PRESET=N,N,... with N = 1 + 4 n")
        found[preset] = counts
    return found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=SECTIONS,
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--preset", choices=get_args(Preset), default="S", help="of the sections size and streams"
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        default=["S=33,129,1001", "tiny=33,129,1001,5001"],
        metavar="PRESET=N,N",
        help="frames of the section length",
    )
    parser.add_argument(
        "--direct-length", type=int, default=129, help="frames up to which clips also run in one piece"
    )
    parser.add_argument(
        "--size", type=int, default=64, help="height and width of the sections length and streams"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 96, 128, 256], help="of the section size"
    )
    parser.add_argument(
        "--predicted-sizes",
        type=int,
        nargs="+",
        default=[256, 512, 1024],
        help="for which crossovers are predicted, too",
    )
    parser.add_argument("--frames", type=int, default=17, help="of the sections size and streams, 1 + 4 n")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="streams in a pool")
    parser.add_argument("--chunk", type=int, default=4, help="latents per step of a stream")
    parser.add_argument(
        "--limit", type=float, default=16.0, help="memory, in GB (10^9 bytes), that crossovers are stated for"
    )
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--long",
        type=int,
        default=LONG,
        help="jobs of more frames in all run once, for lack of time; a single run may be a busy moment",
    )
    parser.add_argument(
        "--json", type=Path, help="write the results to this file, and .md and .svg beside it"
    )
    options = parser.parse_args(arguments)
    try:
        options.lengths = parse_lengths(options.lengths)
    except ValueError as error:
        parser.error(f"--lengths holds {error}")
    if any(size < 8 or size % 8 for size in (options.size, *options.sizes, *options.predicted_sizes)):
        parser.error("sizes must be multiples of 8")
    if (
        options.frames < 1
        or options.frames % 4 != 1
        or options.runs < 1
        or min(options.rows) < 1
        or options.chunk < 1
    ):
        parser.error("--frames must be 1 + 4 n; --runs, --rows and --chunk at least 1")
    options.limit *= GIGABYTE
    return options


def main() -> int:
    options = parse_arguments()
    before = load_average()
    presets = list(options.lengths) if "length" in options.only else []
    if {"size", "streams"} & set(options.only) and options.preset not in presets:
        presets.append(options.preset)
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as name:
        bundles = {preset: Path(name) / preset for preset in presets}
        for preset, path in bundles.items():
            run_isolated(EXPORTER, {"do": "export", "preset": preset, "bundle": str(path)}, options.threads)
        manifests = {preset: Manifest.read(path) for preset, path in bundles.items()}
        jobs = plan_jobs(options, bundles)
        measure(jobs, options)
    sections = {
        section: [job.summary() for job in jobs if job.section == section] for section in options.only
    }
    crossing = crossovers([row for rows in sections.values() for row in rows], manifests, options)
    facts = machine(options.threads, "onnxruntime", "openvino", "numpy")
    text = (
        f"# Clips, frames and streams of growing size, fp32, {options.chunk} latents per"
        f" step\n\n{machine_line(facts)} {options.engine}.\n"
    )
    text += "Random weights. Peaks are of the whole process.\n" + tables(sections, crossing, options.limit)
    print(f"\n{text}")
    if options.json is not None:
        loads = {"load_average_before": before, "load_average_after": load_average()}
        result = {
            "machine": facts,
            **loads,
            "engine": options.engine,
            "sections": sections,
            "crossovers": crossing,
        }
        write_report(options.json, result, text, figure(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
