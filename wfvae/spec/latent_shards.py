"""Reading shards of latents: their index, and the samples in them.

The format is specified in `docs/datasets.md`. A shard is read by byte ranges, so that samples can
be taken in any order from a local file or an object store.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError
from wfvae.spec.bounded import parse_object
from wfvae.spec.latents import DTYPES, Factors, Frames, Latents, Side
from wfvae.spec.locations import open_filesystem
from wfvae.spec.records import Record, read_as

FORMAT: Final = "wfvae-latent-shards/1"
INDEX: Final = "index.json"
TABLE: Final = "samples.npy"
"""List of all samples: an int64 array, each row the shard's number and a `SampleRow`."""
SampleRow = tuple[int, int, int, int, int, int]
"""Where a sample lies in its shard: its first byte, the one behind its last, and t, D, h, w."""
T = TypeVar("T")
_AT_ONCE = 16
"""Shards that are listed at the same time: an object store answers slowly, but many at once."""
_NPY_HEADER_BYTES = 256
_HASHED_BYTES = 1 << 22


class ShardEntry(Record, frozen=True):
    """A shard in the index."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A[^/\\]+\.tar\Z")]
    samples: int
    bytes: int
    sha256: str


class ShardIndex(msgspec.Struct, frozen=True):
    """What a reader needs of `index.json`; other keys are ignored."""

    format: Literal["wfvae-latent-shards/1"]
    samples: int
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
        try:
            content = filesystem.cat_file(path)
        except OSError as error:
            raise self._fail_table(f"is missing or cannot be read ({type(error).__name__})") from error
        if hashlib.sha256(content).hexdigest() != self.index.table_sha256:
            raise self._fail_table("has another SHA-256 than the index states")
        try:
            rows = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._fail_table(f"cannot be read: {error}") from error
        shards, count = len(self.index.shards), self.index.samples
        if rows.dtype != np.int64 or rows.shape != (count, 7) or not np.isin(rows[:, 0], range(shards)).all():
            raise self._fail_table(f"does not list {count} samples of {shards} shards")
        return SampleTable.of(rows)

    def read(self, table: SampleTable, rows: Iterable[int]) -> list[ShardSample]:
        """Reads samples of the table, at once where the file system can.

        Raises:
            DataError: one cannot be read, or is not what the table describes.
        """
        rows = list(rows)
        entries = [self.index.shards[table.shard[row]] for row in rows]
        filesystem, root = self._file("")
        starts, stops = (getattr(table, name)[rows].tolist() for name in ("start", "stop"))
        paths = [root + entry.name for entry in entries]
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
        try:
            content: bytes = filesystem.cat_file(path)
        except OSError as error:
            problem = f"no {INDEX} can be read in '{self.url}' ({type(error).__name__})"
            advice = "give the folder of a data set of latents; an unfinished one is continued by its command"
            raise DataError(f"{problem}; {advice}") from error
        return content

    def _each(self, do: Callable[[ShardEntry], T]) -> list[T]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(do, self.index.shards))

    def _check_size(self, entry: ShardEntry) -> None:
        filesystem, path = self._file(entry.name)
        try:
            size = int(filesystem.info(path)["size"])
        except OSError as error:
            raise self._fail(entry, f"is missing or cannot be read ({type(error).__name__})") from error
        if size != entry.bytes:
            raise self._fail(entry, f"has {size} bytes instead of {entry.bytes}")

    def _check_hash(self, entry: ShardEntry) -> None:
        self._check_size(entry)
        filesystem, path = self._file(entry.name)
        digest = hashlib.sha256()
        with filesystem.open(path, "rb") as file:
            while piece := file.read(_HASHED_BYTES):
                digest.update(piece)
        if digest.hexdigest() != entry.sha256:
            raise self._fail(entry, "has another SHA-256 than the index states")

    def _list(self, entry: ShardEntry) -> list[SampleRow]:
        filesystem, path = self._file(entry.name)
        rows: list[SampleRow] = []
        try:
            # Without a cache, which would fetch the data between the headers.
            with (
                filesystem.open(path, "rb", cache_type="none") as file,
                tarfile.open(fileobj=file, mode="r:") as archive,
            ):
                for key, members in _by_key(archive):
                    array = archive.extractfile(_member(members, key, "npy"))
                    assert array is not None
                    shape, _ = _read_npy_header(io.BytesIO(array.read(_NPY_HEADER_BYTES)))
                    if len(shape) != 4:
                        raise ValueError(f"latents of {key} have shape {shape}")
                    time, channels, height, width = shape
                    start, stop = members[0].offset, _end_of(members[-1])
                    rows.append((start, stop, time, channels, height, width))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise self._fail(entry, f"cannot be read: {error}") from error
        if len(rows) != entry.samples:
            raise self._fail(entry, f"has {len(rows)} samples instead of {entry.samples}")
        return rows

    def _parse(self, entry: ShardEntry, file: io.BytesIO) -> list[ShardSample]:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                return [self._sample(entry, archive, key, members) for key, members in _by_key(archive)]
        except (ValueError, tarfile.TarError) as error:
            if isinstance(error, DataError):
                raise
            raise self._fail(entry, f"cannot be read: {error}") from error

    def _sample(
        self, entry: ShardEntry, archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]
    ) -> ShardSample:
        def fail(problem: str) -> DataError:
            return self._fail(entry, f"has wrong metadata of the sample {key}: {problem}")

        text, array = (archive.extractfile(_member(members, key, ending)) for ending in ("json", "npy"))
        assert text is not None and array is not None
        about = parse_object(text.read(), fail)
        content = array.read()
        header = io.BytesIO(content)
        shape, dtype = _read_npy_header(header)
        latents = np.frombuffer(content, dtype, offset=header.tell()).reshape(shape)
        return ShardSample(key, read_as(SampleInfo, about, fail), about, latents)

    def _fail(self, entry: ShardEntry, problem: str) -> DataError:
        return DataError(
            f"the shard '{entry.name}' of '{self.url}' {problem}; restore it, or encode the data set again"
        )

    def _fail_table(self, problem: str) -> DataError:
        return DataError(f"'{TABLE}' of '{self.url}' {problem}; restore it, or encode the data set again")

    def _fail_index(self, problem: str) -> DataError:
        return DataError(
            f"'{INDEX}' in '{self.url}' is not the index of a data set of latents: {problem};"
            " give the folder of one"
        )


def _by_key(archive: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yields the members of each sample, which are neighbours."""
    files = (member for member in archive.getmembers() if member.isfile())
    for key, members in groupby(files, key=lambda member: member.name.partition(".")[0]):
        yield key, list(members)


def _member(members: list[tarfile.TarInfo], key: str, ending: str) -> tarfile.TarInfo:
    for member in members:
        if member.name == f"{key}.{ending}":
            return member
    raise ValueError(f"no {key}.{ending} in it")


def _end_of(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and type, and leaves the file at the first value."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("latents that are not in NumPy's format 1.0")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran or dtype not in DTYPES:
        raise ValueError(f"latents of {dtype}; expected float32 or float16 in C order")
    return shape, dtype
