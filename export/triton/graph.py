"""Step graphs in the shapes that Triton accepts: a tensor that has only a batch axis gets a second
one of size 1.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_AXIS = "triton/axis"
_INNER = "triton/"


def with_second_axis(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which `start`, `end` and counters are (batch, 1), under the same names.

    Triton passes control inputs as (batch, 1), and has no state without a dimension of its own. No
    value changes, and external weights are not read.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    flat_inputs, flat_outputs = (
        [value for value in values if len(value.type.tensor_type.shape.dim) == 1]
        for values in (graph.input, graph.output)
    )
    flat = [*flat_inputs, *flat_outputs]
    if not flat:
        return result
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), _AXIS))
    inner = {value.name: _INNER + value.name for value in flat}
    for node in graph.node:
        for fields in (node.input, node.output):
            for index, name in enumerate(fields):
                fields[index] = inner.get(name, name)
    nodes = list(graph.node)
    for value in reversed(flat_inputs):
        name = inner[value.name]
        nodes.insert(0, helper.make_node("Squeeze", [value.name, _AXIS], [name], name=name))
    for value in flat_outputs:
        name = inner[value.name]
        nodes.append(helper.make_node("Unsqueeze", [name, _AXIS], [value.name], name=name))
    del graph.node[:]
    graph.node.extend(nodes)
    for value in flat:
        value.type.tensor_type.shape.dim.add(dim_value=1)
    return result
