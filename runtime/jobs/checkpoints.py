"""Snapshots of a stream beside a job's output, from which an interrupted job resumes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from wfvae.errors import MediaError, StateError
from wfvae.files import Destination, discard, remove_leftovers
from wfvae.runtime.backends.base import Array
from wfvae.runtime.prefetch import BackgroundSink
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import Stream
from wfvae.spec.bounded import parse_object
from wfvae.spec.records import name_differences, read_as

CHECKPOINT_SECONDS = 30.0
"""Time between two snapshots of a stream."""
DEPTH = 2
"""Pieces that reading may be ahead of inference, and inference ahead of writing."""
START_OVER = "run it without --resume to start over"


_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Note(msgspec.Struct):
    """What a job saves with its stream."""

    settings: dict[str, str]
    """Everything that the result depends on besides bundle and source."""
    source: _Hash
    """Of what was consumed."""
    written: _Hash | None = None
    """Of what was written, unless that carries hashes of its own."""


class Checkpoints:
    """The snapshot file of one job.

    Args:
        output: what the job writes; the snapshot lies beside it.
        settings: what the result depends on besides bundle and source.
        seconds: time between two snapshots.
        reads_pipe: whether the source is a pipe, which cannot be read again.
    """

    def __init__(
        self, output: Destination, settings: Mapping[str, str], seconds: float, reads_pipe: bool = False
    ) -> None:
        self._record = output.part(".resume")
        self._settings = dict(settings)
        self._seconds, self._reads_pipe = seconds, reads_pipe
        self._last = time.perf_counter()

    def load(self) -> tuple[Snapshot, Note] | None:
        """Returns the snapshot of the interrupted job and its note, or None if there is none.

        Raises:
            StateError: the snapshot is damaged, or of a job with other settings.
            MediaError: the source is a pipe.
        """
        path = self._record.path
        if not path.exists():
            return None
        if self._reads_pipe:
            raise MediaError(
                "a job that reads a pipe cannot be resumed, since what was read is gone; give a file"
            )
        try:
            snapshot = Snapshot.read(path)
        except StateError as error:
            raise StateError(f"{path}: {error}, without --resume") from error

        def fail(problem: str) -> StateError:
            return StateError(f"{path} is of another version of wfvae ({problem}); {START_OVER}")

        note = read_as(Note, parse_object(snapshot.note, fail), fail)
        if different := name_differences(note.settings, self._settings):
            raise StateError(
                f"the interrupted job had other settings: {'; '.join(different)}; give the same, or"
                f" {START_OVER}"
            )
        return snapshot, note

    @property
    def due(self) -> bool:
        """Whether it is time for another snapshot."""
        return not self._reads_pipe and time.perf_counter() - self._last >= self._seconds

    def take(
        self,
        stream: Stream[Any],
        source: str,
        written: str | None = None,
        attached: Mapping[str, Array] | None = None,
    ) -> Snapshot:
        """Returns a snapshot of `stream`, to put into the sink with the last piece before it.

        source, written: as in `Note`.
        """
        self._last = time.perf_counter()
        note = msgspec.json.encode(Note(self._settings, source, written)).decode()
        return replace(stream.capture(), note=note, attached=attached or {})

    def restore(self, stream: Stream[Any], snapshot: Snapshot) -> None:
        """Restores `stream`. Raises `StateError` if the snapshot is of another stream."""
        try:
            stream.restore(snapshot)
        except StateError as error:
            raise StateError(f"the interrupted job was another one: {error}; {START_OVER}") from error

    def sink(self, write: Callable[[Any], object]) -> BackgroundSink[tuple[Array, Snapshot | None]]:
        """Opens a sink that writes pieces of output, each with the snapshot after it or None."""

        def write_item(item: tuple[Array, Snapshot | None]) -> None:
            part, snapshot = item
            if len(part):
                write(part)
            if snapshot is not None:
                snapshot.write(self._record)

        return BackgroundSink(write_item, DEPTH)

    def forget(self) -> None:
        """Removes the snapshot, and one that a killed run was writing."""
        discard(self._record.path)
        remove_leftovers(self._record)
