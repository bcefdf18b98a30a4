"""Operations on frames that have another implementation when an export records the network.

In PyTorch they keep the memory layout, work in place and have their own backward pass. Types that
stand for tensors, such as those of `wfvae.export.recorder`, override them through torch's
`__torch_function__` protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from wfvae.model import tap_sum

P = ParamSpec("P")


class Operation(Generic[P]):
    """A function of tensors that types with `__torch_function__` may override."""

    def __init__(self, default: Callable[P, Tensor]) -> None:
        self.default = default
        """The computation itself, without a look for overrides."""
        update_wrapper(self, default)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        if has_torch_function(args):
            result: Tensor = handle_torch_function(self, args, *args, **kwargs)
            return result
        return self.default(*args, **kwargs)


@Operation
def cat_frames(*parts: Tensor) -> Tensor:
    """Concatenates (B, T, C, H, W) tensors along T."""
    # `cat` keeps channels-last memory only if the channels are the last dimension.
    return torch.cat([part.movedim(2, -1) for part in parts], dim=1).movedim(-1, 2)


@Operation
def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Returns the frames a0 b0 a1 b1 ... of two (B, T, C, H, W) tensors."""
    batch, _, channels, height, width = first.shape
    pairs = torch.stack([first.movedim(2, -1), second.movedim(2, -1)], dim=2)
    return pairs.reshape(batch, -1, height, width, channels).movedim(-1, 2)


@Operation
def accumulate(total: Tensor, term: Tensor) -> Tensor:
    """Returns total + term. Without autograd it overwrites `total`, which the caller must own."""
    return total + term if torch.is_grad_enabled() else total.add_(term)


@Operation
def frame_numbers(frames: Tensor) -> Tensor:
    """Returns 0, 1, 2, ... for the frames of (B, T, C, H, W): int32 (1, T)."""
    return torch.arange(frames.shape[1], dtype=torch.int32, device=frames.device)[None]


@Operation
def causal_conv(
    frames: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], repeated: bool
) -> Tensor:
    """Convolves frames in time and space.

    Args:
        frames: (B, T + k - 1, C, H, W), history first.
        weight: (C', C, k, s, s), s odd.
        bias: (C',).
        stride: in time and in space.
        repeated: whether frames come in pairs of equal ones; an override may use it.

    Returns:
        (B, T / stride, C', H / stride, W / stride).
    """
    if torch.is_grad_enabled() and stride == (1, 1):
        return tap_sum.sum_of_taps(frames, weight, bias)
    kernel = weight.shape[2]
    total: Tensor | None = None
    for tap in range(kernel):
        # Frames tap, tap + stride, ... as many as there are whole windows.
        taken = frames[:, tap : (tap - kernel + 1) or None : stride[0]]
        part = _convolve(taken.flatten(0, 1), weight[:, :, tap], bias if tap == 0 else None, stride[1])
        total = part if total is None else accumulate(total, part)
    assert total is not None
    return total.reshape(frames.shape[0], -1, *total.shape[1:])


def _convolve(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if stride == 1:
        return F.conv2d(images, weight, bias, padding=weight.shape[-1] // 2)
    # The published model pads strided convolutions at the right and bottom only.
    return F.conv2d(F.pad(images, (0, 1, 0, 1)), weight, bias, stride=stride)


@Operation
def upsample_conv(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """Repeats every pixel of (N, C, H, W) to 2x2, and convolves: (N, C', 2 H, 2 W)."""
    result: Tensor = conv(F.interpolate(images, scale_factor=2, mode="nearest"))
    return result


def repeat_head(frames: Tensor, count: int) -> Tensor:
    """Puts `count` copies of the first frame in front of (B, T, C, H, W)."""
    if count == 0:
        return frames
    if torch.is_grad_enabled():
        return tap_sum.repeat_head(frames, count)
    return cat_frames(*[frames[:, :1]] * count, frames)
