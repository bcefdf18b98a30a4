"""How OpenVINO holds the state of streams: in the type and the order of axes that a graph computes
in, whatever the bundle's specification has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from wfvae.runtime.backends.base import Array
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.stream import StateSpec

_VOLUME = [0, 2, 1, 3, 4]
"""Frames (B, T, C, H, W) as a volume (B, C, T, H, W), and back."""


@dataclass(frozen=True)
class HeldState:
    """How a state tensor is held."""

    spec: StateSpec
    element_type: Any
    """bfloat16 for float32 where the graph computes in it."""
    volume: bool
    """Whether frames are held as (B, C, T, H, W)."""

    @property
    def narrowed(self) -> bool:
        """Whether float32 is held in bfloat16."""
        return self.spec.dtype == "float32" and _is_bfloat16(self.element_type)

    def allocate(self, initial: Array) -> Any:
        """Returns a tensor with these values, which have the specification's shape and type."""
        import openvino

        shape = np.swapaxes(initial, 1, 2).shape if self.volume else initial.shape
        tensor = openvino.Tensor(self.element_type, openvino.Shape(list(shape)))
        self.write(tensor, initial)
        return tensor

    def read(self, tensor: Any) -> Array:
        """Returns a copy as the specification has it, bfloat16 as its bits."""
        held = bits(tensor)
        if self.narrowed:
            held = held.view(bfloat16).astype(np.float32)
        return np.swapaxes(held, 1, 2).copy() if self.volume else held.copy()

    def write(self, tensor: Any, array: Array) -> None:
        """Replaces the values by some as `read` returns them."""
        held = np.swapaxes(array, 1, 2) if self.volume else array
        bits(tensor)[...] = held.astype(bfloat16).view(np.uint16) if self.narrowed else held


def hold_states(model: Any, graph: GraphSpec, *, narrow: bool) -> tuple[Any, dict[str, HeldState]]:
    """Returns the model with inputs and outputs that take the state as it computes it.

    A graph that transposes its state to volumes gets volumes; both transposes then vanish.

    Args:
        narrow: hold float32 in bfloat16. OpenVINO computes in float32 between a float32 output and
            the convolutions before it. State leaves the network everywhere, so a step would compute
            nearly all but the convolutions in float32: slower, and with other roundings than the
            direct graph, which has no state.

    Returns:
        The model, and how each state tensor is held.
    """
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    processor, held = PrePostProcessor(model), {}
    for spec in graph.states:
        own = model.input(spec.input)
        narrowed = narrow and spec.dtype == "float32"
        element_type = Type.bf16 if narrowed else own.get_element_type()
        held[spec.name] = state = HeldState(spec, element_type, _becomes_volume(own))
        for port in (processor.input(spec.input), processor.output(spec.output)):
            if narrowed:
                port.tensor().set_element_type(Type.bf16)
            if state.volume:
                port.tensor().set_layout(Layout("NCDHW"))
                port.model().set_layout(Layout("NDCHW"))
    return processor.build(), held


def bits(tensor: Any) -> Array:
    """Returns a tensor's memory, bfloat16 as bits in uint16."""
    array: Array = tensor.data
    return array.view(np.uint16) if _is_bfloat16(tensor.get_element_type()) else array


def _is_bfloat16(element_type: Any) -> bool:
    return bool(element_type.get_type_name() == "bf16")


def _becomes_volume(state: Any) -> bool:
    """Whether all that reads an input of a model transposes frames to a volume."""
    users = [target.get_node() for target in state.get_target_inputs()]
    orders = [_order(user) for user in users if user.get_type_name() == "Transpose"]
    return bool(users) and orders == [_VOLUME] * len(users)


def _order(transpose: Any) -> list[int]:
    return [int(axis) for axis in transpose.input_value(1).get_node().data]
