"""The encoder's posterior over latents."""

from __future__ import annotations

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """Independent normal distributions, one per latent value.

    Args:
        moments: (B, 2 D, t, h, w): means, then log-variances, which are clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.moments = moments
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)

    @property
    def std(self) -> Tensor:
        """Standard deviations, (B, D, t, h, w)."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variances, (B, D, t, h, w)."""
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """The most likely latents: the mean, (B, D, t, h, w)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Latents drawn from the distribution, (B, D, t, h, w), differentiable in the moments."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, summed over all but the batch:
        (B,), in nats, at least fp32.
        """
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(dtype), self.logvar.to(dtype)
        terms = mean.square() + logvar.exp() - 1.0 - logvar
        return 0.5 * terms.sum(dim=[1, 2, 3, 4])
