"""A 3x3 convolution of an image that was doubled by repetition, as four 2x2 convolutions.

Each of the four phases of the result (even or odd row, even or odd column) sees only two rows and
two columns of the small image, some of them repeated, so the taps on repeated pixels are summed
beforehand: 16 products for four results instead of 36, and no large input. This is the sub-pixel
form of Shi et al., arXiv 1609.07009. Along one axis, with taps g0 g1 g2 on x[i-1] x[i] x[i+1]:

    even   g0 x[i-1] + (g1 + g2) x[i]        odd   (g0 + g1) x[i] + g2 x[i+1]

Zero padding of the doubled image is zero padding of the image.
"""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from wfvae.export.forms.form import Convolution

PHASES = tuple(product((0, 1), repeat=2))
"""(row, column) of a result in its group of four."""


class SubPixel:
    """The form (`wfvae.export.forms.form`)."""

    name = "phases"

    def filters(self, weight: Tensor) -> dict[str, Tensor]:
        """Returns the four filters (C', C, 2, 2) of (C', C, 3, 3), summed in float64."""
        wide = weight.detach().to(torch.float64)
        summed = {f"phase{row}{column}": _gather(_gather(wide, 2, row), 3, column) for row, column in PHASES}
        return {name: part.to(weight.dtype).contiguous() for name, part in summed.items()}

    def compute(self, x: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """Doubles and convolves (N, C, H, W), with zero padding 1, to (N, C', 2 H, 2 W)."""
        phases = [
            F.conv2d(F.pad(x, (1 - column, column, 1 - row, row)), part, bias)
            for (row, column), part in zip(PHASES, filters, strict=True)
        ]
        # Two interleavings: ONNX Runtime takes three times as long for one depth-to-space.
        rows = [torch.stack(phases[start : start + 2], dim=4).flatten(3, 4) for start in (0, 2)]
        return torch.stack(rows, dim=3).flatten(2, 3)


def choose(convolution: Convolution) -> SubPixel | None:
    """Chooses the form for every convolution of doubled images."""
    return SubPixel() if convolution.doubled else None


def _gather(weight: Tensor, axis: int, phase: int) -> Tensor:
    """Sums three taps along `axis` to the two of a phase."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([first + middle, last] if phase else [first, middle + last], dim=axis)
