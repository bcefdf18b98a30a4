"""WF-VAE against other video autoencoders on a CPU: time, peak memory, parameters and operations,
for the same clip.

    python benchmarks/peers_speed.py [--json benchmarks/results/peers-cpu.json]
    python benchmarks/peers_speed.py --only 'wfvae-S/*' wan --sizes 64 128 192
    python benchmarks/peers_speed.py --checkout od-vae=CODE,WEIGHTS     models whose code is in no library
    python benchmarks/peers_speed.py --reduced                          small models of the same structure: tests the program only

Every measurement is a fresh process; all models take turns, so that a busy moment does not hit one
alone; figures are medians over the turns. A model that has used up `--seconds` is left out of the
turns after the second if its two runs agree within a factor of 1.25 in every case, and after the
third if not; the number of its runs is stated. The models of others are diffusers', in their
published width. WF-VAE is measured with 16 latent channels, as CogVideoX, Wan and HunyuanVideo
have; `--latent-channels 4` gives its presets' own. Weights are random: speed and memory do not
depend on them. `--mode direct` runs whole clips; `--mode blocks` the way that each library offers
for long ones (streams for WF-VAE).

Beside FILE.json a table (.md) and a drawing (.svg) are written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from charts import Chart, Series, draw
from isolated import NotMeasured, run_isolated
from record import load_average, machine, machine_line, markdown_table, write_report

WORKER = Path(__file__).with_name("peers_worker.py")
PRESETS = ("S", "M", "L")
REDUCED_PRESETS = ("tiny",)
ENGINES = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO bf16",
}
PEER_TITLES = {
    "sd-vae": "SD-VAE",
    "svd": "SVD",
    "cogvideox": "CogVideoX",
    "allegro": "Allegro",
    "wan": "Wan 2.1",
    "hunyuan": "HunyuanVideo",
    "ltx": "LTX-Video",
    "cv-vae": "CV-VAE",
    "od-vae": "OD-VAE",
    "open-sora": "Open-Sora VAE",
}
"""By name in `peers.py`, which is imported in the workers only."""
CHECKOUTS = ("cv-vae", "od-vae", "open-sora")
DIRECTIONS = ("encode", "decode")
MODES = ("direct", "blocks")
LATENT_CHANNELS = 16
"""Of WF-VAE: those of CogVideoX, Wan and Hunyuan, and of the published WF-VAE-L-16Chn."""
LEAST_RUNS = 2
AGREEMENT = 1.25
"""Factor between two runs of a case above which their mean says too little."""
GFLOP_NOTE = """GFLOP are those of the network, its convolutions as they are written, for every engine and model. The exported graphs
need fewer multiplications for the same result, so that GFLOP/s of ONNX Runtime and OpenVINO are not what the processor does, and cannot be
compared with `roofline.py`, which counts the graphs as they run.
"""
PACKAGES = ("torch", "diffusers", "onnxruntime", "openvino", "numpy")


@dataclass
class Contender:
    """One row: a model on an engine."""

    name: str
    title: str
    job: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    gflop: dict[str, dict[str, float]] = field(default_factory=dict)
    problem: str | None = None

    @property
    def spent(self) -> float:
        """Seconds measured so far."""
        return sum(
            case.get(d, {}).get("seconds", 0.0)
            for run in self.runs
            for case in run["cases"]
            for d in DIRECTIONS
        )

    @property
    def scatters(self) -> bool:
        """Whether two runs of any case differ by more than `AGREEMENT`."""
        for case in zip(*(run["cases"] for run in self.runs), strict=True):
            for direction in DIRECTIONS:
                seconds = [run[direction]["seconds"] for run in case if direction in run]
                if seconds and max(seconds) > AGREEMENT * min(seconds):
                    return True
        return False

    def wants_another(self, limit: float) -> bool:
        """Whether it takes part in the next turn, of a measured time limited to `limit` seconds."""
        if self.problem is not None:
            return False
        return (
            len(self.runs) < LEAST_RUNS
            or self.spent <= limit
            or (len(self.runs) == LEAST_RUNS and self.scatters)
        )

    def summary(self) -> dict[str, Any]:
        """Medians by size, or the reason why there are none."""
        row: dict[str, Any] = {"name": self.name, "title": self.title}
        if not self.runs:
            return {**row, "not_measured": self.problem or "left out"}
        row |= {key: self.runs[0][key] for key in ("parameters", "latent_channels", "compression")}
        row |= {"runs": len(self.runs), "loaded_mb": self._median("loaded_mb")}
        row["peaks_apart"] = all(run["peaks_apart"] for run in self.runs)
        row["sizes"] = [self._size(index) for index in range(len(self.runs[0]["cases"]))]
        return row

    def _size(self, index: int) -> dict[str, Any]:
        cases = [run["cases"][index] for run in self.runs]
        first = cases[0]
        if "not_measured" in first:
            return {"size": first["size"], "not_measured": first["not_measured"]}
        found: dict[str, Any] = {"size": first["size"], "frames": first["frames"]}
        for name in DIRECTIONS:
            seconds = [case[name]["seconds"] for case in cases]
            peaks = [case[name]["peak_mb"] for case in cases]
            flop = self.gflop.get(str(first["size"]), {}).get(name)
            middle = statistics.median(seconds)
            found[name] = {
                "seconds": middle,
                "all_seconds": seconds,
                "ms_per_frame": middle / first["frames"] * 1e3,
                "peak_mb": statistics.median(peaks),
                "gflop": flop,
                "gflop_per_second": None if flop is None else flop / middle,
            }
        return found

    def _median(self, key: str) -> float | None:
        values = [run[key] for run in self.runs if run[key] is not None]
        return statistics.median(values) if values else None


def contenders(options: argparse.Namespace, folder: Path) -> list[Contender]:
    """Those that were asked for, ours first."""
    common = {
        "threads": options.threads,
        "frames": options.frames,
        "sizes": options.sizes,
        "mode": options.mode,
        "do": "measure",
    }
    found = []
    for preset in REDUCED_PRESETS if options.reduced else PRESETS:
        for engine, title in ENGINES.items():
            job = {
                **common,
                "engine": engine,
                "preset": preset,
                "latent_channels": options.latent_channels,
                "bundle": str(folder / preset),
            }
            found.append(Contender(f"wfvae-{preset}/{engine}", f"WF-VAE-{preset} {title}", job))
    for name, title in PEER_TITLES.items():
        job = {**common, "engine": "peer", "contender": name, "reduced": options.reduced}
        if name in options.checkout:
            job |= dict(zip(("checkout", "weights", "entry"), options.checkout[name], strict=True))
        missing = "its code is in no library; give a local checkout with --checkout"
        found.append(
            Contender(
                name,
                title,
                job,
                problem=missing if name in CHECKOUTS and name not in options.checkout else None,
            )
        )
    return [one for one in found if any(fnmatch(one.name, pattern) for pattern in options.only)]


def run(options: argparse.Namespace, folder: Path) -> list[Contender]:
    """Exports, counts, and measures turn by turn."""
    field_of = contenders(options, folder)
    _prepare(field_of, options.threads)
    for turn in range(options.runs):
        for one in field_of:
            if not one.wants_another(options.seconds):
                continue
            try:
                found = run_isolated(WORKER, {**one.job, "count": not one.gflop}, options.threads)
                one.gflop = found.pop("gflop", one.gflop)
                one.runs.append(found)
            except NotMeasured as reason:
                one.problem = str(reason)
            print(f"turn {turn + 1}: {one.title}: {_progress(one)}", flush=True)
    return field_of


def _prepare(field_of: Sequence[Contender], threads: int) -> None:
    """Bundles, and their operations: one count per preset."""
    counted: dict[str, Any] = {}
    for one in field_of:
        if "bundle" not in one.job:
            continue
        preset = one.job["preset"]
        try:
            if preset not in counted:
                run_isolated(WORKER, {**one.job, "do": "export"}, threads)
                counted[preset] = run_isolated(WORKER, {**one.job, "do": "count"}, threads)["gflop"]
            one.gflop = counted[preset]
        except NotMeasured as reason:
            one.problem = str(reason)


def _progress(one: Contender) -> str:
    if one.problem is not None:
        return f"not measured: {one.problem}"
    case = one.runs[-1]["cases"][-1]
    if "not_measured" in case:
        return f"{case['size']}x{case['size']} not measured: {case['not_measured']}"
    return ", ".join(
        f"{name} {case[name]['seconds']:.2f} s {case[name]['peak_mb']:.0f} MB" for name in DIRECTIONS
    )


def table(rows: Sequence[dict[str, Any]], size: int) -> str:
    """Of one size, as Markdown."""
    header = [
        "",
        "latent channels",
        "compression, TxHxW",
        "parameters, M",
        "GFLOP",
        "encode, ms/frame",
        "decode, ms/frame",
    ]
    header += ["encode peak, MB", "decode peak, MB", "GFLOP/s", "runs"]
    lines = []
    for row in rows:
        case = next((case for case in row.get("sizes", ()) if case["size"] == size), row)
        if "not_measured" in case:
            lines.append([row["title"], f"not measured: {case['not_measured']}", *[""] * (len(header) - 2)])
            continue
        both = [case[name] for name in DIRECTIONS]
        known = all(part["gflop"] is not None for part in both)
        gflop = sum(part["gflop"] for part in both) if known else None
        rate = gflop / sum(part["seconds"] for part in both) if gflop is not None else None
        lines.append(
            [
                row["title"]
                + ("" if case["frames"] == rows_frames(rows, size) else f" ({case['frames']} frames)"),
                str(row["latent_channels"]),
                "x".join(map(str, row["compression"])),
                f"{row['parameters'] / 1e6:.1f}",
                "-" if gflop is None else f"{gflop:,.4g}",
                *(f"{part['ms_per_frame']:.4g}" for part in both),
                *(f"{part['peak_mb']:,.0f}" for part in both),
                "-" if rate is None else f"{rate:.3g}",
                str(row["runs"]),
            ]
        )
    return markdown_table(header, lines)


def rows_frames(rows: Sequence[dict[str, Any]], size: int) -> int | None:
    """Frames of the clip that most models take."""
    counts = [
        case["frames"]
        for row in rows
        for case in row.get("sizes", ())
        if case["size"] == size and "frames" in case
    ]
    return statistics.mode(counts) if counts else None


def figure(rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> str | None:
    """Bubbles of time against memory and operations, and lines over the frame's size where there
    are several.
    """
    measured = [(row, _measured(row)) for row in rows]
    largest = [(row, cases[max(cases)]) for row, cases in measured if cases]
    if not largest:
        return None
    most = max(row["parameters"] for row, _ in largest)
    kinds = ("WF-VAE", "others")

    def bubbles(title: str, x_label: str, y_label: str, x: Any, y: Any) -> Chart:
        series = []
        for row, case in largest:
            radius = 22 * (row["parameters"] / most) ** 0.5
            colour = 0 if row["name"].startswith("wfvae") else 1
            if (point := (x(case), y(case)))[0] and point[1]:
                series.append(
                    Series(row["title"], [point], (radius,), (row["title"],), line=False, colour=colour)
                )
        return Chart(title, x_label, y_label, series, log_x=True, log_y=True, kinds=kinds)

    size = f"{max(sizes)}x{max(sizes)}"
    charts = [
        bubbles(
            f"{size}; area: parameters",
            "encode + decode, ms per frame",
            "peak memory, MB",
            lambda c: sum(c[d]["ms_per_frame"] for d in DIRECTIONS),
            lambda c: max(c[d]["peak_mb"] for d in DIRECTIONS),
        ),
        bubbles(
            f"{size}; area: parameters",
            "GFLOP per frame",
            "encode + decode, ms per frame",
            lambda c: sum(c[d]["gflop"] or 0 for d in DIRECTIONS) / c["frames"],
            lambda c: sum(c[d]["ms_per_frame"] for d in DIRECTIONS),
        ),
    ]
    if len(sizes) > 1:
        for name in DIRECTIONS:
            for what, label in (("ms_per_frame", "ms per frame"), ("peak_mb", "peak memory, MB")):
                lines = [
                    Series(
                        row["title"],
                        [(size, case[name][what]) for size, case in sorted(cases.items())],
                        colour=k,
                        dash=k // 8,
                    )
                    for k, (row, cases) in enumerate(measured)
                    if cases
                ]
                charts.append(
                    Chart(f"{name}: {label}", "frame height = width, pixels", label, lines, True, True)
                )
    return draw(charts)


def _measured(row: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {case["size"]: case for case in row.get("sizes", ()) if "encode" in case and "decode" in case}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help="such as wfvae-S/torch, 'wfvae-*', wan"
    )
    parser.add_argument("--mode", choices=MODES, default="direct")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 128], help="heights and widths, multiples of 32"
    )
    parser.add_argument(
        "--frames", type=int, default=17, help="1 + 8 n suits all models but Allegro, which takes one less"
    )
    parser.add_argument(
        "--latent-channels", type=int, default=LATENT_CHANNELS, help="of WF-VAE (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="turns")
    parser.add_argument(
        "--seconds",
        type=float,
        default=15.0,
        help="measured time after which a model has no third run, if two agree",
    )
    parser.add_argument("--checkout", nargs="+", default=[], metavar="NAME=CODE,WEIGHTS[,module:attribute]")
    parser.add_argument(
        "--reduced", action="store_true", help="small models: tests the program, measures nothing"
    )
    parser.add_argument(
        "--json", type=Path, help="write the results to this file, and .md and .svg beside it"
    )
    options = parser.parse_args(arguments)
    if any(size < 32 or size % 32 for size in options.sizes):
        parser.error(f"--sizes are {options.sizes}; expected multiples of 32")
    if options.frames < 9 or options.runs < 1 or options.latent_channels < 1:
        parser.error("--frames must be at least 9, --runs and --latent-channels at least 1")
    checkouts = {}
    for text in options.checkout:
        name, _, rest = text.partition("=")
        parts = rest.split(",")
        if name not in CHECKOUTS or len(parts) not in (2, 3):
            parser.error(
                f"--checkout is {text!r}; expected NAME=CODE,WEIGHTS[,module:attribute] with a NAME of"
                f" {', '.join(CHECKOUTS)}"
            )
        checkouts[name] = (*parts, *[None] * (3 - len(parts)))
    options.checkout = checkouts
    return options


def main() -> int:
    options = parse_arguments()
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        field_of = run(options, Path(folder))
    if not field_of:
        print(f"error: no model is called {' or '.join(options.only)}", file=sys.stderr)
        return 2
    rows = [one.summary() for one in field_of]
    facts = machine(options.threads, *PACKAGES)
    text = (
        f"# {options.mode} inference, {options.frames} frames, fp32 unless said"
        f" otherwise\n\n{machine_line(facts)}\n"
    )
    text += "Random weights. Peaks are of a process that holds one model.\n"
    for size in sorted(options.sizes, reverse=True):
        text += f"\n## {size}x{size}\n\n{table(rows, size)}"
    text += f"\n{GFLOP_NOTE}"
    if options.reduced:
        text += "\nReduced models: these numbers mean nothing.\n"
    print(f"\n{text}")
    if options.json is not None:
        job = {
            key: getattr(options, key)
            for key in ("mode", "frames", "latent_channels", "sizes", "runs", "seconds", "reduced")
        }
        loads = {"load_average_before": before, "load_average_after": load_average()}
        write_report(
            options.json,
            {"machine": facts, **loads, "job": job, "rows": rows},
            text,
            figure(rows, options.sizes),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
