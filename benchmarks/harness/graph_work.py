"""What an exported graph computes, from the shapes that ONNX Runtime reports in one run."""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A node that multiplies, with the shapes that it ran with."""

    op: str
    inputs: tuple[Shape, ...]
    output: Shape
    attributes: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """The inputs' shapes, for tables."""
        return " by ".join("x".join(map(str, shape)) for shape in self.inputs)

    @property
    def flop(self) -> int:
        """Operations; a multiplication and an addition are two."""
        if self.op == "MatMul":
            return 2 * math.prod(self.output) * self.inputs[0][-1]
        # Either way the second axis of the weight is what one group has on the other side.
        samples = self.output if self.op == "Conv" else self.inputs[0]
        return 2 * math.prod(samples) * math.prod(self.inputs[1][1:])


def count_operations(graph: Path, feeds: Mapping[str, Any]) -> list[Operation]:
    """Runs a graph as it is written, not optimised, and returns its convolutions and products."""
    nodes = {node.name: node for node in onnx.load(str(graph), load_external_data=False).graph.node}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    found = []
    for event in events:
        name, op = event["name"].removesuffix("_kernel_time"), event.get("args", {}).get("op_name")
        if op in ("Conv", "ConvTranspose", "MatMul") and name != event["name"]:
            inputs, outputs = (_shapes(event["args"][f"{way}_type_shape"]) for way in ("input", "output"))
            values = {one.name: helper.get_attribute_value(one) for one in nodes[name].attribute}
            attributes = ((key, tuple(v) if isinstance(v, list) else v) for key, v in values.items())
            found.append(Operation(op, inputs[:2], outputs[0], tuple(attributes)))
    return found


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    """Returns the shapes of a profile's {element type: shape}."""
    return tuple(tuple(shape) for entry in entries for shape in entry.values())
