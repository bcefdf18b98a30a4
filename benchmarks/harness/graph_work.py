"""What an exported graph computes, from the shapes that ONNX Runtime reports in one run."""

from __future__ import annotations

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
    attributes: tuple[tuple[str, Any], ...]
    flop: int
    """A multiplication and an addition are two."""

    @property
    def name(self) -> str:
        """The inputs' shapes, for tables."""
        return " by ".join("x".join(map(str, shape)) for shape in self.inputs)


def count_operations(graph: Path, feeds: Mapping[str, Any]) -> list[Operation]:
    """Runs a graph as it is written, not optimised, and returns its convolutions and products."""
    nodes = {node.name: node for node in onnx.load(str(graph), load_external_data=False).graph.node}
    found = []
    for event in _profile(graph, feeds):
        name, op = event["name"].removesuffix("_kernel_time"), event.get("args", {}).get("op_name")
        if op not in ("Conv", "ConvTranspose", "MatMul") or not event["name"].endswith("_kernel_time"):
            continue
        inputs, outputs = (
            tuple(_shape(entry) for entry in event["args"][key])
            for key in ("input_type_shape", "output_type_shape")
        )
        attributes = tuple(
            (attribute.name, _hashable(helper.get_attribute_value(attribute)))
            for attribute in nodes[name].attribute
        )
        found.append(Operation(op, inputs[:2], attributes, _flop(op, inputs, outputs[0])))
    return found


def _profile(graph: Path, feeds: Mapping[str, Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
        return events


def _shape(entry: Mapping[str, list[int]]) -> Shape:
    [shape] = entry.values()  # by element type
    return tuple(shape)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flop(op: str, inputs: tuple[Shape, ...], output: Shape) -> int:
    if op == "MatMul":
        return 2 * math.prod(output) * inputs[0][-1]
    # Either way the second axis of the weight is what one group has on the other side.
    samples = output if op == "Conv" else inputs[0]
    return 2 * math.prod(samples) * math.prod(inputs[1][1:])
