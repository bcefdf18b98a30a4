"""How near does each exported graph come to what the machine can do?

    python benchmarks/roofline.py --json benchmarks/results/roofline-cpu.json
    python benchmarks/roofline.py --preset tiny --size 64 --turns 1

Divides the operations that each whole-clip graph computes by its time, and compares the rate with
that of the best of the graphs' own convolutions, run alone in the same engine and run. Graphs and
convolutions take turns, each with a session of its own: the threads of an idle session spin for a
while on the cores that are measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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

GRAPH, CONVOLUTION = "graph", "convolution"

Shapes = Mapping[str, Sequence[int]]


def graph_seconds(options: argparse.Namespace, path: Path, engine: str, direction: Direction) -> float:
    """Opens the bundle, measures a whole clip, and closes it."""
    with open_on(engine, path, options.threads) as bundle:
        clip = noise(bundle, direction, options.frames, options.size)
        return median_seconds(partial(bundle.direct_session(direction).run, clip), options.seconds)


def single_seconds(
    options: argparse.Namespace, engine: str, make: Callable[[], onnx.ModelProto], shapes: Shapes
) -> float:
    """Compiles a model of one operator and measures it on noise."""
    call = compile_model(make(), engine, options.threads)
    return median_seconds(partial(call, random_arrays(shapes)), options.seconds)


def random_arrays(shapes: Shapes) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


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


def jobs_of(
    options: argparse.Namespace, path: Path, engine: str, counted: Mapping[Direction, Sequence[Operation]]
) -> Iterator[tuple[str, str, int, Callable[[], float]]]:
    """Yields kind, name, operations and job of everything that is measured on an engine."""
    for direction, operations in counted.items():
        job = partial(graph_seconds, options, path, engine, direction)
        yield GRAPH, direction, sum(one.flop for one in operations), job
    work: Counter[Operation] = Counter()
    for operation in (one for operations in counted.values() for one in operations if one.op == "Conv"):
        work[operation] += operation.flop
    for one, _ in work.most_common(options.convolutions):
        make = partial(convolution_model, one)
        yield (
            CONVOLUTION,
            one.name,
            one.flop,
            partial(single_seconds, options, engine, make, {"x": one.inputs[0]}),
        )


def add_shares(rows: Sequence[dict[str, Any]]) -> None:
    """Writes into every graph's row what it reaches of its engine's roof."""
    for row in [row for row in rows if row["kind"] == GRAPH]:
        same = [other for other in rows if (other["kind"], other["engine"]) == (CONVOLUTION, row["engine"])]
        roof = max(other["gflop_per_second"] for other in same)
        row["of_best_convolution"] = row["gflop_per_second"] / roof


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, "roofline-cpu.json")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--preset", choices=get_args(Preset), default="S")
    parser.add_argument("--size", type=side, default=128, help="height and width (default: %(default)s)")
    parser.add_argument("--frames", type=whole_clip, default=17, help="1 + 4 n (default: %(default)s)")
    parser.add_argument("--convolutions", type=int, default=8, help="how many are tried as roofs")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time of a measurement")
    options = parser.parse_args(arguments)
    facts = machine(options.threads)
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        path = Path(folder) / "bundle"
        export = {"preset": options.preset, "bundle": str(path)}
        run_isolated("harness.engines:export_random", export, options.threads)
        counted = count_graphs(options, path)
        about: dict[tuple[str, str, str], int] = {}
        jobs: dict[tuple[str, str, str], Callable[[], float]] = {}
        missing: dict[str, str] = {}
        for engine in options.engines:
            try:
                open_on(engine, path, options.threads).close()
            except NotMeasured as reason:
                missing[engine] = str(reason)
                continue
            for kind, what, flop, job in jobs_of(options, path, engine, counted):
                about[kind, engine, what], jobs[kind, engine, what] = flop, job
        seconds = take_turns(jobs, options.turns, warm_up=False)
    rows = []
    for (kind, engine, what), values in seconds.items():
        median, flop = statistics.median(values), about[kind, engine, what]
        row = {"kind": kind, "engine": engine, "what": what, "flop": flop, "seconds": median}
        rows.append({**row, "gflop_per_second": flop / median / 1e9})
    add_shares(rows)
    settings = {key: getattr(options, key) for key in ("preset", "size", "frames", "turns", "seconds")}
    result = {"machine": facts, "job": settings, "rows": rows, "not_measured": missing}
    finish(result, options.json, tables.roofline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
