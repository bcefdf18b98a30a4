"""Reading shards of latents: their index, and the samples in them.

The format is specified in `docs/datasets.md`. A shard is read by byte ranges, so that samples can
be taken in any order from a local file or an object store.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, BinaryIO, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError
from wfvae.spec.bounded import JSON_BYTES, LARGEST_INTEGER, Fail, parse_object
from wfvae.spec.latents import DTYPES, Factors, Frames, Latents, Side
from wfvae.spec.locations import open_filesystem, open_located, read_located
from wfvae.spec.memory import require_memory
from wfvae.spec.npy_header import HEADER_BYTES, parse_header
from wfvae.spec.records import Record, read_as
from wfvae.spec.tar_members import Member, read_member, read_members

FORMAT: Final = "wfvae-latent-shards/1"
INDEX: Final = "index.json"
TABLE: Final = "samples.npy"
"""List of all samples: an int64 array, each row the shard's number and a `SampleRow`."""
SampleRow = tuple[int, int, int, int, int, int]
"""Where a sample lies in its shard: its first byte, the one behind its last, and t, D, h, w."""
T = TypeVar("T")
_AT_ONCE = 16
"""Shards that are listed at the same time: an object store answers slowly, but many at once."""
_INDEX_BYTES = 1 << 26
_TABLE_ROW = 7
_HASHED_BYTES = 1 << 22
_SHORT_HEADER = 512
"""Enough for the header of latents, and little of what follows."""
_KEY = re.compile(r"[^/\\.\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}")
"""A sample's name, which names its file when it is unpacked."""
ShardName = Annotated[str, msgspec.Meta(pattern=r"\A[^/\\]+\.tar\Z", max_length=255)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INTEGER)]


class ShardEntry(Record, frozen=True):
    """A shard in the index."""

    name: ShardName
    samples: Count
    bytes: Count
    sha256: str


class ShardIndex(msgspec.Struct, frozen=True):
    """What a reader needs of `index.json`; other keys are ignored."""

    format: Literal["wfvae-latent-shards/1"]
    samples: Count
    shards: tuple[ShardEntry, ...]
    table_sha256: str | None = None
    """Of the list of samples; None if there is none."""


class SampleLatents(msgspec.Struct, frozen=True):
    """What a sample's `latents` says of them."""

    kind: Literal["mean", "moments"]
    channels: int
    temporal_ratio: Literal[4, 8]
    scale: Factors = ()
    shift: Factors = ()
    bundle: str = ""
    model: str = ""


class SampleInfo(msgspec.Struct, frozen=True):
    """The `.json` member of a sample; other keys are ignored."""

    source: str
    fps: str
    frames: Frames
    height: Side
    width: Side
    latents: SampleLatents
    columns: dict[str, Any] = {}


@dataclass(frozen=True)
class ShardSample:
    """One sample."""

    key: str
    info: SampleInfo
    about: dict[str, Any]
    """All keys of the `.json` member."""
    latents: Latents
    """(t, D, h, w), float32 or float16, unscaled."""


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Where samples lie, in the order of the index; one row each."""

    shard: npt.NDArray[np.int64]
    """The shard's number in the index."""
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    """Its bytes in the shard."""
    shapes: npt.NDArray[np.int64]
    """(n, 4): t, D, h, w."""

    @classmethod
    def of(cls, rows: npt.NDArray[np.int64]) -> SampleTable:
        """Takes the rows of the list of samples, (n, 7)."""
        return cls(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:])

    def __len__(self) -> int:
        return len(self.shard)


def encode_table(shards: Iterable[Sequence[SampleRow]]) -> bytes:
    """Returns the content of the list of samples, from the rows of each shard."""
    file = io.BytesIO()
    np.save(file, _rows(shards))
    return file.getvalue()


def _rows(shards: Iterable[Sequence[SampleRow]]) -> npt.NDArray[np.int64]:
    rows = [(number, *row) for number, found in enumerate(shards) for row in found]
    return np.array(rows, np.int64).reshape(-1, 7)


