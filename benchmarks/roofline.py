"""How near each exported graph comes to what the machine can do: operations counted, rate measured,
against roofs of the same run.

    python benchmarks/roofline.py [--json benchmarks/results/roofline-cpu.json]
    python benchmarks/roofline.py --preset tiny --size 64 --engines onnxruntime

Operations and bytes are counted from each graph, see `onnx_work.py`. The roofs: a large matrix
product in each engine and in PyTorch, the best of the graphs' own convolutions run by itself in
each engine (convolutions may beat the matrix product where different libraries compute them), and
memory bandwidth by copying. Bytes of a graph count every operator as if it read its inputs from
memory and wrote its outputs there, in the graph's precision; fused operators move less, and so does
an engine that computes in bf16.

Graphs, products and convolutions take turns. Only one session is open at a time: the idle threads
of another one go on spinning for a while, on the cores that are measured. A measurement opens its
session, calls it once uncounted, goes on for at least `--seconds` and is the median of these calls;
figures are medians of the turns. A graph that beats its engine's roofs is marked: they are too low
to be roofs.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import torch
from bundle_engines import ENGINES, open_on
from charts import Chart, Series, draw
from isolated import NotMeasured
from onnx import TensorProto, helper
from onnx_work import Convolution, GraphWork, count_file, direct_sizes, step_sizes
from record import load_average, machine, machine_line, markdown_table, write_report
from turns import take_turns

from wfvae import WFVAE, WFVAEConfig
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.config import Preset

TORCH = "torch"
DIRECTIONS = ("encoder", "decoder")
COPY_BYTES = 256 * 10**6
ABOVE = "\\*"
"""Marks a graph that is faster than its engine's roofs."""
_OPSET = 20

Arrays = Mapping[str, Any]
Work = Callable[[], Any]
Opener = Callable[[], AbstractContextManager[Work]]
"""Holds what a job needs open while it is measured."""


def gemm_model(side: int) -> onnx.ModelProto:
    """A product of two square matrices, both given at run time."""
    shape = [side, side]
    return _one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": shape, "w": shape})


def convolution_model(convolution: Convolution, weight: Any) -> onnx.ModelProto:
    """One of a graph's convolutions; the weight is a constant, as it is there."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], **dict(convolution.attributes))
    return _one_node(node, {"x": list(convolution.x)}, {"w": weight})


def _one_node(
    node: onnx.NodeProto, inputs: Mapping[str, list[int]], constants: Arrays | None = None
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph([node], "one", values, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def compile_model(model: onnx.ModelProto, engine: str, threads: int) -> Callable[[Arrays], Any]:
    """The model as a function, in an engine set up by the runtime's own settings."""
    if engine == "onnxruntime":
        import onnxruntime as ort

        from wfvae.runtime.backends.onnxruntime import OnnxRuntimeOptions, session_options

        settings = session_options(OnnxRuntimeOptions(provider="cpu", threads=threads))
        return partial(
            ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"]).run,
            None,
        )
    from wfvae.runtime.backends.openvino import OpenVinoOptions, compile_settings, open_core

    core = open_core()
    options = OpenVinoOptions(precision_hint=engine.partition("-")[2] or "fp32", threads=threads)
    compiled = core.compile_model(
        core.read_model(model.SerializeToString(), b""), "CPU", compile_settings(options)
    )
    request = compiled.create_infer_request()
    return lambda feeds: request.infer(dict(feeds), share_inputs=True, share_outputs=True)


def seconds_of(work: Work, least: float) -> float:
    """The median of the seconds of calls that take `least` in all, at least one, after one that is
    not counted.
    """
    work()
    calls: list[float] = []
    while sum(calls) < least or not calls:
        begin = time.perf_counter()
        work()
        calls.append(time.perf_counter() - begin)
    return statistics.median(calls)


def measurement(opener: Opener, least: float) -> Callable[[], float]:
    """Opens, measures and closes; nothing of it stays open."""

    def run() -> float:
        with opener() as work:
            seconds = seconds_of(work, least)
        del work
        gc.collect()
        return seconds

    return run


