"""Records the network's forward pass as an ONNX graph.

The network's own code runs on `Traced` stand-ins for tensors, which write down an ONNX node for
each operation. Only the operations that the network uses exist here, each mapped to common ONNX
operators by a few lines; any other raises. This gives the same graph for the same network every
time, within a second, with nodes and tensors named by module path, shapes symbolic in batch,
length, height and width, and the chosen operators: no control flow, no scatter, no rank-5 resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from wfvae.errors import StreamingError
from wfvae.export.forms.minimal_filtering import MinimalFiltering, filters_of
from wfvae.export.forms.subpixel import convolve_doubled, phase_filters
from wfvae.export.recorder.symbolic import Length, Size, broadcast, product, simplify, slice_length
from wfvae.model.blocks import Upsample2D
from wfvae.model.causal import CausalConv3d

Shape = tuple[Length, ...]
FilterStore = dict[tuple[str, str], dict[str, Tensor]]
"""Transformed filters of convolutions, by the weight's name and the way of the convolution, and by
their own names.
"""

ONNX_TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float64: TensorProto.DOUBLE,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}
_HALF = (torch.float16, torch.bfloat16)
_SLICE_TO_END = (1 << 63) - 1


class Traced:
    """Stands for a tensor of the graph being recorded: a name, a symbolic shape and a type."""

    def __init__(self, tracer: Tracer, name: str, shape: Sequence[Length], dtype: torch.dtype) -> None:
        self.tracer = tracer
        self.name = name
        self.shape: Shape = tuple(simplify(size) for size in shape)
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.is_meta = False
        self.reshaped: Traced | None = None
        """What this is another shape of."""
        self.unpadded: tuple[Traced, tuple[int, int, int, int]] | None = None
        """What this is with zeros around it: left, right, top and bottom."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise StreamingError(f"{func} was called on a traced tensor outside of a trace")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    # Shapes ---------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Traced:
        result = self
        for axis, entry in enumerate(index if isinstance(index, tuple) else (index,)):
            if entry is None:
                result = result._unsqueeze(axis)
            elif entry != slice(None):
                result = result._slice(axis, entry)
        return result

    def _slice(self, axis: int, entry: slice) -> Traced:
        # Bounds that reach the whole length come in as the length itself.
        start = _plain(entry.start)
        stop = None if isinstance(entry.stop, Size) and entry.stop == self.shape[axis] else _plain(entry.stop)
        step = entry.step or 1
        if not start and stop is None and step == 1:
            return self
        shape = list(self.shape)
        shape[axis] = slice_length(shape[axis], start, stop, step)
        bounds = [[start or 0], [_SLICE_TO_END if stop is None else stop], [axis], [step]]
        inputs = [self, *(self.tracer.integers(values) for values in bounds[: 4 if step != 1 else 3])]
        return self.tracer.emit("Slice", inputs, shape, self.dtype)

    def _unsqueeze(self, axis: int) -> Traced:
        shape = (*self.shape[:axis], 1, *self.shape[axis:])
        return self.tracer.emit("Unsqueeze", [self, self.tracer.integers([axis])], shape, self.dtype)

    def reshape(self, *shape: Any) -> Traced:
        target = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
        if -1 in target:
            known = product(size for size in target if size != -1)
            target[target.index(-1)] = product(self.shape).divide(known)
        target = [simplify(size) for size in target]
        origin = self.reshaped or self
        if tuple(target) == origin.shape:
            return origin
        result = self.tracer.emit("Reshape", [origin, self.tracer.shape(target)], target, self.dtype)
        result.reshaped = origin
        return result

    def flatten(self, first: int, last: int) -> Traced:
        return self.reshape(
            *self.shape[:first], product(self.shape[first : last + 1]), *self.shape[last + 1 :]
        )

    def narrow(self, axis: int, start: int, length: Length) -> Traced:
        """The only slice whose end may change with the clip: rows of images, where a rounded-up
        half was doubled again.
        """
        if self.ndim != 4 or axis != 2 or start != 0:
            raise StreamingError(
                f"a graph's slices have constant bounds, but for an image's first rows; asked for {length}"
                f" from axis {axis}"
            )
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        if shape == self.shape:
            return self
        bounds = [
            self.tracer.integers([start]),
            self.tracer.shape_vector([length]),
            self.tracer.integers([axis]),
        ]
        return self.tracer.emit("Slice", [self, *bounds], shape, self.dtype)

    def movedim(self, source: int, destination: int) -> Traced:
        order = list(range(self.ndim))
        order.insert(destination % self.ndim, order.pop(source % self.ndim))
        return self._permute(order)

    def transpose(self, first: int, second: int) -> Traced:
        order = list(range(self.ndim))
        order[first], order[second] = order[second], order[first]
        return self._permute(order)

    def _permute(self, order: list[int]) -> Traced:
        return self.tracer.emit(
            "Transpose", [self], [self.shape[axis] for axis in order], self.dtype, perm=order
        )

    def expand(self, *shape: Length) -> Traced:
        # Every size in full: unlike Reshape, Expand has no -1.
        return self.tracer.emit("Expand", [self, self.tracer.shape_vector(list(shape))], shape, self.dtype)

    def new_zeros(self, shape: tuple[int, ...]) -> Traced:
        return self.tracer.constant(torch.zeros(shape, dtype=self.dtype))

    def numbers_along(self, axis: int) -> Traced:
        """0, 1, 2, ... up to the size of `axis`, int32."""
        emit, count = self.tracer.emit, self.shape[axis]
        end = emit("Squeeze", [self.tracer.shape_vector([count]), self.tracer.integers([0])], [], torch.int64)
        bounds = [self.tracer.constant(torch.tensor(0)), end, self.tracer.constant(torch.tensor(1))]
        return emit("Range", bounds, [count], torch.int64).to(torch.int32)

    def causal_convolution(self, conv: CausalConv3d) -> Traced:
        """`conv` of these frames, which include its history, in the form that the graph is to have."""
        return self.tracer.convolve(self, conv)

    def doubling_convolution(self, upsample: Upsample2D) -> Traced:
        """`upsample`'s repetition and convolution of these images, in the form that the graph is to
        have.
        """
        return self.tracer.convolve_doubled(self, upsample)

    # Values ---------------------------------------------------------------------------------------

    def to(self, dtype: torch.dtype) -> Traced:
        return (
            self
            if dtype == self.dtype
            else self.tracer.emit("Cast", [self], self.shape, dtype, to=ONNX_TYPES[dtype])
        )

    def float(self) -> Traced:
        return self.to(torch.float32)

    def clone(self) -> Traced:
        return self

    def __add__(self, other: Any) -> Traced:
        return self.tracer.binary("Add", self, other)

    def __radd__(self, other: Any) -> Traced:
        return self.tracer.binary("Add", other, self)

    def __sub__(self, other: Any) -> Traced:
        return self.tracer.binary("Sub", self, other)

    def __rsub__(self, other: Any) -> Traced:
        return self.tracer.binary("Sub", other, self)

    def __mul__(self, other: Any) -> Traced:
        return self.tracer.binary("Mul", self, other)

    def __rmul__(self, other: Any) -> Traced:
        return self.tracer.binary("Mul", other, self)

    def __le__(self, other: Any) -> Traced:
        return self.tracer.binary("LessOrEqual", self, other, torch.bool)

    def __eq__(self, other: object) -> Traced:  # type: ignore[override]  # as tensors do
        return self.tracer.binary("Equal", self, other, torch.bool)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Traced:
        return self.tracer.binary("And", self, other, torch.bool)

    def __or__(self, other: Any) -> Traced:
        return self.tracer.binary("Or", self, other, torch.bool)


