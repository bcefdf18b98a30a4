"""The operators of time by themselves: a stream in chunks against one operation over the whole
clip, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wfvae.errors import StateError
from wfvae.model.causal import (
    CausalConv3d,
    Clip,
    DelayLine,
    OfflineClip,
    StreamChunk,
    TimeUpsample,
    bind_paths,
    collect_state_specs,
)
from wfvae.spec.frames import causal_cache_length

CLOSE = {"rtol": 0, "atol": 1e-12}
SHAPE = (2, 3, 5, 4)  # batch, channels, height, width of all test clips


def clip_of(frames: int, seed: int = 0) -> Tensor:
    batch, channels, height, width = SHAPE
    return torch.randn(
        batch,
        frames,
        channels,
        height,
        width,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


def conv(kernel: int, stride: int, stride_spatial: int = 1) -> CausalConv3d:
    torch.manual_seed(kernel * 10 + stride)
    module = CausalConv3d(
        3, 2, spatial=8, kernel=kernel, stride=(stride, stride_spatial), kernel_spatial=3
    ).double()
    module.path = "conv"
    return module


def one_long_convolution(module: CausalConv3d, frames: Tensor) -> Tensor:
    """`module` over the whole clip by torch's own 3-D convolution, as the paper defines it."""
    padded = torch.cat([frames[:, :1]] * (module.kernel - 1) + [frames], dim=1).movedim(1, 2)
    padded = F.pad(padded, (1, 1, 1, 1) if module.stride_spatial == 1 else (0, 1, 0, 1))
    stride = (module.stride, module.stride_spatial, module.stride_spatial)
    return F.conv3d(padded, module.conv.weight, module.conv.bias, stride=stride).movedim(2, 1)


def run_stream(
    operator: Callable[[Tensor, Clip], Tensor], chunks: Sequence[Tensor], state: dict[str, Tensor]
) -> list[Tensor]:
    """Outputs of `chunks`, one stream per batch row, beginning with the first."""
    outputs = []
    for index, chunk in enumerate(chunks):
        clip = StreamChunk(
            state, torch.full((chunk.shape[0],), index == 0), torch.zeros(chunk.shape[0], dtype=torch.bool)
        )
        outputs.append(operator(chunk, clip))
        state = clip.next_state
    return outputs


@given(kernel=st.integers(1, 6), stride=st.integers(1, 5), frames=st.integers(1, 14))
def test_offline_convolution_is_torchs_own(kernel: int, stride: int, frames: int) -> None:
    module, clip = conv(kernel, stride), clip_of(frames)
    torch.testing.assert_close(module(clip, OfflineClip()), one_long_convolution(module, clip), **CLOSE)


def test_spatial_stride_pads_right_and_bottom() -> None:
    module, clip = conv(3, 2, stride_spatial=2), clip_of(5)
    torch.testing.assert_close(module(clip, OfflineClip()), one_long_convolution(module, clip), **CLOSE)


@given(kernel=st.integers(1, 6), stride=st.integers(1, 5), chunk=st.integers(1, 9), count=st.integers(0, 6))
def test_equation_4_for_any_kernel_stride_chunk_and_index(
    kernel: int, stride: int, chunk: int, count: int
) -> None:
    check_equation_4(kernel, stride, chunk, count)


def test_equation_4_in_the_papers_special_case() -> None:
    assert check_equation_4(kernel=4, stride=3, chunk=4, count=6) == [1, 2, 3, 1, 2, 3, 1]


