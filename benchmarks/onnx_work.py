"""What an ONNX graph computes for inputs of given sizes: operations of arithmetic and bytes moved,
per operator.

Counted from the graph alone, without running it. A multiplication and an addition are two
operations, as is the custom:

    Conv            2 x outputs x (input channels / groups) x kernel positions
    ConvTranspose   2 x inputs x (output channels / groups) x kernel positions
    MatMul, Gemm    2 x M x N x K, for every matrix of the batch

All else is counted as 0 operations and by the bytes that it reads and writes, as if no operator
were fused with another. Padding counts as if it were data. Operators that only give memory another
shape move nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

_VIEWS = frozenset(
    {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Shape", "Constant", "ConstantOfShape", "Flatten"}
)
_PICKS = frozenset({"Slice", "Gather"})
"""Operators that read only what they write."""
_SMALL = 256
"""Elements up to which a tensor may be one of sizes and indices, which are computed here so that
shapes become known.
"""


@dataclass(frozen=True)
class OperatorWork:
    """Of all nodes of one operator."""

    nodes: int
    flop: int
    bytes: int


@dataclass(frozen=True)
class Convolution:
    """A convolution of a graph, and how often it is there."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    flop: int
    """Of one."""
    bytes: int
    """Of one."""
    count: int

    @property
    def name(self) -> str:
        """For tables: input and kernel."""
        return f"{'x'.join(map(str, self.x))} by {'x'.join(map(str, self.weight))}"


@dataclass(frozen=True)
class GraphWork:
    """Of a whole graph."""

    operators: dict[str, OperatorWork]
    convolutions: tuple[Convolution, ...]
    """Different ones, the most expensive in all first."""

    @property
    def flop(self) -> int:
        return sum(work.flop for work in self.operators.values())

    @property
    def bytes(self) -> int:
        return sum(work.bytes for work in self.operators.values())


def count_file(path: Path, sizes: Mapping[str, int]) -> GraphWork:
    """The work of a bundle's graph; weights are not read. `sizes` gives the symbols of its inputs'
    shapes, see `count_work`.
    """
    return count_work(onnx.load(str(path), load_external_data=False), sizes)


def count_work(model: onnx.ModelProto, sizes: Mapping[str, int]) -> GraphWork:
    """The work of `model`, with every symbol of its inputs' shapes replaced by its size.

    Raises:
        ValueError: a symbol has no size, or the shape of a tensor cannot be inferred.
    """
    model = _with_sizes(model, sizes)
    tensors = _tensors(model)
    found: dict[str, list[int]] = {}
    convolutions: Counter[tuple[Any, ...]] = Counter()
    for node in model.graph.node:
        flop = _flop(node, tensors)
        moved = _bytes(node, tensors)
        total = found.setdefault(node.op_type, [0, 0, 0])
        for index, value in enumerate((1, flop, moved)):
            total[index] += value
        if node.op_type == "Conv":
            attributes = tuple(
                sorted((a.name, _plain(helper.get_attribute_value(a))) for a in node.attribute)
            )
            read_and_written = sum(
                tensors[name][1] for name in (*node.input[:2], *node.output)
            )  # the same with bias and without
            convolutions[
                tensors[node.input[0]][0], tensors[node.input[1]][0], attributes, flop, read_and_written
            ] += 1
    ordered = sorted(convolutions.items(), key=lambda item: -item[0][3] * item[1])
    return GraphWork(
        {
            name: OperatorWork(*values)
            for name, values in sorted(found.items(), key=lambda item: (-item[1][1], -item[1][2]))
        },
        tuple(Convolution(*key, count) for key, count in ordered),
    )


def step_sizes(ratio: int, latents: int, height: int, width: int, batch: int = 1) -> dict[str, int]:
    """The symbols of a step graph."""
    return {"frames": ratio * latents, "latents": latents, **_common(height, width, batch)}


