"""The whole job: find the videos, plan, encode what is missing, and write the index."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

from wfvae.errors import DataError
from wfvae.machine import processor_count
from wfvae.runtime.dataset.batching import Progress
from wfvae.runtime.dataset.cluster import RayEngine
from wfvae.runtime.dataset.decoding import TIME_LIMIT
from wfvae.runtime.dataset.local import LocalEngine
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import Part, Probe
from wfvae.runtime.dataset.report import DatasetReport, Stage, ignore_stage, read_finished, write_index
from wfvae.runtime.dataset.settings import (
    Settings,
    check_continuable,
    check_options,
    hash_videos,
    part_size,
    read_record,
)
from wfvae.runtime.dataset.shards import PartRecord
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.stored_plan import stored_plan
from wfvae.runtime.dataset.videos import PATH_COLUMN, Video, escape_bytes, find_videos
from wfvae.runtime.dataset.worker import WorkerSetup, record_name
from wfvae.spec.latent_shards import INDEX
from wfvae.spec.manifest import Manifest

DEFAULT_ROWS = 4


class Engine(Protocol):
    """What runs workers."""

    def close(self) -> None: ...
    def probe(self, videos: Sequence[Video]) -> Iterator[Probe]: ...
    def encode(self, parts: Iterable[Part], progress: Progress) -> Iterator[PartRecord]: ...


def encode_dataset(
    bundle: str | Path,
    source: str,
    out: str | Path,
    options: ClipOptions | None = None,
    *,
    engine: Literal["local", "ray"] = "local",
    workers: int = 1,
    rows: int = DEFAULT_ROWS,
    shard_size: int | str | None = None,
    address: str | None = None,
    limit_failures: int | None = None,
    time_limit: float = TIME_LIMIT,
    path_column: str = PATH_COLUMN,
    execution: dict[str, Any] | None = None,
    progress: Stage = ignore_stage,
) -> DatasetReport:
    """Encodes a data set of videos to WebDataset shards of latents.

    An unfinished `out` is continued, and finished shards stay as they are. The latents have the
    bits that `Bundle.encode` gives, for any engine, number of workers and rows.

    Args:
        source: a folder, a glob, a table (`.csv`, `.jsonl`, `.parquet`) or `.tar` shards of videos.
        out: folder of the shards, local or a URL that fsspec knows.
        options: which frames and latents; by default whole videos, unscaled means in fp32.
        workers: processes or actors, each with a session of its own.
        rows: videos that a worker encodes at once.
        shard_size: samples (int), or bytes as text with K, M or G, such as `"256M"`. By default at
            most 256 MiB, and less where the data set would not give 16 shards.
        address: Ray's cluster.
        limit_failures: stop when more videos than this have failed.
        time_limit: seconds without a frame after which a video has failed.
        path_column: column of a table that holds the paths.
        execution: arguments of `open_bundle`; with several workers, `threads` is by default the
            share of each.

    Raises:
        DataError: the source is unusable, or `out` belongs to another job.
        BundleError: the bundle is missing, damaged, or cannot run here.
        ResourceError: the shards cannot be written.

    Example:
        >>> from fractions import Fraction
        >>> from wfvae import WFVAE
        >>> from wfvae.export.bundle import export_bundle
        >>> from wfvae.runtime.media.video_info import OutputVideo
        >>> from wfvae.runtime.media.video_writer import open_video_writer
        >>> from wfvae.video.synthetic.clips import ProceduralClip
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> Path("videos").mkdir()
        >>> with open_video_writer("videos/a.mp4", OutputVideo(32, 16, Fraction(25))) as writer:
        ...     writer.write(ProceduralClip(0, 16, 32, 9).frames(0, 9))
        >>> report = encode_dataset("bundle", "videos", "latents")
        >>> report.samples, report.frames, report.failures
        (1, 9, ())
    """
    began = time.perf_counter()
    options = options or ClipOptions()
    folder = ShardFolder(str(out))
    manifest = Manifest.read(Path(bundle))
    check_options(manifest, options)
    videos = find_videos(str(source), path_column)
    settings = Settings(
        manifest.identity,
        escape_bytes(str(source)),
        len(videos),
        hash_videos(videos),
        options,
        str(shard_size or "auto"),
    )
    execution = dict(execution or {})
    if workers > 1 and not execution.get("threads"):
        execution["threads"] = max(1, processor_count() // workers)
    setup = WorkerSetup(str(bundle), execution, options, str(out), rows, time_limit)
    folder.prepare()
    with folder.held():
        if folder.exists(INDEX):
            return read_finished(folder, settings, len(videos))
        check_continuable(folder, settings)
        runner: Engine
        if engine == "ray":
            on_gpu = execution.get("backend") == "tensorrt" or execution.get("provider") == "cuda"
            runner = RayEngine(setup, workers, address, execution.get("threads") or 1, 1.0 if on_gpu else 0.0)
        else:
            runner = LocalEngine(setup, workers)
        size = part_size(manifest, options, shard_size)
        with closing(runner):
            parts, unreadable = stored_plan(folder, settings, videos, runner.probe, manifest, size, progress)
            job = _Job(folder, parts, len(unreadable), limit_failures, progress)
            records, encoded, complete = job.run(runner)
        if complete:
            write_index(folder, settings, manifest, records, unreadable)
    failures = (*unreadable, *(failure for record in records for failure in record.failures))
    return DatasetReport(
        source=str(source),
        destination=str(out),
        videos=len(videos),
        samples=sum(record.samples for record in records),
        shards=sum(record.shard is not None for record in records),
        bytes=sum(record.bytes for record in records),
        frames=sum(record.frames for record in records),
        failures=failures,
        complete=complete,
        encoded_frames=sum(record.frames for record in encoded),
        seconds=time.perf_counter() - began,
        engine_seconds=sum(record.engine_seconds for record in encoded),
    )


class _Job:
    """The encoding of a plan's parts."""

    def __init__(
        self,
        folder: ShardFolder,
        parts: list[Part],
        unreadable: int,
        limit_failures: int | None,
        progress: Stage,
    ) -> None:
        self._folder, self._parts, self._unreadable = folder, parts, unreadable
        self._limit, self._progress = limit_failures, progress

    def run(self, engine: Engine) -> tuple[list[PartRecord], list[PartRecord], bool]:
        """Encodes the parts that are not finished.

        Returns the records of all finished parts, of those of this run, and whether none is left.
        """
        records = [
            record for part in self._parts if (record := read_finished_part(self._folder, part)) is not None
        ]
        finished = {record.part for record in records}
        # The longest first, so that none is left over at the end.
        remaining = sorted(
            (part for part in self._parts if part.number not in finished), key=lambda part: -part.work
        )
        total = sum(unit.frames for part in self._parts for unit in part.units)
        done = sum(record.frames for record in records)
        failed = self._unreadable + sum(len(record.failures) for record in records)

        def advance(frames: int) -> None:
            nonlocal done
            done += frames
            self._progress("encode", done, total)

        encoded: list[PartRecord] = []
        limit = math.inf if self._limit is None else self._limit
        if failed <= limit:
            for record in engine.encode(remaining, advance):
                encoded.append(record)
                failed += len(record.failures)
                if failed > limit:
                    break
        return records + encoded, encoded, failed <= limit


def read_finished_part(folder: ShardFolder, part: Part) -> PartRecord | None:
    """Returns a part's record if its shard is there."""
    name = record_name(part.number)
    if not folder.exists(name):
        return None
    try:
        record = read_record(folder, name, PartRecord)
    except DataError:
        return None
    is_there = record.shard is None or folder.size(record.shard) == record.bytes
    return record if is_there else None
