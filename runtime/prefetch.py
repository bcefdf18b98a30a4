"""Reading ahead and writing behind, each in a thread of its own with a bounded queue.

Video decoding, encoding and colour conversion release the interpreter lock, so the model does not
wait for them. Arrays are passed by reference: do not change one after passing it on.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from wfvae.errors import InputError, ResourceError
from wfvae.runtime.closing import Closing

T = TypeVar("T")

JOIN_SECONDS = 5.0


class Prefetch(Iterator[T], Closing):
    """Runs `iterable` in a background thread, at most `depth` items ahead.

    Items come in order; an exception of the iterable is raised after the items before it. Close it,
    or use it in a `with` block, if it may be left before its end. The thread starts with the first
    item asked for: inside the block, which no interrupt can leave without waiting for the thread.

    Raises:
        InputError: depth < 1.
        ResourceError: with the first item, if the system has no more threads.

    Example:
        >>> with Prefetch(range(3)) as ahead:
        ...     list(ahead)
        [0, 1, 2]
    """

    def __init__(self, iterable: Iterable[T], depth: int = 2) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._iterable: Iterable[T] | None = iterable
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._finalizer = weakref.finalize(self, self._channel.close)

    def __next__(self) -> T:
        if self._iterable is not None:
            self._start(self._iterable)
        try:
            return self._channel.get()
        except _Closed:
            raise StopIteration from None

    def close(self) -> None:
        """Stops the thread and closes the iterator it runs. Closing twice is allowed.

        Waits for the item in progress, at most 5 seconds: a read from a silent pipe cannot be
        interrupted, and its thread, a daemon, is then left behind.
        """
        self._iterable = None
        self._finalizer()
        # An interrupt during the thread's start leaves it in a state that cannot be joined.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._ended.wait(JOIN_SECONDS)

    def _start(self, iterable: Iterable[T]) -> None:
        self._iterable = None
        # The thread must not hold on to this object: dropping it unfinished has to end the thread.
        arguments = (iterable, self._channel, self._ended)
        self._thread = threading.Thread(target=_produce, args=arguments, name="wfvae-prefetch", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._channel.end()
            self._ended.set()
            problem = f"no thread to read ahead with ({error})"
            raise ResourceError(f"{problem}; end other programs or raise the limit of threads") from error


class BackgroundSink(Closing, Generic[T]):
    """Calls `write(item)` in a background thread, in order, with at most `depth` items waiting.

    A failed write ends the sink: later items are dropped, and the exception is raised by the next
    `put`, or at the latest by `close`. Leaving the `with` block waits until all is written; when an
    exception leaves it, at most 5 seconds, and without raising a failure of the sink.

    Example:
        >>> written = []
        >>> with BackgroundSink(written.append) as sink:
        ...     sink.put(1)
        >>> written
        [1]
    """

    def __init__(self, write: Callable[[T], object], depth: int = 2) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._failure: list[BaseException] = []
        arguments = (write, self._channel, self._failure)
        self._thread = threading.Thread(target=_consume, args=arguments, name="wfvae-sink", daemon=True)
        self._open = True
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
            return
        self._open = False
        self._channel.end()
        self._thread.join(JOIN_SECONDS)
        self._channel.close()

    def put(self, item: T) -> None:
        """Queues `item`, waiting for room.

        Raises:
            InputError: the sink has ended.
            Exception: that of an earlier write, once.
        """
        self._raise_failure()
        try:
            if self._open:
                self._channel.put(item)
                return
        except _Closed:
            self._thread.join(JOIN_SECONDS)
            self._raise_failure()
        raise InputError("the background sink is closed; open a new one to write more")

    def close(self) -> None:
        """Waits until everything queued is written. Raises a failure that was not raised before."""
        self._open = False
        self._channel.end()
        self._thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            self._open = False
            raise self._failure.pop()


class _Closed(Exception):
    """The channel was closed by its other side."""


class _Channel(Generic[T]):
    """A bounded queue between one producer and one consumer, which either side can end."""

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise InputError(f"the queue's depth is {depth}; expected at least 1")
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Waits for room, then queues. Raises `_Closed` if the consumer has closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Waits for an item. After the last, raises the producer's error once, then `_Closed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ended or bool(self._items))
            if self._closed:
                raise _Closed
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            error, self._error = self._error, None
            raise error or _Closed

    def end(self, error: BaseException | None = None) -> None:
        """Called by the producer when nothing more comes."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Called by the consumer when it wants nothing more; queued items are dropped."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def _produce(iterable: Iterable[T], channel: _Channel[T], ended: threading.Event) -> None:
    error: BaseException | None = None
    try:
        iterator = iter(iterable)
        try:
            for item in iterator:
                channel.put(item)
        finally:
            # A generator's clean-up has to run in the thread that runs the generator.
            if hasattr(iterator, "close"):
                iterator.close()
    except _Closed:
        pass
    except BaseException as raised:
        error = raised
    channel.end(error)
    ended.set()


def _consume(write: Callable[[T], object], channel: _Channel[T], failure: list[BaseException]) -> None:
    try:
        while True:
            write(channel.get())
    except _Closed:
        return
    except BaseException as raised:
        failure.append(raised)
        channel.close()
