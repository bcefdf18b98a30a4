"""Batches of clips, as bytes until they are on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wfvae.train.data.clip_source import BadClip, Clip


@dataclass(frozen=True)
class Batch:
    """The clips of one step on one rank."""

    frames: torch.Tensor
    """(B, 3, T, H, W) uint8 RGB, 0..255, contiguous, on the CPU."""
    names: tuple[str, ...]
    """The item that each row was drawn from."""
    bad: tuple[BadClip, ...]
    """Items that were replaced while this batch was made."""
    step: int
    """Number of the batch in the run, from 0."""
    epoch: int
    """Epoch of the first row; later rows may be of the next."""
    position: int
    """Clips of that epoch, over all ranks, before the first row."""

    def pin_memory(self) -> Batch:
        """Returns the batch with its frames in page-locked memory, for PyTorch's loader."""
        return replace(self, frames=self.frames.pin_memory())


def stack_clips(clips: Sequence[Clip]) -> torch.Tensor:
    """B clips (T, H, W, 3) -> (B, 3, T, H, W) uint8, contiguous."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous()


def to_model_range(frames: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 of any shape -> float32 in [-1, 1] on the same device, x / 127.5 - 1.

    >>> to_model_range(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return frames.to(torch.float32) / 127.5 - 1.0
