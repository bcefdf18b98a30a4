"""Step graphs in the shapes that Triton takes: every tensor that has a batch axis only gets a
second one of size 1.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ValueInfoProto, helper, numpy_helper

_AXIS = "triton/axis"
_INNER = "triton/"


def with_second_axis(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which `start`, `end` and counters are (batch, 1), under the same names. No value
    changes.

    Triton hands over control inputs as (batch, 1) and knows no state without a dimension of its
    own. Weights may stay external: they are not read.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    inputs = [value for value in graph.input if _is_flat(value)]
    outputs = [value for value in graph.output if _is_flat(value)]
    if not inputs and not outputs:
        return result
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), _AXIS))
    inner = {value.name: _INNER + value.name for value in (*inputs, *outputs)}
    for node in graph.node:
        for fields in (node.input, node.output):
            for index, name in enumerate(fields):
                fields[index] = inner.get(name, name)
    before = [
        helper.make_node("Squeeze", [value.name, _AXIS], [inner[value.name]], name=inner[value.name])
        for value in inputs
    ]
    after = [
        helper.make_node("Unsqueeze", [inner[value.name], _AXIS], [value.name], name=inner[value.name])
        for value in outputs
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*inputs, *outputs):
        value.type.tensor_type.shape.dim.add(dim_value=1)
    return result


def _is_flat(value: ValueInfoProto) -> bool:
    return len(value.type.tensor_type.shape.dim) == 1
