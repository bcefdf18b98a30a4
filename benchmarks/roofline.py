"""How near does each exported graph come to what the machine can do?

    python benchmarks/roofline.py --json benchmarks/results/roofline-cpu.json
    python benchmarks/roofline.py --preset tiny --size 64 --turns 1

Divides the operations that each whole-clip graph computes by its time, and compares the rate with
that of the best of the graphs' own convolutions, run alone in the same engine and run. Graphs and
convolutions take turns, each with a session of its own: the threads of an idle session spin for a
while on the cores that are measured.
"""

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness.engines import DIRECTIONS, ENGINES, noise, open_on, random_bundles
from harness.graph_work import Operation, count_operations
from harness.processes import NotMeasured
from harness.record import CommandLine, finish
from harness.single_models import compile_model, make_model
from harness.turns import median_seconds, take_turns
from onnx import helper

from wfvae.spec.stream import Direction

GRAPH, CONVOLUTION = "graph", "convolution"
Job = Callable[[], float]


def graph_seconds(options: Any, path: str, engine: str, direction: Direction) -> float:
    """Opens the bundle, measures a whole clip, and closes it."""
    with open_on(engine, path, options.threads) as bundle:
        clip = noise(bundle, direction, options.frames, options.size)
        return median_seconds(partial(bundle.direct_session(direction).run, clip), options.seconds)


def convolution_seconds(options: Any, engine: str, convolution: Operation) -> float:
    """Measures one of a graph's convolutions; the weight is a constant, as in the graph."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in convolution.inputs)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **dict(convolution.attributes))
    call = compile_model(make_model([node], {"x": x.shape}, "y", {"w": weight}), engine, options.threads)
    return median_seconds(partial(call, {"x": x}), options.seconds)


def count_graphs(options: Any, path: str) -> dict[Direction, list[Operation]]:
    """Returns the operations of the whole-clip graphs."""
    found = {}
    with open_on("onnxruntime", path, options.threads) as bundle:
        for direction in DIRECTIONS.values():
            graph = bundle.manifest.graphs[f"{direction}.direct"]
            feeds = {graph.inputs[0].name: noise(bundle, direction, options.frames, options.size)}
            found[direction] = count_operations(Path(path) / graph.file, feeds)
    return found


def jobs_of(
    options: Any, path: str, engine: str, counted: dict[Direction, list[Operation]]
) -> Iterator[tuple[str, str, int, Job]]:
    """Yields kind, name, operations and job of everything that is measured on an engine."""
    work: Counter[Operation] = Counter()
    for direction, operations in counted.items():
        job = partial(graph_seconds, options, path, engine, direction)
        yield GRAPH, direction, sum(one.flop for one in operations), job
        for one in operations:
            work[one] += one.flop if one.op == "Conv" else 0
    for one, _ in work.most_common(options.convolutions):
        yield CONVOLUTION, one.name, one.flop, partial(convolution_seconds, options, engine, one)


def measure(options: Any, path: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns the rows, and the reasons why engines are missing."""
    counted = count_graphs(options, path)
    flops: dict[tuple[str, str, str], int] = {}
    jobs: dict[tuple[str, str, str], Job] = {}
    missing: dict[str, str] = {}
    for engine in options.engines:
        try:
            open_on(engine, path, options.threads).close()
        except NotMeasured as reason:
            missing[engine] = str(reason)
            continue
        for kind, what, flop, job in jobs_of(options, path, engine, counted):
            flops[kind, engine, what], jobs[kind, engine, what] = flop, job
    rows: list[dict[str, Any]] = []
    for (kind, engine, what), values in take_turns(jobs, options.turns, warm_up=False).items():
        seconds, flop = statistics.median(values), flops[kind, engine, what]
        row = {"kind": kind, "engine": engine, "what": what, "flop": flop, "seconds": seconds}
        rows.append({**row, "gflop_per_second": flop / seconds / 1e9})
    for row in [row for row in rows if row["kind"] == GRAPH]:
        same = [other for other in rows if (other["kind"], other["engine"]) == (CONVOLUTION, row["engine"])]
        row["of_best_convolution"] = row["gflop_per_second"] / max(one["gflop_per_second"] for one in same)
    return rows, missing


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "roofline-cpu.json", preset="S", size=128, frames=17, turns=3, seconds=0.5)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--convolutions", type=int, default=8, help="how many are tried as roofs")
    options = parser.parse_args(arguments)
    with random_bundles([options.preset], options.threads) as bundles:
        rows, missing = measure(options, bundles[options.preset])
    finish(options, "roofline", job=options.job, rows=rows, not_measured=missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
