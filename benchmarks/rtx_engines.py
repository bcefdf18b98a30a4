"""What does TensorRT-RTX's builder make of a bundle's graphs? It needs no GPU.

    python benchmarks/rtx_engines.py --json benchmarks/results/rtx-engines.json
    python benchmarks/rtx_engines.py --models L --precisions fp16 --ranges

Each graph is built for one size. The builder's own list says which kernels an engine has: those
that convert types, those that only move data, and what they do with the state. A step graph and the
direct graph of as many latents differ by what carries the state. With `--ranges`, engines for the
default sizes of `wfvae build` are built, too, which takes longer.

Time is the processor time of all threads, which other programs disturb less than time on the clock.
"""

import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from harness.engines import exported
from harness.record import CommandLine, finish

from wfvae import WFVAE, WFVAEConfig
from wfvae.cli.arguments import parse_size
from wfvae.export.bundle import DTYPES
from wfvae.export.tensorrt.build import build_engines
from wfvae.model.config import Preset
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.tensorrt_api import RTX, TensorRT
from wfvae.spec.tensorrt_engines import BuildSettings, input_shapes, portable_target

LATENTS = 4
_LAYER = re.compile(r"^Name: (.*?), LayerType: (\w+), Inputs: \[(.*)\], Constants: .*Outputs: \[(.*)\]", re.M)
_KERNEL = re.compile(r"^__myl_((?:[A-Z][a-z]+)+)_myl\d+_\d+$")
_MOVES = {"Cast", "Conc", "Move", "Resh", "Sele", "Slic", "Tran"}
"""Parts of the names of kernels that compute no values: copies, slices and others."""
_ORDER = {"signal", "wait", "shape_call"}
"""Types of layers that synchronise or compute shapes."""


@dataclass(frozen=True)
class Layers:
    """Counts of an engine's layers."""

    kernels: int
    """All that compute on the GPU."""
    products: int
    """Convolutions and matrix products."""
    casts: int
    """Kernels that convert types, most of them beside other work."""
    moves: int
    """Kernels that only move data or convert it."""
    state_kernels: int
    """Kernels that read or write state."""
    state_moves: int
    """Those of them that only move data."""


def count_layers(text: str) -> Layers:
    """Counts the layers of the builder's list."""
    counts: Counter[str] = Counter()
    for name, kind, inputs, outputs in _LAYER.findall(text):
        if kind in _ORDER:
            continue
        found = _KERNEL.match(name)
        parts = set(re.findall("[A-Z][a-z]+", found[1])) if found else set()
        moves = bool(parts) and parts <= _MOVES
        state = "Name: state." in inputs or "Name: next_state." in outputs
        counts["kernels"] += 1
        counts["products"] += kind in ("correlation", "gemm", "runtime_fusion") or "gemm" in name
        counts["casts"] += "Cast" in parts
        counts["moves"] += moves
        counts["state_kernels"] += state
        counts["state_moves"] += state and moves
    return Layers(**{name: counts[name] for name in Layers.__annotations__})


def inspect(trt: Any, graph: GraphSpec, path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Builds a graph for one size, and returns time, bytes and counts of layers."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # no types
        text = ""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if msg.startswith("Layers:") or "\nName: " in msg:
                self.text += msg

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path / graph.file))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for name, shape in input_shapes(graph, 1, LATENTS, *size).items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    began = time.process_time()
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    built = {"seconds": time.process_time() - began, "bytes": int(engine.nbytes)}
    return {**built, **asdict(count_layers(logger.text))}


def build_ranges(path: Path) -> dict[str, dict[str, Any]]:
    """Builds the engines of `wfvae build` without options. Returns time and bytes by graph."""
    trt, marks = TensorRT.load(RTX), {}

    def progress(stage: str, done: int, total: int) -> None:
        marks.setdefault(stage.partition(":")[0], time.process_time())

    report = build_engines(path, BuildSettings(), portable_target(RTX, trt.version), trt, progress=progress)
    ends = [*list(marks.values())[1:], time.process_time()]
    seconds = {graph: end - begin for (graph, begin), end in zip(marks.items(), ends, strict=True)}
    return {
        record.graph: {"seconds": seconds[record.graph], "bytes": record.bytes} for record in report.built
    }


def measure(options: Any) -> Iterator[dict[str, Any]]:
    """Yields a row per model, precision and graph."""
    import tensorrt_rtx

    for name, precision in itertools.product(options.models, options.precisions):
        preset = WFVAE.from_pretrained(name) if name == "tiny" else WFVAE.random(WFVAEConfig.preset(name), 0)
        with exported(preset, precision=precision, direct=True) as (path, manifest):
            ranges = build_ranges(path) if options.ranges else {}
            for key, graph in manifest.graphs.items():
                row = inspect(tensorrt_rtx, graph, path, options.size)
                found = {"model": name, "precision": precision, "graph": key, **row}
                yield {**found, "ranges": ranges.get(key)}


def main(arguments: list[str] | None = None) -> int:
    parser = CommandLine(__doc__, "rtx-engines.json")
    presets = get_args(Preset)
    parser.add_argument("--models", nargs="+", choices=presets, default=["tiny"], help="presets")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--size", type=parse_size, default=(256, 256), help="HxW of the one size")
    parser.add_argument("--ranges", action="store_true", help="also build for the default sizes")
    options = parser.parse_args(arguments)
    rows = list(measure(options))
    builder = TensorRT.load(RTX).version
    finish(options, "rtx-engines", builder=builder, size=options.size, latents=LATENTS, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
