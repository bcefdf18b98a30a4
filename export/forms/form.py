"""What a form of convolution is: filters made once from a weight, and a computation with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from wfvae.export.symbolic import Length

Unpaired = Literal["first", "last"]


@dataclass(frozen=True)
class Convolution:
    """A convolution of the network, from which a form sees whether it fits."""

    weight: Tensor
    """(C', C, k, s, s) for frames, (C', C, s, s) for images."""
    bias: Tensor | None
    length: Length = 1
    """Frames with their history."""
    stride: tuple[int, int] = (1, 1)
    """In time and in space."""
    repeated: bool = False
    """Whether frames come as pairs of equal ones, but for a whole clip's first."""
    unpaired: Unpaired = "first"
    """The frame of a whole clip without a partner.

    In a stream the head has as many copies as fill its pairs, and a linear time upsampling delays
    by one frame more. So pairs end with the head ("first") or begin with it ("last").
    """
    doubled: bool = False
    """Whether images are doubled by repetition before they are convolved."""


class Form(Protocol):
    """A way to compute convolutions in a graph."""

    @property
    def name(self) -> str:
        """Distinguishes the filters of this form from those of others."""

    def filters(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Returns the transformed filters of a weight, by name."""

    def compute(self, x: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """Convolves frames (B, T + k - 1, C, H, W), history first, or images (N, C, H, W)."""


Choice = Callable[[Convolution], Form | None]
"""Returns the form in which a file computes a convolution, or None if it does not fit."""
