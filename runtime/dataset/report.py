"""The index of a finished data set, and what a job reports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

from wfvae.errors import DataError
from wfvae.runtime.dataset.settings import Settings, check_same, read_record, read_records
from wfvae.runtime.dataset.shards import Failure, PartRecord, describe_latents
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.worker import WORK
from wfvae.spec.latent_shards import FORMAT, INDEX, TABLE, ShardEntry, encode_table
from wfvae.spec.manifest import Manifest
from wfvae.spec.records import Record

FAILURES = "failures.jsonl"
Stage = Callable[[str, int, int | None], None]
"""Called with what is being done, and how much of it is done and to do."""


def ignore_stage(stage: str, done: int, total: int | None) -> None:
    """Shows nothing."""


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


def write_index(
    folder: ShardFolder,
    settings: Settings,
    manifest: Manifest,
    records: Iterable[PartRecord],
    unreadable: Sequence[Failure],
) -> None:
    """Checks that all shards are there, and writes the index.

    Raises `DataError` if one is missing or has another size.
    """
    records = sorted(records, key=lambda record: record.part)
    shards = []
    for record in records:
        if record.shard is None:
            continue
        size = folder.size(record.shard)
        if size != record.bytes:
            found = "missing" if size is None else f"{size} bytes long instead of {record.bytes}"
            problem = f"the shard '{record.shard}' in '{folder.url}' is {found}"
            raise DataError(f"{problem}; another program changed it, run the command again")
        shards.append(ShardEntry(record.shard, record.samples, record.bytes, record.sha256))
    table = encode_table(record.rows for record in records if record.shard is not None)
    folder.write(TABLE, table)
    failures = [*unreadable, *(failure for record in records for failure in record.failures)]
    lines = msgspec.json.Encoder().encode_lines(failures)
    folder.write(FAILURES, lines)
    index = Index(
        FORMAT,
        settings,
        describe_latents(manifest, settings.options),
        sum(record.samples for record in records),
        sum(record.frames for record in records),
        len(failures),
        tuple(shards),
        hashlib.sha256(table).hexdigest(),
    )
    folder.write(INDEX, msgspec.json.format(msgspec.json.encode(index), indent=2))
    folder.remove(WORK)


def read_finished(folder: ShardFolder, settings: Settings, videos: int) -> DatasetReport:
    """Returns the report of a complete data set. Raises `DataError` if it is another one."""
    index = read_record(folder, INDEX, Index)
    check_same(folder, index.settings, settings)
    for shard in index.shards:
        if folder.size(shard.name) != shard.bytes:
            problem = (
                f"the shard '{shard.name}' of the finished data set '{folder.url}' is missing or changed"
            )
            raise DataError(f"{problem}; encode to another folder")
    failures = read_records(folder, FAILURES, Failure)
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
