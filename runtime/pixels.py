"""Conversions between a user's frames and the graphs' tensors: layout, value range, padding."""

from typing import Any

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from wfvae.errors import InputError
from wfvae.runtime.backends.base import FloatArray
from wfvae.runtime.dlpack import DeviceArray, Shape, host_array
from wfvae.spec.frames import PIXEL_TOLERANCE, latent_size, padded_size

Frames = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_FLOATS = (np.float32, np.float16, bfloat16, np.float64)


def check_frames(frames: Any, height: int, width: int) -> Frames:
    """Returns frames (T, H, W, 3) as uint8, or as float32 in [-1, 1] but for rounding.

    Takes arrays of any library that offers `__dlpack__`.

    Raises:
        InputError: names what is wrong.
    """
    array = host_array(frames, "frames")
    check_frame_shape(array.shape, height, width)
    if array.dtype == np.uint8:
        return array
    if array.dtype not in _FLOATS:
        raise InputError(f"frames are {array.dtype}; expected uint8, or floating point in [-1, 1]")
    array = array.astype(np.float32, copy=False)
    if not array.size:
        return array
    low, high = array.min(), array.max()  # NaN if any value is
    if not np.isfinite([low, high]).all():
        raise InputError("frames hold NaN or infinite values; expected finite values in [-1, 1]")
    if max(-low, high) > 1 + PIXEL_TOLERANCE:
        raise InputError(
            f"frames have values from {low:.6g} to {high:.6g}; expected [-1, 1]; 8-bit values are scaled by"
            " frames / 127.5 - 1 (or given as uint8), interpolated ones clamped to [-1, 1]"
        )
    return array


def check_frame_shape(shape: Shape, height: int, width: int) -> None:
    """Raises `InputError` unless frames of this shape belong to a stream of this size."""
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(
            f"frames have shape {shape}; expected (T, {height}, {width}, 3): time, height, width, RGB"
        )
    if shape[1:3] != (height, width):
        raise InputError(
            f"frames are {shape[1]}x{shape[2]}, but this stream is {height}x{width}; open another"
            " stream for them"
        )


def as_network(frames: DeviceArray) -> DeviceArray | None:
    """Returns frames (T, H, W, 3) in a device's memory as the network's (T, 3, H, W), without a
    copy. None unless they are a permuted view of just that, in float32, and need no padding.
    """
    count, height, width, channels = frames.shape
    step, row, column, channel = frames.strides
    shape = (count, channels, height, width)
    view = frames.view(frames.address, shape, (step, channel, row, column))
    fits = frames.dtype == np.float32 and (height, width) == padded_size(height, width)
    return view if fits and view.is_contiguous else None


def frames_view(video: DeviceArray, height: int, width: int) -> DeviceArray:
    """Returns (T, 3, H', W') in a device's memory as frames (T, H, W, 3), cropped by strides."""
    step, channel, row, column = video.strides
    return video.view(video.address, (len(video), height, width, 3), (step, row, column, channel))


def to_network(frames: Frames) -> FloatArray:
    """Converts frames (T, H, W, 3) to (T, 3, H', W') float32 in [-1, 1].

    H' and W' are multiples of 8; the border repeats the last row and column.
    """
    count, height, width, _ = frames.shape
    rows, columns = padded_size(height, width)
    result = np.empty((count, 3, rows, columns), np.float32)
    for frame, planes in zip(frames, result, strict=True):  # one at a time, which caches hold
        inner = planes[:, :height, :width]
        inner[:] = frame.transpose(2, 0, 1)
        if frames.dtype == np.uint8:
            # Exact integers, and one division: correctly rounded.
            inner *= 2
            inner -= 255
            inner /= 255
        planes[:, height:, :width] = planes[:, height - 1 : height, :width]
        planes[:, :, width:] = planes[:, :, width - 1 : width]
    return result


def to_float_frames(video: FloatArray, height: int, width: int) -> npt.NDArray[np.float32]:
    """Converts (T, 3, H', W') to (T, H, W, 3) float32, cropped and not clamped."""
    return np.ascontiguousarray(video[:, :, :height, :width].transpose(0, 2, 3, 1))


def to_uint8_frames(video: FloatArray, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Converts (T, 3, H', W') in [-1, 1] to (T, H, W, 3) uint8: cropped, rounded and clamped."""
    result = np.empty((len(video), height, width, 3), np.uint8)
    # What overflows is clamped, NaN becomes 0: neither may stop the other streams of a batch.
    with np.errstate(over="ignore", invalid="ignore"):
        for planes, frame in zip(video, result, strict=True):  # one at a time, which caches hold
            levels = planes[:, :height, :width] * np.float32(127.5)
            levels += np.float32(127.5)
            np.rint(levels, out=levels)
            np.clip(levels, 0, 255, out=levels)
            frame[:] = levels.astype(np.uint8).transpose(1, 2, 0)
    return result


def check_latents(latents: Any, channels: int, height: int, width: int) -> FloatArray:
    """Returns latents (t, D, h, w) of a video of height x width as float32. Raises `InputError`."""
    array = host_array(latents, "latents")
    check_latent_shape(array.shape, channels, height, width)
    if array.dtype not in _FLOATS:
        raise InputError(f"latents are {array.dtype}; expected floating point")
    array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array).all(axis=(1, 2, 3))
    if not finite.all():
        raise InputError(
            f"latents hold NaN or infinite values, first in latent {int(np.argmin(finite))} of these"
            f" {len(array)}"
        )
    return array


def check_latent_shape(shape: Shape, channels: int, height: int, width: int) -> None:
    """Raises `InputError` unless latents of this shape belong to a video of this size."""
    rows, columns = latent_size(height, width)
    if len(shape) != 4 or shape[1:] != (channels, rows, columns):
        raise InputError(
            f"latents have shape {shape}; expected (t, {channels}, {rows}, {columns}) for a video of"
            f" {height}x{width}: time, channels, height / 8, width / 8"
        )
