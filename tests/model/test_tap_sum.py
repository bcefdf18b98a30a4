"""The convolution of training: values and gradients equal autograd's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wfvae.model.causal import CausalConv3d, OfflineClip
from wfvae.model.ops import cat_frames
from wfvae.model.tap_sum import repeat_head, sum_of_taps


@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 5),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.sampled_from([1, 3]),
    biased=st.booleans(),
)
def test_values_and_gradients_are_those_of_conv3d(
    batch: int, frames: int, channels: tuple[int, int], size: tuple[int, int], kernel: int, biased: bool
) -> None:
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64, requires_grad=True)

    source = draw(batch, frames + kernel - 1, channels[0], *size)
    weight = draw(channels[1], channels[0], kernel, kernel, kernel)
    bias = draw(channels[1]) if biased else None
    padding = (0, kernel // 2, kernel // 2)
    expected = F.conv3d(source.movedim(2, 1), weight, bias, padding=padding).movedim(1, 2)
    found = sum_of_taps(source, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [source, weight] if bias is None else [source, weight, bias]
    outer = torch.randn(expected.shape, generator=noise, dtype=torch.float64)
    gradients = [torch.autograd.grad(result, inputs, outer) for result in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("piece", [1, 700, 1 << 20])
def test_large_clips_in_pieces_give_the_same_sums_and_gradients(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.Generator().manual_seed(0)
    shapes = ((2, 7, 3, 5, 5), (4, 3, 3, 3, 3), (4,))
    inputs = [torch.randn(*shape, generator=noise).requires_grad_() for shape in shapes]

    def computed() -> tuple[torch.Tensor, ...]:
        result = sum_of_taps(*inputs)
        return result, *torch.autograd.grad(result.square().sum(), inputs)

    whole = computed()
    monkeypatch.setattr("wfvae.model.tap_sum._PIECE_BYTES", piece)
    torch.testing.assert_close(computed(), whole, rtol=1e-5, atol=1e-4)


@given(batch=st.integers(1, 3), frames=st.integers(1, 4), count=st.integers(0, 3))
def test_repeated_head_gathers_the_gradients_of_its_copies(batch: int, frames: int, count: int) -> None:
    source = torch.randn(batch, frames, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    found, expected = repeat_head(source, count), cat_frames(*[source[:, :1]] * count, source)
    assert torch.equal(found, expected)
    outer = torch.randn(expected.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(result, source, outer) for result in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_autocast_applies_to_values_and_gradients() -> None:
    conv = CausalConv3d(2, 3, 1)
    frames = torch.randn(1, 4, 2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = conv(frames, OfflineClip())
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    gradient = conv.conv.weight.grad
    assert gradient is not None and gradient.dtype == torch.float32
    exact = torch.autograd.grad(conv(frames, OfflineClip()).sum(), conv.conv.weight)[0]
    torch.testing.assert_close(gradient, exact, rtol=0.05, atol=0.3)


def test_frames_of_a_training_batch_are_kept_once() -> None:
    conv, frames = CausalConv3d(4, 4, 1), torch.randn(3, 6, 4, 8, 8, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        conv(frames, OfflineClip())
    weights = conv.conv.weight.untyped_storage().nbytes()
    history = 2
    assert sum(kept.values()) - weights == 3 * (6 + history) * 4 * 8 * 8 * 4
