"""One stream: push input of any amount, get what is ready, finish. See `docs/streaming.md` for the
rules it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from wfvae.errors import StateError, StreamingError
from wfvae.runtime.backends.base import Array, StepSession, StreamState
from wfvae.runtime.feed import DecoderFeed, EncoderFeed, Feed
from wfvae.runtime.snapshot import Snapshot
from wfvae.spec.stream import StreamSpec

DEFAULT_CHUNK = 4
"""Latents per step. More amortise a step's overhead and cost memory; results do not depend on it."""

F = TypeVar("F", bound=Feed)
S = TypeVar("S", bound="Stream[Any]")

_READY = "ready"
"""Name of results in a snapshot that were computed and not given out yet."""


class Stream(Generic[F]):
    """A running stream. A context manager; not safe to use from several threads at once.

    The state stays on the backend's device for the stream's life, and its size does not depend on
    the stream's length.
    """

    def __init__(self, session: StepSession, feed: F, chunk: int, bundle: str) -> None:
        self.session = session
        """What runs the steps; may be replaced by one that wraps it, to measure for example."""
        self._feed = feed
        self._chunk = chunk
        self._bundle = bundle
        height, width = (-(-side // 8) * 8 for side in (feed.height, feed.width))
        self._state: StreamState | None = session.new_state(1, height, width)
        # Results of a call that failed at a later step; the next call returns them.
        self._ready: list[Array] = []

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the state. Closing twice is allowed."""
        self._state = None

    @property
    def spec(self) -> StreamSpec:
        """The rules and state of this stream."""
        return self.session.graph.stream

    @property
    def feed(self) -> F:
        """Counters of what was pushed and given out."""
        return self._feed

    def push(self, data: Any) -> Array:
        """Takes any amount of input and returns what has become ready, which may be nothing.

        An encoder takes frames (T, H, W, 3), uint8 or floating point in [-1, 1], and returns
        latents (t, D, h, w) float32. A decoder takes unscaled latents and returns frames.

        Raises:
            InputError: naming what is wrong with `data`; the stream is as it was before.
            StreamingError: the stream is finished or closed.
            ResourceError: a step failed. `data` is queued and nothing is lost: to go on, push no
                frames (an array of length 0).
        """
        self._require_open()
        self._feed.push(data)
        return self._collect()

    def finish(self, frames: int | None = None) -> Array:
        """Ends the stream and returns the rest.

        Args:
            frames: a decoder's true number of video frames, if it is not 1 + r n and was not stated
                on opening.

        Raises as `push` does; after a failed step, call it again.
        """
        self._require_open()
        interrupted = self._feed.closed and (self._ready or self._feed.ready() or self._feed.draining)
        if not interrupted:
            self._feed.close(frames)
        return self._collect()

    def iterate(self, chunks: Iterable[Any], frames: int | None = None) -> Iterator[Array]:
        """Pulls input chunk by chunk as results are asked for, so that no more is read than is
        needed; then finishes.
        """
        for chunk in chunks:
            self._require_open()
            self._feed.push(chunk)
            yield from self._advance()
        self._require_open()
        self._feed.close(frames)
        yield from self._advance()

    def snapshot(self) -> bytes:
        """The stream as it is now, as safetensors. `restore` takes it up with the same bits."""
        return self.capture().to_bytes()

    def save(self, path: str | Path) -> None:
        """Writes a snapshot to a file, atomically."""
        self.capture().write(path)

    def restore(self, snapshot: bytes | Snapshot) -> None:
        """Takes up where the stream stood that gave `snapshot`.

        Raises `StateError` if it is another bundle's, direction's or size's, or damaged; the stream
        is then as it was.
        """
        snapshot = snapshot if isinstance(snapshot, Snapshot) else Snapshot.from_bytes(snapshot)
        state = self._require_open()
        problems = []
        if snapshot.bundle != self._bundle:
            problems.append(
                f"it was made by bundle {snapshot.bundle[:12]}, and this one is {self._bundle[:12]}"
            )
        if snapshot.direction != self.spec.direction:
            problems.append(
                f"it is of the {snapshot.direction}, and this stream is of the {self.spec.direction}"
            )
        if (snapshot.height, snapshot.width) != (self._feed.height, self._feed.width):
            problems.append(
                f"it is of {snapshot.height}x{snapshot.width} video, and this stream is"
                f" {self._feed.height}x{self._feed.width}"
            )
        if problems:
            raise StateError(f"the snapshot does not fit: {'; '.join(problems)}")
        counters = snapshot.counters
        if counters.keys() != self._feed.counters().keys() or not all(
            isinstance(value, int) for value in counters.values()
        ):
            raise StateError(
                f"the snapshot has the counters {counters}; expected whole numbers for"
                f" {', '.join(self._feed.counters())}"
            )
        check_state(self.spec, snapshot.state, 1, state.height, state.width)
        state.write(snapshot.state)
        self._feed.restore(snapshot.counters, snapshot.waiting)
        self._ready = [snapshot.waiting[_READY]] if _READY in snapshot.waiting else []

    def capture(self) -> Snapshot:
        """The stream as it is now, as arrays."""
        state, feed = self._require_open(), self._feed
        waiting = feed.arrays() | ({_READY: np.concatenate(self._ready)} if self._ready else {})
        return Snapshot(
            self._bundle, self.spec.direction, feed.height, feed.width, feed.counters(), state.read(), waiting
        )

    def _require_open(self) -> StreamState:
        if self._state is None:
            raise StreamingError("the stream is closed; open another one")
        return self._state

    def _advance(self) -> Iterator[Array]:
        """Runs steps of at most `chunk` latents while input is ready."""
        state, feed = self._require_open(), self._feed
        while (ready := feed.ready()) or feed.draining:
            yield run_step(self.session, state, [feed], min(ready, self._chunk) or 1)[0]

    def _collect(self) -> Array:
        """All that is ready, in one array."""
        for part in self._advance():
            if len(part):
                self._ready.append(part)
        found, self._ready = self._ready, []
        if not found:
            return self._feed.empty()
        return found[0] if len(found) == 1 else np.concatenate(found)


class EncoderStream(Stream[EncoderFeed]):
    """Video in, latents out."""


class DecoderStream(Stream[DecoderFeed]):
    """Latents in, video out."""


def run_step(session: StepSession, state: StreamState, feeds: list[Any], latents: int) -> list[Array]:
    """Advances the streams of `feeds`, one per row of `state`, by `latents` each, and returns each
    one's part of the output.
    """
    rows: list[Feed] = feeds
    draining = [feed.draining for feed in rows]
    start = np.array([not feed.started for feed in rows])
    x = np.stack([feed.take(latents) for feed in rows])
    output = session.step(state, x, start, np.array(draining))
    return [
        feed.absorb(result, drained) for feed, result, drained in zip(rows, output, draining, strict=True)
    ]


def check_state(spec: StreamSpec, tensors: Mapping[str, Array], batch: int, height: int, width: int) -> None:
    """Raises `StateError` unless `tensors` are this stream's state at this (padded) size."""
    names = {spec.name: spec.dtype for spec in spec.states}
    given = {}
    for name, array in tensors.items():
        # bfloat16 travels as its bits.
        dtype = "bfloat16" if names.get(name) == "bfloat16" and array.dtype == np.uint16 else str(array.dtype)
        given[name] = (array.shape, dtype)
    spec.check(given, batch, height, width)