class LatentShardSet:
    """A finished data set of latents, opened for reading.

    Args:
        url: the folder that `wfvae encode-dataset` or `wfvae pack` wrote; a path, or a URL that
            fsspec knows.
        verify: compare the SHA-256 of every shard, which reads all of it.

    Raises:
        DataError: it has no index, or a shard is missing or changed.
    """

    def __init__(self, url: str, *, verify: bool = False) -> None:
        self.url = url
        content = self._read_index()
        self.identity = hashlib.sha256(content).hexdigest()
        """Hash of the index, which states that of every shard."""
        values = parse_object(content, self._fail_index)
        self.index = read_as(ShardIndex, values, self._fail_index)
        self._each(self._check_hash if verify else self._check_size)

    def table(self) -> SampleTable:
        """Reads the list of samples, or makes it from the headers in all shards if there is none.

        Raises:
            DataError: it or a shard cannot be read, or is not what the index describes.
        """
        if self.index.table_sha256 is None:
            return SampleTable.of(_rows(self._each(self._list)))
        filesystem, path = self._file(TABLE)
        shards, count = len(self.index.shards), self.index.samples
        most = HEADER_BYTES + count * _TABLE_ROW * np.dtype(np.int64).itemsize
        content = read_located(filesystem, path, self._fail_table, most)
        if hashlib.sha256(content).hexdigest() != self.index.table_sha256:
            raise self._fail_table("it has another SHA-256 than the index states")
        shape, dtype, start = parse_header(content[:HEADER_BYTES], len(content), self._fail_table)
        if dtype != np.int64 or shape != (count, _TABLE_ROW):
            raise self._fail_table(f"it does not list {count} samples of {shards} shards")
        rows = np.frombuffer(content, dtype, count * _TABLE_ROW, start).reshape(shape)
        sizes = np.array([entry.bytes for entry in self.index.shards], np.int64)
        known = (rows[:, 0] >= 0) & (rows[:, 0] < shards)
        if not known.all() or not _lie_inside(rows, sizes[rows[:, 0]]).all():
            raise self._fail_table(f"it does not list {count} samples of {shards} shards")
        return SampleTable.of(rows)

    def read(self, table: SampleTable, rows: Iterable[int]) -> list[ShardSample]:
        """Reads samples of the table, at once where the file system can.

        Raises:
            DataError: one cannot be read, or is not what the table describes.
            ResourceError: the machine has not so much memory.
        """
        rows = list(rows)
        entries = [self.index.shards[table.shard[row]] for row in rows]
        filesystem, root = self._file("")
        starts, stops = (getattr(table, name)[rows].tolist() for name in ("start", "stop"))
        paths = [root + entry.name for entry in entries]
        size = sum(stop - start for start, stop in zip(starts, stops, strict=True))
        require_memory(2 * size, f"{len(rows)} samples of '{self.url}'", "read fewer at once")
        found = filesystem.cat_ranges(paths, starts, stops, on_error="return")
        samples = []
        for row, entry, data in zip(rows, entries, found, strict=True):
            if isinstance(data, Exception):
                raise self._fail(entry, f"cannot be read: {data}") from data
            parsed = self._parse(entry, io.BytesIO(data))
            if [sample.latents.shape for sample in parsed] != [tuple(table.shapes[row])]:
                problem = f"has no sample of the expected shape at byte {table.start[row]}"
                raise self._fail(entry, problem)
            samples += parsed
        return samples

    def __iter__(self) -> Iterator[ShardSample]:
        """Reads all samples, shard by shard.

        Raises as `read` does.
        """
        table = self.table()
        for row in range(len(table)):
            yield from self.read(table, [row])

    def _file(self, name: str) -> tuple[Any, str]:
        filesystem, root = open_filesystem(self.url)
        return filesystem, f"{root.rstrip('/')}/{name}"

    def _read_index(self) -> bytes:
        filesystem, path = self._file(INDEX)

        def fail(problem: str) -> DataError:
            advice = "give the folder of a data set of latents; an unfinished one is continued by its command"
            return DataError(f"no {INDEX} can be read in '{self.url}' ({problem}); {advice}")

        return read_located(filesystem, path, fail, _INDEX_BYTES)

    def _each(self, do: Callable[[ShardEntry], T]) -> list[T]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(do, self.index.shards))

    def _open(self, entry: ShardEntry, **options: Any) -> BinaryIO:
        filesystem, path = self._file(entry.name)
        return open_located(filesystem, path, self._unreadable(entry), **options)

    def _check_size(self, entry: ShardEntry) -> None:
        with self._open(entry) as file:
            size = file.seek(0, os.SEEK_END)
        if size != entry.bytes:
            raise self._fail(entry, f"has {size} bytes instead of {entry.bytes}")

    def _check_hash(self, entry: ShardEntry) -> None:
        self._check_size(entry)
        digest = hashlib.sha256()
        with self._open(entry) as file:
            while piece := file.read(_HASHED_BYTES):
                digest.update(piece)
        if digest.hexdigest() != entry.sha256:
            raise self._fail(entry, "has another SHA-256 than the index states")

    def _list(self, entry: ShardEntry) -> list[SampleRow]:
        rows: list[SampleRow] = []
        fail = self._unreadable(entry)
        try:
            # Without a cache, which would fetch the data between the headers.
            with self._open(entry, cache_type="none") as file:
                for key, members in _by_key(file, fail):
                    array = _member(members, key, "npy", fail)
                    file.seek(array.start)
                    header = file.read(min(array.size, _SHORT_HEADER))
                    shape, _, _ = _latents_header(header, array.size, fail)
                    time, channels, height, width = shape
                    rows.append((members[0].header, members[-1].end, time, channels, height, width))
        except OSError as error:
            raise fail(str(error)) from error
        if len(rows) != entry.samples:
            raise self._fail(entry, f"has {len(rows)} samples instead of {entry.samples}")
        return rows

    def _parse(self, entry: ShardEntry, file: BinaryIO) -> list[ShardSample]:
        samples = _by_key(file, self._unreadable(entry))
        return [self._sample(entry, file, key, members) for key, members in samples]

    def _sample(self, entry: ShardEntry, file: BinaryIO, key: str, members: list[Member]) -> ShardSample:
        def fail(problem: str) -> DataError:
            return self._fail(entry, f"has a wrong sample {key}: {problem}")

        text, array = (_member(members, key, ending, fail) for ending in ("json", "npy"))
        about = parse_object(read_member(file, text, JSON_BYTES, fail), fail)
        info = read_as(SampleInfo, about, fail)
        content = read_member(file, array, array.size, fail)
        shape, dtype, start = _latents_header(content[:HEADER_BYTES], len(content), fail)
        latents = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
        return ShardSample(key, info, about, latents)

    def _unreadable(self, entry: ShardEntry) -> Fail:
        return lambda problem: self._fail(entry, f"is missing or cannot be read: {problem}")

    def _fail(self, entry: ShardEntry, problem: str) -> DataError:
        return DataError(
            f"the shard '{entry.name}' of '{self.url}' {problem}; restore it, or encode the data set again"
        )

    def _fail_table(self, problem: str) -> DataError:
        advice = "restore it, or encode the data set again"
        return DataError(f"'{TABLE}' of '{self.url}' is missing or cannot be read: {problem}; {advice}")

    def _fail_index(self, problem: str) -> DataError:
        return DataError(
            f"'{INDEX}' in '{self.url}' is not the index of a data set of latents: {problem};"
            " give the folder of one"
        )