def _plain(bound: Any) -> int | None:
    bound = simplify(bound) if isinstance(bound, Size) else bound
    if isinstance(bound, Size):
        raise StreamingError(
            f"a slice ends at {bound}, which changes with the clip's size; a graph needs constant bounds"
        )
    return cast("int | None", bound)


class Tracer(TorchFunctionMode):
    """Collects nodes and constants while the network runs on `Traced` inputs."""

    def __init__(
        self, module: nn.Module, form: MinimalFiltering | None = None, filters: FilterStore | None = None
    ) -> None:
        """With a `form`, convolutions are computed with fewer multiplications where it fits.
        Transformed filters are looked for in `filters`, and left there."""
        super().__init__()
        self._form = form
        self._filters: FilterStore = {} if filters is None else filters
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Tensor] = {}
        """Initializers by name; those that are the module's weights refer to its memory."""
        self.bytes: dict[str, Size] = {}
        """Size of every tensor that a node makes."""
        self.inputs: list[Traced] = []
        self._seen: dict[Any, Traced] = {}
        self._integers: dict[tuple[int, ...], Traced] = {}
        self._counts: dict[str, int] = {}
        self._scopes: list[str] = [""]
        self._sources: dict[str, Traced] = {}  # symbol -> a one-element tensor with its value
        self._paths = {id(child): path for path, child in module.named_modules()}
        self._weights = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}

    def add_input(self, name: str, shape: Sequence[Length], dtype: torch.dtype) -> Traced:
        """Declares a graph input."""
        self.inputs.append(Traced(self, name, shape, dtype))
        return self.inputs[-1]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records what runs inside, naming nodes by the module that runs."""

        def enter(module: nn.Module, _: Any) -> None:
            self._scopes.append(self._paths.get(id(module), self._scopes[-1]))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self._scopes.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            with torch.no_grad(), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    # Emitting -------------------------------------------------------------------------------------

    def emit(
        self,
        operator: str,
        inputs: Sequence[Traced],
        shape: Sequence[Length],
        dtype: torch.dtype,
        **attributes: Any,
    ) -> Traced:
        """Adds a node, or finds the one that already computes this."""
        key = (operator, tuple(value.name for value in inputs), repr(sorted(attributes.items())))
        if key not in self._seen:
            stem = f"{self._scopes[-1]}/{operator}".removeprefix("/")
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{count}"
            self.nodes.append(
                helper.make_node(operator, [value.name for value in inputs], [name], name=name, **attributes)
            )
            self._seen[key] = Traced(self, name, shape, dtype)
            self.bytes[name] = (product(self._seen[key].shape) * dtype.itemsize).bound
        return self._seen[key]

    def keep_only(self, results: Sequence[Traced]) -> None:
        """Drops the nodes and constants on which no result depends. Nothing may be recorded
        afterwards.
        """
        wanted = {value.name for value in results}
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in wanted}

    def binary(self, operator: str, left: Any, right: Any, dtype: torch.dtype | None = None) -> Traced:
        """An element-wise operator; plain numbers take the other side's type."""
        kind = left.dtype if isinstance(left, Traced) else right.dtype
        left, right = self._value(left, kind), self._value(right, kind)
        if left.dtype != right.dtype:
            raise StreamingError(f"{operator} of {left.dtype} and {right.dtype} would need a cast")
        return self.emit(operator, [left, right], broadcast([left.shape, right.shape]), dtype or left.dtype)

    def _value(self, value: Any, dtype: torch.dtype) -> Traced:
        if isinstance(value, Traced):
            return value
        if isinstance(value, Size):
            return self._dimension(value).to(dtype)
        return self.constant(value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype))

    def convolve(self, frames: Any, conv: CausalConv3d) -> Traced:
        """A causal convolution of frames with their history."""
        way = None if self._form is None else self._form.way(conv, frames)
        if self._form is None or way is None:
            return cast(Traced, conv.sum_of_taps(frames))
        filters = self._derived(conv.conv.weight, way, lambda weight: filters_of(weight, way))
        return cast(Traced, self._form(way, frames, filters, conv.conv.bias))

    def convolve_doubled(self, images: Any, upsample: Upsample2D) -> Traced:
        """A convolution of images that are doubled by repetition."""
        if self._form is None:
            return cast(Traced, upsample.convolve_doubled(images))
        filters = self._derived(upsample.conv.weight, "phases", phase_filters)
        return cast(Traced, convolve_doubled(images, filters, upsample.conv.bias))

    def _derived(
        self, weight: Tensor, way: str, make: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> list[Tensor]:
        """What `make` gives for one of the module's weights, made once for all graphs and named
        after the weight.
        """
        path = self._weights[id(weight)]
        if (path, way) not in self._filters:
            self._filters[path, way] = {f"{path}.{name}": part for name, part in make(weight).items()}
        # The store keeps these tensors, so their identity stands for the name.
        self._weights |= {id(part): name for name, part in self._filters[path, way].items()}
        return list(self._filters[path, way].values())

    def constant(self, tensor: Tensor) -> Traced:
        """A constant: one of the module's weights, a time tap of one, or a small value."""
        name = self._weights.get(id(tensor))
        base = tensor._base
        if name is None and base is not None and id(base) in self._weights and base.ndim == 5:
            tap = (tensor.storage_offset() - base.storage_offset()) // base.stride(2)
            name = f"{self._weights[id(base)]}.tap{tap}"
        if name is None:
            kind, sides = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
            name = f"constant/{kind}[{sides}]/{','.join(map(str, tensor.flatten().tolist()))}"
        self.constants[name] = tensor.detach()
        return Traced(self, name, tuple(tensor.shape), tensor.dtype)

    def integers(self, values: Sequence[int]) -> Traced:
        """A constant vector of 64-bit integers."""
        key = tuple(values)
        if key not in self._integers:
            self._integers[key] = self.constant(torch.tensor(key, dtype=torch.int64))
        return self._integers[key]

    def shape(self, sizes: Sequence[Length]) -> Traced:
        """A shape vector. One symbolic size can be left to the reader (-1); the others are read off
        the inputs.
        """
        symbolic = [axis for axis, size in enumerate(sizes) if isinstance(size, Size)]
        if symbolic:
            # The most composite one, such as a product of batch and frames, would cost most to
            # compute.
            free = max(symbolic, key=lambda axis: cast(Size, sizes[axis]).complexity)
            sizes = [-1 if axis == free else size for axis, size in enumerate(sizes)]
        if all(isinstance(size, int) for size in sizes):
            return self.integers(cast("list[int]", list(sizes)))
        return self.shape_vector(sizes)

    def shape_vector(self, sizes: Sequence[Length]) -> Traced:
        """Sizes as a vector of integers, symbolic ones read off the inputs."""
        parts: list[Traced] = []
        plain: list[int] = []
        for size in sizes:
            if isinstance(size, int):
                plain.append(size)
                continue
            if plain:
                parts.append(self.integers(plain))
                plain = []
            parts.append(self._dimension(size))
        if plain:
            parts.append(self.integers(plain))
        return parts[0] if len(parts) == 1 else self.emit("Concat", parts, [len(sizes)], torch.int64, axis=0)

    def _dimension(self, size: Size) -> Traced:
        """A vector of one integer: the value of `size`, from the shapes of the inputs."""
        total: Traced | None = None
        for monomial, factor in sorted(size.terms.items()):
            term: Traced | None = None
            for symbol in monomial:
                source = self._source(symbol)
                term = source if term is None else self.emit("Mul", [term, source], [1], torch.int64)
            if term is None:
                term = self.integers([factor])
            elif factor != 1:
                term = self.emit("Mul", [term, self.integers([factor])], [1], torch.int64)
            total = term if total is None else self.emit("Add", [total, term], [1], torch.int64)
        assert total is not None
        return total

    def _source(self, symbol: str) -> Traced:
        """The value of a symbol, from the first input with a size that is a multiple of it, or from
        what it is half of.
        """
        if symbol in self._sources:
            return self._sources[symbol]
        scopes, self._scopes = self._scopes, [""]
        if (whole := Size.halved(symbol)) is not None:
            more = self.emit("Add", [self._source(whole), self.integers([1])], [1], torch.int64)
            self._sources[symbol], self._scopes = (
                self.emit("Div", [more, self.integers([2])], [1], torch.int64),
                scopes,
            )
            return self._sources[symbol]
        for value in self.inputs:
            for axis, size in enumerate(value.shape):
                if isinstance(size, Size) and set(size.terms) <= {(symbol,), ()} and (symbol,) in size.terms:
                    found = self.emit("Shape", [value], [1], torch.int64, start=axis, end=axis + 1)
                    factor, offset = size.terms[(symbol,)], size.terms.get((), 0)
                    if offset:
                        found = self.emit("Sub", [found, self.integers([offset])], [1], torch.int64)
                    if factor != 1:
                        found = self.emit("Div", [found, self.integers([factor])], [1], torch.int64)
                    self._sources[symbol], self._scopes = found, scopes
                    return found
        raise StreamingError(f"no input of the graph has the size {symbol}")

    # PyTorch functions ----------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if not any(isinstance(value, (Traced, Size)) for value in _flat((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        if handler is None:
            raise StreamingError(f"the export has no ONNX form for {getattr(func, '__name__', func)}")
        return handler(self, *args, **kwargs)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _conv2d(
    tracer: Tracer,
    x: Traced,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Traced:
    strides, pads = ([pair] * 2 if isinstance(pair, int) else list(pair) for pair in (stride, padding))
    kernel = list(weight.shape[2:])
    height, width = (
        (x.shape[axis + 2] + (2 * pads[axis] - kernel[axis])) // strides[axis] + 1 for axis in (0, 1)
    )
    shape = (x.shape[0], weight.shape[0], height, width)
    # A convolution pads by itself, at each side as much as it is told to: nothing need be copied
    # for it.
    source, (left, right, top, bottom) = x.unpadded or (x, (0, 0, 0, 0))
    around = [pads[0] + top, pads[1] + left, pads[0] + bottom, pads[1] + right]
    inputs = [source, tracer.constant(weight)] + ([] if bias is None else [tracer.constant(bias)])
    # Attributes are stated even where they equal the default: some parsers want them.
    return tracer.emit(
        "Conv",
        inputs,
        shape,
        x.dtype,
        kernel_shape=kernel,
        strides=strides,
        pads=around,
        dilations=[1, 1],
        group=groups,
    )


def _layer_norm(
    tracer: Tracer, x: Traced, normalized_shape: Any, weight: Tensor, bias: Tensor, eps: float
) -> Traced:
    # Statistics in fp32: half-precision sums of squares overflow.
    wide = x.float() if x.dtype in _HALF else x
    scale, shift = (tracer.constant(t) for t in (weight, bias))
    scale, shift = (t.float() if x.dtype in _HALF else t for t in (scale, shift))
    normed = tracer.emit(
        "LayerNormalization", [wide, scale, shift], x.shape, wide.dtype, axis=-1, epsilon=eps
    )
    return normed.to(x.dtype)


def _silu(tracer: Tracer, x: Traced, inplace: bool = False) -> Traced:
    return x * tracer.emit("Sigmoid", [x], x.shape, x.dtype)


def _attention(tracer: Tracer, query: Traced, key: Traced, value: Traced) -> Traced:
    scale = 1 / math.sqrt(cast(int, query.shape[-1]))
    scores = tracer.emit(
        "MatMul", [query * scale, key.transpose(2, 3)], (*query.shape[:-1], key.shape[-2]), query.dtype
    )
    wide = scores.float()
    weights = tracer.emit("Softmax", [wide], wide.shape, wide.dtype, axis=-1).to(query.dtype)
    return tracer.emit("MatMul", [weights, value], query.shape, query.dtype)


def _interpolate(tracer: Tracer, x: Traced, *, scale_factor: int, mode: str, **_: Any) -> Traced:
    sampling = (
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if mode == "nearest"
        else {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    )
    scales = tracer.constant(torch.tensor([1.0, 1.0, scale_factor, scale_factor]))
    empty = Traced(tracer, "", (), torch.float32)
    shape = (*x.shape[:2], x.shape[2] * scale_factor, x.shape[3] * scale_factor)
    return tracer.emit("Resize", [x, empty, scales], shape, x.dtype, **sampling)


def _pad(tracer: Tracer, x: Traced, pad: tuple[int, int, int, int], **_: Any) -> Traced:
    left, right, top, bottom = pad
    leading = [0] * (x.ndim - 2)
    amounts = tracer.integers([*leading, top, left, *leading, bottom, right])
    shape = (*x.shape[:-2], x.shape[-2] + (top + bottom), x.shape[-1] + (left + right))
    result = tracer.emit("Pad", [x, amounts], shape, x.dtype, mode="constant")
    result.unpadded = (x, pad)
    return result


def _pixel_shuffle(tracer: Tracer, x: Traced, factor: int) -> Traced:
    batch, channels, height, width = x.shape
    shape = (batch, cast(int, channels) // factor**2, height * factor, width * factor)
    return tracer.emit("DepthToSpace", [x], shape, x.dtype, blocksize=factor, mode="CRD")


def _cat(tracer: Tracer, parts: Sequence[Traced], dim: int = 0) -> Traced:
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[dim] = simplify(sum((Size.of(part.shape[dim]) for part in parts), Size.of(0)))
    return tracer.emit("Concat", list(parts), shape, parts[0].dtype, axis=dim)


def _stack(tracer: Tracer, parts: Sequence[Traced], dim: int = 0) -> Traced:
    return _cat(tracer, [part._unsqueeze(dim) for part in parts], dim)


def _where(tracer: Tracer, condition: Traced, yes: Any, no: Any) -> Traced:
    dtype = next((value.dtype for value in (yes, no) if isinstance(value, Traced)), torch.float32)
    yes, no = tracer._value(yes, dtype), tracer._value(no, dtype)
    return tracer.emit(
        "Where", [condition, yes, no], broadcast([condition.shape, yes.shape, no.shape]), dtype
    )


def _clamp(tracer: Tracer, x: Traced, max: int) -> Traced:
    return tracer.emit("Min", [x, tracer._value(max, x.dtype)], x.shape, x.dtype)


def _dropout(tracer: Tracer, x: Traced, p: float, training: bool, inplace: bool = False) -> Traced:
    if training:
        raise StreamingError("the network is in training mode; call eval() before exporting")
    return x


_HANDLERS: dict[Any, Callable[..., Traced]] = {
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    F.silu: _silu,
    F.scaled_dot_product_attention: _attention,
    F.interpolate: _interpolate,
    F.pad: _pad,
    F.pixel_shuffle: _pixel_shuffle,
    F.dropout: _dropout,
    torch.cat: _cat,
    torch.stack: _stack,
    torch.where: _where,
    torch.clamp: _clamp,
}


def tensor_bytes(tensor: Tensor) -> bytes:
    """Content in ONNX's raw layout: row-major, little-endian."""
    flat = tensor.detach().to("cpu").contiguous().flatten()
    raw: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy() if flat.dtype != torch.bool else flat.numpy()
    return raw.tobytes()