def check_equation_4(kernel: int, stride: int, chunk: int, count: int) -> list[int]:
    """First frame, then `count` chunks, against one long convolution; the cached lengths."""
    module, clip = conv(kernel, stride), clip_of(1 + count * chunk)
    first = torch.cat([clip[:, :1]] * stride, dim=1)  # stride - 1 copies lead the uniform stream
    state = {"conv": clip.new_full((SHAPE[0], max(kernel - stride, 0), *SHAPE[1:]), torch.nan)}
    lengths, outputs = [], []
    for index, piece in enumerate([first, *(clip[:, 1:].split(chunk, dim=1) if count else [])]):
        view = StreamChunk(
            state, torch.full((SHAPE[0],), index == 0), torch.zeros(SHAPE[0], dtype=torch.bool)
        )
        outputs.append(module(piece, view))
        state = view.next_state or state
        lengths.append(state["conv"].shape[1])
        assert lengths[-1] == causal_cache_length(kernel, stride, chunk, index)
    torch.testing.assert_close(torch.cat(outputs, dim=1), one_long_convolution(module, clip), **CLOSE)
    return lengths


@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
)
def test_aligned_chunks_of_any_sizes_carry_kernel_minus_stride_frames(
    kernel: int, stride: int, sizes: list[int]
) -> None:
    module = conv(kernel, stride)
    clip = clip_of(1 + stride * (sum(sizes) - 1))
    stream = torch.cat([clip[:, :1]] * (stride - 1) + [clip], dim=1)
    state = {
        spec.name: torch.zeros(spec.resolve(SHAPE[0], 40, 32), dtype=torch.float64)
        for spec in module.state_specs("float64")
    }
    assert [s.shape[1] for s in state.values()] == ([kernel - stride] if kernel > stride else [])
    outputs = run_stream(module, stream.split([stride * s for s in sizes], dim=1), state)
    torch.testing.assert_close(torch.cat(outputs, dim=1), one_long_convolution(module, clip), **CLOSE)


def linear_upsample(head: int = 1, lag: int = 0) -> TimeUpsample:
    module = TimeUpsample(3, 8, linear=True, head=head, lag=lag)
    module.path = "up"
    return module


def fresh_state(module: TimeUpsample | DelayLine) -> dict[str, Tensor]:
    return {
        spec.name: torch.full(
            spec.resolve(SHAPE[0], 40, 32), 99, dtype=torch.int32 if spec.dtype == "int32" else torch.float64
        )
        for spec in module.state_specs("float64")
    }


def torchs_linear_upsampling(frames: Tensor) -> Tensor:
    """First frame single, the others interpolated by two among themselves, by torch's own
    interpolation.
    """
    batch, count, *rest = frames.shape
    if count == 1:
        return frames
    later = frames[:, 1:].reshape(batch, count - 1, -1).transpose(1, 2)
    doubled = F.interpolate(later, scale_factor=2, mode="linear", align_corners=False).transpose(1, 2)
    return torch.cat([frames[:, :1], doubled.reshape(batch, -1, *rest)], dim=1)


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_offline_linear_upsampling_is_torchs_own(frames: int) -> None:
    clip = clip_of(frames)
    torch.testing.assert_close(
        linear_upsample()(clip, OfflineClip()), torchs_linear_upsampling(clip), **CLOSE
    )


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_offline_nearest_upsampling_keeps_the_head_single(frames: int) -> None:
    clip = clip_of(frames)
    expected = torch.cat([clip[:, :1], clip[:, 1:].repeat_interleave(2, dim=1)], dim=1)
    assert torch.equal(TimeUpsample(3, 8, linear=False, head=1, lag=0)(clip, OfflineClip()), expected)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=7), drain=st.integers(1, 3))