def direct_sizes(ratio: int, frames: int, height: int, width: int, batch: int = 1) -> dict[str, int]:
    """The symbols of a direct graph."""
    return {"frames": frames, "latents": 1 + (frames - 1) // ratio, **_common(height, width, batch)}


def _common(height: int, width: int, batch: int) -> dict[str, int]:
    sides = {"height": height, "width": width}
    return {
        "batch": batch,
        **sides,
        **{f"{name}/{k}": side // k for name, side in sides.items() for k in (2, 4, 8)},
    }


def _with_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy with fixed inputs, in which sizes and indices that follow from them are constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                if dim.dim_param not in sizes:
                    raise ValueError(
                        f"the input {value.name} has the size '{dim.dim_param}', which was not given; given"
                        f" are {list(sizes)}"
                    )
                dim.dim_value = sizes[dim.dim_param]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    while _fold(copy):
        pass
    return copy


def _fold(model: onnx.ModelProto) -> bool:
    """Replaces nodes whose small results follow from known shapes and constants. Whether there were
    any.
    """
    graph = model.graph
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*inferred.value_info, *graph.input)}
    constants = {
        t.name: numpy_helper.to_array(t)
        for t in graph.initializer
        if not t.external_data and math.prod(t.dims) <= _SMALL
    }
    kept, folded = [], []
    for node in graph.node:
        value: np.ndarray[Any, Any] | None = None
        if node.op_type == "Shape" and shapes.get(node.input[0]) is not None:
            first, last = (
                next((a.i for a in node.attribute if a.name == name), None) for name in ("start", "end")
            )
            value = np.array(shapes[node.input[0]], np.int64)[first:last]
        elif (
            len(node.output) == 1
            and all(name in constants for name in node.input if name)
            and node.op_type != "Constant"
        ):
            value = np.asarray(_evaluate(node, constants, model)[0])
        elif node.op_type == "Constant":
            value = np.asarray(_evaluate(node, {}, model)[0])
        if value is None or value.size > _SMALL:
            kept.append(node)
        else:
            constants[node.output[0]] = value
            folded.append(
                numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), node.output[0])
            )
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(folded)
    return bool(folded)


def _evaluate(node: onnx.NodeProto, constants: Mapping[str, Any], model: onnx.ModelProto) -> list[Any]:
    inputs = [name for name in node.input if name]
    infos = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(constants[n].dtype), constants[n].shape
        )
        for n in inputs
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    graph = helper.make_graph([node], "one", infos, outputs)
    single = helper.make_model(graph, opset_imports=list(model.opset_import))
    return list(ReferenceEvaluator(single).run(None, {name: constants[name] for name in inputs}))


def _tensors(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes of every tensor. Raises `ValueError` naming one that is not known."""
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    found = {t.name: (tuple(t.dims), math.prod(t.dims) * _width(t.data_type)) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = _shape(value)
        if shape is not None:
            found[value.name] = (shape, math.prod(shape) * _width(value.type.tensor_type.elem_type))
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name and name not in found:
                raise ValueError(
                    f"the shape of {name}, of the {node.op_type} {node.name}, does not follow from the"
                    " inputs' sizes"
                )
    return found


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _width(data_type: int) -> int:
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize)


def _bytes(node: onnx.NodeProto, tensors: Mapping[str, tuple[tuple[int, ...], int]]) -> int:
    if node.op_type in _VIEWS:
        return 0
    written = sum(tensors[name][1] for name in node.output if name)
    if node.op_type in _PICKS:
        return 2 * written
    return written + sum(tensors[name][1] for name in node.input if name)


def _flop(node: onnx.NodeProto, tensors: Mapping[str, tuple[tuple[int, ...], int]]) -> int:
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = tensors[node.input[1]][0]
        # Either way the second axis of the weight is what one group has on the other side.
        samples = tensors[node.output[0] if node.op_type == "Conv" else node.input[0]][0]
        return 2 * math.prod(samples) * math.prod(weight[1:])
    if node.op_type == "MatMul":
        return 2 * math.prod(tensors[node.output[0]][0]) * tensors[node.input[0]][0][-1]
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return 2 * math.prod(tensors[node.output[0]][0]) * tensors[node.input[0]][0][0 if transposed else 1]
    return 0


def _plain(value: Any) -> Any:
    """An attribute's value as something that can be a key."""
    return (
        tuple(value)
        if isinstance(value, (list, tuple))
        else value.decode()
        if isinstance(value, bytes)
        else value
    )
