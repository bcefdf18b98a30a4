"""How near each exported graph comes to what the machine can do: operations counted, rate measured, against roofs of the same run.

    python benchmarks/roofline.py [--json benchmarks/results/roofline-cpu.json]
    python benchmarks/roofline.py --preset tiny --size 64 --engines onnxruntime

Operations and bytes are counted from each graph, see `onnx_work.py`. The roofs: a large matrix product in each engine and in PyTorch, the
best of the graphs' own convolutions run by itself in each engine (convolutions may beat the matrix product where different libraries
compute them), and memory bandwidth by copying. Graphs, products and convolutions take turns; figures are medians. Bytes of a graph count
every operator as if it read its inputs from memory and wrote its outputs there, in the graph's precision; fused operators move less, and
so does an engine that computes in bf16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from wfvae.config import Preset
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.runtime import Bundle

TORCH = "torch"
DIRECTIONS = ("encoder", "decoder")
COPY_BYTES = 256 * 10**6
LEAST_SECONDS = 0.02
"""A short job is repeated within a turn until it has taken so long."""
_OPSET = 20

Arrays = Mapping[str, Any]


def gemm_model(side: int) -> onnx.ModelProto:
    """A product of two square matrices, both given at run time."""
    shape = [side, side]
    return _one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": shape, "w": shape})


def convolution_model(convolution: Convolution, weight: Any) -> onnx.ModelProto:
    """One of a graph's convolutions; the weight is a constant, as it is there."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], **dict(convolution.attributes))
    return _one_node(node, {"x": list(convolution.x)}, {"w": weight})


