"""One stream: push any amount of input, get what is ready, finish. See `docs/streaming.md`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from wfvae.errors import StreamingError
from wfvae.runtime.backends.base import StepSession, StreamState
from wfvae.runtime.closing import Closing
from wfvae.runtime.exclusive import Exclusive, exclusive, new_user
from wfvae.runtime.feed import READY, Feed, Result, host_copy, run_step
from wfvae.runtime.feeds import DecoderFeed, EncoderFeed
from wfvae.runtime.snapshot import Snapshot
from wfvae.spec.frames import padded_size
from wfvae.spec.stream import StreamSpec

F = TypeVar("F", bound=Feed)


class Stream(Exclusive, Closing, Generic[F]):
    """A running stream. A context manager, for one thread at a time: a call from another one
    meanwhile raises `StreamingError`, and changes nothing.

    The state stays on the backend's device for the stream's life, and its size does not depend on
    the stream's length.
    """

    def __init__(self, session: StepSession, feed: F, chunk: int, bundle: str) -> None:
        self.user = new_user()
        self.session = session
        """What runs the steps, shared with other streams."""
        self.engine_seconds = 0.0
        """Seconds spent in the backend so far."""
        self._feed = feed
        self._chunk = chunk
        self._bundle = bundle
        self._state: StreamState | None = session.new_state(1, *padded_size(feed.height, feed.width))
        # Results of a call that failed at a later step; the next call returns them.
        self._ready: list[Result] = []

    def close(self) -> None:
        """Releases the state. Closing twice is allowed."""
        self._state = None

    @property
    def spec(self) -> StreamSpec:
        """The rules and state tensors of this stream."""
        return self.session.graph.stream

    @property
    def finished(self) -> bool:
        """Whether the input has ended and all results have been computed."""
        return self._feed.finished

    @exclusive
    def push(self, data: Any) -> Any:
        """Takes any amount of input and returns what has become ready, which may be nothing.

        Args:
            data: an encoder takes frames (T, H, W, 3), uint8 or floating point in [-1, 1]. A
                decoder takes unscaled latents (t, D, h, w). Any library's array with `__dlpack__`,
                in host memory or on the backend's device, or numbers in lists.

        Returns:
            An encoder's latents (t, D, h, w) float32, a decoder's frames: a numpy array, or with
            `output="device"` on a GPU a `DeviceArray` there. It belongs to the caller.

        Raises:
            InputError: `data` is wrong; the stream is unchanged.
            StreamingError: the stream is finished or closed, or another thread uses it.
            ResourceError: a step failed. `data` is queued and nothing is lost: to continue, push no
                frames (an array of length 0).
        """
        self.queue(data)
        return self._collect()

    @exclusive
    def run(self, data: Any) -> Any:
        """Takes all input at once, finishes, and returns all results in one array."""
        self.queue(data)
        return self.finish()

    @exclusive
    def queue(self, data: Any) -> None:
        """Queues input without running a step; the next `push` or `finish` runs it.

        Queue a decoder's last latent if it may hold more frames than the video has, and then call
        `finish(frames)`. Raises as `push` does.
        """
        self._require_open()
        self._feed.push(data)

    @exclusive
    def finish(self, frames: int | None = None) -> Any:
        """Ends the stream and returns the rest.

        Args:
            frames: a decoder's true number of video frames, if it is not 1 + r n and was not stated
                on opening.

        Raises as `push` does; after a failed step, call it again.
        """
        self._require_open()
        interrupted = self._feed.closed and (self._ready or self._feed.ready or self._feed.draining)
        if not interrupted:
            self._end(frames)
        return self._collect()

    def iterate(self, chunks: Iterable[Any], frames: int | None = None) -> Iterator[Any]:
        """Pulls chunks of input as results are asked for, then finishes with `frames`."""
        for chunk in chunks:
            self.queue(chunk)
            yield from self._advance()
        self._end(frames)
        yield from self._advance()

    def snapshot(self) -> bytes:
        """Returns the stream's state as safetensors, to restore this or another stream from."""
        return self.capture().to_bytes()

    def save(self, path: str | Path) -> None:
        """Writes a snapshot to a file, atomically."""
        self.capture().write(path)

    @exclusive
    def capture(self) -> Snapshot:
        """Returns a snapshot as arrays."""
        state, feed = self._require_open(), self._feed
        pending = feed.arrays()
        if self._ready:
            ready = feed.join(self._ready)
            pending[READY] = host_copy(ready, feed.memory)
        return Snapshot(
            self._bundle, self.spec.direction, feed.height, feed.width, feed.counters(), state.read(), pending
        )

    @exclusive
    def restore(self, snapshot: bytes | Snapshot) -> None:
        """Restores the stream from a snapshot.

        Raises:
            StateError: the snapshot is damaged, of another bundle, direction or size, or no stream
                can be in such a state; the stream is unchanged.
        """
        snapshot = snapshot if isinstance(snapshot, Snapshot) else Snapshot.from_bytes(snapshot)
        state, feed = self._require_open(), self._feed
        self.require(snapshot)
        state.write(snapshot.state)
        feed.restore(snapshot.counters, snapshot.pending)
        self._ready = [np.array(snapshot.pending[READY])] if READY in snapshot.pending else []

    def require(self, snapshot: Snapshot) -> None:
        """Raises `StateError` unless the stream can be restored from the snapshot."""
        state, feed = self._require_open(), self._feed
        snapshot.require(self._bundle, self.spec.direction, feed.height, feed.width, feed.counters())
        feed.check(snapshot.counters, snapshot.pending)
        # No state is uint16 but for the bits of bfloat16.
        types = {
            name: str(array.dtype).replace("uint16", "bfloat16") for name, array in snapshot.state.items()
        }
        given = {name: (array.shape, types[name]) for name, array in snapshot.state.items()}
        self.spec.check(given, 1, state.height, state.width)

    def _require_open(self) -> StreamState:
        if self._state is None:
            raise StreamingError("the stream is closed; open another one")
        return self._state

    @exclusive
    def _end(self, frames: int | None) -> None:
        self._require_open()
        self._feed.close(frames)

    def _advance(self) -> Iterator[Result]:
        """Runs steps of at most `chunk` latents while input is ready."""
        while (result := self._step()) is not None:
            yield result

    @exclusive
    def _step(self) -> Result | None:
        """Runs a step; returns None if no input is ready."""
        state, feed = self._require_open(), self._feed
        if not (feed.ready or feed.draining):
            return None
        latents = min(feed.ready, self._chunk) or 1
        (result,), seconds = run_step(self.session, state, [feed], latents)
        self.engine_seconds += seconds
        return result

    def _collect(self) -> Result:
        """Runs all steps that can run, and returns all that is ready in one array."""
        for part in self._advance():
            if len(part):
                self._ready.append(part)
        result = self._feed.join(self._ready)
        self._ready = []
        return result


