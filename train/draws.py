"""The random numbers of a step, which depend on seed and step alone."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_SEED_RANGE = 1 << 63


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seeds torch's own generator, from which dropout draws."""
    torch.manual_seed(_mix(seed, step, -1 - rank))


def posterior_noise(shape: tuple[int, ...], seed: int, step: int, first_place: int) -> Tensor:
    """Returns standard normal noise (B, D, t, h, w) for the posterior samples of B clips.

    It depends on a clip's place in the whole batch, `first_place` and those after it, not on how
    the batch is divided among processes.
    """
    rows = []
    for place in range(first_place, first_place + shape[0]):
        generator = torch.Generator().manual_seed(_mix(seed, step, 1 + place))
        rows.append(torch.randn(shape[1:], generator=generator))
    return torch.stack(rows)


def _mix(seed: int, step: int, salt: int) -> int:
    """Hashes seed, step and salt to a seed; neighbours get unlike ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + salt * 0x165667B19E3779F9) & _MASK
    mixed ^= mixed >> 29
    return mixed * 0xBF58476D1CE4E5B9 % _SEED_RANGE
