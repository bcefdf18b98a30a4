"""All temporal logic of the network, in its two views. See `docs/streaming.md` for the frame
diagrams.

The network is written once. Wherever frames meet, it asks the clip it was handed, and the clip is
one of two things:

`OfflineClip`   a whole video, as the paper writes it: the head frame stands alone, causal convolutions pad with copies of it.
`StreamChunk`   the next frames of one stream per batch row. r-1 copies of the head frame lead the stream, so every chunk is
                alike; what lies before the chunk comes from the state, what comes after it goes to
                the next state.

Feature maps are (B, T, C, H, W) here and in all of the network. State is an argument and a result,
keyed by module path.

    causal convolution, kernel 3       state s = last 2 frames        s s [ x0 x1 x2 x3 ]  ->  y0 y1 y2 y3
    causal convolution, stride 2       state s = last 1 frame           s [ x0 x1 x2 x3 ]  ->  y0    y1
    linear time upsampling             state p = last frame           p [ x0 x1 ]  ->  p.x0 x0.p  x0.x1 x1.x0   (a.b = 3/4 a + 1/4 b)
    at `start`, in place of the state: copies of the chunk's first frame
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfvae.errors import StateError
from wfvae.model.tap_sum import repeat_head, sum_of_taps
from wfvae.spec.stream import StateSpec

_IMAGE_AXES = 3
"""(C, H, W) at the end of every shape."""
LERP_WEIGHT = 0.25
"""Half-pixel-centred linear interpolation by two: each output is 3/4 of the nearer and 1/4 of the
farther frame.
"""


class Clip(Protocol):
    """What the network may ask about time."""

    def with_history(self, name: str, frames: Tensor, kernel: int, stride: int) -> Tensor:
        """Puts in front of `frames` what a causal window of `kernel` needs, so that windows start
        at 0, stride, 2 stride...
        """

    def pair_up(self, frames: Tensor) -> Tensor:
        """Completes `frames` to aligned pairs, for an analysis over time."""

    def double(self, frames: Tensor) -> Tensor:
        """Repeats every frame; the head of an offline clip stays single."""

    def double_linear(self, name: str, frames: Tensor, head: int, lag: int) -> Tensor:
        """Interpolates time by two. `head` and `lag` say how many frames of a stream are its head,
        and how late it is, here.
        """

    def trim_pairs(self, frames: Tensor) -> Tensor:
        """Removes what a synthesis over time gave too many."""

    def delay(self, name: str, frames: Tensor) -> Tensor:
        """Holds back a path by one frame where it by-passes a linear upsampling."""


def cat_frames(parts: Sequence[Tensor]) -> Tensor:
    """Concatenates (B, T, C, H, W) tensors along T."""
    if not all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts), dim=1)  # a graph is being recorded, which knows no memory layout
    # Activations lie channels-last in memory, which `cat` keeps only if it sees the channels as
    # last dimension.
    return torch.cat([part.movedim(2, -1) for part in parts], dim=1).movedim(-1, 2)


def add_fresh(fresh: Tensor, other: Tensor) -> Tensor:
    """fresh + other, where nobody else holds `fresh`: in place, unless autograd needs it or a graph
    is being recorded.
    """
    if not isinstance(fresh, Tensor):
        as_images = fresh.shape[
            -_IMAGE_AXES:
        ]  # as the convolutions around it have them, whether those are of frames or of images
        return (fresh.reshape(-1, *as_images) + other.reshape(-1, *as_images)).reshape(fresh.shape)
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    """a0 b0 a1 b1 ... from (B, T, C, H, W) twice."""
    batch, _, channels, height, width = first.shape
    if not isinstance(first, Tensor):
        return torch.stack([first, second], dim=2).reshape(batch, -1, channels, height, width)
    pairs = torch.stack([first.movedim(2, -1), second.movedim(2, -1)], dim=2)
    return pairs.reshape(batch, 2 * first.shape[1], height, width, channels).movedim(-1, 2)


def _frame_numbers(frames: Tensor) -> Tensor:
    """0, 1, 2, ... for the frames of (B, T, C, H, W): int32 (1, T)."""
    if not isinstance(frames, Tensor):
        return frames.numbers_along(1)[None]  # a graph is being recorded, in which T is a symbol
    return torch.arange(frames.shape[1], dtype=torch.int32, device=frames.device)[None]


def _lerp_pairs(before: Tensor, after: Tensor, weight: Tensor | float) -> Tensor:
    """The two frames between each neighbouring pair, interleaved. The order of operations is the
    same in both views.
    """
    keep = 1 - weight
    return _interleave(keep * before + weight * after, weight * before + keep * after)


class OfflineClip:
    """A whole clip of T = 1 + r n frames with its head frame single (paper, sections 3.2 and 3.3)."""

    def with_history(self, name: str, frames: Tensor, kernel: int, stride: int) -> Tensor:
        if kernel > 1 and torch.is_grad_enabled() and isinstance(frames, Tensor):
            return repeat_head(frames, kernel - 1)
        return cat_frames([frames[:, :1]] * (kernel - 1) + [frames]) if kernel > 1 else frames

    def pair_up(self, frames: Tensor) -> Tensor:
        return cat_frames([frames[:, :1], frames])

    def double(self, frames: Tensor) -> Tensor:
        return _interleave(frames, frames)[:, 1:]

    def double_linear(self, name: str, frames: Tensor, head: int, lag: int) -> Tensor:
        rest = frames[:, 1:]  # empty for an image; every slice below then is, too
        between = _lerp_pairs(rest[:, :-1], rest[:, 1:], LERP_WEIGHT)
        return cat_frames([frames[:, :1], rest[:, :1], between, rest[:, -1:]])

    def trim_pairs(self, frames: Tensor) -> Tensor:
        return frames[:, 1:]

    def delay(self, name: str, frames: Tensor) -> Tensor:
        return frames


class StreamChunk:
    """The next chunk of B independent streams, one per batch row.

    Args:
        state: what the previous chunk left, by name. Rows that start ignore theirs.
        start: bool (B,): this row's stream begins with this chunk.
        end: bool (B,): this row's stream has ended before this chunk, which only drains it.

    After the forward pass `next_state` holds the state for the next chunk. `state` is not changed.
    """

    def __init__(self, state: Mapping[str, Tensor], start: Tensor, end: Tensor) -> None:
        self.state = state
        self.start = start
        self.end = end
        self.next_state: dict[str, Tensor] = {}

    def _recall(self, name: str) -> Tensor:
        try:
            return self.state[name]
        except KeyError:
            raise StateError(f"the state has no entry {name}; start from the initial state") from None

    def _history(self, name: str, frames: Tensor) -> Tensor:
        """The state frames before this chunk; for rows that start, their first frame instead."""
        return torch.where(self.start[:, None, None, None, None], frames[:, :1], self._recall(name))

    def _remember(self, name: str, frames: Tensor) -> None:
        # A copy: a view would keep the whole chunk's activation alive.
        self.next_state[name] = frames.clone()

    def with_history(self, name: str, frames: Tensor, kernel: int, stride: int) -> Tensor:
        # A kernel shorter than its stride steps over frames: a window of the stride's length whose
        # oldest taps are unused.
        window = max(kernel, stride)
        if window > stride or name in self.state or frames.shape[1] % stride:
            extended = cat_frames([self._history(name, frames), frames])
            length = extended.shape[1]
            # Eq. (4): complete windows are consumed, the rest is carried over. Aligned chunks
            # always leave window - stride.
            carried = length if length < window else window - stride + (length - window) % stride
            self._remember(name, extended[:, -carried:] if carried else extended[:, :0])
        else:
            extended = frames
        return extended[:, window - kernel :]

    def pair_up(self, frames: Tensor) -> Tensor:
        return frames

    def double(self, frames: Tensor) -> Tensor:
        return _interleave(frames, frames)

    def double_linear(self, name: str, frames: Tensor, head: int, lag: int) -> Tensor:
        count = frames.shape[1]
        position = _frame_numbers(frames)
        # `age` counts the stream's frames before this chunk, up to the head's length, which is all
        # that is asked of it.
        age = torch.where(self.start, 0, self._recall(f"{name}.age"))
        inside_head = age[:, None] + position <= head
        # In a draining chunk the first `lag` frames are still the stream's own; behind them nothing
        # may blend in.
        behind_end = self.end[:, None] & (position == lag)
        weight = torch.where(inside_head | behind_end, 0.0, LERP_WEIGHT).to(frames.dtype)[
            :, :, None, None, None
        ]
        extended = cat_frames([self._history(f"{name}.previous", frames), frames])
        self._remember(f"{name}.previous", frames[:, -1:])
        self.next_state[f"{name}.age"] = torch.clamp(age + count, max=head + 1).to(torch.int32)
        return _lerp_pairs(extended[:, :-1], frames, weight)

    def trim_pairs(self, frames: Tensor) -> Tensor:
        return frames

    def delay(self, name: str, frames: Tensor) -> Tensor:
        extended = cat_frames([self._history(name, frames), frames])
        self._remember(name, frames[:, -1:])
        return extended[:, :-1]


class TemporalModule(nn.Module):
    """A module through which frames meet. Its state tensors are named by its path in the model."""

    def __init__(self, channels: int, spatial: int) -> None:
        super().__init__()
        self.channels = channels
        self.spatial = spatial
        """Video pixels per pixel of this module's input."""
        self.path = ""
        """Set once by `bind_paths`, when the model is built."""

    def _frames_spec(self, name: str, frames: int, dtype: str, meaning: str) -> StateSpec:
        shape = ("batch", frames, self.channels, f"height/{self.spatial}", f"width/{self.spatial}")
        return StateSpec(name, shape, dtype, meaning)

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        """The state tensors that a stream of activations of `dtype` carries through this module."""
        raise NotImplementedError