class Roofline:
    """Collects jobs, each with what it computes and moves; then measures all of them in turns."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._path = options, folder / "bundle"
        self.jobs: dict[str, Callable[[], float]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.work: dict[str, GraphWork] = {}

    def prepare(self) -> None:
        """Exports and counts everything."""
        options = self._options
        model = WFVAE.random(WFVAEConfig.preset(options.preset), 0).eval()
        ratio = model.config.temporal_compression
        export_bundle(model, self._path, ExportOptions(direct=True))
        for direction in DIRECTIONS:
            for key, sizes in (
                (direction, step_sizes(ratio, options.chunk, options.size, options.size)),
                (f"{direction}.direct", direct_sizes(ratio, options.frames, options.size, options.size)),
            ):
                self.work[key] = count_file(self._path / f"{key}.onnx", sizes)
        for engine in options.engines:
            try:
                open_on(engine, self._path, options.threads).close()
            except NotMeasured as reason:
                self.missing[engine] = str(reason)
                continue
            for key, work in self.work.items():
                self._add("graph", engine, key, partial(self._graph, engine, key), work.flop, work.bytes)
            self._add_roofs(engine)
        side = options.gemm_side
        a, b = torch.randn(side, side), torch.randn(side, side)
        self._add(
            "gemm",
            TORCH,
            f"{side}^3",
            lambda: nullcontext(partial(torch.mm, a, b)),
            2 * side**3,
            3 * 4 * side**2,
        )
        source = torch.ones(COPY_BYTES // 8)
        copy = partial(torch.empty_like(source).copy_, source)
        self._add(
            "copy",
            TORCH,
            f"{COPY_BYTES // 10**6} MB read and written",
            lambda: nullcontext(copy),
            0,
            COPY_BYTES,
        )

    def measure(self) -> list[dict[str, Any]]:
        """A row per job, in order."""
        seconds = take_turns(self.jobs, self._options.runs, warm_up=False)
        rows = []
        for name, values in seconds.items():
            facts, middle = self.facts[name], statistics.median(values)
            rates = {
                "gflop_per_second": facts["flop"] / middle / 1e9,
                "gb_per_second": facts["bytes"] / middle / 1e9,
            }
            rows.append({"name": name, **facts, "seconds": middle, "all_seconds": values, **rates})
        return rows

    def _add(self, kind: str, engine: str, what: str, opener: Opener, flop: int, moved: int) -> None:
        name = f"{kind} {engine} {what}"
        self.jobs[name] = measurement(opener, self._options.seconds)
        self.facts[name] = {"kind": kind, "engine": engine, "what": what, "flop": flop, "bytes": moved}

    @contextmanager
    def _graph(self, engine: str, key: str) -> Iterator[Work]:
        """A whole clip through a direct graph, or a step amid a stream."""
        options, size = self._options, self._options.size
        direction, _, direct = key.partition(".")
        with open_on(engine, self._path, options.threads) as bundle:
            latents = 1 + (options.frames - 1) // bundle.ratio if direct else options.chunk
            frames = options.frames if direct else bundle.ratio * options.chunk
            channels = int(bundle.manifest.model["latent_dim"])
            shape = (
                (1, frames, 3, size, size)
                if direction == "encoder"
                else (1, latents, channels, size // 8, size // 8)
            )
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            if direct:
                yield partial(bundle.direct_session(direction).run, x)
                return
            no, yes = np.array([False]), np.array([True])
            session = bundle.step_session(direction)
            state = session.new_state(1, size, size)
            session.step(state, x, yes, no)
            yield partial(session.step, state, x, no, no)

    def _add_roofs(self, engine: str) -> None:
        side = self._options.gemm_side
        opener = partial(
            self._single, engine, lambda rng: gemm_model(side), {"x": (side, side), "w": (side, side)}
        )
        self._add("gemm", engine, f"{side}^3", opener, 2 * side**3, 3 * 4 * side**2)
        for convolution in self._convolutions():

            def model(rng: np.random.Generator, convolution: Convolution = convolution) -> onnx.ModelProto:
                return convolution_model(convolution, rng.standard_normal(convolution.weight, np.float32))

            opener = partial(self._single, engine, model, {"x": convolution.x})
            self._add("convolution", engine, convolution.name, opener, convolution.flop, convolution.bytes)

    @contextmanager
    def _single(
        self,
        engine: str,
        model: Callable[[np.random.Generator], onnx.ModelProto],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Iterator[Work]:
        """A model of one operator, on noise."""
        rng = np.random.default_rng(0)
        feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        yield partial(compile_model(model(rng), engine, self._options.threads), feeds)

    def _convolutions(self) -> list[Convolution]:
        """The ones that most operations go into, over the direct graphs."""
        found: dict[str, Convolution] = {}
        for direction in DIRECTIONS:
            for convolution in self.work[f"{direction}.direct"].convolutions:
                found.setdefault(convolution.name, convolution)
        return sorted(found.values(), key=lambda one: -one.flop * one.count)[: self._options.convolutions]


def add_shares(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes into every graph's row what it reaches of its engine's roofs, and whether it beats
    them all. Returns the roofs.
    """
    roofs: dict[str, Any] = {
        "gb_per_second": max((row["gb_per_second"] for row in rows if row["kind"] == "copy"), default=None)
    }
    engines = {row["engine"] for row in rows}
    for engine in sorted(engines):
        for kind in ("gemm", "convolution"):
            rates = [row for row in rows if (row["engine"], row["kind"]) == (engine, kind)]
            if rates:
                best = max(rates, key=lambda row: row["gflop_per_second"])
                roofs.setdefault(engine, {})[kind] = {key: best[key] for key in ("what", "gflop_per_second")}
    for row in rows:
        if row["kind"] == "graph":
            row["of_gemm"] = row["gflop_per_second"] / roofs[row["engine"]]["gemm"]["gflop_per_second"]
            row["of_best_convolution"] = (
                row["gflop_per_second"] / roofs[row["engine"]]["convolution"]["gflop_per_second"]
            )
            row["of_torch_gemm"] = row["gflop_per_second"] / roofs[TORCH]["gemm"]["gflop_per_second"]
            row["above_roofs"] = min(row["of_gemm"], row["of_best_convolution"]) > 1
    return roofs


