"""The training losses against sums by loops, and their gradients against differences."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.vae import DecoderOutput, EncoderOutput
from wfvae.train.losses import (
    DELTA,
    LARGEST_WEIGHT,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    kl_loss,
    reconstruction_loss,
    total_loss,
    wavelet_loss,
)

SHAPE = (2, 3, 4, 5, 6)
ReconstructionKind = Literal["l1", "l2"]
KINDS = pytest.mark.parametrize("kind", ["l1", "l2"])


def draw(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def apart(*shape: int) -> tuple[Tensor, Tensor]:
    """Two tensors nowhere closer than 0.1, so that differences never cross the kink of |x|."""
    first, offset = draw(*shape), draw(*shape, seed=1)
    return first, (first + offset.sign() * (0.1 + offset.abs())).requires_grad_()


def outputs(
    w2: Tensor, w3: Tensor, estimate2: Tensor | None, estimate3: Tensor | None
) -> tuple[EncoderOutput, DecoderOutput]:
    unused = torch.zeros(w2.shape[0], 2, 1, 1, 1)
    return EncoderOutput(DiagonalGaussian(unused), w2, w3), DecoderOutput(unused, estimate2, estimate3)


@KINDS
@pytest.mark.parametrize("weights", [None, (2.0, 0.5, 0.25, 1.25)])
def test_reconstruction_adds_a_frames_lpips_to_each_of_its_elements(
    kind: ReconstructionKind, weights: tuple[float, ...] | None
) -> None:
    video, reconstruction, perceptual = draw(*SHAPE), draw(*SHAPE, seed=1), draw(2, 4, seed=2).abs()
    expected, (x, y, p) = 0.0, (t.numpy() for t in (video, reconstruction, perceptual))
    for b, c, t, row, column in np.ndindex(*SHAPE):
        difference = abs(x[b, c, t, row, column] - y[b, c, t, row, column])
        distance = (difference if kind == "l1" else difference**2) + 0.25 * p[b, t]
        expected += distance * (weights[t] if weights else 1.0)
    actual = reconstruction_loss(
        video,
        reconstruction,
        kind=kind,
        perceptual=perceptual.reshape(-1),
        perceptual_weight=0.25,
        frame_weights=torch.tensor(weights, dtype=torch.float64) if weights else None,
    )
    assert actual.item() == pytest.approx(expected / 8, rel=1e-12)


@KINDS
def test_reconstruction_gradient_agrees_with_differences(kind: ReconstructionKind) -> None:
    video, reconstruction = apart(1, 3, 2, 2, 2)

    def loss(y: Tensor, p: Tensor) -> Tensor:
        return reconstruction_loss(video, y, kind=kind, perceptual=p, perceptual_weight=0.7)

    assert gradcheck(loss, (reconstruction, draw(2, seed=3, grad=True)))


def test_bf16_is_summed_in_fp32() -> None:
    """1,572,864 differences of 1: in bf16 not all integers above 256 exist."""
    ones = torch.ones(1, 3, 2, 512, 512, dtype=torch.bfloat16)
    options: dict[str, Any] = {"kind": "l1", "perceptual": None, "perceptual_weight": 1.0}
    loss = reconstruction_loss(ones, torch.zeros_like(ones), **options)
    assert (loss.dtype, loss.item()) == (torch.float32, 3 * 512 * 512)
    bands = torch.ones(1, 24, 1, 100, 100, dtype=torch.bfloat16)
    wavelet = wavelet_loss(*outputs(bands, bands, torch.zeros_like(bands), torch.zeros_like(bands)))
    assert (wavelet.dtype, wavelet.item()) == (torch.float32, 2 * 240_000)


def test_kl_is_the_integral_of_its_definition() -> None:
    """Integral of q log(q / p), by the trapezoidal rule for each latent."""
    mean, logvar = np.array([[0.0, 1.5], [-0.7, 0.3]]), np.array([[0.0, -2.0], [0.8, -0.5]])
    expected = 0.0
    for m, v in zip(mean.flat, np.exp(logvar).flat, strict=True):
        z = np.linspace(m - 12 * math.sqrt(v), m + 12 * math.sqrt(v), 20_001)
        log_q = -0.5 * ((z - m) ** 2 / v + np.log(2 * np.pi * v))
        log_p = -0.5 * (z**2 + np.log(2 * np.pi))
        expected += float(np.trapezoid(np.exp(log_q) * (log_q - log_p), z))
    moments = torch.from_numpy(np.stack([mean, logvar], axis=1)).view(2, 2, 1, 1, 2)
    assert kl_loss(DiagonalGaussian(moments)).item() == pytest.approx(expected / 2, rel=1e-9)
    random = draw(2, 4, 2, 1, 2, grad=True)
    assert gradcheck(lambda moments: kl_loss(DiagonalGaussian(moments)), (random,))


def test_wavelet_loss_is_summed_over_both_levels_and_divided_by_clips() -> None:
    w2, w3 = draw(2, 12, 3, 4, 2), draw(2, 24, 2, 2, 1, seed=1)
    estimate2, estimate3 = draw(2, 12, 3, 4, 2, seed=2), draw(2, 24, 2, 2, 1, seed=3)
    first = float(np.abs(w2.numpy() - estimate2.numpy()).sum()) / 2
    second = float(np.abs(w3.numpy() - estimate3.numpy()).sum()) / 2
    for estimates, expected in (
        ((estimate2, estimate3), first + second),
        ((estimate2, None), first),
        ((None, estimate3), second),
        ((w2, w3), 0.0),
    ):
        assert wavelet_loss(*outputs(w2, w3, *estimates)).item() == pytest.approx(expected, rel=1e-12)
    (w2, estimate2), (w3, estimate3) = apart(2, 12, 1, 1, 1), apart(2, 24, 1, 1, 1)
    assert gradcheck(lambda a, b: wavelet_loss(*outputs(w2, w3, a, b)), (estimate2, estimate3))


def test_wavelet_loss_without_energy_paths_is_a_zero_without_gradient() -> None:
    loss = wavelet_loss(*outputs(draw(2, 12, 1, 1, 1), draw(2, 24, 1, 1, 1), None, None))
    assert (loss.shape, loss.item(), loss.requires_grad) == ((), 0.0, False)


@pytest.mark.parametrize(
    "config", [{}, {"temporal_compression": 8}, {"energy_flow_l2": False}, {"energy_flow_l3": False}]
)
def test_losses_of_a_model_reach_all_its_weights(
    small_model: Callable[..., Any], config: dict[str, Any]
) -> None:
    model = small_model(**config)
    video = draw(1, 3, 9, 16, 16).float().tanh()
    encoded, decoded = model(video, sample_posterior=False)
    reconstruction = reconstruction_loss(
        video, decoded.sample, kind="l1", perceptual=None, perceptual_weight=1.0
    )
    last, adversarial = model.decoder.conv_out.weight, generator_loss(decoded.sample)
    weight = adaptive_weight(reconstruction, adversarial, last, 0.5)
    assert 0 < weight.item() < math.inf
    assert last.grad is None, "measuring the gradients leaves none behind"
    wavelet = wavelet_loss(encoded, decoded)
    parts = {"reconstruction": reconstruction, "kl": kl_loss(encoded.latent_dist), "wavelet": wavelet}
    totalled(parts, adversarial=adversarial, adversarial_weight=weight)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_adversarial_losses_agree_with_numpy(real: list[float], fake: list[float]) -> None:
    expected = (np.maximum(0, 1 - np.array(real)).mean() + np.maximum(0, 1 + np.array(fake)).mean()) / 2
    of_real, of_fake = (torch.tensor(values, dtype=torch.float64) for values in (real, fake))
    assert hinge_discriminator_loss(of_real, of_fake).item() == pytest.approx(expected, abs=1e-12)
    assert generator_loss(of_fake).item() == pytest.approx(-np.mean(fake), abs=1e-12)


def test_hinge_pulls_only_inside_the_margin() -> None:
    values = ([1.5, 0.9, -4.0, 7.0], [-1.5, -0.9, 4.0, -7.0])
    logits = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    of_real, of_fake = torch.autograd.grad(hinge_discriminator_loss(*logits), logits)
    assert of_real.tolist() == [0.0, -0.125, -0.125, 0.0]
    assert of_fake.tolist() == [0.0, 0.125, 0.125, 0.0]
    assert gradcheck(hinge_discriminator_loss, logits)


def losses(reconstruction: list[float], adversarial: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Two losses with the given gradients with respect to the last layer, and the layer."""
    layer = torch.zeros(len(reconstruction), dtype=torch.float64, requires_grad=True)
    vectors = (torch.tensor(v, dtype=torch.float64) for v in (reconstruction, adversarial))
    first, second = ((vector * layer).sum() for vector in vectors)
    return first, second, layer


