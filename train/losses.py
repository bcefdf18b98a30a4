"""The training losses of the paper: reconstruction, KL, wavelet (eq. 5), adversarial (hinge), their
total (eq. 6) and its adaptive weight (eq. 7).

The weights of the paper's Table 7 (KL 1e-6, wavelet 0.1) belong to sums, not to means, so each
docstring says what is summed and what it is divided by. Everything is summed in fp32 at least,
whatever precision the network ran in: a bf16 sum of a million terms has three digits. The losses
hold no state and draw nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import relu

from wfvae.errors import InputError
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.vae import DecoderOutput, EncoderOutput

ReconstructionKind = Literal["l1", "l2"]


def reconstruction_loss(
    video: Tensor,
    reconstruction: Tensor,
    *,
    kind: ReconstructionKind,
    perceptual: Tensor | None,
    perceptual_weight: float,
    frame_weights: Tensor | None = None,
) -> Tensor:
    """Distance in pixels plus distance in features, per frame.

    With d = |video - reconstruction| ("l1") or its square ("l2") and p the LPIPS of each frame,
    every element of a frame gets that frame's LPIPS added; all is summed and divided by the number
    of frames:

        sum over b, c, t, y, x of (d[b, c, t, y, x] + perceptual_weight * p[b, t]) / (B T)

    So LPIPS weighs C H W times as much as a mere sum over frames would give it, which keeps its
    balance with the pixels' sum the same at every resolution. With `frame_weights` each frame's
    share of the sum is multiplied by its weight, which is not the paper's. In the published form
    the whole is scaled by exp(-logvar), whose logvar stays 0: no scaling.

    Args:
        video, reconstruction: (B, C, T, H, W) floating point, about [-1, 1].
        kind: "l1" (the paper's) or "l2".
        perceptual: LPIPS of each frame, (B, T) or (B*T,) with time running fastest; None leaves it
            out.
        perceptual_weight: of `perceptual`; the paper's is 1, and 0.1 in stage III.
        frame_weights: (T,), with a mean of 1 if the sum is to keep its size; None weighs all frames
            alike.

    Returns:
        A scalar, differentiable in `reconstruction` and `perceptual`.

    Raises:
        InputError: shapes that do not agree, or an unknown `kind`.
    """
    if kind not in get_args(ReconstructionKind):
        raise InputError(
            f"the kind of reconstruction loss is {kind!r}; expected one of"
            f" {', '.join(get_args(ReconstructionKind))}"
        )
    if video.ndim != 5:
        raise InputError(f"video has shape {tuple(video.shape)}; expected (B, C, T, H, W)")
    _require_same_shape("reconstruction", reconstruction, "video", video)
    batch, channels, frames, height, width = video.shape
    difference = _wide(video) - _wide(reconstruction)
    distance = difference.abs() if kind == "l1" else difference.square()
    if frame_weights is not None:
        if tuple(frame_weights.shape) != (frames,):
            raise InputError(
                f"frame_weights has shape {tuple(frame_weights.shape)}; expected {(frames,)}, one weight per"
                " frame"
            )
        distance = distance * frame_weights.view(1, 1, frames, 1, 1)
    total = distance.sum()
    if perceptual is not None:
        if tuple(perceptual.shape) not in {(batch, frames), (batch * frames,)}:
            raise InputError(
                f"perceptual has shape {tuple(perceptual.shape)}; expected one value per frame,"
                f" {(batch, frames)} or {(batch * frames,)}"
            )
        per_frame = _wide(perceptual).view(batch, frames)
        per_frame = per_frame if frame_weights is None else per_frame * frame_weights
        total = total + perceptual_weight * channels * height * width * per_frame.sum()
    return total / (batch * frames)


def kl_loss(distribution: DiagonalGaussian) -> Tensor:
    """KL divergence of the posterior from the standard normal, in nats: summed over all latents,
    divided by B. A scalar.
    """
    return distribution.kl().sum() / distribution.mean.shape[0]


def wavelet_loss(encoder_out: EncoderOutput, decoder_out: DecoderOutput) -> Tensor:
    """The WL loss, eq. 5: |W2 - W2_hat| + |W3 - W3_hat|, summed over all sub-bands' values, divided
    by B.

    The encoder's sub-bands come straight from the video; the decoder's are its estimates. A path
    that the decoder does not have (an ablation) counts nothing; without both, the loss is a zero
    that has no gradient.

    Returns:
        A scalar.

    Raises:
        InputError: sub-bands of different shapes, as of two different videos.
    """
    total = torch.zeros(
        (), dtype=torch.promote_types(encoder_out.w2.dtype, torch.float32), device=encoder_out.w2.device
    )
    for name, given, estimate in (
        ("w2", encoder_out.w2, decoder_out.w2),
        ("w3", encoder_out.w3, decoder_out.w3),
    ):
        if estimate is not None:
            _require_same_shape(f"the decoder's {name}", estimate, f"the encoder's {name}", given)
            total = total + (_wide(given) - _wide(estimate)).abs().sum()
    return total / encoder_out.w2.shape[0]


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's hinge loss: (mean relu(1 - real) + mean relu(1 + fake)) / 2, a scalar.

    Means over all patches of all clips; the two may have different shapes. No gradient beyond the
    margin: from real logits above 1 and fake ones below -1.
    """
    return 0.5 * (relu(1.0 - _wide(real_logits)).mean() + relu(1.0 + _wide(fake_logits)).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The autoencoder's side of the adversarial loss: minus the mean logit of its reconstructions,
    a scalar.
    """
    return -_wide(fake_logits).mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    generator_loss: Tensor,
    last_layer: Tensor,
    *,
    delta: float = 1e-6,
    maximum: float = 1e6,
    factor: float = 0.5,
) -> Tensor:
    """The adversarial weight of eq. 7: factor * min(|grad reconstruction| / (|grad adversarial| +
    delta), maximum).

    The gradients are those with respect to `last_layer`, the norms Euclidean; the clamp is on the
    ratio, before `factor`. Both graphs are kept for the backward pass that follows. A ratio that is
    not a number (both gradients infinite) gives 0: a gradient that cannot be measured is given no
    weight, and the loop sees from the losses themselves that they are not finite.

    Args:
        reconstruction_loss, generator_loss: scalars that depend on `last_layer`.
        last_layer: the weight of the decoder's last convolution, requiring a gradient.

    Returns:
        A detached, finite scalar in [0, factor * maximum], fp32 at least.

    Raises:
        InputError: a loss that does not depend on `last_layer`.
    """
    ratio = _gradient_norm("reconstruction_loss", reconstruction_loss, last_layer) / (
        _gradient_norm("generator_loss", generator_loss, last_layer) + delta
    )
    return factor * ratio.nan_to_num(nan=0.0, posinf=maximum).clamp(0.0, maximum)


@dataclass(frozen=True)
class LossTerms:
    """The autoencoder's loss and what it is made of. All scalars on the losses' device."""

    total: Tensor
    """Eq. 6, to call backward on."""
    reconstruction: Tensor
    """Detached and unweighted, as are the next three."""
    kl: Tensor
    wavelet: Tensor
    adversarial: Tensor
    """Zero before the adversarial loss has started."""
    adversarial_weight: Tensor
    """The weight of `adversarial` in the total, detached."""
    lpips: Tensor | None
    """Mean of what LPIPS has found, which is part of `reconstruction`; detached, unweighted. None
    without LPIPS.
    """

    def named(self) -> dict[str, Tensor]:
        """All terms by name, detached, for logging. Reading their values waits for the device; this
        does not.
        """
        return {
            "total": self.total.detach(),
            "reconstruction": self.reconstruction,
            "kl": self.kl,
            "wavelet": self.wavelet,
            "adversarial": self.adversarial,
            "adversarial_weight": self.adversarial_weight,
            **({} if self.lpips is None else {"lpips": self.lpips}),
        }


def total_loss(
    *,
    reconstruction: Tensor,
    kl: Tensor,
    wavelet: Tensor,
    kl_weight: float,
    wavelet_weight: float,
    adversarial: Tensor | None = None,
    adversarial_weight: Tensor | float = 0.0,
    perceptual: Tensor | None = None,
) -> LossTerms:
    """The autoencoder's loss, eq. 6: reconstruction + kl_weight * kl + wavelet_weight * wavelet +
    adversarial_weight * adversarial.

    Args:
        reconstruction, kl, wavelet: what `reconstruction_loss` (with its LPIPS), `kl_loss` and
            `wavelet_loss` return.
        kl_weight, wavelet_weight: 1e-6 and 0.1 in the paper's Table 7.
        adversarial: what `generator_loss` returns, or None before the adversarial loss has started.
        adversarial_weight: what `adaptive_weight` returns, or a constant. Treated as a constant by
            the backward pass.
        perceptual: LPIPS of each frame, if it is part of `reconstruction`: only to be told of.
    """
    total = reconstruction + kl_weight * kl + wavelet_weight * wavelet
    zero = torch.zeros_like(total.detach())
    weight = zero
    if adversarial is not None:
        weight = torch.as_tensor(adversarial_weight, dtype=zero.dtype, device=zero.device).detach()
        total = total + weight * adversarial
    return LossTerms(
        total=total,
        reconstruction=reconstruction.detach(),
        kl=kl.detach(),
        wavelet=wavelet.detach(),
        adversarial=zero if adversarial is None else adversarial.detach(),
        adversarial_weight=weight,
        lpips=None if perceptual is None else _wide(perceptual.detach()).mean(),
    )


def _gradient_norm(name: str, loss: Tensor, last_layer: Tensor) -> Tensor:
    gradient = None
    if loss.requires_grad and last_layer.requires_grad:
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise InputError(
            f"{name} does not depend on last_layer, so the adaptive weight has no gradient to measure; "
            "give the weight of the decoder's last convolution, with requires_grad set"
        )
    return _wide(gradient.detach()).square().sum().sqrt()


def _require_same_shape(name: str, given: Tensor, other: str, expected: Tensor) -> None:
    if given.shape != expected.shape:
        raise InputError(
            f"{name} has shape {tuple(given.shape)}; expected that of {other}, {tuple(expected.shape)}"
        )


def _wide(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is if wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
