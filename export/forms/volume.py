"""One 3-D convolution for each causal one, in place of a sum over its time taps.

It reads and writes each frame once, which decides where frames are large and channels few. The
weights of wide channels do not fit into the cache of a core together, and there OpenVINO computes
three 2-D convolutions up to three times as fast (docs/performance.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wfvae.export.forms.form import Convolution
from wfvae.model.ops import convolve_volume

TAPS_FROM_FILTERS = 2**17
"""Products of input and output channels from which on three 2-D convolutions are faster, measured
with OpenVINO in bf16 on a CPU with AMX.
"""


@dataclass(frozen=True)
class VolumeConvolution:
    """The form (`wfvae.export.forms.form`)."""

    stride: tuple[int, int] = (1, 1)
    """In time and in space."""
    name = "volume"

    def filters(self, weight: Tensor) -> dict[str, Tensor]:
        """Returns the weight itself."""
        return {"volume": weight}

    def compute(self, x: Tensor, filters: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """Convolves frames (B, T + k - 1, C, H, W), history first, to (B, T, C', H, W)."""
        return convolve_volume(x, filters[0], bias, self.stride)


def choose(convolution: Convolution) -> VolumeConvolution | None:
    """Chooses the form for every convolution over time."""
    shape = convolution.weight.shape
    return VolumeConvolution(convolution.stride) if len(shape) == 5 and shape[2] > 1 else None


def choose_narrow(convolution: Convolution) -> VolumeConvolution | None:
    """Chooses the form where it is the faster one."""
    outputs, inputs = convolution.weight.shape[:2]
    return None if outputs * inputs >= TAPS_FROM_FILTERS else choose(convolution)
