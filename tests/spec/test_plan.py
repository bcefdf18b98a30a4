"""Frame arithmetic and stream specifications."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfvae.errors import InputError, StateError
from wfvae.spec.frames import (
    SPATIAL_RATIO,
    OutputWindow,
    even_chunks,
    latent_frames,
    lead_frames,
    padded_size,
    tail_frames,
    video_frames,
)
from wfvae.spec.records import read_as
from wfvae.spec.stream import StateSpec, StreamSpec

RATIOS = st.sampled_from([4, 8])


@given(frames=st.integers(1, 10_000), ratio=RATIOS)
def test_lead_video_and_tail_fill_the_latents_exactly(frames: int, ratio: int) -> None:
    tail = tail_frames(frames, ratio)
    assert 0 <= tail < ratio
    assert lead_frames(ratio) + frames + tail == ratio * latent_frames(frames, ratio)
    assert video_frames(latent_frames(frames, ratio), ratio) == frames + tail


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_padded_size_is_the_next_multiple_of_the_spatial_ratio(height: int, width: int) -> None:
    for side, padded in zip((height, width), padded_size(height, width), strict=True):
        assert padded % SPATIAL_RATIO == 0 and 0 <= padded - side < SPATIAL_RATIO


@given(total=st.integers(0, 500), chunk=st.integers(1, 40))
def test_even_chunks_cover_the_total(total: int, chunk: int) -> None:
    chunks = list(even_chunks(total, chunk))
    assert sum(chunks) == total
    assert all(size == chunk for size in chunks[:-1])
    assert all(0 < size <= chunk for size in chunks)


@given(
    drop=st.integers(0, 13),
    counts=st.lists(st.integers(0, 20), max_size=12),
    limit=st.none() | st.integers(0, 80),
)
def test_output_window_takes_frames_between_drop_and_limit(
    drop: int, counts: list[int], limit: int | None
) -> None:
    window, taken, position = OutputWindow(drop), [], 0
    for count in counts:
        part, window = window.take(count, limit)
        taken += list(range(position, position + count))[part]
        position += count
    assert taken == list(range(position))[drop:][:limit]
    assert window.given == len(taken)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: latent_frames(0, 4), "the video has 0 frames; expected at least 1"),
        (lambda: tail_frames(-1, 4), "-1 frames"),
        (lambda: video_frames(0, 4), "0 latents"),
        (lambda: padded_size(0, 8), "size is 0x8"),
        (lambda: list(even_chunks(8, 0)), "the chunk is 0"),
        (lambda: A.resolve(1, 20, 16), "height is 20; .* of 8"),
    ],
)
def test_impossible_count_is_refused(call: Callable[[], object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        call()


A = StateSpec("a", ("batch", 2, 5, "height/8", "width/4"), "float16", "frames")
SPEC = StreamSpec("decoder", ratio=4, delay=2, states=(A, StateSpec("b", ("batch",), "int32", "a counter")))


def test_check_lists_every_problem_of_a_state() -> None:
    right: dict[str, tuple[tuple[int, ...], str]] = {"a": ((3, 2, 5, 2, 6), "float16"), "b": ((3,), "int32")}
    SPEC.check(right, 3, 16, 24)
    assert SPEC.bytes_per_stream(720, 1280) == 2 * 5 * 90 * 320 * 2 + 4
    with pytest.raises(StateError) as raised:
        SPEC.check({"a": ((2, 2, 5, 2, 6), "float32"), "c": ((), "int32")}, 3, 16, 24)
    for part in (
        "missing b",
        "unexpected c",
        "a has shape (2, 2, 5, 2, 6), expected (3, 2, 5, 2, 6)",
        "a has dtype float32, expected float16",
        "decoder state for 3 streams of 16x24",
    ):
        assert part in str(raised.value)


def test_state_specs_round_trip_through_plain_values() -> None:
    for state in SPEC.states:
        assert read_as(StateSpec, state.to_dict(), StateError) == state
