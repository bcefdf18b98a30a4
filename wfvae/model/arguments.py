"""Checks of tensors that users hand to the model."""

import torch
from torch import Tensor

from wfvae.errors import InputError
from wfvae.model.encoder import RGB
from wfvae.spec.frames import SPATIAL_RATIO


def check_video(name: str, x: Tensor, dtype: torch.dtype, empty: bool = False) -> None:
    """Raises `InputError` unless `x` is a finite (B, 3, T, H, W) of `dtype`.

    H and W must be multiples of 8, and T >= 1 unless `empty`.
    """
    hint = f"convert uint8 frames by {name}.float() / 127.5 - 1"
    _check_tensor(name, x, RGB, "(B, 3, T, H, W) in [-1, 1]", hint, dtype, empty)
    for axis, side in zip("HW", x.shape[3:], strict=True):
        if side % SPATIAL_RATIO or side == 0:
            wanted = f"a positive multiple of {SPATIAL_RATIO}"
            raise InputError(f"{name} has {axis} = {side}; expected {wanted}; pad or crop the frames")


def check_latents(name: str, z: Tensor, latent_dim: int, dtype: torch.dtype, empty: bool = False) -> None:
    """Raises `InputError` unless `z` is a finite (B, D, t, h, w) of `dtype`.

    h and w must be >= 1, and t unless `empty`.
    """
    layout = f"(B, {latent_dim}, t, h, w)"
    _check_tensor(name, z, latent_dim, layout, f"convert by {name}.float()", dtype, empty)
    if 0 in z.shape[3:]:
        raise InputError(f"{name} has spatial size {tuple(z.shape[3:])}; expected at least 1x1")


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
        raise InputError(f"{name} has {tensor.shape[1]} channels; expected {channels}, in {layout}")
    if tensor.shape[0] < 1 or (tensor.shape[2] < 1 and not empty):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected at least one clip and one frame")
    if tensor.dtype != dtype and not torch.is_autocast_enabled(tensor.device.type):
        mismatch = f"{name} is {tensor.dtype}, but the model's weights are {dtype}"
        raise InputError(f"{mismatch}; convert one of them with .to(dtype)")
    # One cheap reduction first: the sum is finite only if every term is.
    if tensor.is_meta or torch.isfinite(tensor.detach().sum(dtype=torch.float32)):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    if len(bad):
        first = tuple(bad[0].tolist())
        raise InputError(f"{name} has {len(bad)} values that are NaN or infinite, the first at index {first}")
