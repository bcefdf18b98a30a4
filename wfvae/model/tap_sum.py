"""A causal convolution as the sum of its time taps, with a backward pass of its own.

Autograd's would keep a copy of a batch's frames for every tap, and write each tap's gradient into
zeros of their size. Here the frames are kept once, and gradients are added where they belong.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE_BYTES = 16 << 20
"""Terms of a sum over a large clip are computed in pieces of this size, to need no second clip."""


def sum_of_taps(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves over time and space, with stride 1, and keeps height and width.

    Args:
        frames: (B, T + k - 1, C, H, W), history in front.
        weight: (D, C, k, s, s), s odd.
        bias: (D,) or None.

    Returns:
        (B, T, D, H, W). Differentiable once. Autocast applies, as to a convolution.
    """
    kind = frames.device.type
    if torch.is_autocast_enabled(kind):
        precision = torch.get_autocast_dtype(kind)
        frames, weight = frames.to(precision), weight.to(precision)
        bias = None if bias is None else bias.to(precision)
    result, _ = _TapSum.apply(frames, weight, bias)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


def repeat_head(frames: Tensor, count: int) -> Tensor:
    """Puts `count` copies of the first frame in front of (B, T, C, H, W). Differentiable once."""
    return cast(Tensor, _RepeatHead.apply(frames, count))  # type: ignore[no-untyped-call]


class _RepeatHead(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(frames: Tensor, count: int) -> Tensor:
        # `cat` keeps channels-last memory only if the channels are the last dimension.
        last = frames.movedim(2, -1)
        return torch.cat([last[:, :1]] * count + [last], dim=1).movedim(-1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.count = inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        result = gradient[:, ctx.count :].clone()
        result[:, 0] += gradient[:, : ctx.count].sum(dim=1)
        return result, None


class _TapSum(torch.autograd.Function):
    """Returns the sum, and the frames in the order in which the backward pass needs them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(frames: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ordered = _swap(frames)
        taps, padding = weight.shape[2], weight.shape[3] // 2
        total = F.conv2d(_shifted(ordered, 0, taps), weight[:, :, 0], bias, padding=padding)
        for tap in range(1, taps):
            source, kernel = _shifted(ordered, tap, taps), weight[:, :, tap]
            for piece in _pieces(total):
                total[piece].add_(F.conv2d(source[piece], kernel, padding=padding))
        return _swap(total.reshape(-1, frames.shape[0], *total.shape[1:])), ordered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        _, weight, _ = inputs
        _, ordered = output
        ctx.mark_non_differentiable(ordered)
        ctx.save_for_backward(ordered, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        ordered, weight = ctx.saved_tensors
        wants_frames, wants_weight, wants_bias = ctx.needs_input_grad
        taps = weight.shape[2]
        images = _swap(gradient).flatten(0, 1)
        of_frames = torch.zeros_like(ordered) if wants_frames else None
        of_taps, of_bias = [], None
        for tap in range(taps):
            source, kernel = _shifted(ordered, tap, taps), weight[:, :, tap]
            if of_frames is not None:
                added = _shifted(of_frames, tap, taps)
                for piece in _pieces(source):
                    part, _, _ = _gradients(images[piece], source[piece], kernel, [True, False, False])
                    added[piece].add_(part)
            wanted = [False, wants_weight, wants_bias and tap == 0]
            if any(wanted):
                _, of_tap, found = _gradients(images, source, kernel, wanted)
                of_taps.append(of_tap)
                of_bias = found if tap == 0 else of_bias
        of_weight = torch.stack(of_taps, dim=2) if wants_weight else None
        return None if of_frames is None else of_frames.movedim(0, 1), of_weight, of_bias


def _swap(frames: Tensor) -> Tensor:
    """Returns (B, T, C, H, W) as (T, B, C, H, W) or back, channels last in memory.

    Time first, any run of frames is a batch of images without a copy.
    """
    return frames.permute(1, 0, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _gradients(of_result: Tensor, images: Tensor, kernel: Tensor, wanted: list[bool]) -> Any:
    """Returns the gradients of a 2-D convolution's images, kernel and bias; None if not wanted."""
    padding = [kernel.shape[2] // 2] * 2
    return torch.ops.aten.convolution_backward(
        of_result, images, kernel, [kernel.shape[0]], [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
    )


def _pieces(images: Tensor) -> list[slice]:
    """Returns runs of images of about `_PIECE_BYTES` each."""
    count = images.shape[0]
    each = max(_PIECE_BYTES // max(math.prod(images.shape[1:]) * images.element_size(), 1), 1)
    return [slice(first, first + each) for first in range(0, count, each)]


def _shifted(ordered: Tensor, tap: int, taps: int) -> Tensor:
    """Returns the images that a tap sees, as a view."""
    return ordered[tap : ordered.shape[0] - taps + 1 + tap].flatten(0, 1)
