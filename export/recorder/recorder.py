"""The graph under construction: nodes, constants and their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from wfvae.export.forms import FORMS
from wfvae.export.forms.form import Form, Unpaired
from wfvae.export.symbolic import Length, Size, product, simplify
from wfvae.spec.onnx_file import OPERATORS

Shape = tuple[Length, ...]
FilterStore = dict[tuple[str, str], dict[str, Tensor]]
"""Transformed filters by weight and form, then by their own names."""


def onnx_type(dtype: torch.dtype) -> int:
    """Returns ONNX's number of a torch type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))


@lru_cache(4096)  # a graph has thousands of tensors of few shapes
def _bytes_of(shape: Shape, itemsize: int) -> Size:
    return (product(shape) * itemsize).bound


class Value:
    """A tensor of the graph: its name, symbolic shape and type."""

    def __init__(self, name: str, shape: Sequence[Length], dtype: torch.dtype) -> None:
        self.name = name
        self.shape: Shape = tuple(simplify(size) for size in shape)
        self.dtype = dtype

    @property
    def stored(self) -> Value:
        """The tensor in the layout of its shape, for operators that know no other."""
        return self


class Recorder:
    """Collects the nodes and constants of what a module computes on `TracedTensor` inputs.

    Args:
        module: the network, in eval mode; its parameters and buffers keep their names as constants.
        convolutions: a key of `wfvae.export.forms.FORMS`.
        unpaired: the frame of a whole clip without a partner (`wfvae.export.forms.form`).
        filters: transformed filters that other graphs of the module left; new ones are added.
        empty_tensors: whether tensors may be empty at some sizes.
    """

    def __init__(
        self,
        module: nn.Module,
        convolutions: str = "plain",
        unpaired: Unpaired = "first",
        filters: FilterStore | None = None,
        empty_tensors: bool = True,
    ) -> None:
        self.forms = FORMS[convolutions]
        self.unpaired = unpaired
        self.empty_tensors = empty_tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}
        """Initializers by name. Those that are the module's weights refer to its memory."""
        self.bytes: dict[str, Size] = {}
        """Size of every tensor that a node makes."""
        self.inputs: list[Value] = []
        self.symbols: dict[str, Value] = {}
        """Computed values of symbols (`wfvae.export.recorder.shapes`)."""
        self.scopes: list[str] = [""]
        """Paths of the modules that run; the last one begins the names of nodes."""
        self._results: dict[Any, Value] = {}
        self._integers: dict[tuple[Length, ...], Value] = {}
        self._counts: dict[str, int] = {}
        self._filters: FilterStore = {} if filters is None else filters
        self._names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
        self._paths = {id(child): path for path, child in module.named_modules()}

    @property
    def volumes(self) -> bool:
        """Whether frames are held as (B, C, T, H, W) (`wfvae.export.recorder.volumes`)."""
        return self.forms.volumes

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Names the nodes recorded inside after the module that runs."""

        def enter(module: nn.Module, _: Any) -> None:
            self.scopes.append(self._paths.get(id(module), self.scopes[-1]))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.scopes.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            with torch.no_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()

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
        names = [value.stored.name for value in inputs]
        key = (operator, tuple(names), repr(sorted(attributes.items())))
        if key not in self._results:
            stem = f"{self.scopes[-1]}/{operator}".removeprefix("/")
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{count}"
            assert operator in OPERATORS, f"the runtime refuses graphs with {operator}"
            self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
            self._results[key] = Value(name, shape, dtype)
            self.bytes[name] = _bytes_of(self._results[key].shape, dtype.itemsize)
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

    def constant(self, tensor: Tensor) -> Value:
        """Adds a constant: a tensor of the module, a time tap of one, a filter or a small value."""
        name, base = self._names.get(id(tensor)), tensor._base
        if name is None and base is not None and (whole := self._names.get(id(base))):
            if base.ndim == 5:
                name = f"{whole}.tap{(tensor.storage_offset() - base.storage_offset()) // base.stride(2)}"
                name += ".volume" if tensor.ndim == 5 else ""
            elif tensor.numel() == base.numel():
                name = f"{whole}.volume"
        if name is None:
            kind, sides = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
            name = f"constant/{kind}[{sides}]/{','.join(map(str, tensor.flatten().tolist()))}"
        self.constants[name] = tensor.detach()
        return Value(name, tuple(tensor.shape), tensor.dtype)

    def integers(self, values: Sequence[Length]) -> Value:
        """Adds a constant vector of 64-bit integers, of which a graph has few different ones."""
        key = tuple(values)
        if key not in self._integers:
            self._integers[key] = self.constant(torch.tensor(values, dtype=torch.int64))
        return self._integers[key]

    def filters(self, weight: Tensor, form: Form) -> list[Tensor]:
        """Returns the form's filters of a weight, made once for all graphs and named after it."""
        path = self._names[id(weight)]
        key = path, form.name
        if key not in self._filters:
            self._filters[key] = {f"{path}.{name}": part for name, part in form.filters(weight).items()}
        self._names |= {id(part): name for name, part in self._filters[key].items()}
        return list(self._filters[key].values())
