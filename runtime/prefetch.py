"""Reading ahead and writing behind, each in a thread of its own with a bounded queue.

Decoding, encoding and colour conversion release the interpreter lock, so with these the model never
waits for video. Arrays are handed over by reference: whoever gives one away must not change it
afterwards.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from wfvae.errors import InputError, ResourceError

T = TypeVar("T")

JOIN_SECONDS = 5.0


class _Closed(Exception):
    """The other side has gone."""


class _Channel(Generic[T]):
    """A bounded queue between one producer and one consumer that either can end. Every wait ends
    when the channel does.
    """

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise InputError(f"a queue of depth {depth} cannot pass anything on; give at least 1")
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Wait for room, then queue; raises `_Closed` if the consumer has gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for an item; after the last one raises the producer's error once, then `_Closed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ended or bool(self._items))
            if self._items and not self._closed:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
            if error is not None and not self._closed:
                raise error
            raise _Closed

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes from the producer."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is wanted by the consumer; what is queued is dropped."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class Prefetch(Iterator[T]):
    """Made by `prefetch`. Close it, or use it in a `with` block, if it may be left before its end.

    The thread starts with the first item asked for: inside the block, which an interrupt cannot
    leave without waiting for the thread, as it could between a start here and the block.
    """

    def __init__(self, iterable: Iterable[T], depth: int) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._iterable: Iterable[T] | None = iterable
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._finalizer = weakref.finalize(self, self._channel.close)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> T:
        if self._iterable is not None:
            self._start(self._iterable)
        try:
            return self._channel.get()
        except _Closed:
            raise StopIteration from None

    def close(self) -> None:
        """Stop the thread and close the iterator it runs. Waits for the item in the making, at most
        5 seconds: a read from a silent pipe cannot be interrupted, and its thread, a daemon, is
        then left behind. Safe to call twice."""
        self._iterable = None
        self._finalizer()
        # Not by joining, which fails if an interrupt came before the thread had said that it runs.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._ended.wait(JOIN_SECONDS)

    def _start(self, iterable: Iterable[T]) -> None:
        self._iterable = None
        # The thread must not hold on to this object: dropping it unfinished has to end the thread.
        thread = threading.Thread(
            target=_produce, args=(iterable, self._channel, self._ended), name="wfvae-prefetch", daemon=True
        )
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            self._channel.end()
            self._ended.set()
            raise ResourceError(
                f"no thread to read ahead with ({error}); end other programs or raise the limit of threads"
            ) from error


def _produce(iterable: Iterable[T], channel: _Channel[T], ended: threading.Event) -> None:
    iterator: Iterator[T] | None = None
    error: BaseException | None = None
    try:
        iterator = iter(iterable)
        for item in iterator:
            channel.put(item)
    except _Closed:
        pass
    except BaseException as raised:
        error = raised
    try:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()  # a generator's own clean-up has to run in the thread that runs the generator
    except BaseException as raised:
        error = error or raised
    channel.end(error)
    ended.set()


def prefetch(iterable: Iterable[T], depth: int = 2) -> Prefetch[T]:
    """Run `iterable` in a background thread, at most `depth` items ahead.

    Nothing is read before the first item is asked for. Items come in order; an exception of the
    iterable is raised in the consumer after the items before it. Raises `InputError` if depth < 1,
    and `ResourceError` with the first item if there is no thread to be had.
    """
    return Prefetch(iterable, depth)


class BackgroundSink(Generic[T]):
    """Calls `write(item)` in a background thread, in order, with at most `depth` items waiting.

    with BackgroundSink(writer.write, depth=2) as sink:
        sink.put(frames)

    A failed write ends the sink: later items are dropped, and the exception is raised by the next
    `put`, or at the latest by `close`. Leaving the `with` block waits until all is written, so that
    an error elsewhere loses nothing that was finished; when an exception leaves it, at most 5
    seconds, and without raising a failure of its own.
    """

    def __init__(self, write: Callable[[T], object], depth: int = 2) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(
            target=_consume, args=(write, self._channel, self._failure), name="wfvae-sink", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._channel.close)
        self._open = True
        self._thread.start()

    def __enter__(self) -> BackgroundSink[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._open = False
            self._channel.end()
            self._thread.join(JOIN_SECONDS)
            self._finalizer()
            self._failure.clear()

    def put(self, item: T) -> None:
        """Queue `item`, waiting for room. Raises the exception of an earlier write, once;
        `InputError` after the sink has ended.
        """
        self._raise_failure()
        if not self._open:
            raise InputError("the background sink is closed; open a new one to write more")
        try:
            self._channel.put(item)
        except _Closed:
            self._thread.join(JOIN_SECONDS)
            self._raise_failure()
            raise InputError(
                "the background sink has ended after a failed write; open a new one to write more"
            ) from None

    def close(self) -> None:
        """Wait until everything queued is written. Raises the exception of a failed write unless it
        was raised before.
        """
        if self._open:
            self._open = False
            self._channel.end()
        self._thread.join()
        self._raise_failure()

    def abort(self) -> None:
        """Drop what is waiting and end the thread, after the write in progress, at most 5 seconds.
        Raises nothing.
        """
        self._open = False
        self._finalizer()
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)
        self._failure.clear()

    def _raise_failure(self) -> None:
        if self._failure:
            self._open = False
            raise self._failure.pop()


def _consume(write: Callable[[T], object], channel: _Channel[T], failure: list[BaseException]) -> None:
    try:
        while True:
            write(channel.get())
    except _Closed:
        return
    except BaseException as raised:
        failure.append(raised)
        channel.close()
