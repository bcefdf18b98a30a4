"""A stream's queue and counters: what its next step takes, and which part of the output is its own.

A feed knows neither backends nor state tensors. One stream and a pool of many use the same feeds.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wfvae.errors import StateError, StreamingError
from wfvae.runtime.backends.base import Array, FloatArray, StepSession, StreamState

_QUEUED = "waiting"
"""Name of the queued input in snapshots."""
READY = "ready"
"""Name of results in a snapshot that were computed and not returned yet."""


class Feed(ABC):
    """One stream's side of the steps."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.started = False
        """Whether a step has run."""
        self.closed = False
        """Whether the input has ended."""
        self._queue = Queue()

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all results have been returned."""

    @property
    @abstractmethod
    def ready(self) -> int:
        """Latents that the next step can advance by."""

    @property
    def draining(self) -> bool:
        """Whether only a draining step is left, of any length."""
        return False

    @abstractmethod
    def push(self, data: Any) -> None:
        """Queues input. Raises `InputError` if it is wrong; the feed is then unchanged."""

    @abstractmethod
    def close(self, frames: int | None = None) -> None:
        """Ends the input. `frames` is a decoder's true number of video frames."""

    @abstractmethod
    def step_input(self, latents: int) -> FloatArray:
        """Returns a step's input, which stays queued until the step has succeeded."""

    @abstractmethod
    def accept_output(self, output: FloatArray, drained: bool) -> Array:
        """Removes a step's input from the queue, and returns the user's part of its output."""

    @abstractmethod
    def empty(self) -> Array:
        """Returns a result of length 0."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """Returns what `restore` needs besides arrays."""

    def arrays(self) -> dict[str, Array]:
        """Returns the queued input."""
        return {_QUEUED: self._queue.first(self._queue.count)} if self._queue.count else {}

    def check(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        """Raises `StateError` unless a feed like this one can have these counters and arrays.

        The counters have the names of `counters()`. Nothing is changed.
        """
        taken, returned = self.layouts(counters)
        for name, array in arrays.items():
            like = {_QUEUED: taken, READY: returned}.get(name)
            if like is None or (array.shape[1:], array.dtype) != (like.shape[1:], like.dtype):
                wanted = "" if like is None else f"; expected {like.dtype} (n, *{like.shape[1:]})"
                raise StateError(
                    f"the snapshot holds {array.dtype} {array.shape} as {name}{wanted}; start the stream anew"
                )
        waiting, ready = (len(arrays.get(name, ())) for name in (_QUEUED, READY))
        if not self.possible(counters, waiting, ready):
            raise StateError(
                f"the snapshot's counters {dict(counters)} contradict each other or its {waiting} inputs"
                f" and {ready} results that are pending; start the stream anew"
            )

    @abstractmethod
    def layouts(self, counters: Mapping[str, int]) -> tuple[Array, Array]:
        """Returns empty arrays of input and results, of a feed with these counters."""

    @abstractmethod
    def possible(self, counters: Mapping[str, int], waiting: int, ready: int) -> bool:
        """Whether a feed can be in this state, with so many inputs and results pending."""

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        """Restores the feed that returned these `counters` and `arrays`."""
        self.started, self.closed = bool(counters["started"]), bool(counters["closed"])
        self._queue = Queue()
        if _QUEUED in arrays:
            self._queue.add(arrays[_QUEUED])

    def _require_open(self) -> None:
        if self.closed:
            raise StreamingError("the stream is finished; open another one for more input")


class Queue:
    """Arrays in order, counted along their first axis."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[Array] = []

    def add(self, part: Array) -> None:
        """Appends a copy of `part`, whose buffer the caller may reuse."""
        if len(part):
            self._parts.append(np.array(part))
            self.count += len(part)

    def first(self, count: int) -> Array:
        """Returns the first `count` >= 1 entries, which stay in the queue."""
        found: list[Array] = []
        for part in self._parts:
            found.append(part[:count])
            count -= len(found[-1])
            if not count:
                break
        return found[0] if len(found) == 1 else np.concatenate(found)

    def remove(self, count: int) -> None:
        """Removes the first `count` entries."""
        self.count -= count
        while count:
            part = self._parts[0]
            if len(part) > count:
                self._parts[0] = part[count:]
                return
            del self._parts[0]
            count -= len(part)

    def last(self) -> Array:
        """Returns the last entry, as an array of length 1."""
        return self._parts[-1][-1:]


def run_step(
    session: StepSession, state: StreamState, feeds: Sequence[Feed], latents: int
) -> tuple[list[Array], float]:
    """Advances each feed's stream, one per row of `state`, by `latents`.

    Returns each stream's part of the output, and the seconds spent in the backend.
    """
    draining = [feed.draining for feed in feeds]
    start = np.array([not feed.started for feed in feeds])
    x = np.stack([feed.step_input(latents) for feed in feeds])
    began = time.perf_counter()
    output = session.step(state, x, start, np.array(draining))
    seconds = time.perf_counter() - began
    rows = zip(feeds, output, draining, strict=True)
    return [feed.accept_output(row, drained) for feed, row, drained in rows], seconds
