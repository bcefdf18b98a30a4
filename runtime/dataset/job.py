"""The whole job: find the videos, plan, encode what is missing, and write the index."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from wfvae.errors import DataError, InputError
from wfvae.machine import processor_count
from wfvae.runtime.dataset.batching import Progress
from wfvae.runtime.dataset.cluster import RayEngine
from wfvae.runtime.dataset.decoding import TIME_LIMIT
from wfvae.runtime.dataset.local import LocalEngine
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import (
    DEFAULT_PART_BYTES,
    FEWEST_PARTS,
    Part,
    PartSize,
    Probe,
    Unit,
    cut_parts,
    decode_parts,
    encode_parts,
    estimated_work,
    units_of,
)
from wfvae.runtime.dataset.shards import Failure, PartRecord, describe_latents
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.videos import PATH_COLUMN, Video, find_videos
from wfvae.runtime.dataset.worker import WORK, WorkerSetup, record_name
from wfvae.spec.frames import padded_size
from wfvae.spec.latent_shards import FORMAT, INDEX, TABLE, ShardEntry, encode_table
from wfvae.spec.manifest import Manifest
from wfvae.spec.records import Record

FAILURES = "failures.jsonl"
_SETTINGS, _PLAN, _UNREADABLE = f"{WORK}/settings.json", f"{WORK}/plan.jsonl", f"{WORK}/unreadable.jsonl"
DEFAULT_ROWS = 4

Stage = Callable[[str, int, int | None], None]
"""Called with what is being done, and how much of it is done and to do."""


class Engine(Protocol):
    """What runs workers."""

    def probe(self, videos: Sequence[Video]) -> Iterator[Probe]: ...
    def encode(self, parts: Iterable[Part], progress: Progress) -> Iterator[PartRecord]: ...


class Settings(Record, frozen=True):
    """What decides the content of the shards. A run with others does not continue this one."""

    bundle: str
    """Its identity."""
    source: str
    videos: int
    source_sha256: str
    """Of the names and columns of all videos."""
    options: ClipOptions
    shard_size: str


class Index(Record, frozen=True):
    """The file `index.json` of a finished data set."""

    format: Literal["wfvae-latent-shards/1"]
    settings: Settings
    latents: dict[str, Any]
    """Channels, kind, dtype, temporal ratio, scale and shift."""
    samples: int
    frames: int
    failures: int
    shards: tuple[ShardEntry, ...]
    table_sha256: str | None = None
    """Hash of the list of samples."""


@dataclass(frozen=True)
class DatasetReport:
    """What a job did."""

    source: str
    destination: str
    videos: int
    samples: int
    shards: int
    bytes: int
    frames: int
    """Video frames of all samples."""
    failures: tuple[Failure, ...]
    complete: bool
    """False where the job stopped because too many videos failed."""
    encoded_frames: int
    """Frames of this run."""
    seconds: float
    """Of this run."""
    engine_seconds: float
    """Time that this run's workers spent in the backend, summed."""

    @property
    def frames_per_second(self) -> float:
        """Throughput of this run."""
        return self.encoded_frames / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields and the throughput, for JSON."""
        failures = [failure.to_dict() for failure in self.failures]
        return {**asdict(self), "failures": failures, "frames_per_second": self.frames_per_second}


def ignore_stage(stage: str, done: int, total: int | None) -> None:
    """Shows nothing."""


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
    _check_options(manifest, options)
    videos = find_videos(str(source), path_column)
    settings = Settings(
        manifest.identity, str(source), len(videos), _hash_videos(videos), options, str(shard_size or "auto")
    )
    execution = dict(execution or {})
    if workers > 1 and not execution.get("threads"):
        execution["threads"] = max(1, processor_count() // workers)
    setup = WorkerSetup(str(bundle), execution, options, str(out), rows, time_limit)
    folder.prepare()
    with folder.held():
        if folder.exists(INDEX):
            return _finished(folder, settings, len(videos))
        _check_continuable(folder, settings)
        runner: Engine
        if engine == "ray":
            on_gpu = execution.get("backend") == "tensorrt" or execution.get("provider") == "cuda"
            runner = RayEngine(setup, workers, address, execution.get("threads") or 1, 1.0 if on_gpu else 0.0)
        else:
            runner = LocalEngine(setup, workers)
        size = _part_size(manifest, options, shard_size)
        parts, unreadable = _plan(folder, settings, videos, runner, manifest, size, progress)
        job = _Job(folder, settings, manifest, parts, unreadable, limit_failures, progress)
        records, encoded, complete = job.run(runner)
        if complete:
            job.finish(records)
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
        settings: Settings,
        manifest: Manifest,
        parts: list[Part],
        unreadable: tuple[Failure, ...],
        limit_failures: int | None,
        progress: Stage,
    ) -> None:
        self._folder, self._settings, self._manifest = folder, settings, manifest
        self._parts, self._unreadable = parts, unreadable
        self._limit = limit_failures
        self._progress = progress

    def run(self, engine: Engine) -> tuple[list[PartRecord], list[PartRecord], bool]:
        """Encodes the parts that are not finished.

        Returns the records of all finished parts, of those of this run, and whether none is left.
        """
        records = [record for part in self._parts if (record := self._finished(part)) is not None]
        finished = {record.part for record in records}
        # The longest first, so that none is left over at the end.
        remaining = sorted(
            (part for part in self._parts if part.number not in finished), key=lambda part: -part.work
        )
        total = sum(unit.frames for part in self._parts for unit in part.units)
        done = sum(record.frames for record in records)
        failed = len(self._unreadable) + sum(len(record.failures) for record in records)

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

    def _finished(self, part: Part) -> PartRecord | None:
        """Returns a part's record if its shard is there."""
        name = record_name(part.number)
        if not self._folder.exists(name):
            return None
        try:
            record = msgspec.json.decode(self._folder.read(name), type=PartRecord)
        except msgspec.MsgspecError:
            return None
        is_there = record.shard is None or self._folder.size(record.shard) == record.bytes
        return record if is_there else None

    def finish(self, records: Iterable[PartRecord]) -> None:
        """Checks that all shards are there, and writes the index.

        Raises `DataError` if one is missing or has another size.
        """
        records = sorted(records, key=lambda record: record.part)
        shards = []
        for record in records:
            if record.shard is None:
                continue
            size = self._folder.size(record.shard)
            if size != record.bytes:
                found = "missing" if size is None else f"{size} bytes long instead of {record.bytes}"
                problem = f"the shard '{record.shard}' in '{self._folder.url}' is {found}"
                raise DataError(f"{problem}; another program changed it, run the command again")
            shards.append(ShardEntry(record.shard, record.samples, record.bytes, record.sha256))
        table = encode_table(record.rows for record in records if record.shard is not None)
        self._folder.write(TABLE, table)
        failures = [*self._unreadable, *(failure for record in records for failure in record.failures)]
        lines = msgspec.json.Encoder().encode_lines(failures)
        self._folder.write(FAILURES, lines)
        index = Index(
            FORMAT,
            self._settings,
            describe_latents(self._manifest, self._settings.options),
            sum(record.samples for record in records),
            sum(record.frames for record in records),
            len(failures),
            tuple(shards),
            hashlib.sha256(table).hexdigest(),
        )
        self._folder.write(INDEX, msgspec.json.format(msgspec.json.encode(index), indent=2))
        self._folder.remove(WORK)


