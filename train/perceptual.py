"""The perceptual loss: LPIPS of every frame."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wfvae.errors import InputError
from wfvae.metrics.perceptual import load_lpips

MINIMUM_SIDE = 16
"""VGG16 halves the image four times before its last features."""


class PerceptualLoss(nn.Module):
    """LPIPS with VGG16 features of each frame of a video, frozen.

    The network follows this module to a device or dtype, and is otherwise not part of it: it has no
    parameters, nothing in a state dict, and stays in eval mode.

    Args:
        weights: "vgg" (downloaded), "random" (for tests) or a local file: see
            `wfvae.metrics.perceptual.load_lpips`.
        seed: of "random".
    """

    def __init__(self, weights: str | Path = "vgg", *, seed: int = 0) -> None:
        super().__init__()
        # In a tuple, where nn.Module does not look for submodules.
        self._network = (load_lpips(weights, "vgg", seed=seed, extra="train"),)

    def forward(self, video: Tensor, reconstruction: Tensor, frames_at_once: int | None = None) -> Tensor:
        """LPIPS of each frame, in the precision of the surrounding autocast, if any.

        Args:
            video, reconstruction: (B, 3, T, H, W) in [-1, 1], sides at least 16.
            frames_at_once: frames per group, >= 1. Each group's features are computed again in the
                backward pass: less memory, for about a third more time. None holds all features.

        Returns:
            (B*T,), time running fastest, fp32 at least, >= 0; differentiable in both videos.

        Raises:
            InputError: shapes that do not agree or are too small.
        """
        _check(video, reconstruction)
        frames, estimates = (x.movedim(2, 1).flatten(0, 1) for x in (video, reconstruction))
        if frames_at_once is None or frames_at_once >= len(frames):
            return self._distances(frames, estimates)
        distances = []
        for start in range(0, len(frames), frames_at_once):
            group = (x[start : start + frames_at_once] for x in (frames, estimates))
            part = checkpoint(self._distances, *group, use_reentrant=False, preserve_rng_state=False)
            distances.append(part)
        return torch.cat(distances)

    def _distances(self, frames: Tensor, estimates: Tensor) -> Tensor:
        (network,) = self._network
        distances: Tensor = network(frames, estimates).flatten()
        return distances.to(torch.promote_types(distances.dtype, torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to`, `cuda`, `float` and the like call this.
        for network in self._network:
            network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _check(video: Tensor, reconstruction: Tensor) -> None:
    if video.ndim != 5 or video.shape[1] != 3 or min(video.shape) < 1:
        raise InputError(f"video has shape {tuple(video.shape)}; expected (B, 3, T, H, W)")
    height, width = video.shape[3:]
    if min(height, width) < MINIMUM_SIDE:
        raise InputError(
            f"frames are {height}x{width} pixels; LPIPS needs at least {MINIMUM_SIDE}x{MINIMUM_SIDE}"
        )
    if reconstruction.shape != video.shape:
        raise InputError(
            f"reconstruction has shape {tuple(reconstruction.shape)}; expected that of video,"
            f" {tuple(video.shape)}"
        )