def _by_key(file: BinaryIO, fail: Fail) -> Iterator[tuple[str, list[Member]]]:
    """Yields the members of each sample, which are neighbours."""
    for key, members in groupby(read_members(file, fail), key=lambda member: member.name.partition(".")[0]):
        if not _KEY.fullmatch(key) or not key.isprintable():
            raise fail(f"it has a sample named {key[:100]!r}; expected a name without folders")
        yield key, list(members)


def _member(members: list[Member], key: str, ending: str, fail: Fail) -> Member:
    for member in members:
        if member.name == f"{key}.{ending}":
            return member
    raise fail(f"no {key}.{ending} in it")


def _lie_inside(rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Returns for each row whether its bytes are the shard's, and enough for its shape."""
    start, stop = rows[:, 1], rows[:, 2]
    values = rows[:, 3:].astype(np.float64).prod(axis=1)  # integers would overflow
    fits = (start >= 0) & (start <= stop) & (stop <= sizes)
    found: npt.NDArray[np.bool_] = fits & (rows[:, 3:] > 0).all(axis=1) & (2 * values <= stop - start)
    return found


def _latents_header(data: bytes, size: int, fail: Fail) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Returns shape, type, and the place of the first value."""
    shape, dtype, start = parse_header(data, size, fail)
    if len(shape) != 4 or dtype not in DTYPES or not all(shape):
        raise fail(f"it has latents of {dtype} and shape {shape}; expected float32 or float16, 4 axes")
    return shape, dtype, start
