"""Layer norms for OpenVINO without transposes.

A bundle's graph transposes frames so that channels come last, as ONNX's LayerNormalization wants
them, and back. OpenVINO's convolutions have channels last in memory anyway, so that each norm would
cost two copies (docs/performance.md has the times). Rewritten, a norm is a few means over channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

_CHANNELS = 1
_CHANNELS_LAST, _CHANNELS_BACK = [0, 2, 3, 1], [0, 3, 1, 2]
"""(N, C, H, W) as (N, H, W, C), and back."""


@dataclass(frozen=True)
class _TurnedNorm:
    """A norm between two transposes."""

    images: Any
    """Its input (N, C, H, W)."""
    epsilon: float
    scale: Any
    shift: Any
    result: Any
    """The output to replace."""


def rewrite_norms(model: Any, *, coarse: bool) -> int:
    """Rewrites each norm over the channels of images (N, C, H, W) of an `openvino.Model`, in place.

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
        norm.result.replace(_norm(norm, 2 if coarse else 1))
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
    orders, axes = [_listed(turned), _listed(back)], _listed(norm)
    scale, shift, about = _constant(scaled), _constant(shifted), norm.get_attributes()
    if orders != [_CHANNELS_LAST, _CHANNELS_BACK] or axes not in ([-1], [3]):
        return None
    if scale is None or shift is None:
        return None
    if not about["normalize_variance"] or about["eps_mode"].lower() != "inside_sqrt":
        return None
    return _TurnedNorm(turned.input_value(0), about["eps"], scale, shift, back.output(0))


def _norm(norm: _TurnedNorm, centrings: int) -> Any:
    """Adds nodes that compute the same norm over axis 1, and returns their output."""
    from openvino import opset13 as op

    channels, centred = op.constant(np.array([_CHANNELS])), norm.images
    for _ in range(centrings):
        centred = op.subtract(centred, op.reduce_mean(centred, channels, keep_dims=True))
    variance = op.reduce_mean(op.multiply(centred, centred), channels, keep_dims=True)
    deviation = op.sqrt(op.add(variance, op.constant(np.float32(norm.epsilon))))
    unit = op.multiply(centred, op.divide(op.constant(np.float32(1)), deviation))
    scale, shift = (op.constant(values.reshape(1, -1, 1, 1)) for values in (norm.scale, norm.shift))
    return op.add(op.multiply(unit, scale), shift).output(0)


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
