"""The training losses of the paper: reconstruction, KL, wavelet, adversarial, and their total.

The weights of the paper's Table 7 (KL 1e-6, wavelet 0.1) belong to sums, not to means, so each
docstring states what is summed and what it is divided by. Sums are in fp32 at least, whatever
precision the network ran in: a bf16 sum of a million terms has three digits.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu

from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.vae import DecoderOutput, EncoderOutput

DELTA, LARGEST_WEIGHT = 1e-6, 1e6
"""Of the adaptive weight, eq. 7: added to its divisor, and its upper bound."""


def reconstruction_loss(
    video: Tensor,
    reconstruction: Tensor,
    *,
    kind: Literal["l1", "l2"],
    perceptual: Tensor | None,
    perceptual_weight: float,
    frame_weights: Tensor | None = None,
) -> Tensor:
    """Distance in pixels plus distance in features, per frame.

    With d = |video - reconstruction| ("l1") or its square ("l2") and p the LPIPS of each frame:

        sum over b, c, t, y, x of (d[b, c, t, y, x] + perceptual_weight * p[b, t]) / (B T)

    So LPIPS weighs C H W times as much as a sum over frames would give it, which keeps its balance
    with the pixels' sum at every resolution. The published form scales the whole by exp(-logvar),
    whose logvar stays 0.

    Args:
        video, reconstruction: (B, C, T, H, W) floating point, about [-1, 1].
        kind: "l1" (the paper's) or "l2".
        perceptual: LPIPS of each frame, (B*T,) with time running fastest; None for none.
        perceptual_weight: of `perceptual`; the paper's is 1, and 0.1 in stage III.
        frame_weights: (T,), the weight of each frame's share of the sum, which the paper does not
            have; with a mean of 1 the sum keeps its size.
    """
    batch, channels, frames, height, width = video.shape
    difference = _wide(video) - _wide(reconstruction)
    distance = difference.abs() if kind == "l1" else difference.square()
    if frame_weights is not None:
        distance = distance * frame_weights.view(1, 1, frames, 1, 1)
    total = distance.sum()
    if perceptual is not None:
        per_frame = _wide(perceptual).view(batch, frames)
        per_frame = per_frame if frame_weights is None else per_frame * frame_weights
        total = total + perceptual_weight * channels * height * width * per_frame.sum()
    return total / (batch * frames)


def kl_loss(distribution: DiagonalGaussian) -> Tensor:
    """KL divergence of the posterior from the standard normal, in nats: summed, divided by B."""
    return distribution.kl().sum() / distribution.mean.shape[0]


def wavelet_loss(encoder_out: EncoderOutput, decoder_out: DecoderOutput) -> Tensor:
    """The WL loss, eq. 5: |W2 - W2_hat| + |W3 - W3_hat|, summed over all sub-bands, divided by B.

    The encoder's sub-bands come straight from the video; the decoder's are its estimates. A path
    that the decoder does not have (an ablation) counts nothing; without both, the loss is a zero
    without a gradient.
    """
    dtype = torch.promote_types(encoder_out.w2.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=encoder_out.w2.device)
    for given, estimate in ((encoder_out.w2, decoder_out.w2), (encoder_out.w3, decoder_out.w3)):
        if estimate is not None:
            total = total + (_wide(given) - _wide(estimate)).abs().sum()
    return total / encoder_out.w2.shape[0]


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's hinge loss: (mean relu(1 - real) + mean relu(1 + fake)) / 2, a scalar.

    Means over all patches of all clips; the two may have different shapes.

    >>> hinge_discriminator_loss(torch.tensor([0.5, 2.0]), torch.tensor([-1.5])).item()
    0.125
    """
    return 0.5 * (relu(1.0 - _wide(real_logits)).mean() + relu(1.0 + _wide(fake_logits)).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The autoencoder's adversarial loss: minus the mean logit of its reconstructions."""
    return -_wide(fake_logits).mean()


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor, factor: float
) -> Tensor:
    """The adversarial weight, eq. 7.

        factor * min(|grad reconstruction| / (|grad adversarial| + DELTA), LARGEST_WEIGHT)

    Euclidean norms of the gradients with respect to `last_layer`, the weight of the decoder's last
    convolution. Both graphs are kept for the backward pass that follows. A ratio that is not a
    number (both gradients infinite) gives 0: the losses themselves show that they are not finite.

    Returns:
        A detached, finite scalar, fp32 at least.
    """
    norms = []
    for loss in (reconstruction_loss, generator_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append(_wide(gradient.detach()).square().sum().sqrt())
    ratio = norms[0] / (norms[1] + DELTA)
    return factor * ratio.nan_to_num(nan=0.0, posinf=LARGEST_WEIGHT).clamp(0.0, LARGEST_WEIGHT)


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """The autoencoder's loss, eq. 6.

        reconstruction + kl_weight * kl + wavelet_weight * wavelet
            + adversarial_weight * adversarial

    Args:
        reconstruction, kl, wavelet: of `reconstruction_loss` (with its LPIPS), `kl_loss` and
            `wavelet_loss`.
        kl_weight, wavelet_weight: 1e-6 and 0.1 in the paper's Table 7.
        adversarial: of `generator_loss`, or None before the adversarial loss has started.
        adversarial_weight: of `adaptive_weight`; a constant for the backward pass.
        perceptual: LPIPS of each frame, only for the record.

    Returns:
        The loss, and all terms by name for the record: detached, unweighted scalars.
    """
    total = reconstruction + kl_weight * kl + wavelet_weight * wavelet
    weight = torch.zeros_like(total.detach())
    if adversarial is not None:
        weight = torch.as_tensor(adversarial_weight, dtype=total.dtype, device=total.device).detach()
        total = total + weight * adversarial
    terms = {
        "total": total,
        "reconstruction": reconstruction,
        "kl": kl,
        "wavelet": wavelet,
        "adversarial": torch.zeros_like(weight) if adversarial is None else adversarial,
        "adversarial_weight": weight,
    }
    if perceptual is not None:
        terms["lpips"] = _wide(perceptual).mean()
    return total, {name: term.detach() for name, term in terms.items()}


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
