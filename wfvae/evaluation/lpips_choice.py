"""Which LPIPS network is used, or why none is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wfvae.errors import CheckpointError, InputError, MissingExtraError, ResourceError
from wfvae.metrics.frames import LPIPS

if TYPE_CHECKING:
    import torch

SMALLEST_SIDE = {"alex": 32, "vgg": 16}
"""Pixels that a network needs along the short side."""


@dataclass(frozen=True)
class LPIPSChoice:
    """LPIPS as it will be measured."""

    label: str
    """Network and weights, for reports."""
    distance: LPIPS | None
    """None where it is not measured."""
    reason: str | None = None
    """Why it is not measured."""


def choose_lpips(weights: str | None, net: Literal["alex", "vgg"]) -> LPIPSChoice:
    """Loads LPIPS, or returns the reason why it is not available.

    `weights` of the backbone are a file, `random` (to try out), `none`, or None for torchvision's
    of `net`, downloaded at first use. Raises `CheckpointError` for a file that is missing or wrong.
    """
    if weights == "none":
        return LPIPSChoice("none", None, "not asked for")
    from wfvae.metrics.perceptual import load_lpips

    downloaded = weights in (None, net)
    try:
        network = load_lpips(weights or net, net, extra="eval")
    except (MissingExtraError, ResourceError, CheckpointError) as error:
        if isinstance(error, CheckpointError) and not downloaded:
            raise
        return LPIPSChoice(net, None, str(error))
    if downloaded:
        origin = "torchvision's ImageNet weights"
    elif weights == "random":
        origin = "random weights: the figures mean nothing"
    else:
        origin = Path(str(weights)).name  # results name no folder

    def distance(reconstruction: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        height, width = real.shape[-2:]
        if min(height, width) < SMALLEST_SIDE[net]:
            small = f"frames are {height}x{width}, too small for LPIPS with {net}"
            advice = "score larger frames with --size, or leave LPIPS out with --lpips-weights none"
            raise InputError(f"{small}, which needs {SMALLEST_SIDE[net]} pixels; {advice}")
        result: torch.Tensor = network(reconstruction, real)
        return result

    return LPIPSChoice(f"{net}, {origin}", distance)