def tables(
    rows: Sequence[dict[str, Any]],
    roofs: dict[str, Any],
    work: Mapping[str, GraphWork],
    missing: Mapping[str, str],
) -> str:
    """All results as Markdown."""
    header = [
        "graph",
        "GFLOP",
        "GB",
        "FLOP/byte",
        "s",
        "GFLOP/s",
        "% of its GEMM",
        "% of its best convolution",
        "% of PyTorch's GEMM",
    ]
    lines = []
    for row in rows:
        if row["kind"] == "graph":
            shares = [f"{100 * row[key]:.0f}" for key in ("of_gemm", "of_best_convolution", "of_torch_gemm")]
            counted = [
                f"{row['flop'] / 1e9:.4g}",
                f"{row['bytes'] / 1e9:.3g}",
                f"{row['flop'] / row['bytes']:.0f}",
            ]
            name = f"{row['engine']} {row['what']}" + (f" {ABOVE}" if row["above_roofs"] else "")
            lines.append([name, *counted, f"{row['seconds']:.3g}", f"{row['gflop_per_second']:.3g}", *shares])
    lines += [
        [f"{engine}: not measured: {reason}", *[""] * (len(header) - 1)] for engine, reason in missing.items()
    ]
    text = markdown_table(header, lines)
    text += (
        "\nOf an engine's two roofs the higher one counts. PyTorch's GEMM compares engines with one another;"
        " it is no roof of theirs.\n"
    )
    if any(row.get("above_roofs") for row in rows):
        text += (
            f"\n{ABOVE} Faster than both roofs of its engine, so that what was measured there is too low to"
            " be a roof.\n"
        )
    lines = [
        [engine, kind, one["what"], f"{one['gflop_per_second']:.3g}"]
        for engine, kinds in roofs.items()
        if isinstance(kinds, dict)
        for kind, one in kinds.items()
    ]
    text += f"\nRoofs; memory {roofs['gb_per_second']:.3g} GB/s:\n\n" + markdown_table(
        ["engine", "roof", "of", "GFLOP/s"], lines
    )
    header = ["operator", *(f"{key}: nodes, GFLOP, GB" for key in work)]
    names = list(dict.fromkeys(name for graph in work.values() for name in graph.operators))
    lines = []
    for name in names:
        cells = []
        for graph in work.values():
            one = graph.operators.get(name)
            cells.append("" if one is None else f"{one.nodes}, {one.flop / 1e9:.4g}, {one.bytes / 1e9:.3g}")
        if any(
            graph.operators[name].bytes or graph.operators[name].flop
            for graph in work.values()
            if name in graph.operators
        ):
            lines.append([name, *cells])
    return text + "\nWhat the graphs compute and move, by operator:\n\n" + markdown_table(header, lines)