def test_linear_upsampling_streams_with_a_delay_of_one_frame(sizes: list[int], drain: int) -> None:
    clip, module = clip_of(sum(sizes)), linear_upsample()
    outputs = stream_and_drain(module, clip, sizes, drain)
    expected = torchs_linear_upsampling(clip)
    torch.testing.assert_close(
        outputs[:, 2 : 2 + expected.shape[1]], expected, **CLOSE
    )  # one more copy of the head, one late


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=7), drain=st.integers(1, 3))
def test_two_linear_upsamplings_meet_the_head_and_the_end_where_the_first_one_left_them(
    sizes: list[int], drain: int
) -> None:
    clip, first, second = clip_of(sum(sizes)), linear_upsample(), linear_upsample(head=3, lag=1)
    second.path = "up_again"

    class Both(torch.nn.Module):
        def forward(self, frames: Tensor, view: Clip) -> Tensor:
            return second(first(frames, view), view)

    state = {**fresh_state(first), **fresh_state(second)}
    outputs = stream_and_drain(Both(), clip, sizes, drain, state)
    expected = torchs_linear_upsampling(torchs_linear_upsampling(clip))
    torch.testing.assert_close(outputs[:, 6 : 6 + expected.shape[1]], expected, **CLOSE)


def stream_and_drain(
    module: torch.nn.Module,
    clip: Tensor,
    sizes: list[int],
    drain: int,
    state: dict[str, Tensor] | None = None,
) -> Tensor:
    """The stream's outputs and those of one more step of `drain` meaningless frames."""
    if state is None:
        assert isinstance(module, TimeUpsample)
        state = fresh_state(module)
    outputs, batch = [], SHAPE[0]
    pieces = [*clip.split(sizes, dim=1), torch.full_like(clip[:, :1], 1e6).repeat(1, drain, 1, 1, 1)]
    for index, piece in enumerate(pieces):
        view = StreamChunk(state, torch.full((batch,), index == 0), torch.full((batch,), index == len(sizes)))
        outputs.append(module(piece, view))
        state = view.next_state
    return torch.cat(outputs, dim=1)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_a_delay_line_holds_back_one_frame_and_repeats_the_first(sizes: list[int]) -> None:
    module, clip = DelayLine(3, 8), clip_of(sum(sizes))
    module.path = "delay"
    outputs = torch.cat(run_stream(module, clip.split(sizes, dim=1), fresh_state(module)), dim=1)
    assert torch.equal(outputs, torch.cat([clip[:, :1], clip[:, :-1]], dim=1))
    assert torch.equal(module(clip, OfflineClip()), clip)


def test_rows_begin_and_end_by_themselves() -> None:
    module, clip = linear_upsample(), clip_of(3)
    state = fresh_state(module)
    state["up.age"].zero_()
    view = StreamChunk(state, torch.tensor([True, False]), torch.tensor([False, True]))
    outputs = module(clip, view)
    assert torch.equal(
        outputs[0, :2], clip[0, :1].expand(2, -1, -1, -1)
    )  # row 0 begins: its first frame, twice
    assert torch.equal(outputs[1, 0], state["up.previous"][1, 0])  # row 1 ends: what was before, unblended
    assert view.next_state["up.age"].tolist() == [2, 2]


def test_state_is_a_copy_that_keeps_nothing_else_alive() -> None:
    module, clip = conv(3, 1), clip_of(8)
    view = StreamChunk({"conv": clip[:, :2]}, torch.tensor([True, True]), torch.tensor([False, False]))
    module(clip, view)
    assert view.next_state["conv"].untyped_storage().nbytes() == clip[:, :2].numel() * 8


def test_a_missing_state_is_named() -> None:
    view = StreamChunk({}, torch.tensor([True, True]), torch.tensor([False, False]))
    with pytest.raises(StateError, match="no entry conv"):
        conv(3, 1)(clip_of(2), view)


def test_state_names_are_module_paths() -> None:
    root = torch.nn.ModuleDict(
        {"a": torch.nn.Sequential(conv(3, 1), conv(3, 3)), "b": linear_upsample(), "c": DelayLine(3, 8)}
    )
    bind_paths(root)
    assert [spec.name for spec in collect_state_specs(root, "", "float32")] == [
        "a.0",
        "b.previous",
        "b.age",
        "c",
    ]
    assert [spec.name for spec in collect_state_specs(root, "b", "float32")] == ["b.previous", "b.age"]
