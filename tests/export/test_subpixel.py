"""The sub-pixel form of a convolution after repetition: equal to the doubled image's convolution,
borders included.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wfvae.export.forms.subpixel import SubPixel
from wfvae.model.blocks import Upsample2D
from wfvae.model.causal import OfflineClip


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Images, and the weight and bias of a 3x3 convolution, float64. Sizes odd and even, down to
    one pixel.
    """
    count, channels, outputs, height, width = (draw(st.integers(1, top)) for top in (3, 5, 5, 7, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = ((count, channels, height, width), (outputs, channels, 3, 3), (outputs,))
    images, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return images, weight, bias


@given(cases())
def test_phases_equal_the_doubled_image(case: tuple[Tensor, Tensor, Tensor]) -> None:
    images, weight, bias = case
    doubled = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(doubled, weight, bias, padding=1)
    result = SubPixel().compute(images, list(SubPixel().filters(weight).values()), bias)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_taps_on_repeated_pixels_are_added() -> None:
    """Worked by hand: an even row sees one row above and, twice, its own."""
    filters = SubPixel().filters(
        torch.tensor([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0], [100.0, 200.0, 400.0]])[None, None]
    )
    assert filters["phase00"].flatten().tolist() == [1, 6, 110, 660]
    assert filters["phase11"].flatten().tolist() == [33, 44, 300, 400]
    assert {tuple(part.shape) for part in filters.values()} == {(1, 1, 2, 2)} and list(filters) == [
        "phase00",
        "phase01",
        "phase10",
        "phase11",
    ]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_networks_block_gives_the_same(batch: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Upsample2D(4).double().requires_grad_(False)
        frames = torch.randn(batch, 3, 4, 5, 3, dtype=torch.float64)
    filters = list(SubPixel().filters(block.conv.weight).values())
    images = SubPixel().compute(frames.flatten(0, 1), filters, block.conv.bias)
    torch.testing.assert_close(
        images.reshape(batch, 3, 4, 10, 6), block(frames, OfflineClip()), rtol=0, atol=1e-12
    )
