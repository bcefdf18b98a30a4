"""Checks of tensors that users hand to the model."""

import math

import torch
from torch import Tensor

from wfvae.errors import InputError
from wfvae.model.encoder import RGB
from wfvae.spec.frames import PIXEL_TOLERANCE, SPATIAL_RATIO


def check_video(name: str, x: Tensor, dtype: torch.dtype, empty: bool = False) -> None:
    """Raises `InputError` unless `x` is (B, 3, T, H, W) in [-1, 1], but for rounding, of `dtype`.

    H and W must be multiples of 8, and T >= 1 unless `empty`.
    """
    hint = f"convert uint8 frames by {name}.float() / 127.5 - 1"
    _check_tensor(name, x, RGB, "(B, 3, T, H, W) in [-1, 1]", hint, dtype, empty)
    for axis, side in zip("HW", x.shape[3:], strict=True):
        if side % SPATIAL_RATIO or side == 0:
            wanted = f"a positive multiple of {SPATIAL_RATIO}"
            raise InputError(f"{name} has {axis} = {side}; expected {wanted}; pad or crop the frames")
    low, high = _check_finite(name, x)
    if max(-low, high) > 1 + PIXEL_TOLERANCE:
        scaled = (
            f"8-bit values are scaled by {name} / 127.5 - 1, interpolated ones clamped by {name}.clamp(-1, 1)"
        )
        raise InputError(f"{name} has values from {low:.6g} to {high:.6g}; expected [-1, 1]; {scaled}")


def check_latents(name: str, z: Tensor, latent_dim: int, dtype: torch.dtype, empty: bool = False) -> None:
    """Raises `InputError` unless `z` is a finite (B, D, t, h, w) of `dtype`.

    h and w must be >= 1, and t unless `empty`.
    """
    layout = f"(B, {latent_dim}, t, h, w)"
    _check_tensor(name, z, latent_dim, layout, f"convert by {name}.float()", dtype, empty)
    if 0 in z.shape[3:]:
        raise InputError(f"{name} has spatial size {tuple(z.shape[3:])}; expected at least 1x1")
    _check_finite(name, z)


def check_flag(name: str, flag: object, batch: int) -> None:
    """Raises `InputError` unless `flag` is bool of shape (batch,)."""
    if not torch.is_tensor(flag) or flag.dtype != torch.bool or tuple(flag.shape) != (batch,):
        given = f"{flag.dtype} of shape {tuple(flag.shape)}" if torch.is_tensor(flag) else repr(flag)
        raise InputError(f"{name} is {given}; expected torch.bool of shape ({batch},), one value per stream")


def _check_tensor(
    name: str, tensor: object, channels: int, layout: str, hint: str, dtype: torch.dtype, empty: bool
) -> None:
    if not torch.is_tensor(tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor of shape {layout}")
    if tensor.ndim != 5:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected {layout}")
    if not tensor.is_floating_point():
        raise InputError(f"{name} is {tensor.dtype}; expected floating point of shape {layout}; {hint}")
    if tensor.shape[1] != channels:
        wrong = f"{name} has {tensor.shape[1]} channels; expected {channels}, in {layout}"
        if channels != RGB and tensor.shape[1] == 2 * channels:
            wrong += (
                "; an encoder step's moments become latents by DiagonalGaussian(moments).mode() or .sample()"
            )
        raise InputError(wrong)
    if tensor.shape[0] < 1 or (tensor.shape[2] < 1 and not empty):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected at least one clip and one frame")
    if tensor.dtype != dtype and not torch.is_autocast_enabled(tensor.device.type):
        mismatch = f"{name} is {tensor.dtype}, but the model's weights are {dtype}"
        raise InputError(f"{mismatch}; convert one of them with .to(dtype)")


def _check_finite(name: str, tensor: Tensor) -> tuple[float, float]:
    """Returns the smallest and the largest value; (0, 0) where values are not known."""
    # `torch.export` records what happens to any values.
    if tensor.is_meta or not tensor.numel() or torch.compiler.is_exporting():
        return 0.0, 0.0
    low, high = (float(value) for value in tensor.detach().aminmax())  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = (~torch.isfinite(tensor)).nonzero()
        first = tuple(bad[0].tolist())
        raise InputError(f"{name} has {len(bad)} values that are NaN or infinite, the first at index {first}")
    return low, high
