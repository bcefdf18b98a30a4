"""Haar transforms: the wavelet's laws at any size, and the published bands and filters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wfvae.errors import CheckpointError
from wfvae.model.haar import (
    ORTHONORMAL_GAIN_3D,
    RELEASED_GAIN_3D,
    HaarAnalysis,
    HaarSynthesis,
    haar_signs,
    read_gain,
)

DIMS = pytest.mark.parametrize("dims", [2, 3])
KINDS = (HaarAnalysis, HaarSynthesis)


@st.composite
def videos(draw: st.DrawFn) -> tuple[int, torch.Tensor]:
    """A transform's dimensions, and float64 frames (B, T, channels, H, W) of a size it takes."""
    dims, scale = draw(st.sampled_from([2, 3])), draw(st.sampled_from([1e-3, 1.0, 1e3]))
    batch, pairs, channels, height, width = (draw(st.integers(1, top)) for top in (3, 3, 7, 5, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (batch, pairs * (dims - 1), channels, 2 * height, 2 * width)
    return dims, scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@given(videos())
def test_synthesis_inverts_analysis_and_keeps_energy(case: tuple[int, torch.Tensor]) -> None:
    dims, frames = case
    analysis, synthesis = (kind(dims, frames.shape[2]).double() for kind in KINDS)
    bands = analysis(frames)
    batch, count, channels, height, width = frames.shape
    assert bands.shape == (batch, count // (dims - 1), 2**dims * channels, height // 2, width // 2)
    close = {"rtol": 0, "atol": 1e-14 * float(frames.abs().max())}
    torch.testing.assert_close(synthesis(bands), frames, **close)
    torch.testing.assert_close(analysis(synthesis(bands)), bands, **close)
    torch.testing.assert_close(bands.square().sum(), frames.square().sum(), rtol=1e-13, atol=0)


@given(videos())
def test_synthesis_is_the_transpose_of_analysis_at_any_gain(case: tuple[int, torch.Tensor]) -> None:
    dims, frames = case
    analysis, synthesis = (kind(dims, frames.shape[2], gain=0.3).double() for kind in KINDS)
    bands = analysis(frames)
    other = torch.cos(torch.arange(bands.numel(), dtype=torch.float64)).reshape(bands.shape)
    atol = 1e-14 * float(frames.abs().max()) * frames.numel()
    transposed = (frames * synthesis(other)).sum()
    torch.testing.assert_close((bands * other).sum(), transposed, rtol=0, atol=atol)


# By definition, one sub-band and one pixel at a time: for 3-D the band's bits are (T, H, W), for
# 2-D the middle bands are swapped.
HIGH_PASS = {
    3: [(b >> 2 & 1, b >> 1 & 1, b & 1) for b in range(8)],
    2: [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)],
}


@DIMS
def test_bands_are_in_published_order_and_sub_band_major(dims: int) -> None:
    frames = torch.randn(1, dims - 1, 3, 2, 2, dtype=torch.float64)
    bands = HaarAnalysis(dims, 3).double()(frames)[0, 0, :, 0, 0]
    gain = {2: 1 / 2, 3: 1 / 8**0.5}[dims]
    for band, (high_t, high_h, high_w) in enumerate(HIGH_PASS[dims]):
        for color in range(3):
            expected = sum(
                gain * (-1) ** (high_t * t + high_h * y + high_w * x) * frames[0, t, color, y, x].item()
                for t in range(dims - 1)
                for y in range(2)
                for x in range(2)
            )
            assert bands[3 * band + color].item() == pytest.approx(expected, abs=1e-14)


@DIMS
@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_carries_taps_under_published_names(
    kind: type[HaarAnalysis] | type[HaarSynthesis], dims: int
) -> None:
    names = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v") if dims == 3 else ("aa", "ad", "da", "dd")
    ending = "_conv.conv.weight" if kind is HaarAnalysis and dims == 3 else ""
    state = kind(dims, 3, gain=0.25).state_dict()
    assert list(state) == [name + ending for name in names]
    for tap, signs in zip(state.values(), haar_signs(dims), strict=True):
        assert torch.equal(tap, signs.float()[None, None] * 0.25)


@DIMS
def test_loaded_taps_change_the_transform(dims: int) -> None:
    source, loaded = HaarAnalysis(dims, 3, gain=RELEASED_GAIN_3D), HaarAnalysis(dims, 3)
    frames = torch.randn(1, 2, 3, 4, 4)
    assert not torch.equal(loaded(frames), source(frames))
    loaded.load_state_dict(source.state_dict())
    assert torch.equal(loaded(frames), source(frames))
    assert loaded.gain == pytest.approx(RELEASED_GAIN_3D, abs=1e-7)


def test_precision_is_never_lost_by_conversion() -> None:
    exact = HaarAnalysis(3, 3).double()
    assert exact.weight.abs().max().item() == ORTHONORMAL_GAIN_3D
    assert torch.equal(HaarAnalysis(3, 3).bfloat16().double().weight, exact.weight)


def test_transform_made_on_the_meta_device_gets_real_filters() -> None:
    with torch.device("meta"):
        analysis = HaarAnalysis(3, 3)
    assert torch.equal(analysis.to_empty(device="cpu").weight, HaarAnalysis(3, 3).weight)


@DIMS
def test_filters_that_are_not_haar_are_refused_by_name(dims: int) -> None:
    good = HaarAnalysis(dims, 3).taps()
    name = list(good)[2]
    for bad in (-good[name], good[name] * 1.01, torch.rand_like(good[name]), good[name] * float("nan")):
        with pytest.raises(CheckpointError, match=f"{name} is not a Haar filter"):
            read_gain(good | {name: bad}, dims)
    message = rf"{name} has shape \(3,\); expected a Haar filter of {2**dims} taps"
    with pytest.raises(CheckpointError, match=message):
        read_gain(good | {name: torch.ones(3)}, dims)
