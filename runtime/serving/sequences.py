"""Numbered streams of many clients, which share the steps of one worker.

A transport hands in requests from any thread. The worker queues their data in pools, one per video
size, and runs steps as long as any stream can advance; requests that arrive meanwhile join the next
step. So a short request never waits for the end of a long one.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wfvae.errors import BundleError, InputError, StreamingError, WFVAEError
from wfvae.runtime.backends.base import Array, one_line
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.closing import Closing
from wfvae.runtime.pool import PooledStream, StreamPool
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.serving import ServingOptions
from wfvae.spec.stream import Direction

Name = int | str
VideoSize = tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """Some input of one stream. The worker calls `answer` or `refuse`, once."""

    sequence: Name
    """Which stream."""
    data: Any
    """Frames (T, H, W, 3) for an encoder, latents (t, D, h, w) for a decoder; may be empty. Must
    not change until the request is answered."""
    start: bool
    """The stream begins here. A stream of this name that is still open is dropped."""
    end: bool
    """The stream ends after `data`; the answer holds all of the rest."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of a decoder: the video's `height` and `width` at its start, its `frames` at start or end."""
    answer: Callable[[Array], None]
    """Takes what became ready: latents (t, D, h, w) or frames (T, H, W, 3), possibly none."""
    refuse: Callable[[WFVAEError], None]
    """Takes the error of a request that failed."""


@dataclass(eq=False)
class _Open:
    """An open stream, and its request that is being worked on."""

    size: VideoSize
    stream: PooledStream[Any]
    last: float
    """When its last request was answered."""
    request: Request | None = None
    parts: list[Array] = field(default_factory=list)


