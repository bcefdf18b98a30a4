"""Share of a job's time outside the engine, by stage: from a video file to a latents store, back,
and through both.

    python benchmarks/overhead.py [--json benchmarks/results/overhead-cpu.json]
    python benchmarks/overhead.py --preset tiny --size 64 --frames 9 --only encode

Stages: video decode, colour conversion (stored pixels to RGB and back), pixels to network, feed
(queues, stacking, frame counts), engine, postprocess (network to pixels), video encode, latents.
Reading and writing run in threads of their own, beside the engine: their time is stated, and only
what the engine's thread waits for them is part of the job's wall time. `serial` is the share
outside the engine if nothing overlapped. Jobs take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from bundle_engines import ENGINES, open_on
from isolated import NotMeasured
from record import load_average, machine, machine_line, markdown_table, write_report
from runtime_memory import make_video
from stage_clocks import ENGINE, OTHER, STAGES, WAITING, Clocks, stage_clocks

from wfvae import WFVAE, WFVAEConfig
from wfvae.export.bundle import export_bundle
from wfvae.model.config import Preset
from wfvae.runtime import Bundle, decode_video, encode_video, reconstruct_video

JOBS = ("encode", "decode", "reconstruct")
_COLOURS = (
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#8c8c8c",
    "#d55e00",
    "#cc79a7",
    "#7a5195",
    "#f0e442",
    "#bbbbbb",
    "#444444",
    "#a6761d",
)


def measure(
    bundle: Bundle, folder: Path, video: Path, jobs: Sequence[str], runs: int
) -> dict[str, list[tuple[float, Clocks]]]:
    """Wall seconds, from opening files to closing them, and stages of every run of each job, in
    turns.
    """
    latents, small = folder / "latents.zarr", make_video(folder / "small.mp4", 5, 64)
    work: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode_video(bundle, video, latents),
        "decode": lambda: decode_video(bundle, latents, folder / "decoded.mp4"),
        "reconstruct": lambda: reconstruct_video(bundle, video, folder / "reconstructed.mp4"),
    }
    # Loads sessions, codecs and what else is loaded at first use; whole jobs would take long.
    encode_video(bundle, small, folder / "small.zarr")
    decode_video(bundle, folder / "small.zarr", folder / "small-decoded.mp4")
    reconstruct_video(bundle, small, folder / "small-reconstructed.mp4")
    if "encode" not in jobs:
        encode_video(bundle, video, latents)
    found: dict[str, list[tuple[float, Clocks]]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name in jobs:
            with stage_clocks() as clocks:
                begin = time.perf_counter()
                work[name]()
                seconds = time.perf_counter() - begin
            found[name].append((seconds, clocks))
    return found


def summary(job: str, runs: Sequence[tuple[float, Clocks]]) -> dict[str, Any]:
    """Medians over the runs of one job."""
    driving, background, others, outside, serial = {}, {}, [], [], []
    for seconds, clocks in runs:
        engine = clocks.driving.get(ENGINE, 0.0)
        others.append((seconds - sum(clocks.driving.values())) / seconds)
        outside.append(1 - engine / seconds)
        around = (
            seconds
            - engine
            - sum(clocks.driving.get(name, 0.0) for name in WAITING)
            + sum(clocks.background.values())
        )
        serial.append(around / (around + engine))
    for name, _, _ in STAGES:
        for kind, shares in (("driving", driving), ("background", background)):
            values = [getattr(clocks, kind).get(name, 0.0) / seconds for seconds, clocks in runs]
            if any(values):
                shares[name] = statistics.median(values)
    driving[OTHER] = statistics.median(others)
    return {
        "job": job,
        "runs": len(runs),
        "seconds": statistics.median(seconds for seconds, _ in runs),
        "outside_engine": statistics.median(outside),
        "serial_outside_engine": statistics.median(serial),
        "share_of_wall": driving,
        "background_by_wall": background,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Stages as rows, jobs as columns, in percent of wall time."""
    header = ["stage, % of wall time", *(result["job"] for result in results)]
    rows = []
    for name in [*(name for name, _, _ in STAGES), OTHER]:
        for key, where in (("share_of_wall", ""), ("background_by_wall", " (beside the engine)")):
            if any(name in result[key] for result in results):
                rows.append([name + where, *(_percent(result[key].get(name)) for result in results)])
    rows.append(["**outside the engine**", *(_percent(result["outside_engine"]) for result in results)])
    rows.append(
        ["the same without overlap", *(_percent(result["serial_outside_engine"]) for result in results)]
    )
    rows.append(["wall time, s", *(f"{result['seconds']:.3g}" for result in results)])
    return markdown_table(header, rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g}"


