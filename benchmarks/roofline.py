"""How near does each exported graph come to what the machine can do?

    python benchmarks/roofline.py --json benchmarks/results/roofline-cpu.json     15 minutes on two cores
    python benchmarks/roofline.py --preset tiny --size 64 --turns 1

Divides the operations that each whole-clip graph computes by its time, and compares the rate with
two roofs that are measured in the same run and engine: a large matrix product, and the best of the
graphs' own convolutions run alone. Graphs, products and convolutions take turns, each with a session
of its own: the threads of an idle one spin for a while on the cores that are measured.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from harness import tables
from harness.engines import DIRECTIONS, ENGINES, noise, open_on
from harness.graph_work import Operation, count_operations
from harness.processes import NotMeasured, run_isolated
from harness.record import command_line, finish, machine, side, whole_clip
from harness.single_models import compile_model, make_model
from harness.turns import median_seconds, take_turns
from onnx import helper

from wfvae.model.config import Preset
from wfvae.spec.stream import Direction

GRAPH, PRODUCT, CONVOLUTION = "graph", "matrix product", "convolution"
Opener = Callable[[], AbstractContextManager[Callable[[], Any]]]
"""Holds what a job needs open while it is measured."""


def measurement(opener: Opener, least: float) -> Callable[[], float]:
    """Returns a job that opens, measures and closes."""

    def run() -> float:
        with opener() as work:
            seconds = median_seconds(work, least)
        del work
        gc.collect()
        return seconds

    return run


@contextmanager
def open_graph(options: argparse.Namespace, path: Path, engine: str, direction: Direction) -> Iterator[Any]:
    with open_on(engine, path, options.threads) as bundle:
        clip = noise(bundle, direction, options.frames, options.size)
        yield partial(bundle.direct_session(direction).run, clip)


@contextmanager
def open_single(
    engine: str, threads: int, model: Callable[[], onnx.ModelProto], shapes: Mapping[str, Sequence[int]]
) -> Iterator[Any]:
    yield partial(compile_model(model(), engine, threads), random_arrays(shapes))


def random_arrays(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def product_model(side_length: int) -> onnx.ModelProto:
    """A product of two square matrices, both given at run time."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return make_model([node], dict.fromkeys(("x", "w"), (side_length, side_length)), "y")


def convolution_model(convolution: Operation) -> onnx.ModelProto:
    """One of a graph's convolutions; the weight is a constant, as in the graph."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], **dict(convolution.attributes))
    x, weight = convolution.inputs
    return make_model([node], {"x": x}, "y", random_arrays({"w": weight}))


def count_graphs(options: argparse.Namespace, path: Path) -> dict[Direction, list[Operation]]:
    """Returns the operations of the whole-clip graphs."""
    found = {}
    with open_on("onnxruntime", path, options.threads) as bundle:
        for direction in DIRECTIONS.values():
            graph = bundle.manifest.graphs[f"{direction}.direct"]
            feeds = {graph.inputs[0].name: noise(bundle, direction, options.frames, options.size)}
            found[direction] = count_operations(path / graph.file, feeds)
    return found


def plan(
    options: argparse.Namespace, path: Path, counted: Mapping[Direction, Sequence[Operation]]
) -> tuple[dict[str, Callable[[], float]], dict[str, dict[str, Any]], dict[str, str]]:
    """Returns the jobs, what each of them is, and the engines that are missing."""
    jobs: dict[str, Callable[[], float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}

    def add(kind: str, engine: str, what: str, opener: Opener, flop: int) -> None:
        jobs[f"{kind} {engine} {what}"] = measurement(opener, options.seconds)
        facts[f"{kind} {engine} {what}"] = {"kind": kind, "engine": engine, "what": what, "flop": flop}

    work: Counter[Operation] = Counter()
    for operation in (one for operations in counted.values() for one in operations if one.op == "Conv"):
        work[operation] += operation.flop
    length = options.product_side
    for engine in options.engines:
        try:
            open_on(engine, path, options.threads).close()
        except NotMeasured as reason:
            missing[engine] = str(reason)
            continue
        for direction, operations in counted.items():
            opener = partial(open_graph, options, path, engine, direction)
            add(GRAPH, engine, direction, opener, sum(one.flop for one in operations))
        shapes: dict[str, Sequence[int]] = dict.fromkeys(("x", "w"), (length, length))
        opener = partial(open_single, engine, options.threads, partial(product_model, length), shapes)
        add(PRODUCT, engine, f"{length}^3", opener, 2 * length**3)
        for one, _ in work.most_common(options.convolutions):
            shapes = {"x": one.inputs[0]}
            opener = partial(open_single, engine, options.threads, partial(convolution_model, one), shapes)
            add(CONVOLUTION, engine, one.name, opener, one.flop)
    return jobs, facts, missing


def add_shares(rows: Sequence[dict[str, Any]]) -> None:
    """Writes into every graph's row what it reaches of its engine's roofs."""
    for row in rows:
        if row["kind"] != GRAPH:
            continue
        for kind, key in ((PRODUCT, "of_matrix_product"), (CONVOLUTION, "of_best_convolution")):
            same = [other for other in rows if (other["kind"], other["engine"]) == (kind, row["engine"])]
            roof = max(other["gflop_per_second"] for other in same)
            row[key] = row["gflop_per_second"] / roof


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, "roofline-cpu.json")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--preset", choices=get_args(Preset), default="S")
    parser.add_argument("--size", type=side, default=128, help="height and width (default: %(default)s)")
    parser.add_argument("--frames", type=whole_clip, default=17, help="1 + 4 n (default: %(default)s)")
    parser.add_argument("--convolutions", type=int, default=8, help="how many are tried as roofs")
    parser.add_argument("--product-side", type=int, default=2048, help="rows and columns of the matrices")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of a measurement")
    options = parser.parse_args(arguments)
    facts = machine(options.threads, "onnxruntime", "openvino", "onnx", "numpy")
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        path = Path(folder) / "bundle"
        export = {"preset": options.preset, "bundle": str(path)}
        run_isolated("harness.engines:export_random", export, options.threads)
        jobs, about, missing = plan(options, path, count_graphs(options, path))
        seconds = take_turns(jobs, options.turns, warm_up=False)
    rows = [
        {
            **about[name],
            "seconds": statistics.median(values),
            "gflop_per_second": about[name]["flop"] / statistics.median(values) / 1e9,
        }
        for name, values in seconds.items()
    ]
    add_shares(rows)
    job = {key: getattr(options, key) for key in ("preset", "size", "frames", "turns", "seconds")}
    finish(
        {"machine": facts, "job": job, "rows": rows, "not_measured": missing}, options.json, tables.roofline
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
