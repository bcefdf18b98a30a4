"""The operators of time: a stream in chunks equals one operation on the clip, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from wfvae.model.causal import (
    CausalConv3d,
    Clip,
    DelayLine,
    OfflineClip,
    StreamChunk,
    TemporalModule,
    TimeUpsample,
)

CLOSE = {"rtol": 0, "atol": 1e-12}
BATCH, CHANNELS, HEIGHT, WIDTH = 2, 3, 5, 4
KERNELS, STRIDES = st.integers(1, 6), st.integers(1, 5)
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=7)
State = dict[str, Tensor]
Operator = Callable[[Tensor, Clip], Tensor]


def clip_of(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, frames, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)


def conv(kernel: int, stride: int, stride_spatial: int = 1) -> CausalConv3d:
    torch.manual_seed(kernel * 10 + stride)
    strides = (stride, stride_spatial)
    module = CausalConv3d(CHANNELS, 2, 8, kernel=kernel, stride=strides, kernel_spatial=3).double()
    module.path = "conv"
    return module


def one_long_convolution(module: CausalConv3d, frames: Tensor) -> Tensor:
    """`module` over the whole clip by torch's own 3-D convolution, as the paper defines it."""
    padded = torch.cat([frames[:, :1]] * (module.kernel - 1) + [frames], dim=1).movedim(1, 2)
    padded = F.pad(padded, (1, 1, 1, 1) if module.stride_spatial == 1 else (0, 1, 0, 1))
    stride = (module.stride, module.stride_spatial, module.stride_spatial)
    return F.conv3d(padded, module.conv.weight, module.conv.bias, stride=stride).movedim(2, 1)


def state_of(*modules: TemporalModule) -> State:
    """A state of meaningless values, which `start` must ignore."""
    specs = [spec for module in modules for spec in module.state_specs("float64")]
    shapes = {spec.name: spec.resolve(BATCH, 8 * HEIGHT, 8 * WIDTH) for spec in specs}
    return {s.name: torch.full(shapes[s.name], 99, dtype=getattr(torch, s.dtype)) for s in specs}


def chunk_of(state: State, start: bool, end: bool = False) -> StreamChunk:
    return StreamChunk(state, torch.full((BATCH,), start), torch.full((BATCH,), end))


def run_stream(
    operator: Operator, chunks: Sequence[Tensor], state: State, drain: Tensor | None = None
) -> Tensor:
    """Outputs of `chunks`, one stream per batch row, beginning with the first, and of a drain."""
    outputs = []
    for index, frames in enumerate(chunks if drain is None else [*chunks, drain]):
        view = chunk_of(state, start=index == 0, end=index == len(chunks))
        outputs.append(operator(frames, view))
        state = view.next_state
    return torch.cat(outputs, dim=1)


# Convolution


@given(KERNELS, STRIDES, st.integers(1, 14), st.sampled_from([1, 2]))
def test_offline_convolution_equals_torchs(kernel: int, stride: int, frames: int, spatial: int) -> None:
    """A stride in space pads at the right and bottom."""
    module, clip = conv(kernel, stride, spatial), clip_of(frames)
    torch.testing.assert_close(module(clip, OfflineClip()), one_long_convolution(module, clip), **CLOSE)


