"""The encoder's posterior over latents."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal distributions, one per latent value (B, D, t, h, w)."""

    moments: Tensor
    """(B, 2 D, t, h, w): means, then log-variances, which are clamped to [-30, 20]."""

    @property
    def mean(self) -> Tensor:
        return self.moments.chunk(2, dim=1)[0]

    @property
    def logvar(self) -> Tensor:
        return self.moments.chunk(2, dim=1)[1].clamp(*LOGVAR_RANGE)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """Returns the most likely latents."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws latents, differentiable in the moments."""
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise

    def kl(self) -> Tensor:
        """Returns the divergence from the standard normal per row, (B,), in nats, at least fp32."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(dtype), self.logvar.to(dtype)
        terms = mean.square() + logvar.exp() - 1.0 - logvar
        return 0.5 * terms.sum(dim=[1, 2, 3, 4])


# So that `torch.export` takes it as a part of a model's output.
torch.export.register_dataclass(DiagonalGaussian, serialized_type_name="wfvae.DiagonalGaussian")
