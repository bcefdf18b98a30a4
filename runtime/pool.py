"""Many streams in one session: rows of one batch that join and leave at any step (continuous
batching).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from wfvae.errors import StreamingError
from wfvae.runtime.backends.base import Array, StepSession, StreamState
from wfvae.runtime.closing import Closing
from wfvae.runtime.feed import Feed, run_step
from wfvae.spec.frames import padded_size

F = TypeVar("F", bound=Feed)
Key = TypeVar("Key")


@dataclass(eq=False)
class PooledStream(Generic[F]):
    """One stream of a pool. Its results come from `StreamPool.step`."""

    feed: F
    parked: Mapping[str, Array] | None = None
    """State of a started stream that is not in the current batch, one row."""

    def push(self, data: Any) -> None:
        """Queues input. Raises `InputError` if it is wrong."""
        self.feed.push(data)

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


class StreamPool(Closing, Generic[F]):
    """Advances unrelated streams of one size together. Not safe to use from several threads at
    once.

    Streams may be opened, finished and dropped between any two steps. A stream's results have the
    same bits as when it runs alone, on backends whose results do not depend on the batch (ONNX
    Runtime on the CPU in fp32).

    Each step runs up to `rows` of the streams that have input. While these stay the same, state is
    not copied; when one joins or leaves, all rows are copied once. So feed all streams at the same
    pace where speed matters.
    """

    def __init__(
        self, session: StepSession, size: tuple[int, int], rows: int, chunk: int, new_feed: Callable[..., F]
    ) -> None:
        if rows < 1:
            raise StreamingError(f"rows is {rows}; expected at least 1")
        self._session = session
        self._size = padded_size(*size)
        self._rows, self._chunk = rows, chunk
        self._new_feed = new_feed
        self._streams: list[PooledStream[F]] = []
        self._batch: list[PooledStream[F]] = []
        """The streams in the rows of `_state`."""
        self._state: StreamState | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def close(self) -> None:
        """Drops all streams and their state."""
        self._streams, self._batch, self._state = [], [], None

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
        stream.parked = None

    def step(self) -> dict[PooledStream[F], Array]:
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
        batch = self._batch if set(runnable) == set(self._batch) else runnable[: self._rows]
        state = self._state_of(batch)
        feeds = [stream.feed for stream in batch]
        ready = [feed.ready for feed in feeds if not feed.draining]
        outputs, _ = run_step(self._session, state, feeds, min([self._chunk, *ready]) if ready else 1)
        # If there are more streams than rows, others come first in the next step.
        others = [stream for stream in self._streams if stream not in batch]
        self._streams = others + [stream for stream in batch if not stream.finished]
        return dict(zip(batch, outputs, strict=True))

    def run(self, sources: Mapping[Key, Iterable[Any]]) -> Iterator[tuple[Key, Array]]:
        """Streams several sources to their ends, pulling input as needed.

        Yields:
            (key, result) as results become ready.

        Example:
            >>> from pathlib import Path
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
        streams = {key: self.open() for key in sources}
        keys = {stream: key for key, stream in streams.items()}
        while streams:
            for key, stream in list(streams.items()):
                while not stream.runnable and not stream.finished:
                    try:
                        stream.push(next(iterators[key]))
                    except StopIteration:
                        stream.finish()
                if stream.finished:  # its source ended where a step had ended
                    self.drop(stream)
                    del streams[key]
            for stream, result in self.step().items():
                if len(result):
                    yield keys[stream], result
                if stream.finished:
                    del streams[keys[stream]]

    def _state_of(self, batch: list[PooledStream[F]]) -> StreamState:
        """Returns the state of `batch`, one row each; copies rows only if they change."""
        if self._state is not None:
            if batch == self._batch:
                return self._state
            tensors = self._state.read()
            for row, stream in enumerate(self._batch):
                if stream in self._streams:
                    stream.parked = {name: array[row : row + 1] for name, array in tensors.items()}
        state = self._session.new_state(len(batch), *self._size)
        rows = [stream.parked for stream in batch]
        state.write(
            {
                name: np.concatenate([row[name] if row else new[k : k + 1] for k, row in enumerate(rows)])
                for name, new in state.read().items()
            }
        )
        for stream in batch:
            stream.parked = None
        self._batch, self._state = batch, state
        return state
