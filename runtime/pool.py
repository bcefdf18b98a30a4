"""Many streams in one session: rows of one batch that join and leave at any step (continuous
batching).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from wfvae.errors import StreamingError
from wfvae.runtime.backends.base import StepSession, StreamState
from wfvae.runtime.closing import Closing
from wfvae.runtime.exclusive import Exclusive, exclusive, new_user
from wfvae.runtime.feed import Feed, run_step
from wfvae.spec.frames import padded_size

TURN = 8
"""Steps that a stream keeps its row for, while others wait for one."""

F = TypeVar("F", bound=Feed)
Key = TypeVar("Key")


@dataclass(eq=False)
class PooledStream(Exclusive, Generic[F]):
    """One stream of a pool. Its results come from `StreamPool.step`."""

    feed: F
    user: Any = field(repr=False)
    saved: Any = None
    """State of a started stream that has no row, on the device."""
    steps: int = 0
    """Steps since it got its row."""

    @exclusive
    def push(self, data: Any) -> None:
        """Queues input. Raises `InputError` if it is wrong."""
        self.feed.push(data)

    @exclusive
    def finish(self, frames: int | None = None) -> None:
        """Ends the input. `frames` as in `Stream.finish`."""
        self.feed.close(frames)

    @property
    def runnable(self) -> bool:
        """Whether a step could advance this stream."""
        return self.feed.ready > 0 or self.feed.draining

    @property
    def finished(self) -> bool:
        """Whether all of its results have been returned."""
        return self.feed.finished


class StreamPool(Exclusive, Closing, Generic[F]):
    """Advances unrelated streams of one size together.

    A pool and its streams are for one thread at a time: a call from another one meanwhile raises
    `StreamingError`, and changes nothing.

    Streams may be opened, finished and dropped between any two steps. A stream's results have the
    same bits as when it runs alone, on backends whose results do not depend on the batch (ONNX
    Runtime on the CPU in fp32).

    Each step runs up to `rows` of the streams that have input. A stream keeps its row of the state,
    on the backend's device, from its first step to its last: it takes any free row as it is, and
    other streams that begin or end do not move it. State is copied, on the device, only where a
    started stream has no input or its turn is over (its row is saved, and loaded again later), and
    where a stream ends before the last row and none takes its place (the last row does). With more
    streams than rows, a turn is 8 steps.
    """

    def __init__(
        self, session: StepSession, size: tuple[int, int], rows: int, chunk: int, new_feed: Callable[..., F]
    ) -> None:
        if rows < 1:
            raise StreamingError(f"rows is {rows}; expected at least 1")
        self.user = new_user()
        self._session = session
        self._size = padded_size(*size)
        self._rows, self._chunk = rows, chunk
        self._new_feed = new_feed
        self._streams: list[PooledStream[F]] = []
        self._batch: list[PooledStream[F] | None] = []
        """Who has which row of `_state`. None while rows change, and after a change that failed."""
        self._state: StreamState | None = None
        self.engine_seconds = 0.0
        """Seconds spent in the backend so far."""

    def __len__(self) -> int:
        return len(self._streams)

    def close(self) -> None:
        """Drops all streams and their state."""
        self._streams, self._batch, self._state = [], [], None

    @exclusive
    def open(self, **options: Any) -> PooledStream[F]:
        """Adds a stream, with the options `output=` and, for a decoder, `frames=` and `pixels=` of
        `Bundle.encoder` and `Bundle.decoder`.
        """
        stream: PooledStream[F] = PooledStream(self._new_feed(**options), self.user)
        self._streams.append(stream)
        return stream

    @exclusive
    def drop(self, stream: PooledStream[F]) -> None:
        """Removes a stream, finished or not."""
        if stream not in self._streams:
            raise StreamingError("the stream is not in this pool, or has been dropped or finished")
        self._streams.remove(stream)
        stream.saved = None

    @exclusive
    def step(self) -> dict[PooledStream[F], Any]:
        """Advances up to `rows` of the streams that have input, all by the same number of latents.

        Returns:
            The streams that ran, each with what became ready (possibly nothing yet); those that
            finished leave the pool. Empty if no stream has input.
        """
        for stream in [stream for stream in self._streams if stream.finished]:
            self.drop(stream)  # its input ended where a step had ended
        runnable = [stream for stream in self._streams if stream.runnable]
        if not runnable:
            return {}
        state = self._seat(self._choose(runnable))
        batch = [stream for stream in self._batch if stream is not None]
        feeds = [stream.feed for stream in batch]
        ready = [feed.ready for feed in feeds if not feed.draining]
        outputs, seconds = run_step(self._session, state, feeds, min([self._chunk, *ready]) if ready else 1)
        self.engine_seconds += seconds
        for stream in batch:
            stream.steps += 1
        # If there are more streams than rows, others come first when a row is free.
        others = [stream for stream in self._streams if stream not in batch]
        self._streams = others + [stream for stream in batch if not stream.finished]
        return dict(zip(batch, outputs, strict=True))

    def run(self, sources: Mapping[Key, Iterable[Any]]) -> Iterator[tuple[Key, Any]]:
        """Streams several sources to their ends, pulling input as needed.

        Its streams leave the pool with it, also where a source raises or the caller stops early.

        Yields:
            (key, result) as results become ready.

        Raises:
            StreamingError: the pool has other streams, whose results would be lost.

        Example:
            >>> from pathlib import Path
            >>> import numpy as np
            >>> from wfvae import WFVAE, open_bundle
            >>> from wfvae.export.bundle import export_bundle
            >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
            >>> chunks = [np.zeros((5, 16, 16, 3), np.uint8)] * 2
            >>> with open_bundle("bundle").encoder_pool(height=16, width=16, rows=2) as pool:
            ...     parts = list(pool.run({"a": chunks, "b": chunks}))
            >>> sum(len(latents) for key, latents in parts if key == "a")  # 10 frames
            4
        """
        iterators = {key: iter(source) for key, source in sources.items()}
        self._require_no_others([])
        streams = {key: self.open() for key in sources}
        keys = {stream: key for key, stream in streams.items()}
        try:
            while streams:
                self._feed_from(iterators, streams)
                self._require_no_others(streams.values())
                for stream, result in self.step().items():
                    if stream.finished:
                        del streams[keys[stream]]
                    if len(result):
                        yield keys[stream], result
        finally:
            for stream in streams.values():
                if stream in self._streams:
                    self.drop(stream)

    def _feed_from(self, iterators: Mapping[Key, Iterator[Any]], streams: dict[Key, PooledStream[F]]) -> None:
        """Pulls input until each stream with a row can run; removes those that have finished."""
        fed = 0
        for key, stream in list(streams.items()):
            if fed == self._rows:
                break  # a source begins when there is a row for it
            while not stream.runnable and not stream.finished:
                try:
                    stream.push(next(iterators[key]))
                except StopIteration:
                    stream.finish()
            if stream.finished:  # its source ended where a step had ended
                self.drop(stream)
                del streams[key]
            else:
                fed += 1

    def _require_no_others(self, own: Collection[PooledStream[F]]) -> None:
        others = [stream for stream in self._streams if stream not in own and not stream.finished]
        if others:
            raise StreamingError(
                f"the pool has {len(others)} other open streams, whose results would be lost; finish or drop"
                " them, or run in another pool"
            )

    def _choose(self, runnable: Sequence[PooledStream[F]]) -> list[PooledStream[F]]:
        """Returns who runs next: those with rows, unless others wait and their turn is over."""
        seated = [stream for stream in runnable if stream in self._batch]
        waiting = [stream for stream in runnable if stream not in self._batch]
        over = [stream for stream in seated if stream.steps >= TURN]
        leaving = over[: max(len(seated) + len(waiting) - self._rows, 0)]
        staying = [stream for stream in seated if stream not in leaving]
        return staying + waiting[: self._rows - len(staying)]

    def _seat(self, chosen: Sequence[PooledStream[F]]) -> StreamState:
        """Gives `chosen` the first rows of the state, moving as few rows as possible.

        Whatever fails, each started stream has its state: in its row, or saved.
        """
        if self._state is None:
            self._state = self._session.new_state(self._rows, *self._size)
        state, batch = self._state, self._batch
        for row, stream in enumerate(batch):
            if stream is not None and stream not in chosen:
                if stream in self._streams:
                    stream.saved = state.save_row(row)
                batch[row] = None
        joining = [stream for stream in chosen if stream not in batch]
        batch += [None] * (len(joining) - batch.count(None))
        free = [row for row, stream in enumerate(batch) if stream is None]
        for row, stream in zip(free, joining, strict=False):
            if stream.saved is not None:
                state.load_row(row, stream.saved)
            stream.saved, stream.steps, batch[row] = None, 0, stream
        while None in batch:
            row = batch.index(None)
            if row < len(batch) - 1 and batch[-1] is not None:
                state.copy_row(len(batch) - 1, row)
                batch[row] = batch[-1]
            batch.pop()
        return state