def _check_options(manifest: Manifest, options: ClipOptions) -> None:
    """Raises `InputError` if the bundle cannot make what is wanted."""
    if options.output == "moments" and manifest.latents != "moments":
        advice = "export another one with --output moments, or encode the mean"
        raise InputError(f"moments are wanted, but this bundle's encoder returns the mean; {advice}")
    fixed = manifest.size
    if fixed is not None and (options.size is None or padded_size(*options.size) != fixed):
        given = "the videos' sizes" if options.size is None else f"{options.size[0]}x{options.size[1]}"
        problem = f"this bundle was exported for {fixed[0]}x{fixed[1]} only, and {given} are to be encoded"
        raise InputError(f"{problem}; give --size {fixed[0]}x{fixed[1]}, or export another one")


def _hash_videos(videos: Iterable[Video]) -> str:
    digest = hashlib.sha256()
    for video in videos:
        digest.update(msgspec.json.encode(video, enc_hook=str))
    return digest.hexdigest()


def _differences(stored: Settings, given: Settings) -> str:
    """Names what differs, with both values."""
    before, now = stored.to_dict(), given.to_dict()
    before |= before.pop("options")
    now |= now.pop("options")
    names = {"source_sha256": "list of videos", "shard_size": "shard size"}
    return ", ".join(
        names.get(key, key) + ("" if key == "source_sha256" else f" ({before[key]} before, now {now[key]})")
        for key in now
        if before[key] != now[key]
    )


def _check_continuable(folder: ShardFolder, settings: Settings) -> None:
    """Raises `DataError` unless the folder is empty, or of an unfinished run of the same job."""
    if not folder.exists(_SETTINGS):
        strangers = [name for name in folder.names() if not name.startswith(".")]
        if strangers:
            problem = f"'{folder.url}' holds '{strangers[0]}', which is not of a data set of latents"
            raise DataError(f"{problem}; choose another folder")
        return
    stored = _read(folder, _SETTINGS, Settings)
    _check_same(folder, stored, settings)