class SequenceServer(Closing):
    """Serves one direction of a bundle. `submit` may be called from any thread.

    An `InputError` leaves a stream as it was, except at its start and end. A stream whose step
    failed is dropped, and one that was silent for `options.idle_seconds`; further requests of them
    need a new start.

    Example:
        >>> from pathlib import Path
        >>> from wfvae import WFVAE, open_bundle
        >>> from wfvae.export.bundle import export_bundle
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> answers = queue.Queue()
        >>> calls = {"answer": answers.put, "refuse": answers.put}
        >>> frames = np.zeros((5, 16, 16, 3), np.uint8)
        >>> with SequenceServer(open_bundle("bundle"), "encoder", ServingOptions()) as server:
        ...     server.submit(Request(sequence=1, data=frames, start=True, end=True, **calls))
        ...     latents = answers.get()
        >>> len(latents)
        2
    """

    def __init__(
        self,
        bundle: Bundle,
        direction: Direction,
        options: ServingOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bundle.step_session(direction)  # so that a bundle that cannot run fails here
        self._bundle, self._direction, self._options, self._clock = bundle, direction, options, clock
        self._arrived: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._pools: dict[VideoSize, StreamPool[Any]] = {}
        self._streams: dict[Name, _Open] = {}
        self._closing = False
        self._worker = threading.Thread(target=self._work, name=f"wfvae {direction}", daemon=True)
        self._worker.start()

    def submit(self, request: Request) -> None:
        """Queues a request; its answer comes from the worker's thread."""
        self._arrived.put(request)

    def close(self) -> None:
        """Refuses what has not been answered, and drops all streams."""
        self._arrived.put(None)
        self._worker.join()

    def _work(self) -> None:
        while not self._closing:
            for request in self._take():
                if request is None:
                    self._closing = True
                else:
                    self._begin(request)
            self._drop_silent()
            for size in {entry.size for entry in self._streams.values()}:
                self._step(size)
            for size in self._pools.keys() - {entry.size for entry in self._streams.values()}:
                self._pools.pop(size).close()
        stopped = StreamingError("the server stops; start the stream again later")
        for name in list(self._streams):
            self._fail(name, stopped)
        while not self._arrived.empty():
            if (late := self._arrived.get()) is not None:
                late.refuse(stopped)

    def _take(self) -> Iterator[Request | None]:
        """Yields what has arrived. Waits if no stream can advance, until one is to be dropped."""
        if not any(entry.stream.runnable for entry in self._streams.values()):
            last = min((entry.last for entry in self._streams.values()), default=None)
            wait = None if last is None else max(0.0, last + self._options.idle_seconds - self._clock())
            try:
                yield self._arrived.get(timeout=wait)
            except queue.Empty:
                return
        while not self._arrived.empty():
            yield self._arrived.get()

    def _begin(self, request: Request) -> None:
        """Queues a request's data in its stream."""
        name = request.sequence
        try:
            if request.start:
                self._drop(name)
                self._streams[name] = self._open(request)
            entry = self._known(name)
            if entry.request is not None:
                raise StreamingError(f"stream {name} has a request that is not answered; wait for its answer")
        except WFVAEError as error:
            request.refuse(error)
            return
        try:
            entry.stream.push(request.data)
            if request.end:
                entry.stream.finish(_count(request.settings, "frames"))
        except WFVAEError as error:
            if request.start or request.end:
                self._drop(name)
            entry.last = self._clock()
            request.refuse(error)
            return
        entry.request = request
        self._answer_if_done(name, entry)

    def _open(self, request: Request) -> _Open:
        shape, settings = np.shape(request.data), request.settings
        if len(shape) != 4:
            raise InputError(f"a stream begins with an array of shape {shape}; expected 4 dimensions")
        options: dict[str, Any] = {}
        if self._direction == "encoder":
            size = (shape[1], shape[2])
        else:
            height, width = _count(settings, "height"), _count(settings, "width")
            size = (height or SPATIAL_RATIO * shape[2], width or SPATIAL_RATIO * shape[3])
            options = {"frames": _count(settings, "frames"), "pixels": self._options.pixels}
        if size not in self._pools:
            new = self._bundle.encoder_pool if self._direction == "encoder" else self._bundle.decoder_pool
            self._pools[size] = new(
                height=size[0], width=size[1], rows=self._options.rows, chunk=self._options.chunk
            )
        return _Open(size, self._pools[size].open(**options), self._clock())

    def _known(self, name: Name) -> _Open:
        if name not in self._streams:
            silent = f"silent for {self._options.idle_seconds:g} s"
            raise StreamingError(
                f"stream {name} is not open: it has not been started, or was dropped after an error or"
                f" {silent}; start it again"
            )
        return self._streams[name]

    def _step(self, size: VideoSize) -> None:
        """Advances the streams of one size by a step, and answers those that are done."""
        pool = self._pools[size]
        waiting = {
            name: entry for name, entry in self._streams.items() if entry.size == size and entry.request
        }
        try:
            results = pool.step() if waiting else {}
        except Exception as error:  # whatever it is, the clients wait for an answer
            problem = (
                error if isinstance(error, WFVAEError) else BundleError(f"a step failed: {one_line(error)}")
            )
            for name in waiting:
                self._fail(name, problem)
            return
        for name, entry in waiting.items():
            if entry.stream in results:
                entry.parts.append(results[entry.stream])
            self._answer_if_done(name, entry)

    def _answer_if_done(self, name: Name, entry: _Open) -> None:
        request = entry.request
        if request is None or entry.stream.runnable or (request.end and not entry.stream.finished):
            return
        parts = [part for part in entry.parts if len(part)]
        entry.request, entry.parts, entry.last = None, [], self._clock()
        if request.end:
            self._drop(name)
        request.answer(np.concatenate(parts) if parts else entry.stream.feed.empty())

    def _fail(self, name: Name, error: WFVAEError) -> None:
        request = self._streams[name].request
        self._drop(name)
        if request is not None:
            request.refuse(error)

    def _drop(self, name: Name) -> None:
        """Removes a stream, if it is open."""
        entry = self._streams.pop(name, None)
        if entry is not None and not entry.stream.finished:
            self._pools[entry.size].drop(entry.stream)

    def _drop_silent(self) -> None:
        limit = self._clock() - self._options.idle_seconds
        for name, entry in list(self._streams.items()):
            if entry.request is None and entry.last <= limit:
                self._drop(name)


def _count(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise InputError(f"{name} is {value!r}; expected an integer of at least 1")
    return value
