"""Causal convolutions with fewer multiplications: two outputs of a three-tap filter from four
products instead of six.

This is F(2, 3) of Winograd's minimal filtering algorithms (Lavin and Gray, arXiv 1509.09308,
section 4.1). For inputs d0 d1 d2 d3, taps g0 g1 g2 and the outputs y0 = d0 g0 + d1 g1 + d2 g2, y1 =
d1 g0 + d2 g1 + d3 g2:

    p0 = (d0 - d2) g0       p1 = (d1 + d2) (g0 + g1 + g2) / 2       p2 = (d2 - d1) (g0 - g1 + g2) / 2       p3 = (d3 - d1) g2
    y0 = (p1 + p2) + p0     y1 = (p1 - p2) + p3

Here d are frames, or rows of frames, and a product with a tap is a 2-D convolution over channels
and the axes that are left. At one frame per latent these do not come in pairs; there wide
convolutions are computed in pairs of rows alone. Frames that were repeated need no transform in
time: see `convolve_repeated`.

Frames are taken in pairs, aligned to the latents, so the bits of a frame do not depend on the chunk
that it comes in. Frames that are all alike, such as a stream's head and its history, give p1 alone,
exactly: y0 and y1 then have the same bits, as all later code presumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wfvae.export.recorder.symbolic import Length
from wfvae.model.causal import CausalConv3d, cat_frames

TAPS = 3
ROWS_FROM_CHANNELS = 96
"""Below, the passes over transformed rows take longer than the products that they save; not much
above, it depends on the engine (docs/performance.md)."""

ROWS_ALONE_FROM_CHANNELS = 256
"""The same where frames do not come in pairs, one per latent."""

_FILTERS_AT_ONCE = 64
"""Output channels transformed together: whole weights in float64, between filters that stay, leave
holes in the process's memory.
"""

LoneFrame = Literal["first", "last"]

Way = Literal["pairs", "pairs and rows", "rows", "repeats", "repeats and rows"]
"""What is taken two at a time: frames; frames and rows; rows alone; frames that are equal; these
and rows.
"""


@dataclass(frozen=True)
class MinimalFiltering:
    """How a graph's causal convolutions are computed."""

    lone: LoneFrame
    """The frame of a whole clip without a partner. In a stream the head has as many copies as fill
    its pairs, and a linear time upsampling delays by one frame more; so pairs end with the head
    ("first"), or begin with it ("last")."""

    def way(self, conv: CausalConv3d, frames: Tensor) -> Way | None:
        """How to compute `conv` for `frames`, which include the history; None: tap by tap."""
        taps, strides = (conv.kernel, conv.kernel_spatial), (conv.stride, conv.stride_spatial)
        if taps != (TAPS, TAPS) or strides != (1, 1):
            return None
        channels = min(conv.conv.weight.shape[:2])
        if parity(frames.shape[1]) is None:
            return "rows" if channels >= ROWS_ALONE_FROM_CHANNELS else None
        if conv.repeated and self.lone == "first":
            return "repeats and rows" if channels >= ROWS_FROM_CHANNELS else "repeats"
        return "pairs and rows" if channels >= ROWS_FROM_CHANNELS else "pairs"

    def __call__(self, way: Way, frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """The convolution of (B, T + 2, C, H, W), history first, to (B, T, C', H, W). `filters`:
        those of `filters_of`, in its order.
        """
        if way == "rows":
            return convolve_rows(frames, filters, bias)
        convolve = convolve_pairs if way.startswith("pairs") else convolve_repeated
        if parity(frames.shape[1]) == 0:
            return convolve(frames, filters, bias)
        if self.lone == "first":
            return convolve(cat_frames([frames[:, :1], frames]), filters, bias)[:, 1:]
        return convolve(cat_frames([frames, frames[:, -1:]]), filters, bias)[:, :-1]


def parity(length: Length) -> int | None:
    """`length` modulo 2; None where that depends on a symbol."""
    if isinstance(length, int):
        return length % 2
    if any(factor % 2 for monomial, factor in length.terms.items() if monomial):
        return None
    return length % 2


def filters_of(weight: Tensor, way: Way) -> dict[str, Tensor]:
    """Transformed filters of a weight (C', C, 3, 3, 3), by name.

    pairs: `pair0` to `pair3`, (C', C, 3, 3). pairs and rows: `pair0.rows0` to `pair3.rows3`, (C',
    C, 1, 3). repeats: `tap0` to `tap2`, (C', C, 3, 3). rows, repeats and rows: `tap0.rows0` to
    `tap2.rows3`, (C', C, 1, 3). Computed in float64 and rounded once, to the weight's precision.
    """
    filters: dict[str, Tensor] = {}
    for start in range(0, len(weight), _FILTERS_AT_ONCE):
        block = slice(start, start + _FILTERS_AT_ONCE)
        for name, part in _transformed(weight[block].detach().to(torch.float64), way).items():
            filters.setdefault(name, weight.new_empty(len(weight), *part.shape[1:]))[block] = part
    return filters


def _transformed(weight: Tensor, way: Way) -> dict[str, Tensor]:
    """`filters_of`, in the weight's precision."""
    taps = weight.unbind(2)
    if way.startswith("pairs"):
        parts = {f"pair{index}": part for index, part in enumerate(transform(taps))}
    else:
        parts = {f"tap{index}": part for index, part in enumerate(taps)}
    if "rows" in way:
        parts = {
            f"{name}.rows{index}": row[:, :, None]
            for name, part in parts.items()
            for index, row in enumerate(transform(part.unbind(2)))
        }
    return parts


def transform(taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """g0 to g2 as the factors of p0 to p3."""
    first, middle, last = taps
    return first, (first + middle + last) / 2, (first - middle + last) / 2, last


def convolve_pairs(frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """A causal 3x3x3 convolution, spatial zero padding 1, with two frames of history and an even
    number of frames.

    Args:
        frames: (B, T + 2, C, H, W), T even; H even where the filters are transformed in height.
        filters: four, or with rows sixteen, of `filters_of`.
        bias: (C',).

    Returns:
        (B, T, C', H, W).
    """
    each = len(filters) // 4
    batch = frames.shape[0]
    windows = analyse([frames[:, start : start - TAPS or None : 2] for start in range(4)])
    products = [
        _products(
            window.flatten(0, 1), filters[index * each : (index + 1) * each], bias if index == 1 else None
        )
        for index, window in enumerate(windows)
    ]
    images = [
        _combine(parts)
        for parts in zip(*(synthesise(parts) for parts in zip(*products, strict=True)), strict=True)
    ]
    pairs = torch.stack(images, dim=1)
    return pairs.reshape(batch, -1, *pairs.shape[2:])


def convolve_repeated(frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """A causal 3x3x3 convolution, spatial zero padding 1, of equal pairs of frames, the first of
    which is history.

    Two outputs see x[i-1] x[i-1] x[i] and x[i-1] x[i] x[i]. So the outer taps' products are common
    to both, and the middle tap's serve the second output of one pair and the first of the next: 3 t
    + 1 products for 2 t outputs.

    Args:
        frames: (B, T + 2, C, H, W), T even; H even where the filters are transformed in height.
        filters: three, or with rows twelve, of `filters_of`.
        bias: (C',).

    Returns:
        (B, T, C', H, W).
    """
    batch, each = frames.shape[0], len(filters) // TAPS
    single = frames[:, 1::2]
    windows, padding = (
        ([single.flatten(0, 1)], (1, 1)) if each == 1 else (_row_windows(single.flatten(0, 1), 1), (0, 1))
    )
    biased = 0 if each == 1 else 1  # p1 of rows is in both of them
    outputs = []
    for index, window in enumerate(windows):
        clips = window.reshape(batch, single.shape[1], *window.shape[1:])
        first, middle, last = (
            F.conv2d(
                taken.flatten(0, 1),
                filters[each * tap + index],
                bias if (tap, index) == (1, biased) else None,
                padding=padding,
            )
            for tap, taken in enumerate((clips[:, :-1], clips, clips[:, 1:]))
        )
        common, middles = first + last, middle.reshape(batch, single.shape[1], *middle.shape[1:])
        outputs.append((common + middles[:, :-1].flatten(0, 1), common + middles[:, 1:].flatten(0, 1)))
    pairs = torch.stack([_combine(parts) for parts in zip(*outputs, strict=True)], dim=1)
    return pairs.reshape(batch, -1, *pairs.shape[2:])


def _row_windows(images: Tensor, below: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of rows of (N, C, H, W), analysed. `below`: rows of zeros at the bottom, 1 for an even
    H, 2 for any.
    """
    padded = F.pad(images, (0, 0, 1, below))
    return analyse([padded[:, :, start : start - TAPS or None : 2] for start in range(4)])


def convolve_rows(frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """A causal 3x3x3 convolution, spatial zero padding 1, with two frames of history: the sum of
    three taps in time, in pairs of rows.

    Args:
        frames: (B, T + 2, C, H, W), of any T and H. An odd H has a row of zeros more, which is cut
            off again.
        filters: the twelve of `filters_of`.
        bias: (C',).

    Returns:
        (B, T, C', H, W).
    """
    batch, count, _, height, _ = frames.shape
    products = []
    for index, window in enumerate(_row_windows(frames.flatten(0, 1), 2)):
        clips = window.reshape(batch, count, *window.shape[1:])
        total: Tensor | None = None
        for tap in range(TAPS):
            images = clips[:, tap : (tap - 2) or None].flatten(0, 1)
            part = F.conv2d(
                images, filters[4 * tap + index], bias if tap == 0 and index == 1 else None, padding=(0, 1)
            )
            total = part if total is None else total + part
        assert total is not None
        products.append(total)
    rows = torch.stack(synthesise(products), dim=3).flatten(2, 3)
    return rows.narrow(2, 0, height).reshape(batch, -1, rows.shape[1], height, rows.shape[3])


def _products(images: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    """One product in time: its convolution, or the four products in height that it is made of."""
    if len(filters) == 1:
        return [F.conv2d(images, filters[0], bias, padding=1)]
    return [
        F.conv2d(window, part, bias if index == 1 else None, padding=(0, 1))
        for index, (window, part) in enumerate(zip(_row_windows(images, 1), filters, strict=True))
    ]


def _combine(parts: Sequence[Tensor]) -> Tensor:
    """Whole images from what `_products` gave, after the synthesis in time."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.stack(synthesise(parts), dim=3)
    return rows.flatten(2, 3)


def analyse(window: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d0 to d3 as the other factors."""
    d0, d1, d2, d3 = window
    return d0 - d2, d1 + d2, d2 - d1, d3 - d1


def synthesise(products: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y0 and y1 from p0 to p3."""
    p0, p1, p2, p3 = products
    return (p1 + p2) + p0, (p1 - p2) + p3