def bind_paths(root: nn.Module) -> None:
    """Tells every temporal module under `root` its path, which names its state."""
    for path, module in root.named_modules():
        if isinstance(module, TemporalModule):
            module.path = path


def collect_state_specs(root: nn.Module, prefix: str, dtype: str) -> tuple[StateSpec, ...]:
    """The state of all temporal modules whose path begins with `prefix`, in module order."""
    modules = (m for m in root.modules() if isinstance(m, TemporalModule) and m.path.startswith(prefix))
    return tuple(spec for module in modules for spec in module.state_specs(dtype))


class CausalConv3d(TemporalModule):
    """3-D convolution that sees no future frame: kernel k in time, odd k_s in space, `stride`
    (time, space).

    Written as a sum of 2-D convolutions, one per time tap: engines lay out and fuse 2-D
    convolutions best, frames stay the batch axis, and each output frame is computed by the same
    operations whatever chunk it is in.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial: int,
        kernel: int = 3,
        stride: tuple[int, int] = (1, 1),
        kernel_spatial: int | None = None,
        repeated: bool = False,
    ) -> None:
        super().__init__(in_channels, spatial)
        self.kernel = kernel
        self.repeated = repeated
        """Whether frames come as pairs of equal ones (but for a whole clip's first, which stands
        for two); a graph may make use of it.
        """
        self.stride, self.stride_spatial = stride
        self.kernel_spatial = kernel if kernel_spatial is None else kernel_spatial
        # Holds weight and bias under their published name, and initialises them; its own forward
        # pass is not used.
        k_s = self.kernel_spatial
        self.conv = nn.Conv3d(in_channels, out_channels, (kernel, k_s, k_s))

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        frames = self.kernel - self.stride
        if frames <= 0:
            return ()
        return (
            self._frames_spec(
                self.path, frames, dtype, f"last {frames} input frames of a causal convolution"
            ),
        )

    def forward(self, frames: Tensor | Callable[[], Tensor], clip: Clip) -> Tensor:
        """`frames` may be a function that makes them: then nobody holds them while the convolution
        runs on its own copy.
        """
        frames = clip.with_history(
            self.path, frames() if callable(frames) else frames, self.kernel, self.stride
        )
        if not isinstance(frames, Tensor):
            return frames.causal_convolution(
                self
            )  # a graph is being recorded, which may have a form of its own
        if torch.is_grad_enabled() and self.stride == self.stride_spatial == 1:
            return sum_of_taps(frames, self.conv.weight, self.conv.bias)
        return self.sum_of_taps(frames)

    def sum_of_taps(self, frames: Tensor) -> Tensor:
        """The convolution of `frames` with their history in front."""
        batch = frames.shape[0]
        weight, bias = self.conv.weight, self.conv.bias
        total: Tensor | None = None
        for tap in range(self.kernel):
            # Frames tap, tap + stride, ... as many as there are whole windows.
            taken = frames[:, tap : (tap - self.kernel + 1) or None : self.stride]
            part = self._convolve(taken.flatten(0, 1), weight[:, :, tap], bias if tap == 0 else None)
            total = part if total is None else add_fresh(total, part)
        assert total is not None
        return total.reshape(batch, -1, *total.shape[1:])

    def _convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.stride_spatial == 1:
            return F.conv2d(images, weight, bias, padding=self.kernel_spatial // 2)
        # The published model pads strided convolutions at the right and bottom only.
        return F.conv2d(F.pad(images, (0, 1, 0, 1)), weight, bias, stride=self.stride_spatial)


class TimeUpsample(TemporalModule):
    """Doubles the frame rate. Linear interpolation makes a stream one output frame late (`lag`
    grows to 2 lag + 1).
    """

    def __init__(self, channels: int, spatial: int, linear: bool, head: int, lag: int) -> None:
        super().__init__(channels, spatial)
        self.linear = linear
        self.head = head
        self.lag = lag

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        if not self.linear:
            return ()
        return (
            self._frames_spec(
                f"{self.path}.previous", 1, dtype, "last input frame of a linear time upsampling"
            ),
            StateSpec(
                f"{self.path}.age",
                ("batch",),
                "int32",
                f"frames seen since the stream's start, up to {self.head + 1}",
            ),
        )

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        if self.linear:
            return clip.double_linear(self.path, frames, self.head, self.lag)
        return clip.double(frames)


class DelayLine(TemporalModule):
    """Holds a path back by one frame in a stream, so that it meets one that passed a linear
    upsampling; offline nothing.
    """

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        return (self._frames_spec(self.path, 1, dtype, "last frame of a delay line"),)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        return clip.delay(self.path, frames)
