"""WF-VAE in PyTorch with the interface of a peer."""

from typing import Any

import torch
from torch import Tensor

from peers.model import DIRECT, Description, Mode, PeerModel
from wfvae import WFVAE, WFVAEConfig
from wfvae.spec.frames import SPATIAL_RATIO

CHUNK = 4
"""Latents per step of our streams; what the runtime does by default."""


_STREAM = Mode("stream", f"{CHUNK} latents, causal cache", default=True)


class OurModel(PeerModel):
    """Whole clips, or streams."""

    def _switch(self, mode: str) -> None:
        pass

    def _encode(self, video: Tensor) -> Any:
        if self.mode == DIRECT:
            return self.vae.encode(video).latent_dist.mean
        posteriors = self.vae.stream_encode(video.split(self.peer.compression[0] * CHUNK, dim=2))
        return torch.cat([posterior.mean for posterior in posteriors], dim=2)

    def _decode(self, latents: Tensor, frames: int) -> Any:
        if self.mode == DIRECT:
            return self.vae.decode(latents).sample
        return torch.cat(list(self.vae.stream_decode(latents.split(CHUNK, dim=2), frames)), dim=2)


def build_ours(preset: Any, latent_channels: int) -> OurModel:
    config = WFVAEConfig.preset(preset, latent_dim=latent_channels)
    model = WFVAE.random(config, 0).eval().requires_grad_(False)
    compression = (config.temporal_compression, SPATIAL_RATIO, SPATIAL_RATIO)
    about = {"title": f"WF-VAE-{preset}", "channels": config.latent_dim, "compression": compression}
    return OurModel(model, Description(**about, modes=(_STREAM,)))