class EncoderStream(Stream[EncoderFeed]):
    """Video in, latents out.

    Example:
        >>> from wfvae import WFVAE, open_bundle
        >>> from wfvae.export.bundle import export_bundle
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> bundle, frames = open_bundle("bundle"), np.zeros((9, 16, 16, 3), np.uint8)
        >>> with bundle.encoder(height=16, width=16) as stream:
        ...     first = stream.push(frames[:7])  # 2 latents; 2 frames wait for 2 more
        ...     saved = stream.snapshot()
        >>> with bundle.restore(saved) as stream:
        ...     rest = [stream.push(frames[7:]), stream.finish()]
        >>> len(first), bool(np.all(np.concatenate([first, *rest]) == bundle.encode(frames)))
        (2, True)
    """

    @property
    def frames_seen(self) -> int:
        """Video frames pushed so far."""
        return self._feed.frames_seen

    @property
    def latents_given(self) -> int:
        """Latents returned so far."""
        return self._feed.latents_given


class DecoderStream(Stream[DecoderFeed]):
    """Latents in, video out."""

    @property
    def latents_seen(self) -> int:
        """Latents pushed so far."""
        return self._feed.latents_seen

    @property
    def frames_given(self) -> int:
        """Video frames returned so far."""
        return self._feed.frames_given

    @property
    def channels(self) -> int:
        """Channels D of a latent. An encoder of moments returns 2 D, the first D of them means."""
        return self._feed.channels
