"""Where things were some frames before: the motion of a clip, found in its luma. For losses that
follow it.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad

REACH = 10
"""Pixels that things move by from one frame to the next, at most, in each direction."""
_BLOCK = 5
_BIAS = 0.0008
"""What each pixel of displacement must gain, a tenth of a level of 255, so that grain on even
ground has none.
"""
ALIKE = 10 / 127.5
"""Ten levels of 255: where a video, moved, differs by more, its motion is not what was found, or
shows what was behind something. In the least squares such a pixel counts less than half."""
_EVEN = 2e-4
"""Mean square of a gradient, of about two levels a pixel, below which the least squares change
little: it may be grain.
"""
_LUMA = (0.2126, 0.7152, 0.0722)


def luma(video: Tensor) -> Tensor:
    """BT.709's luma of RGB: (B, 3, T, H, W) to (B, T, H, W), of the same range."""
    return torch.einsum("bcthw,c->bthw", video, video.new_tensor(_LUMA))


def motion(pictures: Tensor, distances: tuple[int, ...] = (1,)) -> dict[int, Tensor]:
    """Displacements from each frame to the one so many frames before it.

    Blocks of 10x10 pixels are matched by their mean absolute difference at half the resolution,
    over all displacements by whole pixels; a step of least squares (Lucas and Kanade, IJCAI 1981)
    then finds what lies between them. Over more frames than one the motions of half the distance
    are followed one after the other, with another such step. Where blocks match alike, as on even
    ground, the smallest displacement is taken.

    Args:
        pictures: luma, (B, T, H, W) floating point, H and W even; nothing is differentiated.
        distances: powers of two, ascending from 1; those that reach beyond the clip are left out.

    Returns:
        By distance k, (B, T - k, 2, H, W) in the dtype of `pictures`: of frame t's pixel (y, x) at
        [t - k] the (x, y) by which it lay to the right and down in frame t - k, in pixels.
    """
    with torch.no_grad():
        found: dict[int, Tensor] = {}
        for distance in distances:
            if distance >= pictures.shape[1]:
                break
            now, before = pictures[:, distance:].flatten(0, 1), pictures[:, :-distance].flatten(0, 1)
            if distance == 1:
                start = _searched(now, before)
            else:
                half = found[distance // 2]
                first, second = (
                    half[:, distance // 2 :].flatten(0, 1),
                    half[:, : -(distance // 2)].flatten(0, 1),
                )
                start = first + displaced(second, first)
            refined = _refined(now, before, start)
            found[distance] = refined.reshape(pictures.shape[0], -1, *refined.shape[1:])
        return found


def displaced(pictures: Tensor, displacement: Tensor) -> Tensor:
    """`pictures` (N, C, H, W) at their places plus `displacement` (N, 2, H, W), bilinear; beyond
    their edges that of the edge.
    """
    height, width = pictures.shape[2:]
    x, y = _places(displacement)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def within(displacement: Tensor) -> Tensor:
    """Whether places plus `displacement` (N, 2, H, W) are on a pixel of the picture, (N, H, W)."""
    height, width = displacement.shape[2:]
    x, y = _places(displacement)
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def _places(displacement: Tensor) -> tuple[Tensor, Tensor]:
    height, width = displacement.shape[2:]
    rows = torch.arange(height, dtype=displacement.dtype, device=displacement.device)[:, None]
    columns = torch.arange(width, dtype=displacement.dtype, device=displacement.device)[None, :]
    return displacement[:, 0] + columns, displacement[:, 1] + rows


def _searched(now: Tensor, before: Tensor) -> Tensor:
    """(N, H, W) twice to (N, 2, H, W): whole displacements up to `REACH`, the same for four pixels."""
    height, width = (side // 2 for side in now.shape[1:])
    now = avg_pool2d(now, 2)
    around = pad(before[:, None], (REACH,) * 4, mode="replicate")[:, 0]
    halved = {shift: avg_pool2d(around[:, shift[1] :, shift[0] :], 2) for shift in product((0, 1), repeat=2)}
    best: Tensor | None = None
    taken = torch.zeros(now.shape, dtype=torch.long, device=now.device)
    steps = sorted(product(range(-REACH, REACH + 1), repeat=2), key=lambda step: math.hypot(*step))
    for number, (across, down) in enumerate(steps):
        (left, odd), (top, odd_too) = divmod(REACH + across, 2), divmod(REACH + down, 2)
        cost = _of_blocks((now - halved[odd, odd_too][:, top : top + height, left : left + width]).abs())
        cost += _BIAS * math.hypot(across, down)
        if best is None:
            best = cost
            continue
        taken.masked_fill_(cost < best, number)
        best = torch.minimum(best, cost)
    found = torch.tensor(steps, dtype=now.dtype, device=now.device)[taken].movedim(-1, 1)
    return found.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _refined(now: Tensor, before: Tensor, start: Tensor) -> Tensor:
    """One step of least squares, for the displacement that the pixels of a block have in common, at
    most a pixel from where each starts.
    """
    lacking = now - displaced(before[:, None], start)[:, 0]
    sides = pad(now[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across, down = (
        (sides[:, 1:-1, 2:] - sides[:, 1:-1, :-2]) / 2,
        (sides[:, 2:, 1:-1] - sides[:, :-2, 1:-1]) / 2,
    )
    weight = 1 / (1 + (lacking / ALIKE).square())
    target = weight * (lacking + across * start[:, 0] + down * start[:, 1])
    xx, xy, yy = (
        _of_blocks(weight * across * across),
        _of_blocks(weight * across * down),
        _of_blocks(weight * down * down),
    )
    x, y = _of_blocks(target * across) + _EVEN * start[:, 0], _of_blocks(target * down) + _EVEN * start[:, 1]
    xx, yy = xx + _EVEN, yy + _EVEN
    found = torch.stack([yy * x - xy * y, xx * y - xy * x], dim=1) / (xx * yy - xy * xy)[:, None]
    return start + (found - start).clamp_(-1, 1)


def _of_blocks(values: Tensor) -> Tensor:
    """Means around each pixel, in two passes of sums: `avg_pool2d` takes several times as long on a
    CPU.
    """
    height, width = values.shape[1:]
    around = pad(values[:, None], (_BLOCK // 2,) * 4, mode="replicate")[:, 0]
    rows = around[:, :height].clone()
    for down in range(1, _BLOCK):
        rows += around[:, down : down + height]
    total = rows[:, :, :width].clone()
    for across in range(1, _BLOCK):
        total += rows[:, :, across : across + width]
    return total.div_(_BLOCK**2)
