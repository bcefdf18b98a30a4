"""A bundle where a pipeline of diffusers expects a video autoencoder. The only part of the runtime
that needs PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from wfvae.errors import InputError
from wfvae.runtime.bundle import Bundle, open_bundle
from wfvae.spec.frames import SPATIAL_RATIO

_LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class BundlePosterior:
    """The distribution of latents that a bundle's encoder returned."""

    mean: Tensor
    """(B, D, t, h, w)."""
    logvar: Tensor | None
    """The same shape; None if the bundle returns the mean only."""

    def mode(self) -> Tensor:
        """Returns the most likely latents."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws latents.

        Raises `InputError` if the bundle returns the mean only.
        """
        if self.logvar is None:
            advice = "export it with --output moments, or use mode()"
            raise InputError(f"this bundle returns the mean of the latents only; {advice}")
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)


@dataclass(frozen=True)
class BundleEncoding:
    """What `encode` returns."""

    latent_dist: BundlePosterior


@dataclass(frozen=True)
class BundleDecoding:
    """What `decode` returns."""

    sample: Tensor
    """Video (B, 3, T, H, W), about [-1, 1], not clamped."""


class BundleAutoencoder(nn.Module):
    """Encodes and decodes torch tensors through a bundle, in bounded memory.

    Set it as a pipeline's `vae`. It holds no weights of its own and computes no gradients; videos
    of a batch are computed one after another. `config` has what pipelines read: `scaling_factor`
    and `shift_factor` (if all channels share them), `latents_mean` and `latents_std` (as Wan's:
    (latents - mean) / std), `latent_channels`, `z_dim`, and the ratios of time and space.

    Example:
        >>> from wfvae import WFVAE
        >>> from wfvae.export.bundle import export_bundle
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> vae = BundleAutoencoder("bundle")
        >>> latents = vae.encode(torch.zeros(1, 3, 5, 16, 16)).latent_dist.mode()
        >>> tuple(latents.shape), tuple(vae.decode(latents).sample.shape)
        ((1, 16, 2, 2, 2), (1, 3, 5, 16, 16))
    """

    def __init__(
        self, bundle: Bundle | str | Path, *, dtype: torch.dtype = torch.float32, **execution: Any
    ) -> None:
        """Args:
            bundle: an opened one, or its directory.
            dtype: of the tensors that are returned.
            execution: arguments of `open_bundle`.

        Raises as `open_bundle` does.
        """
        super().__init__()
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, **execution)
        self.config = _config(self.bundle)
        self._dtype = dtype
        self._device = torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tensors that are returned."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where tensors are returned; set by `to`, as for any module."""
        return self._device

    def _apply(self, fn: Any, recurse: bool = True) -> BundleAutoencoder:
        """Takes over device and type from what `to` does to parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self._dtype, self._device = moved.dtype, moved.device
        return self

    @torch.no_grad()
    def encode(self, x: Tensor, return_dict: bool = True) -> BundleEncoding | tuple[BundlePosterior]:
        """Encodes videos (B, 3, T, H, W) in [-1, 1], of any T, H and W.

        Raises:
            InputError: the shape, type or values are wrong.
            ResourceError: a step needs more memory than there is.
        """
        if x.ndim != 5 or x.shape[1] != 3:
            raise InputError(f"videos have shape {tuple(x.shape)}; expected (B, 3, T, H, W)")
        rows = [self.bundle.encode(video.detach().permute(1, 2, 3, 0), output="device") for video in x]
        latents = self._stack(rows).transpose(1, 2)
        channels = self.config.latent_channels
        logvar = latents[:, channels:].clamp(*_LOGVAR_RANGE) if latents.shape[1] > channels else None
        posterior = BundlePosterior(latents[:, :channels], logvar)
        return BundleEncoding(posterior) if return_dict else (posterior,)

    @torch.no_grad()
    def decode(self, z: Tensor, return_dict: bool = True) -> BundleDecoding | tuple[Tensor]:
        """Decodes unscaled latents (B, D, t, h, w) to videos of 1 + r (t - 1) frames.

        Raises as `encode` does.
        """
        if z.ndim != 5 or z.shape[1] != self.config.latent_channels:
            expected = f"(B, {self.config.latent_channels}, t, h, w)"
            raise InputError(f"latents have shape {tuple(z.shape)}; expected {expected}")
        rows = [
            self.bundle.decode(latents.detach().transpose(0, 1), pixels="float32", output="device")
            for latents in z
        ]
        sample = self._stack(rows).permute(0, 4, 1, 2, 3)
        return BundleDecoding(sample) if return_dict else (sample,)

    def forward(self, x: Tensor) -> BundleDecoding:
        """Reconstructs videos (B, 3, T, H, W) from the mean of their latents."""
        posterior: BundlePosterior = self.encode(x, return_dict=False)[0]  # type: ignore[index]
        (sample,) = self.decode(posterior.mode(), return_dict=False)  # type: ignore[misc]
        return BundleDecoding(sample[:, :, : x.shape[2], : x.shape[3], : x.shape[4]])

    def enable_tiling(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: memory is bounded in time, and tiles would change the result."""

    def enable_slicing(self) -> None:
        """Does nothing: videos of a batch are computed one after another."""

    disable_tiling = disable_slicing = enable_slicing

    def _stack(self, rows: list[Any]) -> Tensor:
        stacked = torch.stack([from_dlpack(row) for row in rows])
        return stacked.to(self._device, self._dtype)


def _config(bundle: Bundle) -> SimpleNamespace:
    """Returns the values that pipelines read from an autoencoder's configuration."""
    model = bundle.manifest.model
    channels = int(model["latent_dim"])
    scale = _per_channel(model["scale"], channels)
    shift = _per_channel(model["shift"], channels)
    values: dict[str, Any] = {
        "latent_channels": channels,
        "z_dim": channels,
        "in_channels": 3,
        "out_channels": 3,
        "latents_mean": shift,
        "latents_std": [1 / factor for factor in scale],
        "scale_factor_spatial": SPATIAL_RATIO,
        "spatial_compression_ratio": SPATIAL_RATIO,
        "scale_factor_temporal": bundle.ratio,
        "temporal_compression_ratio": bundle.ratio,
        # Pipelines derive the spatial ratio from the number of levels: 2 to the power of 4 - 1.
        "block_out_channels": (channels,) * 4,
    }
    if len(set(scale)) == 1 and len(set(shift)) == 1:
        values |= {"scaling_factor": scale[0], "shift_factor": shift[0]}
    return SimpleNamespace(**values)


def _per_channel(values: Any, channels: int) -> list[float]:
    """Returns one number per channel of a list that has as many, or equal ones."""
    return [float(value) for value in (values if len(values) == channels else [values[0]] * channels)]
