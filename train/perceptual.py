"""The perceptual loss: LPIPS of every frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

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
    parameters to train, nothing in a state dict, and stays in eval mode, wherever this module is
    put.

    Args:
        weights: "vgg" (torchvision's ImageNet weights, downloaded), "random" (for tests) or a local
            file: see `wfvae.metrics.perceptual.load_lpips`, which also says what is raised.
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
            frames_at_once: None holds the features of all B*T frames until the backward pass. A
                number goes through the frames in groups of that many and computes each group's
                features again in the backward pass: memory of one group, for about a third more
                time. The values are the same up to rounding.

        Returns:
            (B*T,), time running fastest, fp32 at least, >= 0; differentiable in both videos.

        Raises:
            InputError: shapes that do not agree or are too small, or a `frames_at_once` below 1.
        """
        _check(video, reconstruction, frames_at_once)
        frames, estimates = (x.movedim(2, 1).flatten(0, 1) for x in (video, reconstruction))
        count = frames.shape[0]
        if frames_at_once is None or frames_at_once >= count:
            return self._distances(frames, estimates)
        starts = range(0, count, frames_at_once)
        groups = [(frames[i : i + frames_at_once], estimates[i : i + frames_at_once]) for i in starts]
        return torch.cat(
            [
                checkpoint(self._distances, *group, use_reentrant=False, preserve_rng_state=False)
                for group in groups
            ]
        )

    def _distances(self, frames: Tensor, estimates: Tensor) -> Tensor:
        (network,) = self._network
        distances: Tensor = network(frames, estimates).flatten()
        return distances.to(torch.promote_types(distances.dtype, torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What `to`, `cuda`, `float` and the like go through.
        for network in self._network:
            network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _check(video: Tensor, reconstruction: Tensor, frames_at_once: Any) -> None:
    if video.ndim != 5 or video.shape[1] != 3 or min(video.shape) < 1:
        raise InputError(f"video has shape {tuple(video.shape)}; expected (B, 3, T, H, W)")
    if min(video.shape[3:]) < MINIMUM_SIDE:
        raise InputError(
            f"frames are {video.shape[3]}x{video.shape[4]} pixels; LPIPS needs at least"
            f" {MINIMUM_SIDE}x{MINIMUM_SIDE}"
        )
    if reconstruction.shape != video.shape:
        raise InputError(
            f"reconstruction has shape {tuple(reconstruction.shape)}; expected that of video,"
            f" {tuple(video.shape)}"
        )
    if frames_at_once is not None and (not isinstance(frames_at_once, int) or frames_at_once < 1):
        raise InputError(f"frames_at_once is {frames_at_once!r}; expected None or an integer >= 1")
