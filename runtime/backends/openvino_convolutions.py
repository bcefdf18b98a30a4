"""3-D convolutions for OpenVINO in fp32, as sums over time taps.

In fp32, OpenVINO's 3-D convolution of some shapes sums in an order that depends on how many frames
share a call, so that chunks would change the bits. Its convolutions over height and width do not.
In bf16 with AMX the 3-D convolution is exact, and the faster one (docs/performance.md).
"""

from typing import Any

import numpy as np

_TIME = 2
"""The axis of time in volumes (B, C, T, H, W) and in weights (C', C, t, s, s)."""
_TO_END = np.iinfo(np.int64).max


def split_time_taps(model: Any) -> int:
    """Replaces each 3-D convolution of an `openvino.Model` by a sum of one per time tap, in place.

    Those with a padding in time are left alone; a bundle has none.

    Returns:
        The number of convolutions that were replaced.
    """
    found = [node for node in model.get_ordered_ops() if _has_time_taps(node)]
    for node in found:
        # With the bias last, results of a single position would depend on the number of frames.
        biased = _bias_of(node)
        result, bias = (node, None) if biased is None else biased
        result.output(0).replace(_sum_of_taps(node, bias))
    model.validate_nodes_and_infer_types()
    return len(found)


def _has_time_taps(node: Any) -> bool:
    if node.get_type_name() != "Convolution" or node.get_output_partial_shape(0).rank.get_length() != 5:
        return False
    about = node.get_attributes()
    padded = about["pads_begin"][0] or about["pads_end"][0]
    return _taps(node) > 1 and not padded


def _taps(node: Any) -> int:
    return int(node.input_value(1).get_partial_shape()[_TIME].get_length())


def _bias_of(node: Any) -> tuple[Any, Any] | None:
    """Returns the addition of a constant to a convolution's result, and the constant."""
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    if len(users) != 1 or users[0].get_type_name() != "Add":
        return None
    others = [value for value in users[0].input_values() if value.get_node().get_type_name() == "Constant"]
    return (users[0], others[0]) if others else None


def _sum_of_taps(node: Any, bias: Any | None) -> Any:
    """Adds one convolution per tap, on the frames that it sees; returns their sum and the bias."""
    from openvino import opset13 as op

    frames, weight = node.input_value(0), node.input_value(1)
    about, taps = node.get_attributes(), _taps(node)
    stride, *strides = about["strides"]
    total: Any = bias  # added to the first tap
    for tap in range(taps):
        seen = _slice(frames, tap, tap - taps + 1 or _TO_END, stride)
        part = op.convolution(
            seen,
            _slice(weight, tap, tap + 1, 1),
            [1, *strides],
            about["pads_begin"],
            about["pads_end"],
            about["dilations"],
        )
        total = part if total is None else op.add(part, total)
    return total.output(0)


def _slice(values: Any, start: int, stop: int, step: int) -> Any:
    from openvino import opset13 as op

    bounds = (op.constant(np.array([bound], np.int64)) for bound in (start, stop, step, _TIME))
    return op.slice(values, *bounds)
