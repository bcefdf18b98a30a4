"""The sub-pixel form: equal to the convolution of the doubled image, borders included."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wfvae.export.forms.subpixel import SubPixel
from wfvae.model.ops import upsample_conv


@given(st.tuples(*(st.integers(1, top) for top in (3, 5, 5, 7, 7))), st.integers(0, 2**31))
def test_phases_equal_the_networks_convolution(sizes: tuple[int, ...], seed: int) -> None:
    """Heights and widths odd and even, down to one pixel."""
    count, channels, outputs, height, width = sizes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(channels, outputs, 3, padding=1).double().requires_grad_(False)
        images = torch.randn(count, channels, height, width, dtype=torch.float64)
    filters = list(SubPixel().filters(conv.weight).values())
    result: Tensor = SubPixel().compute(images, filters, conv.bias)
    torch.testing.assert_close(result, upsample_conv(images, conv), rtol=0, atol=1e-12)
    doubled = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(result, conv(doubled), rtol=0, atol=1e-12)


def test_taps_on_repeated_pixels_are_added() -> None:
    """Worked by hand: an even row sees one row above and, twice, its own."""
    taps = torch.tensor([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0], [100.0, 200.0, 400.0]])
    filters = SubPixel().filters(taps[None, None])
    assert list(filters) == ["phase00", "phase01", "phase10", "phase11"]
    assert {tuple(part.shape) for part in filters.values()} == {(1, 1, 2, 2)}
    assert filters["phase00"].flatten().tolist() == [1, 6, 110, 660]
    assert filters["phase11"].flatten().tolist() == [33, 44, 300, 400]
