"""The interface of a peer's model."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wfvae.errors import InputError

DIRECT = "direct"
"""The mode without blocks: the whole clip in one pass (SD-VAE: every frame by itself, which for it
is the same).
"""


@dataclass(frozen=True)
class Mode:
    """A way to run a model block by block."""

    name: str
    blocks: str
    """The blocks in the published setting, in words."""
    default: bool = False
    """Whether the library runs the model so by default."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a model without building it."""

    title: str
    channels: int
    """Of the latents."""
    compression: tuple[int, int, int]
    """Video samples per latent in time, height and width."""
    modes: tuple[Mode, ...]
    frames_after_first: bool = True
    """Whether clips have 1 + n r frames; else n r."""

    def fit(self, video: Tensor) -> Tensor:
        """Returns the largest part of a video (1, 3, T, H, W), from its start and top left corner,
        that the model takes without padding.
        """
        ratio, rows, columns = self.compression
        first = int(self.frames_after_first)
        frames = first + (video.shape[2] - first) // ratio * ratio
        fitted = video[:, :, :frames, : video.shape[3] // rows * rows, : video.shape[4] // columns * columns]
        if 0 in fitted.shape:
            raise InputError(
                f"a video of {tuple(video.shape[2:])} is too small for {self.title}; expected at least"
                f" {self.compression}"
            )
        return fitted


class PeerModel:
    """A peer's network. Subclasses implement how it is switched, encodes and decodes."""

    def __init__(self, vae: Any, peer: Any) -> None:
        self.vae, self.peer = vae, peer
        self.mode = DIRECT

    def use(self, mode: str) -> None:
        """Switches to a mode of `peer.modes`, or to DIRECT."""
        names = [DIRECT, *(one.name for one in self.peer.modes)]
        if mode not in names:
            raise InputError(f"{self.peer.title} has no mode {mode!r}; expected one of {', '.join(names)}")
        self._switch(mode)
        self.mode = mode

    def latent_frames(self, frames: int) -> int:
        """Returns how many latents `encode` gives for a clip of `frames` frames in this mode."""
        return -(-frames // self.peer.compression[0])

    def encode(self, video: Tensor) -> Tensor:
        """Encodes (1, 3, T, H, W) in [-1, 1] to the unscaled mean (1, C, t, h, w)."""
        with torch.inference_mode():
            return self._encode(video)

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Decodes (1, C, t, h, w) to (1, 3, T, H, W) with T = `frames`."""
        with torch.inference_mode():
            return self._decode(latents, frames)

    def _switch(self, mode: str) -> None:
        raise NotImplementedError

    def _encode(self, video: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        raise NotImplementedError
