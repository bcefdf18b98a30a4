"""Reading ahead and writing behind: order, errors on either side, ends on either side, no thread
left over.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wfvae.errors import InputError, ResourceError
from wfvae.runtime.prefetch import BackgroundSink, prefetch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} is still running"


class Boom(Exception):
    """Raised by the side under test."""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 5))
def test_prefetch_gives_the_same_items_in_order(items: list[int], depth: int) -> None:
    assert list(prefetch(items, depth)) == items


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 5))
def test_sink_writes_the_same_items_in_order(items: list[int], depth: int) -> None:
    written: list[int] = []
    with BackgroundSink(written.append, depth) as sink:
        for item in items:
            sink.put(item)
    assert written == items


@pytest.mark.parametrize("good", [0, 1, 5])
def test_an_error_of_the_iterable_comes_after_the_items_before_it(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise Boom("iterable")

    got: list[int] = []
    with pytest.raises(Boom, match="iterable"), prefetch(items(), 2) as ahead:
        got.extend(iter(ahead.__next__, None))
    assert got == list(range(good))
    assert list(ahead) == []  # raised once; afterwards it is simply at its end


def test_prefetch_never_runs_more_than_depth_ahead() -> None:
    made = 0
    taken = 0
    most_ahead = 0

    def items() -> Iterator[int]:
        nonlocal made, most_ahead
        for index in range(50):
            made += 1
            most_ahead = max(most_ahead, made - taken)
            yield index

    with prefetch(items(), 3) as ahead:
        for _ in ahead:
            taken += 1
    assert taken == 50
    assert (
        most_ahead <= 3 + 2
    )  # the queue, the item waiting for room, and the one just taken but not yet counted


def test_leaving_early_stops_the_iterable_and_runs_its_cleanup_in_its_own_thread() -> None:
    cleaned: list[threading.Thread] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            cleaned.append(threading.current_thread())

    with prefetch(endless(), 2) as ahead:
        next(ahead)
    assert len(cleaned) == 1
    assert cleaned[0] is not threading.current_thread()
    ahead.close()  # twice is fine
    assert list(ahead) == []


def test_an_interrupt_while_the_thread_starts_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a thread waits for its sign of life. What a `with` block around this one closes next
    must not be in use any more.
    """
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    open_ = True
    read_while_open: list[bool] = []

    def items() -> Iterator[int]:
        while True:
            time.sleep(0.01)
            read_while_open.append(open_)
            yield 0

    with pytest.raises(KeyboardInterrupt), prefetch(items(), 1000) as ahead:
        next(ahead)
    open_ = False
    time.sleep(0.05)
    assert read_while_open and all(read_while_open)


def test_nothing_is_read_before_it_is_asked_for_or_after_closing() -> None:
    read: list[int] = []
    with prefetch((read.append(index) for index in range(3)), 2) as ahead:
        pass
    assert list(ahead) == [] and read == []


def test_no_thread_to_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with prefetch([1], 2) as ahead:
        with pytest.raises(ResourceError, match="can't start new thread"):
            next(ahead)
        assert list(ahead) == []


def test_a_consumer_that_fails_does_not_deadlock() -> None:
    with pytest.raises(Boom), prefetch(iter(int, 1), 1) as ahead:
        for _ in ahead:
            raise Boom


def test_dropping_an_unfinished_prefetch_ends_its_thread() -> None:
    ahead = prefetch(iter(int, 1), 2)
    next(ahead)
    del ahead  # the fixture checks for the thread


def test_an_error_while_the_queue_is_full_is_not_lost() -> None:
    ready = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2
        ready.set()
        raise Boom

    ahead = prefetch(items(), 2)
    assert next(ahead) == 1
    assert ready.wait(10)
    assert next(ahead) == 2
    with pytest.raises(Boom):
        next(ahead)
    ahead.close()


def test_a_failed_write_is_raised_once_and_ends_the_sink() -> None:
    written: list[int] = []

    def write(item: int) -> None:
        if item == 2:
            raise Boom("disk")
        written.append(item)

    sink = BackgroundSink(write, 1)
    with pytest.raises(Boom, match="disk"):
        for item in range(1000):
            sink.put(item)
    assert written == [0, 1]
    with pytest.raises(InputError, match="closed"):
        sink.put(7)
    sink.close()  # the error was raised before


def test_close_raises_the_failure_of_the_last_write() -> None:
    def write(item: int) -> None:
        raise Boom

    with pytest.raises(Boom), BackgroundSink(write, 4) as sink:
        sink.put(1)


class Held:
    """A slow writer: it begins with the first item, and goes on when it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.written: list[int] = []
        self._started, self._release, self._fails_at = threading.Event(), threading.Event(), fails_at

    def write(self, item: int) -> None:
        self._started.set()
        self._release.wait(10)
        self.written.append(item)
        if item == self._fails_at:
            raise Boom

    def release_soon(self) -> None:
        assert self._started.wait(10)
        threading.Timer(0.05, self._release.set).start()


def test_an_error_in_the_block_loses_nothing_that_was_put_and_wins_over_the_sinks_own() -> None:
    slow = Held(fails_at=4)
    with pytest.raises(KeyError), BackgroundSink(slow.write, 8) as sink:
        for item in range(5):
            sink.put(item)
        slow.release_soon()
        raise KeyError("the block")
    assert slow.written == [0, 1, 2, 3, 4]


def test_abort_drops_what_waits() -> None:
    slow = Held()
    sink = BackgroundSink(slow.write, 8)
    for item in range(5):
        sink.put(item)
    slow.release_soon()
    sink.abort()
    assert slow.written == [0]


def test_reader_to_sink_chain_with_failing_sink_stops_the_reader() -> None:
    def write(item: int) -> None:
        if item == 10:
            raise Boom

    with pytest.raises(Boom), prefetch(iter(range(10**9)), 2) as ahead, BackgroundSink(write, 2) as sink:
        for item in ahead:
            sink.put(item)


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        prefetch([], depth)
    with pytest.raises(InputError, match="at least 1"):
        BackgroundSink(print, depth)
