"""A worker: encodes one part after another, and writes their shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from wfvae.machine import processor_count
from wfvae.runtime.bundle import Bundle, open_bundle
from wfvae.runtime.closing import Closing
from wfvae.runtime.dataset.batching import Progress, SizeBatch
from wfvae.runtime.dataset.children import ForkServer
from wfvae.runtime.dataset.decoding import DecoderFailure, DecoderProcess
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import Part, Probe, Unit
from wfvae.runtime.dataset.shards import Failure, PartRecord, Sample, write_shard
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.videos import Video
from wfvae.spec.latent_shards import SampleRow

WORK = ".work"
"""Folder of what an unfinished data set needs besides its shards."""


def record_name(part: int) -> str:
    """Returns the name of the file that says what became of a part."""
    return f"{WORK}/part-{part:06d}.json"


def shard_name(part: int) -> str:
    """Returns the name of a part's shard."""
    return f"latents-{part:06d}.tar"


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker of a job is made from, on any machine."""

    bundle: str
    """Its folder, which all machines of a cluster have to reach under this path."""
    execution: dict[str, Any]
    """Arguments of `open_bundle`."""
    options: ClipOptions
    folder: str
    rows: int
    time_limit: float

    def open(self, forks: ForkServer) -> PartWorker:
        """Opens the bundle, and returns a worker. Raises as `open_bundle` does."""
        bundle = open_bundle(self.bundle, **self.execution)
        decoders = [DecoderProcess(forks, self.time_limit) for _ in range(self.rows + 1)]
        threads = self.execution.get("threads") or processor_count()
        share = min(1.0, threads / processor_count())
        return PartWorker(
            bundle, self.options, ShardFolder(self.folder), decoders, rows=self.rows, share=share
        )


def ignore_progress(frames: int) -> None:
    """Shows nothing."""


class PartWorker(Closing):
    """Holds a bundle's session and decoder processes, and encodes parts with them."""

    def __init__(
        self,
        bundle: Bundle,
        options: ClipOptions,
        folder: ShardFolder,
        decoders: Sequence[DecoderProcess],
        *,
        rows: int,
        share: float,
    ) -> None:
        self._bundle, self._options, self._folder = bundle, options, folder
        self._rows, self._share = rows, share
        self._decoders = list(decoders)

    def close(self) -> None:
        """Ends the decoder processes, and releases the bundle's sessions."""
        for decoder in self._decoders:
            decoder.close()
        self._bundle.close()

    def encode(self, part: Part, progress: Progress = ignore_progress) -> PartRecord:
        """Encodes a part, and writes its shard, then its record.

        Raises `ResourceError` if the shard cannot be written, or a step needs too much memory.
        """
        began = time.perf_counter()
        samples: list[Sample] = []
        failures: list[Failure] = []
        engine_seconds = 0.0
        name, count, digest = None, 0, ""
        rows: tuple[SampleRow, ...] = ()
        with ExitStack() as files:
            for _, units in groupby(sorted(part.units, key=_size), key=_size):
                batch = SizeBatch(self._bundle, self._options, self._decoders, progress, files)
                batch.encode(list(units), self._rows, self._share)
                samples += batch.samples
                failures += batch.failures
                engine_seconds += batch.engine_seconds
            if samples:
                name = shard_name(part.number)
                with self._folder.writing(name) as file:
                    rows = write_shard(file, samples)
                count, digest = file.count, file.sha256
        record = PartRecord(
            part=part.number,
            shard=name,
            samples=len(samples),
            bytes=count,
            sha256=digest,
            frames=sum(sample.frames for sample in samples),
            failures=tuple(sorted(failures, key=lambda failure: failure.source)),
            rows=rows,
            seconds=time.perf_counter() - began,
            engine_seconds=engine_seconds,
        )
        self._folder.write(record_name(part.number), msgspec.json.encode(record))
        return record


def _size(unit: Unit) -> tuple[int, int]:
    return unit.height, unit.width


class Prober(Closing):
    """Reads the facts of videos in a decoder process."""

    def __init__(self, forks: ForkServer, options: ClipOptions, time_limit: float) -> None:
        # A video is cut by its frames; as a whole it needs no count.
        self._count = options.frames is not None and options.window_limit != 1
        self._decoder = DecoderProcess(forks, time_limit)

    def probe(self, video: Video) -> Probe:
        """Returns the facts of a video, or the reason why it cannot be read."""
        if video.problem is not None:
            return Probe(failure=video.problem)
        for _ in range(2):
            try:
                return self._decoder.probe(video, self._count)
            except DecoderFailure as error:
                failure = Probe(failure=str(error))
                if not error.may_pass:
                    break
        return failure

    def close(self) -> None:
        """Ends the decoder process."""
        self._decoder.close()
