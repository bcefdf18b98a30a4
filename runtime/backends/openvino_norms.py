"""Layer norms for OpenVINO without transposes.

A bundle's graph transposes frames so that channels come last, as ONNX's LayerNormalization wants
them, and back. OpenVINO's convolutions have channels last in memory anyway, so that each norm would
cost two copies (docs/performance.md has the times). Rewritten, a norm is a few means over channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

_CHANNELS = 1
_VOLUME_RANK = 5
_ORDERS = {4: ([0, 2, 3, 1], [0, 3, 1, 2]), _VOLUME_RANK: ([0, 2, 3, 4, 1], [0, 4, 1, 2, 3])}
"""(N, C, H, W) or (B, C, T, H, W) with the channels last, and back."""


@dataclass(frozen=True)
class _TurnedNorm:
    """A norm between two transposes."""

    frames: Any
    """Its input, (N, C, H, W) or (B, C, T, H, W)."""
    epsilon: float
    scale: Any
    shift: Any
    result: Any
    """The output to replace."""


def rewrite_norms(model: Any, *, coarse: bool) -> int:
    """Rewrites each norm over channels in an `openvino.Model`, in place.

    Its input is images (N, C, H, W), or volumes (B, C, T, H, W).

    Norms of another form, such as those of half-precision graphs, are left alone.

    Args:
        coarse: the model will be computed in bfloat16, where one subtraction of the mean is not
            exact enough: the mean of the result is subtracted, too. Results are then about as close
            to the definition as those of OpenVINO's own norm (docs/openvino.md).

    Returns:
        The number of norms that were rewritten.
    """
    _fold_constants(model)  # the axes of a norm are computed by an operation
    found = [norm for node in model.get_ordered_ops() if (norm := _turned_norm(node)) is not None]
    for norm in found:
        norm.result.replace(_norm(norm, coarse=coarse))
    model.validate_nodes_and_infer_types()
    return len(found)


def _turned_norm(norm: Any) -> _TurnedNorm | None:
    """Matches Transpose, a norm over the last axis, a scale, a shift, and Transpose back."""
    if norm.get_type_name() != "MVN":
        return None
    scaled = _only_user(norm)
    shifted = scaled and _only_user(scaled)
    back: Any = shifted and _only_user(shifted)
    turned = norm.input_value(0).get_node()
    kinds = [node and node.get_type_name() for node in (turned, scaled, shifted, back)]
    if kinds != ["Transpose", "Multiply", "Add", "Transpose"]:
        return None
    orders, axes = (_listed(turned), _listed(back)), _listed(norm)
    rank = turned.get_output_partial_shape(0).rank.get_length()
    scale, shift, about = _constant(scaled), _constant(shifted), norm.get_attributes()
    if orders != _ORDERS.get(rank) or axes not in ([-1], [rank - 1]):
        return None
    if scale is None or shift is None:
        return None
    if not about["normalize_variance"] or about["eps_mode"].lower() != "inside_sqrt":
        return None
    return _TurnedNorm(turned.input_value(0), about["eps"], scale, shift, back.output(0))


def _norm(norm: _TurnedNorm, *, coarse: bool) -> Any:
    """Adds nodes that compute the same norm over axis 1, and returns their output."""
    from openvino import opset13 as op

    rank = norm.frames.get_partial_shape().rank.get_length()
    centred = op.subtract(norm.frames, _mean(norm.frames))
    if rank == _VOLUME_RANK:
        # What is left of the mean is too small to be seen in the variance. It is subtracted where
        # the frames are scaled, without a pass of its own.
        variance = _mean_of_squares(centred)
        centred = op.subtract(centred, _mean(centred)) if coarse else centred
    else:
        centred = op.subtract(centred, _mean(centred)) if coarse else centred
        variance = _mean(op.multiply(centred, centred))
    deviation = op.sqrt(op.add(variance, op.constant(np.float32(norm.epsilon))))
    unit = op.multiply(centred, op.divide(op.constant(np.float32(1)), deviation))
    by_channel = (1, -1, *[1] * (rank - 2))
    scale, shift = (op.constant(values.reshape(by_channel)) for values in (norm.scale, norm.shift))
    return op.add(op.multiply(unit, scale), shift).output(0)


def _mean(values: Any) -> Any:
    from openvino import opset13 as op

    return op.reduce_mean(values, op.constant(np.array([_CHANNELS])), keep_dims=True)


def _mean_of_squares(values: Any) -> Any:
    """Reads the values once; a mean of products would also write the products."""
    from openvino import opset13 as op

    count = values.get_output_partial_shape(0)[_CHANNELS].get_length()
    length = op.reduce_l2(values, op.constant(np.array([_CHANNELS])), keep_dims=True)
    squares = op.power(length, op.constant(np.float32(2)))
    return op.multiply(squares, op.constant(np.float32(1 / count)))


def _fold_constants(model: Any) -> None:
    from openvino.passes import ConstantFolding, Manager

    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)


def _only_user(node: Any) -> Any | None:
    users = list(node.output(0).get_target_inputs())
    return users[0].get_node() if len(users) == 1 else None


def _constant(node: Any) -> Any | None:
    """Returns a node's second input as an array, if it is a constant."""
    source = node.input_value(1).get_node()
    return np.asarray(source.data) if source.get_type_name() == "Constant" else None


def _listed(node: Any) -> list[int] | None:
    values = _constant(node)
    return None if values is None else [int(value) for value in values.reshape(-1)]
