"""Memory layout: the network works on frames first, channels last in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def frames_first(x: Tensor) -> Tensor:
    """Returns (B, C, T, H, W) as the network's (B, T, C, H, W), channels last in memory."""
    return x.permute(0, 2, 3, 4, 1).contiguous().movedim(-1, 2)


def channels_first(x: Tensor) -> Tensor:
    """Returns the network's (B, T, C, H, W) as a contiguous (B, C, T, H, W)."""
    return x.movedim(2, 1).contiguous()


def lay_out_weights(model: nn.Module) -> None:
    """Orders convolution weights in memory as channels-last convolutions read them.

    Shapes and values stay.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        elif parameter.ndim == 5:
            # (out, in, time, h, w): each time tap is then one contiguous channels-last weight.
            parameter.data = parameter.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