def figure(rows: Sequence[dict[str, Any]], roofs: dict[str, Any]) -> str:
    """One roofline chart per engine: rate over operations per byte."""
    charts = []
    for engine in sorted({row["engine"] for row in rows if row["kind"] == "graph"}):
        mine = [row for row in rows if row["engine"] == engine]
        points = [(row["flop"] / row["bytes"], row["gflop_per_second"], row) for row in mine]
        low, high = min(x for x, _, _ in points) / 2, max(x for x, _, _ in points) * 2
        series = []
        for index, (kind, roof) in enumerate(roofs[engine].items()):
            top, bandwidth = roof["gflop_per_second"], roofs["gb_per_second"]
            corner = top / bandwidth
            slope = [
                (max(min(low, corner / 4), 1e-3), bandwidth * max(min(low, corner / 4), 1e-3)),
                (corner, top),
            ]
            series.append(
                Series(
                    f"roof: {kind} {top:.0f} GFLOP/s",
                    [*slope, (max(high, corner * 2), top)],
                    (0.1,) * 3,
                    colour=3 + index,
                )
            )
        for index, (kind, name) in enumerate((("graph", "graphs"), ("convolution", "single convolutions"))):
            found = [(x, y, row) for x, y, row in points if row["kind"] == kind]
            labels = [row["what"] if kind == "graph" else "" for _, _, row in found]
            series.append(
                Series(name, [(x, y) for x, y, _ in found], labels=labels, line=False, colour=index)
            )
        charts.append(Chart(engine, "FLOP per byte", "GFLOP/s", series, log_x=True, log_y=True))
    return draw(charts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--engines",
        "--only",
        nargs="+",
        choices=ENGINES,
        default=ENGINES,
        metavar="ENGINE",
        help=", ".join(ENGINES),
    )
    parser.add_argument("--preset", choices=get_args(Preset), default="S")
    parser.add_argument("--size", type=int, default=128, help="height and width, a multiple of 8")
    parser.add_argument("--frames", type=int, default=17, help="of the direct graphs, 1 + 4 n")
    parser.add_argument("--chunk", type=int, default=4, help="latents of a step")
    parser.add_argument(
        "--convolutions", type=int, default=8, help="how many different ones are tried as roofs"
    )
    parser.add_argument("--gemm-side", type=int, default=2048, help="rows and columns of the matrix product")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="turns")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="for which a measurement goes on calling, at least"
    )
    parser.add_argument(
        "--json", type=Path, help="write the results to this file, and .md and .svg beside it"
    )
    options = parser.parse_args()
    if options.size < 8 or options.size % 8 or options.frames < 1 or options.frames % 4 != 1:
        parser.error("--size must be a multiple of 8 and --frames 1 + 4 n")
    if min(options.chunk, options.convolutions, options.runs, options.gemm_side) < 1:
        parser.error("--chunk, --convolutions, --runs and --gemm-side must be at least 1")
    return options


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        roofline = Roofline(options, Path(folder))
        roofline.prepare()
        rows = roofline.measure()
    roofs = add_shares(rows)
    facts = machine(options.threads, "torch", "onnxruntime", "openvino", "onnx", "numpy")
    job = {key: getattr(options, key) for key in ("preset", "size", "frames", "chunk", "runs", "seconds")}
    text = (
        f"# Roofline: preset {options.preset}, {options.size}x{options.size}, steps of {options.chunk}"
        f" latents, {options.frames} frames\n\n"
    )
    text += f"{machine_line(facts)}\n\n{tables(rows, roofs, roofline.work, roofline.missing)}"
    print(text)
    if options.json is not None:
        graphs = {
            key: {
                name: {"nodes": one.nodes, "flop": one.flop, "bytes": one.bytes}
                for name, one in graph.operators.items()
            }
            for key, graph in roofline.work.items()
        }
        loads = {"load_average_before": before, "load_average_after": load_average()}
        result = {
            "machine": facts,
            **loads,
            "job": job,
            "roofs": roofs,
            "rows": rows,
            "not_measured": roofline.missing,
            "operators": graphs,
        }
        write_report(options.json, result, text, figure(rows, roofs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
