"""Haar wavelet transforms in two and three dimensions, as operators that every engine has.

Analysis is a dense 2x2 convolution of stride 2 over frame pairs stacked as channels; synthesis is a
1x1 convolution and a depth-to-space. Filter signs, band order and names are the published model's:

    3-D   band bit 0 = high-pass along W, bit 1 = along H, bit 2 = along T     gain 1/(2 sqrt 2)
    2-D   aa, ad (high along H), da (high along W), dd                         gain 1/2

High-pass is the first sample minus the second. Sub-band major: channel = channels * band + c.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfvae.errors import CheckpointError, InputError

ORTHONORMAL_GAIN_3D = 1 / (2 * math.sqrt(2))
ORTHONORMAL_GAIN_2D = 1 / 2
RELEASED_GAIN_3D = 0.3536
"""Taps of the published checkpoints: rounded, so their transforms are not exactly orthonormal."""

_BAND_NAMES_3D = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v")
_BAND_NAMES_2D = ("aa", "ad", "da", "dd")


def haar_signs(dims: int) -> Tensor:
    """Returns float64 signs (bands, 2, 2, 2) over (t, h, w), or (bands, 2, 2) over (h, w)."""
    along = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)  # low-pass, high-pass
    if dims == 3:
        band = torch.arange(8)
        t, h, w = (along[band >> bit & 1] for bit in (2, 1, 0))
        return t[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :]
    # The middle bands of the published 2-D transform are in the opposite order of the 3-D one's.
    band = torch.arange(4)
    h, w = along[band & 1], along[band >> 1]
    return h[:, :, None] * w[:, None, :]


class _Haar(nn.Module):
    """The common part of analysis and synthesis, in 2 or 3 dimensions.

    Args:
        gain: magnitude of every filter tap; orthonormal if None.
        tap_names: of the filters in a checkpoint, in band order.
    """

    weight: Tensor

    def __init__(self, dims: int, channels: int, gain: float | None, tap_names: tuple[str, ...]) -> None:
        super().__init__()
        self.dims = dims
        self.channels = channels
        self.bands = 2**dims
        self.pair = dims - 1  # frames that one transform spans: 1 or 2
        orthonormal = ORTHONORMAL_GAIN_3D if dims == 3 else ORTHONORMAL_GAIN_2D
        self.gain = orthonormal if gain is None else float(gain)
        self._tap_names = tap_names
        self.register_buffer("weight", self._operator().to(torch.get_default_dtype()), persistent=False)

    def __getattr__(self, name: str) -> Any:
        if any(name == tap.split(".")[0] for tap in self.__dict__.get("_tap_names", ())):
            # `torch.func.functional_call` with a state dict asks for them.
            raise InputError(
                f"the Haar filter {name} is a constant of the model, which only checkpoints hold as a tensor;"
                " give named_parameters() instead of state_dict()"
            )
        return super().__getattr__(name)

    def _operator(self) -> Tensor:
        """Returns the dense float64 weight (band and channel, frame and channel, h, w)."""
        signs = haar_signs(self.dims).reshape(self.bands, self.pair, 2, 2) * self.gain
        dense = torch.einsum("bphw,ck->bcpkhw", signs, torch.eye(self.channels, dtype=torch.float64))
        return dense.reshape(self.bands * self.channels, self.pair * self.channels, 2, 2)

    def taps(self) -> dict[str, Tensor]:
        """Returns the filters (1, 1, 2, 2, 2) or (1, 1, 2, 2) by their checkpoint names."""
        taps = (haar_signs(self.dims) * self.gain).to(self.weight)[:, None, None]
        return dict(zip(self._tap_names, taps, strict=True))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Checkpoints carry the fixed filters as tensors; here they are one number.
        for name, tap in self.taps().items():
            destination[prefix + name] = tap

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        _, _, missing_keys, _, error_msgs = rest
        names = [prefix + name for name in self._tap_names]
        missing = [name for name in names if name not in state_dict]
        missing_keys += missing
        if not missing:
            try:
                self.set_gain(read_gain({name: state_dict[name] for name in names}, self.dims))
            except CheckpointError as error:
                error_msgs.append(str(error))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A new precision: the operator is rounded from the exact gain, not from its rounded values.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight = self._operator().to(self.weight)
        return self

    def set_gain(self, gain: float) -> None:
        """Rebuilds the operator for filters of another gain."""
        self.gain = gain
        device = "cpu" if self.weight.is_meta else self.weight.device
        self.weight = self._operator().to(device=device, dtype=self.weight.dtype)


def read_gain(taps: Mapping[str, Tensor], dims: int) -> float:
    """Returns the gain of filters given in band order, by name.

    Raises:
        CheckpointError: a filter is not Haar's.
    """
    gain = 0.0
    for (name, tap), sign in zip(taps.items(), haar_signs(dims), strict=True):
        values = tap.detach().to("cpu", torch.float64)
        if values.numel() != sign.numel():
            expected = f"a Haar filter of {sign.numel()} taps"
            raise CheckpointError(f"{name} has shape {tuple(tap.shape)}; expected {expected}")
        gain = gain or float(values.flatten()[0])
        if not gain > 0 or not torch.equal(values.reshape(sign.shape), sign * gain):
            expected = f"taps of +-{gain} with the signs of its sub-band"
            raise CheckpointError(f"{name} is not a Haar filter: expected {expected}")
    return gain


class HaarAnalysis(_Haar):
    """Frames (B, T, channels, H, W) to sub-bands (B, T / pair, bands * channels, H/2, W/2).

    H and W are even, and so is T in 3-D (`wfvae.model.causal` completes pairs).
    """

    def __init__(self, dims: int, channels: int, gain: float | None = None) -> None:
        names = tuple(f"{name}_conv.conv.weight" for name in _BAND_NAMES_3D) if dims == 3 else _BAND_NAMES_2D
        super().__init__(dims, channels, gain, names)

    def forward(self, frames: Tensor) -> Tensor:
        batch, _, channels, height, width = frames.shape
        pairs = frames.reshape(-1, self.pair * channels, height, width)
        bands = F.conv2d(pairs, self.weight, stride=2)
        return bands.reshape(batch, -1, self.bands * channels, height // 2, width // 2)


class HaarSynthesis(_Haar):
    """The transpose of `HaarAnalysis`, and its inverse at the orthonormal gain."""

    def __init__(self, dims: int, channels: int, gain: float | None = None) -> None:
        super().__init__(dims, channels, gain, _BAND_NAMES_3D if dims == 3 else _BAND_NAMES_2D)

    def _operator(self) -> Tensor:
        # Outputs are ordered (frame of the pair, channel, h, w), as depth-to-space wants them.
        return super()._operator().reshape(self.bands * self.channels, -1).T[:, :, None, None].contiguous()

    def forward(self, bands: Tensor) -> Tensor:
        batch, _, _, height, width = bands.shape
        pixels = F.conv2d(bands.reshape(-1, self.bands * self.channels, height, width), self.weight)
        return F.pixel_shuffle(pixels, 2).reshape(batch, -1, self.channels, 2 * height, 2 * width)