def figure(results: Sequence[dict[str, Any]]) -> str:
    """A bar per job for what is outside the engine, in percent of wall time; threads beside the
    engine in a second, thinner bar.
    """
    width, left, bar = 920, 110, 22
    names = [name for name, _, _ in STAGES if name != ENGINE] + [OTHER]
    keys = ("share_of_wall", "background_by_wall")
    totals = [
        sum(share for name, share in result[key].items() if name != ENGINE and share > 0)
        for result in results
        for key in keys
    ]
    scale = (width - left - 90) / max(*totals, 1e-6)
    parts = []
    for index, result in enumerate(results):
        for second, key in enumerate(keys):
            x, y = float(left), 26 + index * 62 + second * 26
            total = 0.0
            for name in names:
                share = max(result[key].get(name, 0.0), 0.0)
                if share:
                    total += share
                    colour = _COLOURS[names.index(name) % len(_COLOURS)]
                    parts.append(
                        f'<rect x="{x:.1f}" y="{y}" width="{share * scale:.2f}" height="{bar - 8 * second}"'
                        f' fill="{colour}">'
                    )
                    parts.append(f"<title>{name}: {100 * share:.3g} %</title></rect>")
                    x += share * scale
            parts.append(f'<text x="{x + 6:.1f}" y="{y + 13 - 2 * second}">{100 * total:.3g} %</text>')
            parts.append(
                f'<text x="{left - 8}" y="{y + 14}"'
                f' text-anchor="end">{result["job"] if not second else "beside it"}</text>'
            )
    top = 26 + 62 * len(results) + 10
    for index, name in enumerate(names):
        x, y = 20 + index % 4 * 225, top + index // 4 * 18
        parts.append(
            f'<rect x="{x}" y="{y}" width="12" height="12" fill="{_COLOURS[index % len(_COLOURS)]}"/>'
        )
        parts.append(f'<text x="{x + 18}" y="{y + 11}">{name}</text>')
    height = top + 18 * (-(-len(names) // 4)) + 8
    style = "text{font:12px system-ui,sans-serif;fill:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}}"
    title = '<text x="20" y="15">Time outside the engine, % of wall time</text>'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}'
        f' role="img"><style>{style}</style>{title}{"".join(parts)}</svg>\n'
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=JOBS, default=JOBS, metavar="JOB", help=f"of {', '.join(JOBS)}"
    )
    parser.add_argument("--preset", choices=get_args(Preset), default="S")
    parser.add_argument(
        "--size", type=int, default=256, help="height and width of the video, a multiple of 8"
    )
    parser.add_argument("--frames", type=int, default=13)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument(
        "--json", type=Path, help="write the results to this file, and .md and .svg beside it"
    )
    options = parser.parse_args()
    if options.size < 8 or options.size % 8 or options.frames < 1 or options.runs < 1:
        parser.error("--size must be a multiple of 8, --frames and --runs at least 1")
    return options


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    before = load_average()
    try:
        with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as name:
            folder = Path(name)
            export_bundle(WFVAE.random(WFVAEConfig.preset(options.preset), 0).eval(), folder / "bundle")
            video = make_video(folder / "video.mp4", options.frames, options.size)
            with open_on(options.engine, folder / "bundle", options.threads) as bundle:
                runs = measure(bundle, folder, video, options.only, options.runs)
                engine = bundle.backend.describe()
    except NotMeasured as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    results = [summary(name, found) for name, found in runs.items()]
    facts = machine(options.threads, "onnxruntime", "openvino", "numpy", "av", "zarr")
    job = {key: getattr(options, key) for key in ("preset", "size", "frames", "runs")}
    text = (
        f"# Time outside the engine: preset {options.preset}, {options.frames} frames of"
        f" {options.size}x{options.size}, H.264\n\n"
    )
    text += f"{machine_line(facts)} {engine['name']}. Medians of {options.runs} runs.\n\n{table(results)}"
    print(text)
    if options.json is not None:
        loads = {"load_average_before": before, "load_average_after": load_average()}
        write_report(
            options.json,
            {"machine": facts, **loads, "engine": engine, "job": job, "jobs": results},
            text,
            figure(results),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
