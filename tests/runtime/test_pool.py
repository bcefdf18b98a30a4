"""Many streams in one batch: each gives the bits of running alone, whatever the others do."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.streams import (
    COPIES,
    Passage,
    noise,
    passage,
    run_one_after_the_other,
    same_bits,
    step_in_another_thread,
)
from wfvae.errors import InputError, ResourceError, StreamingError
from wfvae.runtime import Bundle
from wfvae.runtime.pool import StreamPool

HEIGHT, WIDTH = 8, 13
TURN = "wfvae.runtime.pool.TURN"


def new_pool(bundle: Bundle, direction: str, rows: int, chunk: int) -> StreamPool[Any]:
    open_pool = getattr(bundle, f"{direction}_pool")
    pool: StreamPool[Any] = open_pool(height=HEIGHT, width=WIDTH, rows=rows, chunk=chunk)
    return pool


class Member:
    """A stream in a pool, with its input and its results so far."""

    def __init__(self, pool: StreamPool[Any], source: Passage) -> None:
        self.source, self.fed, self.ended = source, 0, False
        options = {"frames": source.options["frames"]} if source.direction == "decoder" else {}
        self.stream = pool.open(**options)
        self.parts: list[Any] = [source.expected[:0]]

    def push(self, count: int) -> None:
        if self.fed < len(self.source.data):
            self.stream.push(self.source.data[self.fed : self.fed + count])
            self.fed += count
        elif not self.ended:
            self.stream.finish()
            self.ended = True

    def check(self) -> None:
        result = np.concatenate(self.parts)
        whole = self.ended and self.stream.finished
        assert same_bits(result, self.source.expected[: None if whole else len(result)])


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


KINDS = st.sampled_from(["open", "push", "push", "push", "step", "step", "drop"])
EVENTS = st.lists(st.tuples(KINDS, st.integers(0, 5), st.integers(1, 9)), max_size=40)


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["4x8x8-trilinear", "8x8x8-trilinear"])
@given(
    rows=st.integers(1, 4),
    chunk=st.integers(1, 3),
    events=EVENTS,
    lengths=st.lists(st.integers(1, 18), min_size=6, max_size=6),
    turn=st.sampled_from([1, 8]),
)
@settings(max_examples=40)
def test_streams_that_join_and_leave_at_any_step_give_the_bits_of_single_streams(
    opened: Callable[..., Bundle],
    name: str,
    direction: str,
    rows: int,
    chunk: int,
    events: list[tuple[str, int, int]],
    lengths: list[int],
    turn: int,
) -> None:
    with patch(TURN, turn):
        run_events(opened(name), direction, rows, chunk, events, lengths)


def run_events(
    bundle: Bundle,
    direction: str,
    rows: int,
    chunk: int,
    events: list[tuple[str, int, int]],
    lengths: list[int],
) -> None:
    pool = new_pool(bundle, direction, rows, chunk)
    members: list[Member] = []
    for event, which, amount in events:
        if event == "open":
            members.append(Member(pool, passage(bundle, direction, lengths[which], seed=which)))
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
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_run_with_more_sources_than_rows_gives_the_bits_of_single_streams(
    model: Bundle, direction: str, rows: int
) -> None:
    clips = {count: passage(model, direction, 1 + 4 * count, seed=count) for count in (0, 3, 1, 4, 2)}
    pool = new_pool(model, direction, rows, chunk=2)
    found: dict[int, list[Any]] = {key: [] for key in clips}
    sources = {key: np.array_split(clip.data, range(2, len(clip.data), 2)) for key, clip in clips.items()}
    for key, part in pool.run(sources):
        found[key].append(part)
    assert all(clips[key].is_result(parts) for key, parts in found.items())
    assert len(pool) == 0


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_state_of_nan_stays_in_its_row(model: Bundle, direction: str) -> None:
    """Neither the other rows nor the stream that gets the row next see it."""
    pool = new_pool(model, direction, rows=3, chunk=1)
    members = [Member(pool, passage(model, direction, 17, seed=seed)) for seed in range(3)]
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
    members.append(Member(pool, passage(model, direction, 9, seed=7)))
    finish(pool, members)


def test_error_of_one_stream_leaves_the_others_unchanged(model: Bundle) -> None:
    pool = new_pool(model, "encoder", rows=2, chunk=1)
    good, bad = (Member(pool, passage(model, "encoder", frames, seed=1)) for frames in (9, 13))
    good.push(5)
    bad.push(5)
    advance(pool, [good, bad])
    with pytest.raises(InputError, match="frames are 9x13"):
        bad.stream.push(noise(1, 9, 13))
    finish(pool, [good, bad])
    with pytest.raises(StreamingError, match="the stream is finished"):
        good.stream.push(good.source.data)


@pytest.mark.parametrize("fails", ["step", "new_state", "save_row", "load_row", "copy_row"])
def test_failed_step_loses_nothing(opened: Callable[..., Bundle], fails: str) -> None:
    bundle = opened("4x8x8-nearest-16ch")
    pool = new_pool(bundle, "decoder", rows=3, chunk=1)
    members = [Member(pool, passage(bundle, "decoder", frames, seed=1)) for frames in (13, 9, 17)]
    count = 0

    def fail(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        raise ResourceError("out of memory")

    for turn in range(15):
        for member in members[turn % 2 :]:  # at times the first one has no input
            member.push(1)
        of_state = fails in COPIES
        if not of_state or pool._state is not None:
            target = pool._state if of_state else pool._session
            with patch.object(target, fails, fail), suppress(ResourceError):
                advance(pool, members)
        advance(pool, members)
    assert count >= 1
    finish(pool, members)


def test_more_streams_than_rows_take_turns(model: Bundle) -> None:
    pool = new_pool(model, "encoder", rows=2, chunk=1)
    streams = [pool.open() for _ in range(5)]
    for stream in streams:
        stream.push(noise(61, HEIGHT, WIDTH))
    with patch(TURN, 3):
        turns = [stream for _ in range(30) for stream in pool.step()]
    pairs = [streams[:2], streams[2:4], [streams[4], streams[0]], streams[1:3], streams[3:]]
    expected = [set(pair) for pair in pairs * 2 for _ in range(3)]
    assert [set(turns[k : k + 2]) for k in range(0, 60, 2)] == expected


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_streams_that_join_run_and_end_copy_no_state(
    model: Bundle, counted: Callable[..., Counter[str]], direction: str
) -> None:
    pool = new_pool(model, direction, rows=2, chunk=1)
    copies = counted(pool)
    run_one_after_the_other(pool, model, direction, HEIGHT, WIDTH)
    assert not copies


def test_stream_that_joins_a_running_one_copies_no_state(
    model: Bundle, counted: Callable[..., Counter[str]]
) -> None:
    pool = new_pool(model, "encoder", rows=3, chunk=1)
    copies, members = counted(pool), []
    for length in (9, 17, 25):  # they also end in the order of their rows, from the last on
        members.insert(0, Member(pool, passage(model, "encoder", 33 - length, seed=length)))
        members[0].push(33 - length)
        advance(pool, members)
    assert not copies
    finish(pool, members)


def test_only_the_rows_that_change_are_copied(model: Bundle, counted: Callable[..., Counter[str]]) -> None:
    pool = new_pool(model, "encoder", rows=3, chunk=1)
    copies = counted(pool)
    first, second, third = members = [Member(pool, passage(model, "encoder", 29, seed=k)) for k in range(3)]
    for member in members:
        member.push(5)
    advance(pool, members)
    advance(pool, members)
    assert not copies
    for member in (first, third):
        member.push(4)
    advance(pool, members)  # the second one has no input, and the third one closes the gap
    assert copies == {"save_row": 1, "copy_row": 1}
    second.push(8)
    first.push(4)
    third.push(4)
    advance(pool, members)
    assert copies == {"save_row": 1, "copy_row": 1, "load_row": 1}
    finish(pool, members)


class SourceError(Exception):
    """Of a source that fails."""


@pytest.mark.parametrize("ending", ["source raises", "bad input", "caller stops"])
def test_pool_is_usable_after_a_run_that_ended_early(model: Bundle, ending: str) -> None:
    clips = {key: passage(model, "encoder", 9 + 4 * key, seed=key) for key in range(3)}
    pool = new_pool(model, "encoder", rows=2, chunk=1)

    def source(clip: Passage, fails: bool) -> Iterator[Any]:
        yield clip.data[:5]
        if fails and ending == "source raises":
            raise SourceError
        yield noise(4, 9, 13) if fails and ending == "bad input" else clip.data[5:]

    def sources(failing: int | None) -> dict[int, Iterator[Any]]:
        return {key: source(clip, key == failing) for key, clip in clips.items()}

    run = pool.run(sources(failing=1))
    if ending == "caller stops":
        next(run)
        run.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(SourceError if ending == "source raises" else InputError):
            list(run)
    assert len(pool) == 0 and pool.step() == {}
    found: dict[int, list[Any]] = {key: [] for key in clips}
    for key, part in pool.run(sources(failing=None)):
        found[key].append(part)
    assert all(clips[key].is_result(parts) for key, parts in found.items())


def test_run_beside_other_streams_is_refused(model: Bundle) -> None:
    pool = new_pool(model, "encoder", rows=2, chunk=1)
    member = Member(pool, passage(model, "encoder", 9, seed=1))
    with pytest.raises(StreamingError, match="1 other open streams"):
        next(pool.run({"a": [noise(5, HEIGHT, WIDTH)]}))
    finish(pool, [member])
    running = pool.run({"a": [noise(9, HEIGHT, WIDTH)]})
    next(running)
    pool.open()
    with pytest.raises(StreamingError, match="1 other open streams"):
        list(running)
    assert len(pool) == 1


def test_call_from_a_second_thread_is_refused_and_changes_nothing(
    model: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(model, "encoder", rows=2, chunk=1)
    members = [Member(pool, passage(model, "encoder", frames, seed=1)) for frames in (9, 13)]
    for member in members:
        member.push(5)
    stream = members[0].stream
    calls = (
        pool.open,
        pool.step,
        lambda: pool.drop(stream),
        stream.finish,
        lambda: stream.push(noise(1, 8, 13)),
    )
    with step_in_another_thread(pool._session, monkeypatch, lambda: advance(pool, members)):
        for call in calls:
            with pytest.raises(StreamingError, match="another thread"):
                call()
    assert len(pool) == 2
    finish(pool, members)


def test_empty_or_closed_pool_does_nothing(model: Bundle) -> None:
    with new_pool(model, "encoder", rows=2, chunk=1) as pool:
        assert pool.step() == {} and len(pool) == 0 and list(pool.run({})) == []
        pool.open().push(noise(9, HEIGHT, WIDTH))
        pool.step()
        assert len(pool) == 1
    assert len(pool) == 0 and pool.step() == {}
    other = new_pool(model, "encoder", rows=2, chunk=1)
    stranger = other.open()
    other.drop(stranger)
    for left in (pool, other):
        with pytest.raises(StreamingError, match="not in this pool"):
            left.drop(stranger)
    with pytest.raises(InputError, match="no frames"):
        list(other.run({"a": []}))
    with pytest.raises(StreamingError, match="rows is 0"):
        new_pool(model, "encoder", rows=0, chunk=1)
