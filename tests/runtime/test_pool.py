"""Many streams in one batch: each gives the bits of running alone, whatever the others do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wfvae.errors import InputError, ResourceError, StreamingError
from wfvae.runtime import Bundle
from wfvae.runtime.pool import PooledStream, StreamPool

HEIGHT, WIDTH = 8, 13
Opened = Callable[..., Bundle]
Array = Any


class Clip:
    """Input of one stream, and the result that it has alone."""

    def __init__(self, bundle: Bundle, direction: str, frames: int, seed: int) -> None:
        video = np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
        latents = bundle.encode(video, chunk=100)
        if direction == "encoder":
            self.data, self.expected, self.options = video, latents, {}
        else:
            self.data = latents
            self.expected = bundle.decode(latents, frames=frames, height=HEIGHT, width=WIDTH, chunk=100)
            self.options = {"frames": frames}


_clip = cache(Clip)


def new_pool(bundle: Bundle, direction: str, rows: int, chunk: int) -> StreamPool[Any]:
    return getattr(bundle, f"{direction}_pool")(height=HEIGHT, width=WIDTH, rows=rows, chunk=chunk)  # type: ignore[no-any-return]


class Member:
    """A stream in a pool, with its input and its results so far."""

    def __init__(self, pool: StreamPool[Any], clip: Clip) -> None:
        self.clip, self.stream, self.fed, self.ended = clip, pool.open(**clip.options), 0, False
        self.parts: list[Array] = []

    def push(self, count: int) -> None:
        if self.fed < len(self.clip.data):
            self.stream.push(self.clip.data[self.fed : self.fed + count])
            self.fed += count
        elif not self.ended:
            self.stream.finish()
            self.ended = True

    def check(self) -> None:
        result = np.concatenate([self.clip.expected[:0], *self.parts])
        assert result.dtype == self.clip.expected.dtype
        assert result.tobytes() == self.clip.expected[: len(result)].tobytes()
        if self.ended and self.stream.finished:
            assert len(result) == len(self.clip.expected)


def advance(pool: StreamPool[Any], members: list[Member]) -> int:
    results = pool.step()
    for member in members:
        if member.stream in results:
            member.parts.append(results[member.stream])
    return len(results)


def finish(pool: StreamPool[Any], members: list[Member]) -> None:
    """Feeds and advances all members to their ends, and checks their results."""
    while any(not member.stream.finished for member in members):
        for member in members:
            member.push(3)
        advance(pool, members)
    for member in members:
        member.check()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["open", "push", "push", "push", "step", "step", "drop"]),
        st.integers(0, 5),
        st.integers(1, 9),
    ),
    max_size=40,
)


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["4x8x8-trilinear", "8x8x8-trilinear"])
@given(
    rows=st.integers(1, 4),
    chunk=st.integers(1, 3),
    events=EVENTS,
    lengths=st.lists(st.integers(1, 18), min_size=6, max_size=6),
)
@settings(max_examples=40)
def test_streams_that_join_and_leave_at_any_step_give_the_bits_of_single_streams(
    opened: Opened,
    name: str,
    direction: str,
    rows: int,
    chunk: int,
    events: list[tuple[str, int, int]],
    lengths: list[int],
) -> None:
    bundle = opened(name)
    pool = new_pool(bundle, direction, rows, chunk)
    members: list[Member] = []
    for event, which, amount in events:
        if event == "open":
            members.append(Member(pool, _clip(bundle, direction, lengths[which], which)))
        elif event == "step":
            assert advance(pool, members) <= rows
        elif members:
            member = members[which % len(members)]
            if event == "push":
                member.push(amount)
            elif not member.stream.finished:
                pool.drop(member.stream)
                members.remove(member)
                member.check()
    finish(pool, members)
    assert pool.step() == {} and len(pool) == 0


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_run_with_more_sources_than_rows_gives_the_bits_of_single_streams(
    opened: Opened, direction: str, rows: int
) -> None:
    bundle = opened("4x8x8-trilinear")
    clips = {count: _clip(bundle, direction, 1 + 4 * count, count) for count in (0, 3, 1, 4, 2)}
    pool = new_pool(bundle, direction, rows, chunk=2)
    found: dict[int, list[Array]] = {key: [] for key in clips}
    pieces = {key: np.array_split(clip.data, range(2, len(clip.data), 2)) for key, clip in clips.items()}
    for key, part in pool.run(pieces):
        found[key].append(part)
    for key, parts in found.items():
        assert np.concatenate(parts).tobytes() == clips[key].expected.tobytes()
    assert len(pool) == 0


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_state_of_nan_stays_in_its_row(opened: Opened, direction: str) -> None:
    """Neither the other rows nor the stream that gets the row next see it."""
    bundle = opened("4x8x8-trilinear")
    pool = new_pool(bundle, direction, rows=3, chunk=1)
    members = [Member(pool, _clip(bundle, direction, 17, seed)) for seed in range(3)]
    for member in members:
        member.push(9 if direction == "encoder" else 2)
    advance(pool, members)
    state: Any = pool._state
    tensors = state.read()
    for array in tensors.values():
        array[1] = np.nan if array.dtype.kind == "f" else -7
    state.write(tensors)
    advance(pool, members)
    poisoned = members.pop(1)
    if direction == "encoder":  # a decoder's uint8 hides it
        assert np.isnan(poisoned.parts[-1]).any()
    pool.drop(poisoned.stream)
    members.append(Member(pool, _clip(bundle, direction, 9, 7)))
    finish(pool, members)


def test_error_of_one_stream_leaves_the_others_unchanged(opened: Opened) -> None:
    bundle = opened("4x8x8-trilinear")
    pool = new_pool(bundle, "encoder", rows=2, chunk=1)
    good, bad = Member(pool, _clip(bundle, "encoder", 9, 1)), Member(pool, _clip(bundle, "encoder", 13, 2))
    good.push(5)
    bad.push(5)
    advance(pool, [good, bad])
    with pytest.raises(InputError, match="frames are 9x13"):
        bad.stream.push(np.zeros((1, 9, 13, 3), np.uint8))
    finish(pool, [good, bad])
    with pytest.raises(StreamingError, match="the stream is finished"):
        good.stream.push(good.clip.data)


@pytest.mark.parametrize("fails", ["step", "new_state"])
def test_failed_step_loses_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    bundle = opened("4x8x8-nearest-16ch")
    pool = new_pool(bundle, "decoder", rows=2, chunk=1)
    members = [Member(pool, _clip(bundle, "decoder", 13, seed)) for seed in range(3)]
    count = 0

    def fail(*args: Any) -> Any:
        raise ResourceError("out of memory")

    for turn in range(30):
        for member in members:
            member.push(1)
        with monkeypatch.context() as patch:
            patch.setattr(pool._session, fails, fail)
            try:
                if turn % 2:
                    advance(pool, members)
            except ResourceError:
                count += 1
        advance(pool, members)
    assert count >= 3
    finish(pool, members)


def test_more_streams_than_rows_take_turns(opened: Opened) -> None:
    pool = new_pool(opened("4x8x8-trilinear"), "encoder", rows=2, chunk=1)
    streams: list[PooledStream[Any]] = [pool.open() for _ in range(5)]
    for stream in streams:
        stream.push(np.zeros((41, HEIGHT, WIDTH, 3), np.uint8))
    turns: list[PooledStream[Any]] = [stream for _ in range(10) for stream in pool.step()]
    assert [turns[k : k + 5] for k in range(0, 20, 5)] == [streams] * 4


def test_state_is_not_copied_while_the_batch_stays(opened: Opened) -> None:
    pool = new_pool(opened("4x8x8-trilinear"), "encoder", rows=2, chunk=1)
    streams = [pool.open(), pool.open()]
    states = []
    for count in (1, 4, 4):
        for stream in streams:
            stream.push(np.zeros((count, HEIGHT, WIDTH, 3), np.uint8))
        pool.step()
        states.append(pool._state)
    assert states[0] is states[1] is states[2]


def test_empty_or_closed_pool_does_nothing(opened: Opened) -> None:
    bundle = opened("4x8x8-trilinear")
    with new_pool(bundle, "encoder", rows=2, chunk=1) as pool:
        assert pool.step() == {} and len(pool) == 0 and list(pool.run({})) == []
        pool.open().push(np.zeros((9, HEIGHT, WIDTH, 3), np.uint8))
        pool.step()
        assert len(pool) == 1
    assert len(pool) == 0 and pool.step() == {}
    with pytest.raises(StreamingError, match="rows is 0"):
        new_pool(bundle, "encoder", rows=0, chunk=1)
    other = new_pool(bundle, "encoder", rows=2, chunk=1)
    stranger = other.open()
    other.drop(stranger)
    for left in (pool, other):
        with pytest.raises(StreamingError, match="not in this pool"):
            left.drop(stranger)
    with pytest.raises(InputError, match="no frames"):
        list(other.run({"a": []}))
