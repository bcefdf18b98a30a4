"""Writes ONNX nodes and constants: the graph under construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from wfvae.export.symbolic import Length, Size, product, simplify

Shape = tuple[Length, ...]


def onnx_type(dtype: torch.dtype) -> int:
    """Returns ONNX's number of a torch type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))


class Value:
    """A tensor of the graph: its name, symbolic shape and type."""

    def __init__(self, name: str, shape: Sequence[Length], dtype: torch.dtype) -> None:
        self.name = name
        self.shape: Shape = tuple(simplify(size) for size in shape)
        self.dtype = dtype


class GraphBuilder:
    """Collects the nodes and constants of a graph.

    Args:
        module: network whose parameters and buffers keep their names as constants.
    """

    def __init__(self, module: nn.Module) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}
        """Initializers by name. Those that are the module's weights refer to its memory."""
        self.bytes: dict[str, Size] = {}
        """Size of every tensor that a node makes."""
        self.inputs: list[Value] = []
        self._results: dict[Any, Value] = {}
        self._integers: dict[tuple[int, ...], Value] = {}
        self._counts: dict[str, int] = {}
        self.scopes: list[str] = [""]
        """Paths of the modules that run; the last one begins the names of nodes."""
        self._names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}

    def add_input(self, name: str, shape: Sequence[Length], dtype: torch.dtype) -> Value:
        """Declares a graph input."""
        self.inputs.append(Value(name, shape, dtype))
        return self.inputs[-1]

    def emit(
        self,
        operator: str,
        inputs: Sequence[Value],
        shape: Sequence[Length],
        dtype: torch.dtype,
        **attributes: Any,
    ) -> Value:
        """Adds a node, or finds the one that already computes this."""
        names = [value.name for value in inputs]
        key = (operator, tuple(names), repr(sorted(attributes.items())))
        if key not in self._results:
            stem = f"{self.scopes[-1]}/{operator}".removeprefix("/")
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{count}"
            self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
            self._results[key] = Value(name, shape, dtype)
            self.bytes[name] = (product(self._results[key].shape) * dtype.itemsize).bound
        return self._results[key]

    def keep_only(self, results: Sequence[Value]) -> None:
        """Drops the nodes and constants on which no result depends. Record nothing afterwards."""
        wanted = {value.name for value in results}
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in wanted}

    def name_of(self, tensor: Tensor) -> str | None:
        """Returns the name of one of the module's tensors, or of another that was named."""
        return self._names.get(id(tensor))

    def name_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Names tensors. The caller keeps them alive, since their identity stands for the name."""
        self._names |= {id(tensor): name for name, tensor in tensors.items()}

    def constant(self, tensor: Tensor) -> Value:
        """Adds a constant: a named tensor, a time tap of one, or a small value."""
        name = self.name_of(tensor)
        base = tensor._base
        if name is None and base is not None and base.ndim == 5 and (whole := self.name_of(base)):
            name = f"{whole}.tap{(tensor.storage_offset() - base.storage_offset()) // base.stride(2)}"
        if name is None:
            kind, sides = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
            name = f"constant/{kind}[{sides}]/{','.join(map(str, tensor.flatten().tolist()))}"
        self.constants[name] = tensor.detach()
        return Value(name, tuple(tensor.shape), tensor.dtype)

    def integers(self, values: Sequence[int]) -> Value:
        """Adds a constant vector of 64-bit integers."""
        key = tuple(values)
        if key not in self._integers:
            self._integers[key] = self.constant(torch.tensor(key, dtype=torch.int64))
        return self._integers[key]
