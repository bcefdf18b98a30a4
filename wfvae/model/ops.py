"""Operations on frames, which keep their memory layout: channels last.

An export that records the network overrides them by torch's `__torch_function__` protocol.
"""

from collections.abc import Callable
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from wfvae.model import tap_sum

P = ParamSpec("P")


def overridable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Lets positional arguments with `__torch_function__` override a function of tensors."""

    def arguments(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
        return args

    return wrap_torch_function(arguments)(function)


@overridable
def cat_frames(*parts: Tensor) -> Tensor:
    """Concatenates (B, T, C, H, W) tensors along T."""
    # `cat` keeps channels-last memory only if the channels are the last dimension.
    return torch.cat([part.movedim(2, -1) for part in parts], dim=1).movedim(-1, 2)


@overridable
def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Returns the frames a0 b0 a1 b1 ... of two (B, T, C, H, W) tensors."""
    batch, _, channels, height, width = first.shape
    pairs = torch.stack([first.movedim(2, -1), second.movedim(2, -1)], dim=2)
    return pairs.reshape(batch, -1, height, width, channels).movedim(-1, 2)


@overridable
def accumulate(total: Tensor, term: Tensor) -> Tensor:
    """Returns total + term. Without autograd it overwrites `total`, which the caller must own."""
    return total + term if torch.is_grad_enabled() else total.add_(term)


@overridable
def frame_numbers(frames: Tensor) -> Tensor:
    """Returns 0, 1, 2, ... for the frames of (B, T, C, H, W): int32 (1, T)."""
    return torch.arange(frames.shape[1], dtype=torch.int32, device=frames.device)[None]


@overridable
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


@overridable
def convolve_volume(
    frames: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> Tensor:
    """Computes `causal_conv` as one 3-D convolution."""
    margin = weight.shape[-1] // 2
    if stride[1] > 1:
        frames, margin = F.pad(frames, (0, 1, 0, 1)), 0
    steps = (stride[0], stride[1], stride[1])
    volume = F.conv3d(frames.movedim(2, 1), weight, bias, stride=steps, padding=(0, margin, margin))
    return volume.movedim(1, 2)


@overridable
def channel_norm(images: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalises the channels of each position of (N, C, H, W)."""
    result: Tensor = norm(images.movedim(1, -1))
    return result.movedim(-1, 1)


@overridable
def upsample_conv(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """Repeats every pixel of (N, C, H, W) to 2x2, and convolves: (N, C', 2 H, 2 W)."""
    result: Tensor = conv(F.interpolate(images, scale_factor=2, mode="nearest"))
    return result


@overridable
def frame_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attends within each frame, with one head, from all positions to all: (B, T, C, H, W)."""
    batch, _, channels, height, width = query.shape
    # (frames, one head, positions, channels)
    rows = [x.reshape(-1, 1, channels, height * width).transpose(2, 3) for x in (query, key, value)]
    attended = F.scaled_dot_product_attention(rows[0], rows[1], rows[2])
    return attended.transpose(2, 3).reshape(batch, -1, channels, height, width)


def frames_first(x: Tensor) -> Tensor:
    """Returns (B, C, T, H, W) as the network's (B, T, C, H, W), channels last in memory."""
    return x.permute(0, 2, 3, 4, 1).contiguous().movedim(-1, 2)


def channels_first(x: Tensor) -> Tensor:
    """Returns the network's (B, T, C, H, W) as a contiguous (B, C, T, H, W)."""
    return x.movedim(2, 1).contiguous()


def repeat_head(frames: Tensor, count: int) -> Tensor:
    """Puts `count` copies of the first frame in front of (B, T, C, H, W)."""
    if count == 0:
        return frames
    if torch.is_grad_enabled():
        return tap_sum.repeat_head(frames, count)
    return cat_frames(*[frames[:, :1]] * count, frames)
