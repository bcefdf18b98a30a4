"""The convolution of training: the values and gradients that autograd finds for the same
convolution written out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wfvae.model.causal import CausalConv3d, OfflineClip
from wfvae.model.ops import cat_frames
from wfvae.model.tap_sum import repeat_head, sum_of_taps


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 5),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.sampled_from([1, 3]),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_conv3d(
    batch: int,
    frames: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    biased: bool,
    seed: int,
) -> None:
    noise = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64, requires_grad=True)

    source = draw(batch, frames + kernel - 1, channels[0], *size)
    weight, bias = (
        draw(channels[1], channels[0], kernel, kernel, kernel),
        draw(channels[1]) if biased else None,
    )
    expected = torch.nn.functional.conv3d(
        source.movedim(2, 1), weight, bias, padding=(0, kernel // 2, kernel // 2)
    ).movedim(1, 2)
    found = sum_of_taps(source, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [source, weight] if bias is None else [source, weight, bias]
    outer = torch.randn(expected.shape, generator=noise, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, outer),
        torch.autograd.grad(expected, inputs, outer),
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.parametrize(("piece", "images"), [(1, 1), (700, 2), (1 << 20, 10)])
def test_sums_and_gradients_of_large_clips_are_computed_in_pieces(
    piece: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*shape, generator=noise).requires_grad_()
        for shape in ((2, 7, 3, 5, 5), (4, 3, 3, 3, 3), (4,))
    ]

    def computed() -> tuple[torch.Tensor, ...]:
        result = sum_of_taps(*inputs)
        return result, *torch.autograd.grad(result.square().sum(), inputs)

    whole = computed()
    monkeypatch.setattr("wfvae.model.tap_sum._PIECE_BYTES", piece)
    forward, backward = torch.nn.functional.conv2d, torch.ops.aten.convolution_backward
    sums, gradients = [], []

    def counted(source: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        sums.append(source.shape[0])
        return forward(source, *rest, **options)

    def counted_back(of_result: torch.Tensor, *rest: Any) -> Any:
        if rest[-1] == [True, False, False]:
            gradients.append(of_result.shape[0])
        return backward(of_result, *rest)

    monkeypatch.setattr("torch.nn.functional.conv2d", counted)
    monkeypatch.setattr("torch.ops.aten.convolution_backward", counted_back)
    for found, expected in zip(computed(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert max(gradients) == images
    # The first tap makes the sum; all others add to it. A piece is measured in what is added, here
    # of 4 channels instead of 3.
    assert sums[0] == 10
    assert max(sums[1:]) == min(images, max(piece // 400, 1), 10)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), frames=st.integers(1, 4), count=st.integers(0, 3))
def test_the_repeated_head_gathers_the_gradients_of_its_copies(batch: int, frames: int, count: int) -> None:
    source = (
        torch.arange(batch * frames * 12, dtype=torch.float64)
        .reshape(batch, frames, 2, 3, 2)
        .requires_grad_()
    )
    found, expected = repeat_head(source, count), cat_frames(*[source[:, :1]] * count, source)
    assert torch.equal(found, expected)
    outer = torch.randn(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, source, outer), torch.autograd.grad(expected, source, outer)
    )


@pytest.mark.parametrize("wanted", ["frames", "weight", "bias"])
def test_only_what_is_asked_for_is_differentiated(wanted: str) -> None:
    given = {
        "frames": torch.randn(1, 5, 2, 4, 4),
        "weight": torch.randn(3, 2, 3, 3, 3),
        "bias": torch.randn(3),
    }
    given[wanted].requires_grad_()
    sum_of_taps(**given).sum().backward()  # type: ignore[no-untyped-call]
    assert {name for name, tensor in given.items() if tensor.grad is not None} == {wanted}


def test_autocast_reaches_it() -> None:
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


def test_a_batch_of_training_is_kept_once() -> None:
    conv, frames = CausalConv3d(4, 4, 1), torch.randn(3, 6, 4, 8, 8, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        conv(frames, OfflineClip())
    weights = conv.conv.weight.untyped_storage().nbytes()
    assert sum(kept.values()) - weights == 3 * (6 + 2) * 4 * 8 * 8 * 4, (
        "the frames with their history, no copy for each tap"
    )