@pytest.mark.parametrize(
    ("reconstruction", "adversarial", "expected"),
    [
        ([3.0, 4.0], [0.0, 0.02], 0.5 * 5 / (0.02 + DELTA)),
        ([0.0, 0.0], [1.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 0.5 * LARGEST_WEIGHT),  # 5 / 1e-6, clamped
        ([0.3, 0.4], [0.0, 0.0], 0.5 * 0.5e6),  # just not clamped
        ([math.inf, 0.0], [1.0, 0.0], 0.5 * LARGEST_WEIGHT),
        ([1.0, 0.0], [math.inf, 0.0], 0.0),
        ([math.nan, 0.0], [1.0, 0.0], 0.0),
    ],
)
def test_adaptive_weight_is_the_clamped_ratio_of_eq_7(
    reconstruction: list[float], adversarial: list[float], expected: float
) -> None:
    weight = adaptive_weight(*losses(reconstruction, adversarial), 0.5)
    assert weight.item() == pytest.approx(expected, rel=1e-12)
    assert (weight.shape, weight.requires_grad, weight.dtype) == ((), False, torch.float64)


def test_adaptive_weight_keeps_the_graphs_and_leaves_no_gradient() -> None:
    reconstruction, adversarial, layer = losses([3.0, 4.0], [0.0, 2.0])
    weight = adaptive_weight(reconstruction, adversarial, layer, 0.5)
    assert layer.grad is None
    (reconstruction + weight * adversarial).backward()
    assert layer.grad is not None
    assert layer.grad.tolist() == pytest.approx([3.0, 4.0 + 0.5 * 5 / 2 * 2.0], rel=1e-6)


def totalled(parts: dict[str, Tensor], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return total_loss(**parts, kl_weight=1e-6, wavelet_weight=0.1, **options)


def test_total_is_the_weighted_sum_and_its_gradient_that_of_the_parts() -> None:
    values = {"reconstruction": 7.0, "kl": 11.0, "wavelet": 13.0}
    parts = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in values.items()}
    adversarial, weight = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-2.0, 0.25))
    total, terms = totalled(parts, adversarial=adversarial, adversarial_weight=weight)
    assert total.item() == pytest.approx(7 + 11e-6 + 1.3 - 0.5, rel=1e-15)
    total.backward()
    gradients = [p.grad.item() for p in (*parts.values(), adversarial) if p.grad is not None]
    assert gradients == [1.0, 1e-6, 0.1, 0.25]
    assert weight.grad is None, "the weight is a constant"
    expected = {"total": total.item(), **values, "adversarial": -2.0, "adversarial_weight": 0.25}
    assert {name: value.item() for name, value in terms.items()} == expected
    assert not any(value.requires_grad for value in terms.values())


def test_total_before_the_adversarial_loss_starts_ignores_its_weight() -> None:
    parts = {name: torch.tensor(v) for name, v in (("reconstruction", 7.0), ("kl", 11.0), ("wavelet", 13.0))}
    total, terms = totalled(parts, adversarial_weight=9.0, perceptual=torch.tensor([0.25, 0.75]))
    assert total.item() == pytest.approx(7 + 11e-6 + 1.3)
    assert [terms[name].item() for name in ("adversarial", "adversarial_weight", "lpips")] == [0.0, 0.0, 0.5]