def _one_node(node: onnx.NodeProto, inputs: Mapping[str, list[int]], constants: Arrays | None = None) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph([node], "one", values, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def compile_model(model: onnx.ModelProto, engine: str, threads: int) -> Callable[[Arrays], Any]:
    """The model as a function, in an engine set up as the runtime sets it up."""
    if engine == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return partial(session.run, None)
    import openvino as ov

    core = ov.Core()
    hint = "bf16" if engine.endswith("bf16") else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    request = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", settings).create_infer_request()
    return lambda feeds: request.infer(dict(feeds), share_inputs=True, share_outputs=True)


def timed(job: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of one call, from as many as make `LEAST_SECONDS`."""

    def run() -> float:
        calls, begin = 0, time.perf_counter()
        while True:
            job()
            calls += 1
            elapsed = time.perf_counter() - begin
            if elapsed >= LEAST_SECONDS:
                return elapsed / calls

    return run


class Roofline:
    """Collects jobs, each with what it computes and moves; then measures all of them in turns."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._path = options, folder / "bundle"
        self.jobs: dict[str, Callable[[], float]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, str] = {}
        self.work: dict[str, GraphWork] = {}
        self._bundles: list[Bundle] = []

    def prepare(self) -> None:
        """Exports, counts and opens everything."""
        options = self._options
        model = WFVAE.random(WFVAEConfig.preset(options.preset), 0).eval()
        ratio, channels = model.config.temporal_compression, model.config.latent_dim
        export_bundle(model, self._path, ExportOptions(direct=True))
        for direction in DIRECTIONS:
            for key, sizes in (
                (direction, step_sizes(ratio, options.chunk, options.size, options.size)),
                (f"{direction}.direct", direct_sizes(ratio, options.frames, options.size, options.size)),
            ):
                self.work[key] = count_file(self._path / f"{key}.onnx", sizes)
        for engine in options.engines:
            try:
                self._add_graphs(engine, channels)
                self._add_roofs(engine)
            except NotMeasured as reason:
                self.missing[engine] = str(reason)
        side = options.gemm_side
        a, b = torch.randn(side, side), torch.randn(side, side)
        self._add("gemm", TORCH, f"{side}^3", lambda: torch.mm(a, b), 2 * side**3, 3 * 4 * side**2)
        source = torch.ones(COPY_BYTES // 8)
        target = torch.empty_like(source)
        self._add("copy", TORCH, f"{COPY_BYTES // 10**6} MB read and written", lambda: target.copy_(source), 0, COPY_BYTES)

    def measure(self) -> list[dict[str, Any]]:
        """A row per job, in order."""
        seconds = take_turns(self.jobs, self._options.runs)
        rows = []
        for name, values in seconds.items():
            facts, middle = self.facts[name], statistics.median(values)
            rates = {"gflop_per_second": facts["flop"] / middle / 1e9, "gb_per_second": facts["bytes"] / middle / 1e9}
            rows.append({"name": name, **facts, "seconds": middle, "all_seconds": values, **rates})
        for bundle in self._bundles:
            bundle.close()
        return rows

    def _add(self, kind: str, engine: str, what: str, job: Callable[[], Any], flop: int, moved: int) -> None:
        name = f"{kind} {engine} {what}"
        self.jobs[name] = timed(job)
        self.facts[name] = {"kind": kind, "engine": engine, "what": what, "flop": flop, "bytes": moved}

    def _add_graphs(self, engine: str, channels: int) -> None:
        options = self._options
        bundle = open_on(engine, self._path, options.threads)
        self._bundles.append(bundle)
        rng, size = np.random.default_rng(0), options.size
        no, yes = np.array([False]), np.array([True])
        for direction in DIRECTIONS:
            for key in (direction, f"{direction}.direct"):
                count = bundle.ratio * options.chunk if key == direction else options.frames
                if direction == "decoder":
                    count = options.chunk if key == direction else 1 + (options.frames - 1) // bundle.ratio
                shape = (1, count, 3, size, size) if direction == "encoder" else (1, count, channels, size // 8, size // 8)
                x = rng.standard_normal(shape, np.float32)
                if key == direction:
                    session = bundle.step_session(key)
                    state = session.new_state(1, size, size)
                    session.step(state, x, yes, no)  # what is measured is a step amid a stream
                    job: Callable[[], Any] = partial(session.step, state, x, no, no)
                else:
                    job = partial(bundle.direct_session(direction).run, x)
                self._add("graph", engine, key, job, self.work[key].flop, self.work[key].bytes)

    def _add_roofs(self, engine: str) -> None:
        options, rng, side = self._options, np.random.default_rng(0), self._options.gemm_side
        square = {name: rng.standard_normal((side, side), np.float32) for name in ("x", "w")}
        product = compile_model(gemm_model(side), engine, options.threads)
        self._add("gemm", engine, f"{side}^3", partial(product, square), 2 * side**3, 3 * 4 * side**2)
        for convolution in self._convolutions():
            weight = rng.standard_normal(convolution.weight, np.float32)
            run = compile_model(convolution_model(convolution, weight), engine, options.threads)
            x = rng.standard_normal(convolution.x, np.float32)
            self._add("convolution", engine, convolution.name, partial(run, {"x": x}), convolution.flop, convolution.bytes)

    def _convolutions(self) -> list[Convolution]:
        """The ones that most operations go into, over the direct graphs."""
        found: dict[str, Convolution] = {}
        for direction in DIRECTIONS:
            for convolution in self.work[f"{direction}.direct"].convolutions:
                found.setdefault(convolution.name, convolution)
        return sorted(found.values(), key=lambda one: -one.flop * one.count)[: self._options.convolutions]


def add_shares(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes into every graph's row what it reaches of its engine's roofs. Returns the roofs."""
    roofs: dict[str, Any] = {"gb_per_second": max((row["gb_per_second"] for row in rows if row["kind"] == "copy"), default=None)}
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
            row["of_best_convolution"] = row["gflop_per_second"] / roofs[row["engine"]]["convolution"]["gflop_per_second"]
            row["of_torch_gemm"] = row["gflop_per_second"] / roofs[TORCH]["gemm"]["gflop_per_second"]
    return roofs


def tables(rows: Sequence[dict[str, Any]], roofs: dict[str, Any], work: Mapping[str, GraphWork], missing: Mapping[str, str]) -> str:
    """All results as Markdown."""
    header = ["graph", "GFLOP", "GB", "FLOP/byte", "s", "GFLOP/s", "% of its GEMM", "% of its best convolution", "% of PyTorch's GEMM"]
    lines = []
    for row in rows:
        if row["kind"] == "graph":
            shares = [f"{100 * row[key]:.0f}" for key in ("of_gemm", "of_best_convolution", "of_torch_gemm")]
            counted = [f"{row['flop'] / 1e9:.4g}", f"{row['bytes'] / 1e9:.3g}", f"{row['flop'] / row['bytes']:.0f}"]
            lines.append([f"{row['engine']} {row['what']}", *counted, f"{row['seconds']:.3g}", f"{row['gflop_per_second']:.3g}", *shares])
    lines += [[f"{engine}: not measured: {reason}", *[""] * (len(header) - 1)] for engine, reason in missing.items()]
    text = markdown_table(header, lines)
    lines = [
        [engine, kind, one["what"], f"{one['gflop_per_second']:.3g}"]
        for engine, kinds in roofs.items()
        if isinstance(kinds, dict)
        for kind, one in kinds.items()
    ]
    text += f"\nRoofs; memory {roofs['gb_per_second']:.3g} GB/s:\n\n" + markdown_table(["engine", "roof", "of", "GFLOP/s"], lines)
    header = ["operator", *(f"{key}: nodes, GFLOP, GB" for key in work)]
    names = list(dict.fromkeys(name for graph in work.values() for name in graph.operators))
    lines = []
    for name in names:
        cells = []
        for graph in work.values():
            one = graph.operators.get(name)
            cells.append("" if one is None else f"{one.nodes}, {one.flop / 1e9:.4g}, {one.bytes / 1e9:.3g}")
        if any(graph.operators[name].bytes or graph.operators[name].flop for graph in work.values() if name in graph.operators):
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
            slope = [(max(min(low, corner / 4), 1e-3), bandwidth * max(min(low, corner / 4), 1e-3)), (corner, top)]
            series.append(Series(f"roof: {kind} {top:.0f} GFLOP/s", [*slope, (max(high, corner * 2), top)], (0.1,) * 3, colour=3 + index))
        for index, (kind, name) in enumerate((("graph", "graphs"), ("convolution", "single convolutions"))):
            found = [(x, y, row) for x, y, row in points if row["kind"] == kind]
            labels = [row["what"] if kind == "graph" else "" for _, _, row in found]
            series.append(Series(name, [(x, y) for x, y, _ in found], labels=labels, line=False, colour=index))
        charts.append(Chart(engine, "FLOP per byte", "GFLOP/s", series, log_x=True, log_y=True))
    return draw(charts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", "--only", nargs="+", choices=ENGINES, default=ENGINES, metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("--preset", choices=get_args(Preset), default="S")
    parser.add_argument("--size", type=int, default=128, help="height and width, a multiple of 8")
    parser.add_argument("--frames", type=int, default=17, help="of the direct graphs, 1 + 4 n")
    parser.add_argument("--chunk", type=int, default=4, help="latents of a step")
    parser.add_argument("--convolutions", type=int, default=8, help="how many different ones are tried as roofs")
    parser.add_argument("--gemm-side", type=int, default=2048, help="rows and columns of the matrix product")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file, and .md and .svg beside it")
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
    job = {key: getattr(options, key) for key in ("preset", "size", "frames", "chunk", "runs")}
    text = (
        f"# Roofline: preset {options.preset}, {options.size}x{options.size}, steps of {options.chunk} latents, {options.frames} frames\n\n"
    )
    text += f"{machine_line(facts)}\n\n{tables(rows, roofs, roofline.work, roofline.missing)}"
    print(text)
    if options.json is not None:
        graphs = {
            key: {name: {"nodes": one.nodes, "flop": one.flop, "bytes": one.bytes} for name, one in graph.operators.items()}
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
