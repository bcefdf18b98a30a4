"""Layer norms for OpenVINO without transposes: over the channels where these lie, next to each other in OpenVINO's own memory layout.

A bundle's graph turns frames so that channels come last, as ONNX's LayerNormalization wants them, and back. OpenVINO's convolutions
have channels last in memory anyway, and bring frames into plain order only to have them turned (docs/performance.md has the times).
"""

from __future__ import annotations

from typing import Any

import numpy as np

_CHANNELS = 1
_CHANNELS_LAST = [0, 2, 3, 1]
"""(N, C, H, W) as (N, H, W, C)."""


def norm_in_place(model: Any) -> int:
    """Rewrites each norm over the channels of images (N, C, H, W) of an `openvino.Model`.

    Norms that look otherwise, such as those of half-precision graphs, stay as they are.

    Returns:
        How many were rewritten.
    """
    found = [chain for node in model.get_ordered_ops() if (chain := _turned_norm(node)) is not None]
    for turned, norm, scaled, shifted, back in found:
        back.output(0).replace(_norm(turned.input_value(0), norm, scaled, shifted))
    model.validate_nodes_and_infer_types()
    return len(found)


def _turned_norm(norm: Any) -> tuple[Any, Any, Any, Any, Any] | None:
    """Transpose, norm, times a scale, plus a shift, Transpose: the nodes, if `norm` stands in such a chain."""
    if norm.get_type_name() != "MVN":
        return None
    turned = norm.input_value(0).get_node()
    scaled = _only_user(norm)
    shifted = scaled and _only_user(scaled)
    back = shifted and _only_user(shifted)
    kinds = [node and node.get_type_name() for node in (turned, scaled, shifted, back)]
    if kinds != ["Transpose", "Multiply", "Add", "Transpose"] or _constant(turned) != _CHANNELS_LAST:
        return None
    return turned, norm, scaled, shifted, back


def _norm(images: Any, norm: Any, scaled: Any, shifted: Any) -> Any:
    """The output of new nodes that norm `images` as these nodes norm turned ones."""
    from openvino import opset13 as op

    def per_channel(node: Any) -> Any:
        return op.constant(np.asarray(node.input_value(1).get_node().data).reshape(1, -1, 1, 1))

    channels = op.constant(np.array([_CHANNELS]))
    centred = op.subtract(images, op.reduce_mean(images, channels, keep_dims=True))
    variance = op.reduce_mean(op.multiply(centred, centred), channels, keep_dims=True)
    deviation = op.sqrt(op.add(variance, op.constant(np.float32(norm.get_attributes()["eps"]))))
    unit = op.multiply(centred, op.divide(op.constant(np.float32(1)), deviation))
    result = op.add(op.multiply(unit, per_channel(scaled)), per_channel(shifted))
    result.set_friendly_name(norm.get_friendly_name())
    return result.output(0)


def _only_user(node: Any) -> Any | None:
    users = list(node.output(0).get_target_inputs())
    return users[0].get_node() if len(users) == 1 else None


def _constant(node: Any) -> list[int]:
    """The values of a node's second input."""
    return [int(value) for value in node.input_value(1).get_node().data]
