"""The ONNX operators of each function that the network calls."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfvae.errors import StreamingError
from wfvae.export.forms.form import Convolution
from wfvae.export.recorder.attention import join_blocks, query_blocks
from wfvae.export.recorder.recorder import Value
from wfvae.export.recorder.shapes import size_vector
from wfvae.export.recorder.tensor import TracedTensor, concatenate, elementwise, overrides
from wfvae.export.recorder.volumes import VolumeTensor, viewed
from wfvae.model import ops

_HALF = (torch.float16, torch.bfloat16)
_IMAGE_AXES = 3
"""(C, H, W) at the end of every shape."""


# Operations of the model


@overrides(ops.cat_frames)
def _cat_frames(*parts: TracedTensor) -> TracedTensor:
    return concatenate(parts, axis=1)


@overrides(ops.interleave)
def _interleave(first: TracedTensor, second: TracedTensor) -> TracedTensor:
    if isinstance(first, VolumeTensor):
        return first.interleaved(second)
    batch, _, *image = first.shape
    return _stack([first, second], dim=2).reshape(batch, -1, *image)


@overrides(ops.accumulate)
def _accumulate(total: TracedTensor, term: TracedTensor) -> TracedTensor:
    # As images, like the convolutions around it: then no change of shape stands between them.
    image = total.shape[-_IMAGE_AXES:]
    return (total.reshape(-1, *image) + term.reshape(-1, *image)).reshape(total.shape)


@overrides(ops.frame_numbers)
def _frame_numbers(frames: TracedTensor) -> TracedTensor:
    count = frames.shape[1]
    recorder = frames.recorder
    vector = size_vector(recorder, [count])
    end = frames.emit("Squeeze", [vector, recorder.integers([0])], [], torch.int64)
    bounds = [frames.constant(torch.tensor(0)), end, frames.constant(torch.tensor(1))]
    return frames.emit("Range", bounds, [count], torch.int64).to(torch.int32)[None]


@overrides(ops.causal_conv)
def _causal_conv(
    frames: TracedTensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], repeated: bool
) -> TracedTensor:
    frames = viewed(frames) or frames
    convolution = Convolution(weight, bias, frames.shape[1], stride, repeated, frames.recorder.unpaired)
    return _in_form(convolution, ops.causal_conv, frames, weight, bias, stride, repeated)


@overrides(ops.upsample_conv)
def _upsample_conv(images: TracedTensor, conv: nn.Conv2d) -> TracedTensor:
    return _in_form(Convolution(conv.weight, conv.bias, doubled=True), ops.upsample_conv, images, conv)


def _in_form(
    convolution: Convolution, operation: Callable[..., Any], x: TracedTensor, *arguments: Any
) -> TracedTensor:
    """Computes a convolution in the form that the export chooses, if none as the network does."""
    form = x.recorder.forms.choose(convolution)
    result: Any
    if form is None:
        result = inspect.unwrap(operation)(x, *arguments)
    else:
        traced: Any = x
        result = form.compute(traced, x.recorder.filters(convolution.weight, form), convolution.bias)
    return cast(TracedTensor, result)


@overrides(ops.convolve_volume)
def _convolve_volume(
    frames: TracedTensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> TracedTensor:
    view = viewed(frames)
    assert view is not None, "a graph with 3-D convolutions holds volumes"
    margin = weight.shape[-1] // 2
    pads = (margin, margin) if stride[1] == 1 else (0, 1)
    constants = frames.constant(weight), None if bias is None else frames.constant(bias)
    return view.convolved(*constants, (stride[0], stride[1], stride[1]), ((0, 0), pads, pads))


@overrides(ops.channel_norm)
def _channel_norm(images: TracedTensor, norm: nn.LayerNorm) -> TracedTensor:
    view = viewed(images)
    if view is None:
        return cast(TracedTensor, inspect.unwrap(ops.channel_norm)(images, norm))
    return view.normalised(norm)


@overrides(ops.frame_attention)
def _frame_attention(query: TracedTensor, key: TracedTensor, value: TracedTensor) -> TracedTensor:
    batch, _, channels, height, width = query.shape

    def positions(frames: TracedTensor) -> TracedTensor:
        """(frames, one head, channels, positions)."""
        return frames.reshape(-1, 1, channels, height * width)

    # Right after the projection, engines make the factor a part of its weights, in blocks or not.
    scaled = query.reshape(-1, channels, height, width) * (1 / math.sqrt(cast(int, channels)))
    queries, keys, values = (
        positions(scaled).transpose(2, 3),
        positions(key),
        positions(value).transpose(2, 3),
    )

    def attend(rows: TracedTensor) -> TracedTensor:
        scores = rows.emit("MatMul", [rows, keys], (*rows.shape[:-1], keys.shape[-1]))
        wide = scores.float()
        weights = wide.emit("Softmax", [wide], wide.shape, axis=-1).to(rows.dtype)
        return rows.emit("MatMul", [weights, values], rows.shape)

    attended = join_blocks([attend(rows) for rows in query_blocks(queries)], queries.shape)
    return attended.transpose(2, 3).reshape(batch, -1, channels, height, width)


# Functions of torch


@overrides(F.conv2d)
def _conv2d(
    x: TracedTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> TracedTensor:
    strides, pads = ([pair] * 2 if isinstance(pair, int) else list(pair) for pair in (stride, padding))
    kernel = list(weight.shape[2:])
    height, width = (
        (x.shape[axis + 2] + (2 * pads[axis] - kernel[axis])) // strides[axis] + 1 for axis in (0, 1)
    )
    # A convolution pads each side by any amount, so a padding before it becomes a part of it.
    source, (left, right, top, bottom) = x.unpadded or (x, (0, 0, 0, 0))
    view = viewed(source)
    if view is not None and groups == 1:
        around = ((0, 0), (pads[0] + top, pads[0] + bottom), (pads[1] + left, pads[1] + right))
        filters = x.constant(weight.unsqueeze(2)), None if bias is None else x.constant(bias)
        return view.convolved(*filters, (1, *strides), around)
    inputs = [source, x.constant(weight)] + ([] if bias is None else [x.constant(bias)])
    # Attributes are stated even where they equal the default: some parsers want them.
    return x.emit(
        "Conv",
        inputs,
        (x.shape[0], weight.shape[0], height, width),
        kernel_shape=kernel,
        strides=strides,
        pads=[pads[0] + top, pads[1] + left, pads[0] + bottom, pads[1] + right],
        dilations=[1, 1],
        group=groups,
    )


@overrides(F.layer_norm)
def _layer_norm(
    x: TracedTensor, normalized_shape: Any, weight: Tensor, bias: Tensor, eps: float
) -> TracedTensor:
    # Statistics in fp32: half-precision sums of squares overflow.
    inputs = [x, x.constant(weight), x.constant(bias)]
    if x.dtype in _HALF:
        inputs = [value.float() for value in inputs]
    wide = inputs[0].dtype
    return x.emit("LayerNormalization", inputs, x.shape, wide, axis=-1, epsilon=eps).to(x.dtype)


@overrides(F.silu)
def _silu(x: TracedTensor, inplace: bool = False) -> TracedTensor:
    return x * elementwise("Sigmoid", [x])


@overrides(F.interpolate)
def _interpolate(x: TracedTensor, *, scale_factor: int, mode: str, **_: Any) -> TracedTensor:
    sampling: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if mode == "nearest":
        sampling = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    view = viewed(x)
    resized = x if view is None else view.volume
    *others, height, width = resized.shape
    scales = x.constant(torch.tensor([*[1.0] * len(others), scale_factor, scale_factor]))
    no_region = Value("", (), torch.float32)
    shape = (*others, height * scale_factor, width * scale_factor)
    result = resized.emit("Resize", [resized, no_region, scales], shape, **sampling)
    return result if view is None else view.like(result)


@overrides(F.pad)
def _pad(x: TracedTensor, pad: tuple[int, int, int, int], **_: Any) -> TracedTensor:
    left, right, top, bottom = pad
    leading = [0] * (x.ndim - 2)
    amounts = x.recorder.integers([*leading, top, left, *leading, bottom, right])
    shape = (*x.shape[:-2], x.shape[-2] + (top + bottom), x.shape[-1] + (left + right))
    result = x.emit("Pad", [x, amounts], shape, mode="constant")
    result.unpadded = (x, pad)
    return result


@overrides(F.pixel_shuffle)
def _pixel_shuffle(x: TracedTensor, factor: int) -> TracedTensor:
    batch, channels, height, width = x.shape
    shape = (batch, cast(int, channels) // factor**2, height * factor, width * factor)
    return x.emit("DepthToSpace", [x], shape, blocksize=factor, mode="CRD")


@overrides(torch.cat)
def _cat(parts: Sequence[TracedTensor], dim: int = 0) -> TracedTensor:
    return concatenate(parts, dim)


@overrides(torch.stack)
def _stack(parts: Sequence[TracedTensor], dim: int = 0) -> TracedTensor:
    return _cat([part.unsqueeze(dim) for part in parts], dim)


@overrides(torch.where)
def _where(condition: TracedTensor, yes: Any, no: Any) -> TracedTensor:
    dtypes = (value.dtype for value in (yes, no) if isinstance(value, TracedTensor))
    dtype = next(dtypes, torch.float32)
    inputs = [condition, condition.operand(yes, dtype), condition.operand(no, dtype)]
    return elementwise("Where", inputs, dtype)


@overrides(torch.clamp)
def _clamp(x: TracedTensor, max: int) -> TracedTensor:
    return x.emit("Min", [x, x.operand(max, x.dtype)], x.shape)


@overrides(F.dropout)
def _dropout(x: TracedTensor, p: float, training: bool, inplace: bool = False) -> TracedTensor:
    if training:
        raise StreamingError("the network is in training mode; call eval() before exporting")
    return x