def _check_same(folder: ShardFolder, stored: Settings, settings: Settings) -> None:
    if different := _differences(stored, settings):
        problem = f"'{folder.url}' was begun with other settings: {different}"
        raise DataError(f"{problem}; use the same ones, or another folder")


def _read(folder: ShardFolder, name: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(folder.read(name), type=kind)
    except msgspec.MsgspecError as error:
        raise DataError(f"'{name}' in '{folder.url}' is damaged: {error}; choose another folder") from error


def _finished(folder: ShardFolder, settings: Settings, videos: int) -> DatasetReport:
    """Returns the report of a complete data set. Raises `DataError` if it is another one."""
    index: Index = _read(folder, INDEX, Index)
    _check_same(folder, index.settings, settings)
    for shard in index.shards:
        if folder.size(shard.name) != shard.bytes:
            problem = (
                f"the shard '{shard.name}' of the finished data set '{folder.url}' is missing or changed"
            )
            raise DataError(f"{problem}; encode to another folder")
    lines = folder.read(FAILURES)
    failures: list[Failure] = msgspec.json.Decoder(Failure).decode_lines(lines)
    return DatasetReport(
        source=settings.source,
        destination=folder.url,
        videos=videos,
        samples=index.samples,
        shards=len(index.shards),
        bytes=sum(shard.bytes for shard in index.shards),
        frames=index.frames,
        failures=tuple(failures),
        complete=True,
        encoded_frames=0,
        seconds=0.0,
        engine_seconds=0.0,
    )


def parse_shard_size(text: str) -> int:
    """Parses bytes with K, M or G for powers of 1024.

    >>> parse_shard_size("256M")
    268435456
    """
    units = {"K": 10, "M": 20, "G": 30}
    number, unit = text[:-1], text[-1:].upper()
    if unit in units and number.isdecimal() and int(number):
        return int(number) << units[unit]
    raise InputError(f"the shard size is {text!r}; expected a number of samples, or bytes such as 256M")


def _part_size(manifest: Manifest, options: ClipOptions, shard_size: int | str | None) -> PartSize | None:
    """Returns the size of a part; None: by default."""
    if shard_size is None:
        return None
    if isinstance(shard_size, int):
        return PartSize(samples=shard_size)
    return PartSize(work=parse_shard_size(shard_size) // _latent_bytes(manifest, options))


def _latent_bytes(manifest: Manifest, options: ClipOptions) -> int:
    """Returns the bytes of one latent pixel."""
    latents = describe_latents(manifest, options)
    return int(latents["channels"]) * (2 if options.dtype == "fp16" else 4)


def _plan(
    folder: ShardFolder,
    settings: Settings,
    videos: Sequence[Video],
    engine: Engine,
    manifest: Manifest,
    size: PartSize | None,
    progress: Stage,
) -> tuple[list[Part], tuple[Failure, ...]]:
    """Returns the stored plan, or makes and stores one."""
    if folder.exists(_SETTINGS):
        try:
            unreadable = msgspec.json.Decoder(Failure).decode_lines(folder.read(_UNREADABLE))
            return decode_parts(folder.read(_PLAN)), tuple(unreadable)
        except msgspec.MsgspecError as error:
            problem = f"'{_PLAN}' in '{folder.url}' is damaged: {error}"
            raise DataError(f"{problem}; choose another folder") from error
    options, ratio = settings.options, manifest.graphs["encoder"].stream.ratio
    probes = []
    for probe in engine.probe(videos):
        probes.append(probe)
        progress("look at", len(probes), len(videos))
    if size is None:
        total = sum(estimated_work(probe, options, ratio) for probe in probes if not probe.failure)
        most = DEFAULT_PART_BYTES // _latent_bytes(manifest, options)
        size = PartSize(work=min(most, -(-total // FEWEST_PARTS)))
    failures = []
    units: list[Unit] = []
    for index, (video, probe) in enumerate(zip(videos, probes, strict=True)):
        if probe.failure is not None:
            failures.append(Failure(video.name, probe.failure))
        else:
            units += units_of(index, video, probe, options, ratio, size)
    parts = list(cut_parts(units, size))
    folder.write(_UNREADABLE, msgspec.json.Encoder().encode_lines(failures))
    folder.write(_PLAN, encode_parts(parts))
    # Last: a plan counts only if all of it is there.
    folder.write(_SETTINGS, msgspec.json.encode(settings))
    return parts, tuple(failures)
