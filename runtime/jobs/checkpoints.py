"""Snapshots of a stream beside a job's output, from which an interrupted job resumes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wfvae.errors import MediaError, StateError
from wfvae.files import remove_leftovers
from wfvae.runtime.backends.base import Array
from wfvae.runtime.prefetch import BackgroundSink
from wfvae.runtime.snapshot import Snapshot
from wfvae.runtime.stream import Stream

CHECKPOINT_SECONDS = 30.0
"""Time between two snapshots of a stream."""
DEPTH = 2
"""Pieces that reading may be ahead of inference, and inference ahead of writing."""
FROM_PIPE = "pipe"
"""In place of a pipe's fingerprint."""


class Checkpoints:
    """The snapshot file of one job.

    Args:
        output: what the job writes; the snapshot lies beside it.
        fingerprint: identifies the job's source and settings.
        seconds: time between two snapshots.
    """

    def __init__(self, output: Path, fingerprint: str, seconds: float) -> None:
        self._record = output.with_name(output.name + ".resume")
        self.fingerprint = fingerprint
        self._seconds = seconds
        self._last = time.perf_counter()

    def load(self, source: str | Path) -> Snapshot | None:
        """Returns the snapshot of the interrupted job, or None if there is none.

        Raises:
            StateError: the snapshot is damaged, or of another source or other settings.
            MediaError: the source is a pipe.
        """
        if not self._record.exists():
            return None
        if self.fingerprint == FROM_PIPE:
            raise MediaError(
                "a job that reads a pipe cannot be resumed, since what was read is gone; give a file"
            )
        try:
            snapshot = Snapshot.read(self._record)
        except StateError as error:
            raise StateError(f"{self._record}: {error}, without --resume") from error
        if snapshot.note != self.fingerprint:
            raise StateError(
                f"the interrupted job was about another source or other settings than {source}; run it"
                " without --resume to start over"
            )
        return snapshot

    @property
    def due(self) -> bool:
        """Whether it is time for another snapshot."""
        return self.fingerprint != FROM_PIPE and time.perf_counter() - self._last >= self._seconds

    def take(self, stream: Stream[Any], attached: Mapping[str, Array] | None = None) -> Snapshot:
        """Returns a snapshot of `stream`, to put into the sink with the last piece before it."""
        self._last = time.perf_counter()
        return replace(stream.capture(), note=self.fingerprint, attached=attached or {})

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
        self._record.unlink(missing_ok=True)
        remove_leftovers(self._record)
