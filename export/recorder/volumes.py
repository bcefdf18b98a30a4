"""Frames that a graph holds as volumes, (B, C, T, H, W), the order that 3-D convolutions take.

The network has frames (B, T, C, H, W) and images (B T, C, H, W). Where a graph holds volumes
(`wfvae.export.forms.FormSet`), both are views of one. An operation that knows volumes is recorded
on it; for any other it is transposed first. So convolutions, norms and what lies between them
follow one another without a change of layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from wfvae.export.recorder.recorder import Value
from wfvae.export.recorder.tensor import TracedTensor, concatenate, elementwise
from wfvae.export.symbolic import Length, product, simplify

_SWAPPED = (0, 2, 1, 3, 4)
"""Frames as a volume, and back; also the axis of one for each axis of the other."""
_LAST_CHANNELS, _FIRST_CHANNELS = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)


class VolumeTensor(TracedTensor):
    """Frames, or images, of which the graph holds the volume."""

    leads: ClassVar[bool] = True

    def __init__(self, volume: TracedTensor, images: bool = False) -> None:
        batch, channels, count, *size = volume.shape
        leading = [product((batch, count))] if images else [batch, count]
        super().__init__(volume.recorder, Value("", (*leading, channels, *size), volume.dtype))
        self.volume = volume
        self.images = images

    @property
    def stored(self) -> TracedTensor:
        """This tensor, transposed."""
        frames = self.volume.permute(_SWAPPED)
        return frames.reshape(*self.shape) if self.images else frames

    def like(self, volume: TracedTensor) -> VolumeTensor:
        """Returns the same view of another volume."""
        return VolumeTensor(volume, self.images)

    # Shapes

    def __getitem__(self, index: Any) -> TracedTensor:
        entries = index if isinstance(index, tuple) else (index,)
        if self.images or None in entries:
            return self.stored[index]
        entries += (slice(None),) * (self.ndim - len(entries))
        return self.like(self.volume[tuple(entries[axis] for axis in _SWAPPED)])

    def reshape(self, *shape: Any) -> TracedTensor:
        target = list(shape[0] if isinstance(shape[0], tuple) else shape)
        if -1 in target:
            known = product(size for size in target if size != -1)
            target[target.index(-1)] = product(self.shape).divide(known)
        sizes = tuple(simplify(size) for size in target)
        for images in (False, True):
            view = VolumeTensor(self.volume, images)
            if view.shape == sizes:
                return view
        return self.volume.permute(_SWAPPED).reshape(*sizes)

    def permute(self, order: Sequence[int]) -> TracedTensor:
        return self.stored.permute(order)

    # Values

    def to(self, dtype: torch.dtype) -> TracedTensor:
        return self.like(self.volume.to(dtype))

    def elementwise(
        self, operator: str, operands: Sequence[TracedTensor], dtype: torch.dtype
    ) -> TracedTensor:
        volumes = [one if one.ndim == 0 else as_volume(one) for one in operands]
        known = [one for one in volumes if one is not None]
        if len(known) < len(operands):
            return super().elementwise(operator, operands, dtype)
        return self.like(elementwise(operator, known, dtype))

    def concatenate(self, parts: Sequence[TracedTensor], axis: int) -> TracedTensor:
        known = [one for part in parts if (one := as_volume(part)) is not None]
        if self.images or len(known) < len(parts):
            return super().concatenate(parts, axis)
        return self.like(concatenate(known, _SWAPPED[axis]))

    def interleaved(self, other: TracedTensor) -> TracedTensor:
        """Returns the frames a0 b0 a1 b1 ... of this and another tensor of the same shape."""
        batch, channels, count, *size = self.volume.shape
        pairs = [part.unsqueeze(3) for part in (self.volume, as_volume(other)) if part is not None]
        return self.like(concatenate(pairs, 3).reshape(batch, channels, count * 2, *size))

    def normalised(self, norm: torch.nn.LayerNorm) -> TracedTensor:
        """Normalises the channels of each position."""
        result: Any = norm(self.volume.permute(_LAST_CHANNELS))
        return self.like(result.permute(_FIRST_CHANNELS))

    def convolved(
        self, weight: Value, bias: Value | None, strides: Sequence[int], pads: Sequence[tuple[int, int]]
    ) -> VolumeTensor:
        """Convolves with a weight (C', C, t, s, s), with pads before and after T, H and W."""
        batch, _, *sizes = self.volume.shape
        kernel: list[Any] = list(weight.shape[2:])
        found: list[Length] = [
            (size + (sum(pad) - taps)) // stride + 1
            for size, pad, taps, stride in zip(sizes, pads, kernel, strides, strict=True)
        ]
        result = self.volume.emit(
            "Conv",
            [self.volume, weight, *([] if bias is None else [bias])],
            (batch, weight.shape[0], *found),
            kernel_shape=kernel,
            strides=list(strides),
            pads=[side for sides in zip(*pads, strict=True) for side in sides],
            dilations=[1, 1, 1],
            group=1,
        )
        return self.like(result)


def as_volume(x: TracedTensor) -> TracedTensor | None:
    """Returns frames, or images that are known as frames, as a volume; None for anything else."""
    if isinstance(x, VolumeTensor):
        return x.volume
    frames = x if x.ndim == 5 else x.reshaped
    if frames is None or frames.ndim != 5:
        return None
    if x.ndim != 5 and x.shape != (product(frames.shape[:2]), *frames.shape[2:]):
        return None
    # A flag for each row is the same in both layouts.
    return frames if frames.shape[1:3] == (1, 1) else frames.permute(_SWAPPED)


def viewed(x: TracedTensor) -> VolumeTensor | None:
    """Returns a tensor as a view of a volume, if the graph holds volumes and it is one's frames."""
    if not x.recorder.volumes:
        return None
    volume = as_volume(x)
    return None if volume is None else VolumeTensor(volume, images=x.ndim != 5)
