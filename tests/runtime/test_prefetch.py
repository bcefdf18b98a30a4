"""Prefetch and background sink: order, errors and early ends on either side, no thread left."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfvae.errors import InputError, ResourceError
from wfvae.runtime.prefetch import BackgroundSink, Prefetch


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


def fail(item: int) -> None:
    raise Boom


@given(st.lists(st.integers()), st.integers(1, 5))
def test_prefetch_and_sink_pass_the_same_items_in_order(items: list[int], depth: int) -> None:
    written: list[int] = []
    with BackgroundSink(written.append, depth) as sink:
        for item in Prefetch(items, depth):
            sink.put(item)
    assert written == items


@pytest.mark.parametrize("good", [0, 1, 5])
def test_prefetch_iterable_that_fails_gives_the_items_before_the_error(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise Boom("iterable")

    got: list[int] = []
    with pytest.raises(Boom, match="iterable"), Prefetch(items(), 2) as ahead:
        got.extend(iter(ahead.__next__, None))
    assert got == list(range(good))
    assert list(ahead) == []  # raised once; after that it is at its end


def test_prefetch_never_runs_more_than_depth_ahead() -> None:
    made = taken = most_ahead = 0

    def items() -> Iterator[int]:
        nonlocal made, most_ahead
        for index in range(50):
            made += 1
            most_ahead = max(most_ahead, made - taken)
            yield index

    with Prefetch(items(), 3) as ahead:
        for _ in ahead:
            taken += 1
    assert taken == 50
    # The queue, the item waiting for room, and the one just taken but not counted yet.
    assert most_ahead <= 3 + 2


def test_prefetch_left_early_cleans_up_in_the_thread_of_the_iterable() -> None:
    cleaned: list[threading.Thread] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            cleaned.append(threading.current_thread())

    with Prefetch(endless(), 2) as ahead:
        next(ahead)
    assert len(cleaned) == 1
    assert cleaned[0] is not threading.current_thread()
    ahead.close()
    assert list(ahead) == []


def test_prefetch_interrupted_while_thread_starts_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the block around this one closes next must not be in use any more."""
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

    with pytest.raises(KeyboardInterrupt), Prefetch(items(), 1000) as ahead:
        next(ahead)
    open_ = False
    time.sleep(0.05)
    assert read_while_open and all(read_while_open)


def test_prefetch_closed_before_first_item_reads_nothing() -> None:
    read: list[int] = []
    with Prefetch((read.append(index) for index in range(3)), 2) as ahead:
        pass
    assert list(ahead) == [] and read == []


def test_prefetch_without_threads_raises_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with Prefetch([1], 2) as ahead:
        with pytest.raises(ResourceError, match="can't start new thread"):
            next(ahead)
        assert list(ahead) == []


def test_prefetch_dropped_unfinished_ends_its_thread() -> None:
    ahead = Prefetch(iter(int, 1), 2)
    next(ahead)
    del ahead  # the fixture checks for the thread


def test_sink_failed_write_is_raised_once_and_ends_the_sink() -> None:
    written: list[int] = []

    def write(item: int) -> None:
        written.append(item)
        if item == 2:
            raise Boom("disk")

    sink = BackgroundSink(write, 1)
    with pytest.raises(Boom, match="disk"):
        for item in range(1000):
            sink.put(item)
    assert written == [0, 1, 2]
    with pytest.raises(InputError, match="closed"):
        sink.put(7)
    sink.close()  # the error was raised before
    with pytest.raises(Boom), BackgroundSink(fail, 4) as sink:
        sink.put(1)  # its failure is raised by close


def test_sink_left_by_an_error_writes_what_was_queued_and_keeps_that_error() -> None:
    started, release = threading.Event(), threading.Event()
    written: list[int] = []

    def write(item: int) -> None:
        started.set()
        release.wait(10)
        written.append(item)
        if item == 4:
            raise Boom

    with pytest.raises(KeyError), BackgroundSink(write, 8) as sink:
        for item in range(5):
            sink.put(item)
        assert started.wait(10)
        threading.Timer(0.05, release.set).start()
        raise KeyError("the block")
    assert written == [0, 1, 2, 3, 4]


def test_sink_that_fails_stops_the_reader_before_it() -> None:
    with pytest.raises(Boom), Prefetch(iter(range(10**9)), 2) as ahead, BackgroundSink(fail, 2) as sink:
        for item in ahead:
            sink.put(item)


def test_depth_below_one_raises_input_error() -> None:
    for open_ in (lambda: Prefetch([], 0), lambda: BackgroundSink(fail, -1)):
        with pytest.raises(InputError, match="at least 1"):
            open_()