@given(KERNELS, STRIDES, st.integers(1, 9), st.integers(0, 6))
@example(kernel=4, stride=3, chunk=4, count=6)  # the paper's: 1, 2, 3, 1, 2, 3, 1 frames
def test_cache_has_the_length_of_equation_4(kernel: int, stride: int, chunk: int, count: int) -> None:
    """First frame, then `count` chunks, against one long convolution."""
    module, clip = conv(kernel, stride), clip_of(1 + count * chunk)
    first = torch.cat([clip[:, :1]] * stride, dim=1)  # stride - 1 copies lead the uniform stream
    state = {"conv": torch.full((BATCH, max(kernel - stride, 0), CHANNELS, HEIGHT, WIDTH), torch.nan)}
    state["conv"] = state["conv"].double()
    lengths, outputs = [], []
    for index, piece in enumerate([first, *(clip[:, 1:].split(chunk, dim=1) if count else [])]):
        view = chunk_of(state, start=index == 0)
        outputs.append(module(piece, view))
        state = view.next_state or state
        lengths.append(state["conv"].shape[1])
    window = max(kernel, stride)  # a shorter kernel steps over the frames between its windows
    for index, length in enumerate(lengths):
        assert length == window + index * chunk - stride * (index * chunk // stride + 1)
    torch.testing.assert_close(torch.cat(outputs, dim=1), one_long_convolution(module, clip), **CLOSE)


@given(st.integers(1, 5), st.integers(1, 3), SIZES)
def test_aligned_chunks_carry_kernel_minus_stride_frames(kernel: int, stride: int, sizes: list[int]) -> None:
    module, clip = conv(kernel, stride), clip_of(1 + stride * (sum(sizes) - 1))
    stream = torch.cat([clip[:, :1]] * (stride - 1) + [clip], dim=1)
    state = state_of(module)
    assert [s.shape[1] for s in state.values()] == ([kernel - stride] if kernel > stride else [])
    outputs = run_stream(module, stream.split([stride * s for s in sizes], dim=1), state)
    torch.testing.assert_close(outputs, one_long_convolution(module, clip), **CLOSE)


# Upsampling and delay


def linear_upsample(path: str = "up", head: int = 1, lag: int = 0) -> TimeUpsample:
    module = TimeUpsample(CHANNELS, 8, linear=True, head=head, lag=lag)
    module.path = path
    return module


def torchs_linear_upsampling(frames: Tensor) -> Tensor:
    """First frame single, the others interpolated by two among themselves by torch."""
    batch, count, *rest = frames.shape
    if count == 1:
        return frames
    later = frames[:, 1:].reshape(batch, count - 1, -1).transpose(1, 2)
    doubled = F.interpolate(later, scale_factor=2, mode="linear", align_corners=False).transpose(1, 2)
    return torch.cat([frames[:, :1], doubled.reshape(batch, -1, *rest)], dim=1)


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_offline_upsampling_equals_torchs(frames: int) -> None:
    clip, linear = clip_of(frames), linear_upsample()
    torch.testing.assert_close(linear(clip, OfflineClip()), torchs_linear_upsampling(clip), **CLOSE)
    nearest = TimeUpsample(CHANNELS, 8, linear=False, head=1, lag=0)(clip, OfflineClip())
    assert torch.equal(nearest, torch.cat([clip[:, :1], clip[:, 1:].repeat_interleave(2, dim=1)], dim=1))


@given(SIZES, st.integers(1, 3))
def test_linear_upsamplings_stream_one_and_six_frames_late(sizes: list[int], drain: int) -> None:
    """The second one meets the head and the end where the first one left them."""
    clip, first, second = clip_of(sum(sizes)), linear_upsample(), linear_upsample("again", head=3, lag=1)

    def both(frames: Tensor, view: Clip) -> Tensor:
        result: Tensor = second(first(frames, view), view)
        return result

    meaningless = torch.full_like(clip[:, :1], 1e6).repeat(1, drain, 1, 1, 1)
    expected = clip
    operators: list[tuple[Operator, int]] = [(first, 2), (both, 6)]  # a copy of the head each, then late
    for operator, late in operators:
        outputs = run_stream(operator, clip.split(sizes, dim=1), state_of(first, second), meaningless)
        expected = torchs_linear_upsampling(expected)
        torch.testing.assert_close(outputs[:, late : late + expected.shape[1]], expected, **CLOSE)


@given(SIZES)
def test_delay_line_repeats_the_first_frame_and_delays_the_others(sizes: list[int]) -> None:
    module, clip = DelayLine(CHANNELS, 8), clip_of(sum(sizes))
    module.path = "delay"
    outputs = run_stream(module, clip.split(sizes, dim=1), state_of(module))
    assert torch.equal(outputs, torch.cat([clip[:, :1], clip[:, :-1]], dim=1))
    assert torch.equal(module(clip, OfflineClip()), clip)
