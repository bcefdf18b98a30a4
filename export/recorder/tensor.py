"""A stand-in for tensors: it records an ONNX node for each operation.

It has the methods of a tensor that the network uses. Functions of torch and of `wfvae.model.ops`
are looked up in `OVERRIDES`, as torch's function-override protocol wants it; any other raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import torch
from torch import Tensor

from wfvae.errors import StreamingError
from wfvae.export.recorder.recorder import Recorder, Value, onnx_type
from wfvae.export.recorder.shapes import size_value, size_vector
from wfvae.export.symbolic import Length, Size, broadcast, product, simplify, slice_length

OVERRIDES: dict[Any, Callable[..., TracedTensor]] = {}
"""What each function does with traced tensors (`wfvae.export.recorder.overrides`)."""
_SLICE_TO_END = (1 << 63) - 1
Override = TypeVar("Override", bound=Callable[..., Any])
Binary: TypeAlias = Callable[["TracedTensor", Any], "TracedTensor"]


def overrides(function: Any) -> Callable[[Override], Override]:
    """Registers the decorated function in `OVERRIDES`."""

    def register(override: Override) -> Override:
        OVERRIDES[function] = override
        return override

    return register


def _operators(name: str, dtype: torch.dtype | None = None) -> tuple[Binary, Binary]:
    """Returns an element-wise operator's method and its reflected one.

    The result has type `dtype`, or that of its operands if None.
    """

    def record(tensor: TracedTensor, left: Any, right: Any) -> TracedTensor:
        operands = [tensor.operand(left, tensor.dtype), tensor.operand(right, tensor.dtype)]
        if operands[0].dtype != operands[1].dtype:
            raise StreamingError(f"{name} of {operands[0].dtype} and {operands[1].dtype} would need a cast")
        return elementwise(name, operands, dtype)

    def method(tensor: TracedTensor, other: Any) -> TracedTensor:
        return record(tensor, tensor, other)

    def reflected(tensor: TracedTensor, other: Any) -> TracedTensor:
        return record(tensor, other, tensor)

    return method, reflected


def elementwise(
    operator: str, operands: Sequence[TracedTensor], dtype: torch.dtype | None = None
) -> TracedTensor:
    """Records an operation on each element; the result has type `dtype`, or the first operand's."""
    return _lead(operands).elementwise(operator, operands, dtype or operands[0].dtype)


def concatenate(parts: Sequence[TracedTensor], axis: int) -> TracedTensor:
    """Records a concatenation."""
    return _lead(parts).concatenate(parts, axis) if len(parts) > 1 else parts[0]


def _lead(tensors: Sequence[TracedTensor]) -> TracedTensor:
    """Returns the tensor that decides in which layout others are combined with it."""
    return max(tensors, key=lambda tensor: tensor.leads)


