"""All temporal logic of the network, for whole clips and for streams (`docs/streaming.md`).

The network is written once. Wherever frames meet, it asks the clip that it was given:

`OfflineClip`   A whole video, as in the paper: the head frame is single, causal convolutions pad
                with copies of it.
`StreamChunk`   The next frames of one stream per batch row. r-1 copies of the head frame lead the
                stream, so all chunks are alike. Frames before the chunk come from the state, and
                the last ones go into the next state.

Feature maps are (B, T, C, H, W). State is an argument and a result, keyed by module path.

    causal convolution, kernel 3     state s: last 2 frames    s s [x0 x1 x2 x3] -> y0 y1 y2 y3
    causal convolution, stride 2     state s: last frame         s [x0 x1 x2 x3] -> y0    y1
    linear time upsampling           state p: last frame         p [x0 x1] -> p.x0 x0.p x0.x1 x1.x0

with a.b = 3/4 a + 1/4 b. At `start`, copies of the chunk's first frame replace the state.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wfvae.model.ops import cat_frames, causal_conv, frame_numbers, interleave, repeat_head
from wfvae.spec.stream import StateSpec

LERP_WEIGHT = 0.25
"""Of the farther frame; linear interpolation by two is centred on half pixels."""


def _lerp_pairs(before: Tensor, after: Tensor, weight: Tensor | float) -> Tensor:
    """Returns the two frames between each neighbouring pair, interleaved."""
    keep = 1 - weight
    return interleave(keep * before + weight * after, weight * before + keep * after)


class OfflineClip:
    """A whole clip of T = 1 + r n frames with its head frame single (paper, section 3.3)."""

    def with_history(self, name: str, frames: Tensor, kernel: int, stride: int) -> Tensor:
        """Prepends the frames that causal windows of `kernel`, at 0, stride, 2 stride..., need."""
        return repeat_head(frames, kernel - 1)

    def pair_up(self, frames: Tensor) -> Tensor:
        """Completes `frames` to aligned pairs, for an analysis over time."""
        return cat_frames(frames[:, :1], frames)

    def trim_pairs(self, frames: Tensor) -> Tensor:
        """Removes the surplus frame of a synthesis over time."""
        return frames[:, 1:]

    def double(self, frames: Tensor) -> Tensor:
        """Repeats every frame but the head."""
        return interleave(frames, frames)[:, 1:]

    def double_linear(self, name: str, frames: Tensor, head: int, lag: int) -> Tensor:
        """Interpolates time by two, where a stream has `head` head frames and lags by `lag`."""
        rest = frames[:, 1:]  # empty for an image; every slice below then is, too
        between = _lerp_pairs(rest[:, :-1], rest[:, 1:], LERP_WEIGHT)
        return cat_frames(frames[:, :1], rest[:, :1], between, rest[:, -1:])

    def delay(self, name: str, frames: Tensor) -> Tensor:
        """Delays a path that by-passes a linear upsampling by one frame, in a stream."""
        return frames


class StreamChunk:
    """The next chunk of B independent streams, one per row; methods as of `OfflineClip`.

    Args:
        state: `next_state` of the previous chunk. It is not changed.
        start: bool (B,): the row's stream begins with this chunk; its state is ignored.
        end: bool (B,): the row's stream has ended before this chunk, which only drains it.
    """

    def __init__(self, state: Mapping[str, Tensor], start: Tensor, end: Tensor) -> None:
        self.state = state
        self.start = start
        self.end = end
        self.next_state: dict[str, Tensor] = {}
        """State for the next chunk, complete after the forward pass."""

    def _extend(self, name: str, frames: Tensor) -> Tensor:
        """Prepends the state; in rows that start, copies of their first frame."""
        start = self.start[:, None, None, None, None]
        return cat_frames(torch.where(start, frames[:, :1], self.state[name]), frames)

    def _remember(self, name: str, frames: Tensor) -> None:
        # A copy: a view would keep the whole chunk's activation alive.
        self.next_state[name] = frames.clone()

    def with_history(self, name: str, frames: Tensor, kernel: int, stride: int) -> Tensor:
        # A kernel shorter than its stride steps over frames: a window of the stride's length whose
        # oldest taps are unused.
        window = max(kernel, stride)
        if window == stride and name not in self.state and not frames.shape[1] % stride:
            return frames[:, window - kernel :]
        extended = self._extend(name, frames)
        length = extended.shape[1]
        # Eq. (4): complete windows are consumed, the rest is carried over. Aligned chunks always
        # leave window - stride.
        carried = length if length < window else window - stride + (length - window) % stride
        self._remember(name, extended[:, -carried:] if carried else extended[:, :0])
        return extended[:, window - kernel :]

    def pair_up(self, frames: Tensor) -> Tensor:
        return frames

    def trim_pairs(self, frames: Tensor) -> Tensor:
        return frames

    def double(self, frames: Tensor) -> Tensor:
        return interleave(frames, frames)

    def double_linear(self, name: str, frames: Tensor, head: int, lag: int) -> Tensor:
        count = frames.shape[1]
        position = frame_numbers(frames)
        # `age` counts the stream's frames before this chunk, up to one more than the head has.
        age = torch.where(self.start, 0, self.state[f"{name}.age"])
        inside_head = age[:, None] + position <= head
        # The first `lag` frames of a draining chunk still belong to the stream; nothing may blend
        # into them from behind.
        behind_end = self.end[:, None] & (position == lag)
        weight = torch.where(inside_head | behind_end, 0.0, LERP_WEIGHT).to(frames.dtype)
        weight = weight[:, :, None, None, None]
        extended = self._extend(f"{name}.previous", frames)
        self._remember(f"{name}.previous", frames[:, -1:])
        self.next_state[f"{name}.age"] = torch.clamp(age + count, max=head + 1).to(torch.int32)
        return _lerp_pairs(extended[:, :-1], frames, weight)

    def delay(self, name: str, frames: Tensor) -> Tensor:
        extended = self._extend(name, frames)
        self._remember(name, frames[:, -1:])
        return extended[:, :-1]


Clip = OfflineClip | StreamChunk


class TemporalModule(nn.Module):
    """A module in which frames meet. Its state tensors are named by its path in the model."""

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
        """Returns the state tensors of a stream of activations of `dtype`."""
        raise NotImplementedError


def bind_paths(root: nn.Module) -> None:
    """Sets the path of every temporal module under `root`."""
    for path, module in root.named_modules():
        if isinstance(module, TemporalModule):
            module.path = path


def collect_state_specs(root: nn.Module, prefix: str, dtype: str) -> tuple[StateSpec, ...]:
    """Returns the state of temporal modules whose path begins with `prefix`, in module order."""
    modules = (m for m in root.modules() if isinstance(m, TemporalModule) and m.path.startswith(prefix))
    return tuple(spec for module in modules for spec in module.state_specs(dtype))


class CausalConv3d(TemporalModule):
    """3-D convolution that sees no future frame, with its history from the clip.

    It is a sum of 2-D convolutions, one per time tap: engines lay out and fuse 2-D convolutions
    best, and each frame is computed by the same operations whatever chunk it is in.

    Args:
        spatial: video pixels per pixel of the input.
        kernel: taps in time.
        stride: in time and in space.
        kernel_spatial: taps in height and width, odd; `kernel` if None.
        repeated: whether frames come as pairs of equal ones, but for a whole clip's first.
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
        self.stride, self.stride_spatial = stride
        self.kernel_spatial = kernel if kernel_spatial is None else kernel_spatial
        # Holds weight and bias under their published names; its own forward pass is not used.
        self.conv = nn.Conv3d(in_channels, out_channels, (kernel, self.kernel_spatial, self.kernel_spatial))

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        frames = self.kernel - self.stride
        if frames <= 0:
            return ()
        meaning = f"last {frames} input frames of a causal convolution"
        return (self._frames_spec(self.path, frames, dtype, meaning),)

    def forward(self, frames: Tensor | Callable[[], Tensor], clip: Clip) -> Tensor:
        """Convolves (B, T, C, H, W).

        A function that makes `frames` saves memory: the frames without history are then released
        before the convolution runs.
        """
        # Nested, so that no name keeps the frames alive.
        return self.convolve(
            clip.with_history(self.path, frames() if callable(frames) else frames, self.kernel, self.stride)
        )

    def convolve(self, frames: Tensor) -> Tensor:
        """Convolves frames that have their history in front: (B, T + kernel - 1, C, H, W)."""
        stride = (self.stride, self.stride_spatial)
        return causal_conv(frames, self.conv.weight, self.conv.bias, stride, self.repeated)


class TimeUpsample(TemporalModule):
    """Doubles the frame rate. If linear, it makes a stream one output frame late."""

    def __init__(self, channels: int, spatial: int, linear: bool, head: int, lag: int) -> None:
        super().__init__(channels, spatial)
        self.linear = linear
        self.head = head
        self.lag = lag

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        if not self.linear:
            return ()
        meaning = "last input frame of a linear time upsampling"
        previous = self._frames_spec(f"{self.path}.previous", 1, dtype, meaning)
        meaning = f"frames seen since the stream's start, up to {self.head + 1}"
        return previous, StateSpec(f"{self.path}.age", ("batch",), "int32", meaning)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        if self.linear:
            return clip.double_linear(self.path, frames, self.head, self.lag)
        return clip.double(frames)


class DelayLine(TemporalModule):
    """Delays a path by one frame in a stream, to meet one that passed a linear upsampling."""

    def state_specs(self, dtype: str) -> tuple[StateSpec, ...]:
        return (self._frames_spec(self.path, 1, dtype, "last frame of a delay line"),)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        return clip.delay(self.path, frames)
