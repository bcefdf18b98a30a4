"""Many streams in one session: rows of one batch that join and leave at any step (continuous
batching).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from wfvae.errors import StreamingError
from wfvae.runtime.backends.base import Array, StepSession, StreamState
from wfvae.runtime.feed import Feed
from wfvae.runtime.step import run_step

F = TypeVar("F", bound=Feed)


class PooledStream(Generic[F]):
    """One stream of a pool. Push to it and finish it as to a single stream; results come from
    `StreamPool.step`.
    """

    def __init__(self, feed: F) -> None:
        self.feed = feed

    def push(self, data: Any) -> None:
        """Queues input. Raises `InputError` naming what is wrong with it."""
        self.feed.push(data)

    def finish(self, frames: int | None = None) -> None:
        """Says that no more input comes. `frames` as in `Stream.finish`."""
        self.feed.close(frames)

    @property
    def runnable(self) -> bool:
        """Whether a step could advance this stream now."""
        return self.feed.ready > 0 or self.feed.draining

    @property
    def finished(self) -> bool:
        """Whether all of its results have been given out."""
        return self.feed.finished


class StreamPool(Generic[F]):
    """Advances unrelated streams of one size together. Not safe to use from several threads at
    once.

    Streams may be opened, finished and dropped between any two steps. A stream's results have the
    same bits as when it runs alone, on backends whose results do not depend on the batch (ONNX
    Runtime on the CPU in fp32).

    Each step runs the streams that have input, up to `rows` of them. While these stay the same,
    state is not copied; when one joins or leaves, the rows are regrouped once. So feed all streams
    at the same pace where speed matters.
    """

    def __init__(
        self, session: StepSession, height: int, width: int, rows: int, chunk: int, new_feed: Any
    ) -> None:
        if rows < 1:
            raise StreamingError(f"rows is {rows}; expected at least 1")
        self._session = session
        self._height, self._width = (-(-side // 8) * 8 for side in (height, width))
        self._rows, self._chunk = rows, chunk
        self._new_feed = new_feed
        self._streams: list[PooledStream[F]] = []
        self._group: list[PooledStream[F]] = []
        self._state: StreamState | None = None
        # States of started streams that are not in the current group, one row each.
        self._parked: dict[int, Mapping[str, Array]] = {}

    def __enter__(self) -> StreamPool[F]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drops all streams and their state."""
        self._streams, self._group, self._state = [], [], None
        self._parked.clear()

    def open(self, **options: Any) -> PooledStream[F]:
        """Adds a stream. A decoder pool takes `frames=T` and `pixels=` as `Bundle.decoder` does."""
        stream: PooledStream[F] = PooledStream(self._new_feed(**options))
        self._streams.append(stream)
        return stream

    def drop(self, stream: PooledStream[F]) -> None:
        """Removes a stream, finished or not."""
        if stream not in self._streams:
            raise StreamingError("the stream is not in this pool, or has been dropped or finished")
        self._streams.remove(stream)
        self._parked.pop(id(stream), None)

    def __len__(self) -> int:
        return len(self._streams)

    def step(self) -> dict[PooledStream[F], Array]:
        """Advances every stream that can be, up to `rows` of them, by the same number of latents.

        Returns the streams that ran with what became ready for each (possibly nothing yet), and
        forgets those that finished. An empty result means that no stream has input.
        """
        for stream in [
            stream for stream in self._streams if stream.finished
        ]:  # finished where a step had ended
            self.drop(stream)
        runnable = [stream for stream in self._streams if stream.runnable]
        if not runnable:
            return {}
        group = self._choose(runnable)
        state = self._regroup(group)
        counts = [stream.feed.ready for stream in group if not stream.feed.draining]
        outputs, _ = run_step(
            self._session,
            state,
            [stream.feed for stream in group],
            min([self._chunk, *counts]) if counts else 1,
        )
        # Next time others come first, if there are more streams than rows.
        ran = set(map(id, group))
        self._streams = [s for s in self._streams if id(s) not in ran] + [s for s in group if not s.finished]
        return dict(zip(group, outputs, strict=True))

    def run(self, sources: Mapping[Any, Iterable[Any]]) -> Iterator[tuple[Any, Array]]:
        """Streams several sources to their ends, pulling input as needed: yields (key, result) as
        results become ready.
        """
        iterators = {key: iter(source) for key, source in sources.items()}
        streams = {key: self.open() for key in sources}
        keys = {id(stream): key for key, stream in streams.items()}
        while streams:
            for key, stream in list(streams.items()):
                while not stream.runnable and not stream.finished:
                    try:
                        stream.push(next(iterators[key]))
                    except StopIteration:
                        stream.finish()
                if stream.finished:  # its source ended where a step had ended, too
                    self.drop(stream)
                    del streams[key]
            for stream, result in self.step().items():
                if len(result):
                    yield keys[id(stream)], result
                if stream.finished:
                    del streams[keys[id(stream)]]

    def _choose(self, runnable: list[PooledStream[F]]) -> list[PooledStream[F]]:
        """The present group if all of it can run and nobody waits for a row; else the first streams
        in turn.
        """
        if len(runnable) == len(self._group) and all(
            any(s is member for member in self._group) for s in runnable
        ):
            return self._group
        return runnable[: self._rows]

    def _regroup(self, group: list[PooledStream[F]]) -> StreamState:
        if (
            self._state is not None
            and len(group) == len(self._group)
            and all(a is b for a, b in zip(group, self._group, strict=True))
        ):
            return self._state
        if self._state is not None:
            tensors = self._state.read()
            alive = set(map(id, self._streams))
            for row, stream in enumerate(self._group):
                if id(stream) in alive:
                    self._parked[id(stream)] = {name: array[row : row + 1] for name, array in tensors.items()}
        state = self._session.new_state(len(group), self._height, self._width)
        fresh = state.read()
        rows = [self._parked.get(id(stream)) for stream in group]
        state.write(
            {
                name: np.concatenate(
                    [array[k : k + 1] if row is None else row[name] for k, row in enumerate(rows)]
                )
                for name, array in fresh.items()
            }
        )
        for stream in group:
            self._parked.pop(id(stream), None)
        self._group, self._state = group, state
        return state
