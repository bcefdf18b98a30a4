"""Causal convolutions with fewer multiplications: two outputs of three taps from four products.

This is F(2, 3) of Winograd's minimal filtering algorithms (Lavin and Gray, arXiv 1509.09308,
section 4.1). For inputs d0 d1 d2 d3, taps g0 g1 g2 and the outputs y0 = d0 g0 + d1 g1 + d2 g2,
y1 = d1 g0 + d2 g1 + d3 g2:

    p0 = (d0 - d2) g0    p1 = (d1 + d2) (g0 + g1 + g2) / 2    p2 = (d2 - d1) (g0 - g1 + g2) / 2
    p3 = (d3 - d1) g2    y0 = (p1 + p2) + p0                  y1 = (p1 - p2) + p3

Here d are frames, or rows of frames, and a product with a tap is a 2-D convolution over channels
and the axes that are left. Frames that do not come in pairs, at one per latent, are computed in
pairs of rows alone. Frames that were repeated need no transform in time (`_repeated_pairs`).

Pairs are aligned to the latents, so the bits of a frame do not depend on its chunk. Equal frames,
such as a stream's head and its history, give p1 alone: y0 and y1 then have the same bits, which
the rest of the network relies on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wfvae.export.forms.form import Convolution, Unpaired
from wfvae.export.symbolic import Length
from wfvae.model.ops import cat_frames

TAPS = 3
ROWS_FROM_CHANNELS = 96
"""Below, passes over transformed rows take longer than the products saved (docs/performance.md)."""
ROWS_ALONE_FROM_CHANNELS = 256
"""The same where frames do not come in pairs, one per latent."""
_FILTERS_AT_ONCE = 64
"""Output channels transformed together: whole weights in float64 would fragment the memory."""

Variant = Literal["pairs", "pairs and rows", "rows", "repeats", "repeats and rows"]
"""What is taken two at a time: frames, frames and rows, rows, equal frames, these and rows."""


@dataclass(frozen=True)
class MinimalFiltering:
    """The form (`wfvae.export.forms.form`) of convolutions with 3x3x3 taps and stride 1."""

    name: Variant
    unpaired: Unpaired = "first"

    def filters(self, weight: Tensor) -> dict[str, Tensor]:
        """Transforms a weight (C', C, 3, 3, 3) in float64, and rounds once to its precision.

        | variant                | names                      | shape         |
        |------------------------|----------------------------|---------------|
        | pairs                  | pair0 ... pair3            | (C', C, 3, 3) |
        | pairs and rows         | pair0.rows0 ... pair3.rows3 | (C', C, 1, 3) |
        | repeats                | tap0 ... tap2              | (C', C, 3, 3) |
        | rows, repeats and rows | tap0.rows0 ... tap2.rows3  | (C', C, 1, 3) |
        """
        filters: dict[str, Tensor] = {}
        for start in range(0, len(weight), _FILTERS_AT_ONCE):
            block = slice(start, start + _FILTERS_AT_ONCE)
            for name, part in self._transform(weight[block].detach().to(torch.float64)).items():
                filters.setdefault(name, weight.new_empty(len(weight), *part.shape[1:]))[block] = part
        return filters

    def _transform(self, weight: Tensor) -> dict[str, Tensor]:
        taps = weight.unbind(2)
        if self.name.startswith("pairs"):
            parts = {f"pair{index}": part for index, part in enumerate(transform(taps))}
        else:
            parts = {f"tap{index}": part for index, part in enumerate(taps)}
        if "rows" not in self.name:
            return parts
        return {
            f"{name}.rows{index}": row[:, :, None]
            for name, part in parts.items()
            for index, row in enumerate(transform(part.unbind(2)))
        }

    def compute(self, x: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """Convolves frames (B, T + 2, C, H, W), history first, to (B, T, C', H, W).

        Zero padding 1 in space. H is even where rows are transformed, and of any size for "rows".
        """
        if self.name == "rows":
            return _row_pairs(x, filters, bias)
        convolve = _frame_pairs if self.name.startswith("pairs") else _repeated_pairs
        if parity(x.shape[1]) == 0:
            return convolve(x, filters, bias)
        if self.unpaired == "first":
            return convolve(cat_frames(x[:, :1], x), filters, bias)[:, 1:]
        return convolve(cat_frames(x, x[:, -1:]), filters, bias)[:, :-1]


def choose(convolution: Convolution) -> MinimalFiltering | None:
    """Chooses what is taken in pairs, by channels and by whether frames come in pairs."""
    if convolution.weight.shape[2:] != (TAPS, TAPS, TAPS) or convolution.stride != (1, 1):
        return None
    channels = min(convolution.weight.shape[:2])
    if parity(convolution.length) is None:
        return MinimalFiltering("rows") if channels >= ROWS_ALONE_FROM_CHANNELS else None
    wide = channels >= ROWS_FROM_CHANNELS
    if convolution.repeated and convolution.unpaired == "first":
        return MinimalFiltering("repeats and rows" if wide else "repeats", convolution.unpaired)
    return MinimalFiltering("pairs and rows" if wide else "pairs", convolution.unpaired)


def parity(length: Length) -> int | None:
    """Returns `length` modulo 2, or None where that depends on a symbol."""
    if isinstance(length, int):
        return length % 2
    if any(factor % 2 for monomial, factor in length.terms.items() if monomial):
        return None
    return length % 2


def transform(taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the factors of p0 to p3 that depend on g0 to g2."""
    first, middle, last = taps
    return first, (first + middle + last) / 2, (first - middle + last) / 2, last


def analyse(window: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the factors of p0 to p3 that depend on d0 to d3."""
    d0, d1, d2, d3 = window
    return d0 - d2, d1 + d2, d2 - d1, d3 - d1


def synthesise(products: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns y0 and y1 from p0 to p3."""
    p0, p1, p2, p3 = products
    return (p1 + p2) + p0, (p1 - p2) + p3


def _frame_pairs(frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Convolves an even number of frames in pairs, with four filters, or with rows sixteen."""
    each = len(filters) // 4
    windows = analyse([frames[:, start : start - TAPS or None : 2] for start in range(4)])
    products = []
    for index, window in enumerate(windows):
        part = filters[index * each : (index + 1) * each]
        products.append(_products(window.flatten(0, 1), part, bias if index == 1 else None))
    # In time for each product in height, then in height.
    halves = zip(*(synthesise(parts) for parts in zip(*products, strict=True)), strict=True)
    return _join_pairs([_combine(parts) for parts in halves], frames.shape[0])


def _repeated_pairs(frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Convolves equal pairs of frames, the first of which is history.

    Two outputs see x[i-1] x[i-1] x[i] and x[i-1] x[i] x[i]. So the outer taps' products are common
    to both, and the middle tap's serve the second output of one pair and the first of the next:
    3 t + 1 products for 2 t outputs. There are three filters, or with rows twelve.
    """
    batch, each = frames.shape[0], len(filters) // TAPS
    single = frames[:, 1::2]
    count = single.shape[1]
    images = single.flatten(0, 1)
    windows = (images,) if each == 1 else _row_windows(images, 1)
    biased = 0 if each == 1 else 1  # p1 of rows is in both outputs
    outputs = []
    for index, window in enumerate(windows):
        clips = window.reshape(batch, count, *window.shape[1:])
        first, middle, last = (
            F.conv2d(
                taken.flatten(0, 1),
                filters[each * tap + index],
                bias if (tap, index) == (1, biased) else None,
                padding=(1, 1) if each == 1 else (0, 1),
            )
            for tap, taken in enumerate((clips[:, :-1], clips, clips[:, 1:]))
        )
        common, middles = first + last, middle.reshape(batch, count, *middle.shape[1:])
        outputs.append((common + middles[:, :-1].flatten(0, 1), common + middles[:, 1:].flatten(0, 1)))
    return _join_pairs([_combine(parts) for parts in zip(*outputs, strict=True)], batch)


def _row_pairs(frames: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Convolves frames in pairs of rows, as three taps in time; an odd H gets a row of zeros."""
    batch, count, _, height, _ = frames.shape
    products = []
    for index, window in enumerate(_row_windows(frames.flatten(0, 1), 2)):
        clips = window.reshape(batch, count, *window.shape[1:])
        total: Tensor | None = None
        for tap in range(TAPS):
            images = clips[:, tap : (tap - 2) or None].flatten(0, 1)
            part_bias = bias if tap == 0 and index == 1 else None
            part = F.conv2d(images, filters[4 * tap + index], part_bias, padding=(0, 1))
            total = part if total is None else total + part
        assert total is not None
        products.append(total)
    rows = _combine(products)
    return rows.narrow(2, 0, height).reshape(batch, -1, rows.shape[1], height, rows.shape[3])


def _row_windows(images: Tensor, below: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Analyses pairs of rows of (N, C, H, W), with zeros `below`: 1 for an even H, 2 for any."""
    padded = F.pad(images, (0, 0, 1, below))
    return analyse([padded[:, :, start : start - TAPS or None : 2] for start in range(4)])


def _products(images: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    """Returns one product in time: a convolution, or the four products in height that it has."""
    if len(filters) == 1:
        return [F.conv2d(images, filters[0], bias, padding=1)]
    return [
        F.conv2d(window, part, bias if index == 1 else None, padding=(0, 1))
        for index, (window, part) in enumerate(zip(_row_windows(images, 1), filters, strict=True))
    ]


def _combine(parts: Sequence[Tensor]) -> Tensor:
    """Returns whole images from one product, or from the four products in height."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack(synthesise(parts), dim=3).flatten(2, 3)


def _join_pairs(images: Sequence[Tensor], batch: int) -> Tensor:
    """Interleaves the first and second frames of pairs: (N, C, H, W) twice to (B, T, C, H, W)."""
    pairs = torch.stack(list(images), dim=1)
    return pairs.reshape(batch, -1, *pairs.shape[2:])