class TracedTensor(Value):
    """Stands for a tensor of the graph that `recorder` records."""

    leads: ClassVar[bool] = False
    """Whether others take this tensor's layout when they are combined with it."""

    def __init__(self, recorder: Recorder, value: Value) -> None:
        super().__init__(value.name, value.shape, value.dtype)
        self.recorder = recorder
        self.reshaped: TracedTensor | None = None
        """The tensor of which this is another shape."""
        self.unpadded: tuple[TracedTensor, tuple[int, int, int, int]] | None = None
        """The tensor that this is with zeros around it: left, right, top and bottom."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> TracedTensor:
        override = OVERRIDES.get(func)
        if override is None:
            raise StreamingError(f"the export has no ONNX form for {getattr(func, '__name__', func)}")
        return override(*args, **(kwargs or {}))

    def emit(
        self,
        operator: str,
        inputs: Sequence[Value],
        shape: Sequence[Length],
        dtype: torch.dtype | None = None,
        **attributes: Any,
    ) -> TracedTensor:
        """Records a node in this tensor's graph; `dtype` of the result is this tensor's if None."""
        value = self.recorder.emit(operator, inputs, shape, dtype or self.dtype, **attributes)
        return TracedTensor(self.recorder, value)

    def elementwise(
        self, operator: str, operands: Sequence[TracedTensor], dtype: torch.dtype
    ) -> TracedTensor:
        """Records `operator` on tensors, one of which is this."""
        return self.emit(operator, operands, broadcast([value.shape for value in operands]), dtype)

    def concatenate(self, parts: Sequence[TracedTensor], axis: int) -> TracedTensor:
        """Concatenates tensors, one of which is this."""
        shape = list(self.shape)
        shape[axis] = simplify(sum((Size.of(part.shape[axis]) for part in parts), Size.of(0)))
        return self.emit("Concat", parts, shape, axis=axis)

    def constant(self, tensor: Tensor) -> TracedTensor:
        """Returns a constant of this tensor's graph."""
        return TracedTensor(self.recorder, self.recorder.constant(tensor))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    # Shapes

    def __getitem__(self, index: Any) -> TracedTensor:
        result = self
        for axis, entry in enumerate(index if isinstance(index, tuple) else (index,)):
            if entry is None:
                result = result.unsqueeze(axis)
            elif entry != slice(None):
                result = result._slice(axis, entry)
        return result

    def _slice(self, axis: int, entry: slice) -> TracedTensor:
        # Bounds that reach the whole length come in as the length itself.
        start = _constant_bound(entry.start)
        whole = isinstance(entry.stop, Size) and entry.stop == self.shape[axis]
        stop = None if whole else _constant_bound(entry.stop)
        step = entry.step or 1
        if not start and stop is None and step == 1:
            return self
        shape = list(self.shape)
        shape[axis] = slice_length(shape[axis], start, stop, step)
        bounds = [start or 0, _SLICE_TO_END if stop is None else stop, axis, step]
        inputs = [self.recorder.integers([bound]) for bound in bounds[: 4 if step != 1 else 3]]
        return self.emit("Slice", [self, *inputs], shape)

    def unsqueeze(self, axis: int) -> TracedTensor:
        shape = (*self.shape[:axis], 1, *self.shape[axis:])
        return self.emit("Unsqueeze", [self, self.recorder.integers([axis])], shape)

    def reshape(self, *shape: Any) -> TracedTensor:
        target = list(shape[0] if isinstance(shape[0], tuple) else shape)
        if -1 in target:
            known = product(size for size in target if size != -1)
            target[target.index(-1)] = product(self.shape).divide(known)
        target = [simplify(size) for size in target]
        origin = self.reshaped or self
        if tuple(target) == origin.shape:
            return origin if not self.recorder.volumes else origin.remembering(self)
        # Else a size of 0 would stand for the size that the axis had before.
        may_be_empty = any(Size.of(size).smallest <= 0 for size in target)
        zeros: dict[str, Any] = {"allowzero": 1} if may_be_empty else {}
        result = self.emit("Reshape", [origin, size_vector(self.recorder, target)], target, **zeros)
        result.reshaped = origin
        return result

    def remembering(self, frames: TracedTensor) -> TracedTensor:
        """Returns this tensor as another shape of `frames`, which may be wanted as a volume."""
        view = TracedTensor(self.recorder, self)
        view.reshaped = frames
        return view

    def flatten(self, first: int, last: int) -> TracedTensor:
        merged = product(self.shape[first : last + 1])
        return self.reshape(*self.shape[:first], merged, *self.shape[last + 1 :])

    def narrow(self, axis: int, start: int, length: Length) -> TracedTensor:
        """Takes an image's first rows, where a rounded-up half was doubled again.

        No other slice may end at a bound that changes with the clip.
        """
        if self.ndim != 4 or axis != 2 or start != 0:
            raise StreamingError(f"only an image's first rows may be {length}, which changes with the clip")
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        if shape == self.shape:
            return self
        end = size_vector(self.recorder, [length])
        return self.emit(
            "Slice", [self, self.recorder.integers([start]), end, self.recorder.integers([axis])], shape
        )

    def movedim(self, source: int, destination: int) -> TracedTensor:
        order = list(range(self.ndim))
        order.insert(destination % self.ndim, order.pop(source % self.ndim))
        return self.permute(order)

    def transpose(self, first: int, second: int) -> TracedTensor:
        order = list(range(self.ndim))
        order[first], order[second] = order[second], order[first]
        return self.permute(order)

    def permute(self, order: Sequence[int]) -> TracedTensor:
        return self.emit("Transpose", [self], [self.shape[axis] for axis in order], perm=list(order))

    def expand(self, *shape: Length) -> TracedTensor:
        return self.emit("Expand", [self, size_vector(self.recorder, list(shape))], shape)

    def new_zeros(self, shape: tuple[int, ...]) -> TracedTensor:
        return self.constant(torch.zeros(shape, dtype=self.dtype))

    # Values

    def to(self, dtype: torch.dtype) -> TracedTensor:
        if dtype == self.dtype:
            return self
        return self.emit("Cast", [self], self.shape, dtype, to=onnx_type(dtype))

    def float(self) -> TracedTensor:
        return self.to(torch.float32)

    def clone(self) -> Self:
        return self

    def operand(self, value: Any, dtype: torch.dtype) -> TracedTensor:
        """Returns a tensor, size or number as a tensor of this graph; a number has type `dtype`."""
        if isinstance(value, TracedTensor):
            return value
        if isinstance(value, Size):
            return TracedTensor(self.recorder, size_value(self.recorder, value)).to(dtype)
        return self.constant(value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype))

    __add__, __radd__ = _operators("Add")
    __sub__, __rsub__ = _operators("Sub")
    __mul__, __rmul__ = _operators("Mul")
    __truediv__, __rtruediv__ = _operators("Div")
    __and__, __rand__ = _operators("And")
    __or__, __ror__ = _operators("Or")
    __le__, _ = _operators("LessOrEqual", torch.bool)
    __eq__, _ = _operators("Equal", torch.bool)  # type: ignore[assignment]  # as tensors do
    __hash__ = object.__hash__


def _constant_bound(bound: Length | None) -> int | None:
    bound = None if bound is None else simplify(bound)
    if isinstance(bound, Size):
        problem = f"a slice ends at {bound}, which changes with the clip's size"
        raise StreamingError(f"{problem}; a graph needs constant bounds")
    return bound
