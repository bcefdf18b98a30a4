"""What all formats of latents have in common: the reader, and the base of the writers."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec.structs import replace

from wfvae.errors import LatentsError
from wfvae.files import Destination
from wfvae.runtime.chain import Chain
from wfvae.runtime.closing import Closing
from wfvae.runtime.media.failures import reason, translated
from wfvae.spec.latents import DTYPES, Latents, LatentsInfo, check_finite, check_latents
from wfvae.spec.memory import require_memory

TENSOR = "latents"
_UNFINISHED = r"\.[0-9a-f]+\.partial"
_STORE_FILES = re.compile(rf"({TENSOR}/)?zarr(\.json|{_UNFINISHED})|{TENSOR}/c(/\d+){{4}}({_UNFINISHED})?")
_PIECE = 16
"""Latents per read where all are read."""
DType = np.dtype[Any]


def unreadable(path: Path, expected: str) -> Callable[[str], LatentsError]:
    """Returns what makes the error of a broken file from a phrase that says what is wrong."""
    return lambda problem: LatentsError(f"cannot read '{path}' as latents: {problem}; expected {expected}")


class StoredLatents(Protocol):
    """The array in a file or store."""

    def fill(self, start: int, latents: Latents) -> None:
        """Reads from latent `start` on into a whole array. Raises `LatentsError` or `OSError`."""

    def is_missing(self, latent: int) -> bool:
        """Whether the file that should hold it does not exist."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Damage:
    """Latents that cannot be decoded, each by its number."""

    missing: list[int] = field(default_factory=list)
    """Of chunks that do not exist."""
    unreadable: list[int] = field(default_factory=list)
    """Of chunks, or a file, that cannot be read."""
    not_finite: list[int] = field(default_factory=list)
    """With NaN or infinity."""
    hash_differs: bool = False
    """Whether the latents are not those of which the store states the hash."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unreadable or self.not_finite or self.hash_differs)


def is_of_store(path: str) -> bool:
    """Whether a Zarr store has a file of this path, relative and with forward slashes."""
    return _STORE_FILES.fullmatch(path) is not None


class LatentsReader(Closing):
    """Latents opened for reading; nothing is loaded until it is read. Use it in a `with` block.

    Attributes:
        info: the metadata; `info.frames` is None in a store that was not finished.
        shape: (T', D, h, w).
        dtype: float32 or float16.
        complete: False for a store whose writer has not finished, or was interrupted.
        digest: hash of all latents (`wfvae.runtime.chain`) that a complete store states, or None.
    """

    def __init__(
        self,
        path: Path,
        stored: StoredLatents,
        info: LatentsInfo,
        shape: tuple[int, ...],
        dtype: DType,
        complete: bool,
    ) -> None:
        """Raises `LatentsError` if the array cannot be latents of `info`."""
        self._path, self._stored = path, stored
        self.info, self.shape, self.dtype, self.complete = info, shape, dtype, complete
        self.digest: str | None = None
        if len(shape) != 4 or 0 in shape[1:]:
            raise LatentsError(f"'{path}' holds an array of shape {shape}; expected rank 4, (T', D, h, w)")
        if dtype not in DTYPES:
            raise LatentsError(f"'{path}' holds {dtype}; expected float32 or float16")
        info.check_shape(shape, str(path), complete)

    @property
    def count(self) -> int:
        return self.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> Latents:
        """Reads latents start..stop as an array of its own, (stop - start, D, h, w).

        Raises:
            LatentsError: a range outside 0..count, a file that was cut or replaced, or NaN or
                infinity, with the first such latent.
            ResourceError: the machine has not so much memory.
        """
        stop = self.count if stop is None else stop
        if not 0 <= start <= stop <= self.count:
            problem = f"latents {start} to {stop} of '{self._path}' were requested"
            raise LatentsError(f"{problem}; it holds {self.count}")
        latents = self._read(start, stop)
        check_finite(latents, start, str(self._path))
        return latents

    def find_damage(self) -> Damage:
        """Reads all latents, in constant memory, and returns those that cannot be decoded."""
        damage, chain = Damage(), Chain()
        for start in range(0, self.count, _PIECE):
            stop = min(start + _PIECE, self.count)
            try:
                latents = self._read(start, stop)
            except LatentsError:
                damage.unreadable.extend(range(start, stop))
                continue
            chain.extend(latents)
            finite = np.isfinite(latents).all(axis=(1, 2, 3))
            for index in (start + int(bad) for bad in np.flatnonzero(~finite)):
                missing = self._stored.is_missing(index)
                (damage.missing if missing else damage.not_finite).append(index)
        if damage or self.digest in (None, chain.hexdigest):
            return damage
        return Damage(hash_differs=True)

    def _read(self, start: int, stop: int) -> Latents:
        shape = (stop - start, *self.shape[1:])
        require_memory(math.prod(shape) * self.dtype.itemsize, f"{shape[0]} latents of '{self._path}'")
        latents: Latents = np.empty(shape, self.dtype)
        try:
            self._stored.fill(start, latents)
        except OSError as error:
            problem = f"cannot read latents {start} to {stop} of '{self._path}': {reason(error)}"
            raise LatentsError(f"{problem}; it is damaged, encode the video again") from error
        return latents

    def chunks(self, latents: int, start: int = 0, stop: int | None = None) -> Iterator[Latents]:
        """Yields the latents start..stop, `latents` at a time; the last piece may be less."""
        stop = self.count if stop is None else stop
        for first in range(start, stop, latents):
            yield self.read(first, min(first + latents, stop))

    def close(self) -> None:
        """Releases the file. Safe to call twice."""
        self._stored.close()


class LatentsWriter(Closing):
    """Latents opened for writing. Use it in a `with` block; only `finish` makes a complete file.

    It releases the destination when it is closed.
    """

    def __init__(self, destination: Destination, info: LatentsInfo) -> None:
        self._destination = destination
        self._path, self._info = destination.path, replace(info, frames=None)
        self._open = True
        self._item: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    @property
    def path(self) -> Path:
        """Where the latents are written."""
        return self._path

    @property
    @abstractmethod
    def latents_done(self) -> int:
        """The number of latents written so far; of a Zarr store, also by earlier runs."""

    def append(self, latents: Latents) -> None:
        """Appends (n, D, h, w), float32 or float16; D, h, w and dtype are the same in every call.

        In a Zarr store they are committed when this returns, and none of them is if it fails.

        Raises:
            LatentsError: another shape or dtype, NaN or infinity, or a closed writer.
            ResourceError: the disk is full.
        """
        self._require_open()
        check_latents(latents, str(self._path))
        with self._translated():
            if not self._item:
                self._info.check_shape(latents.shape, str(self._path), complete=False)
                self._item, self._dtype = latents.shape[1:], latents.dtype
                self._begin()
            if latents.shape[1:] != self._item or latents.dtype != self._dtype:
                problem = f"latents for '{self._path}' are {latents.dtype} {latents.shape}"
                before = f"those before are {self._dtype} (n, {', '.join(map(str, self._item))})"
                raise LatentsError(f"{problem}, but {before}; a file holds one size and type")
            self._append(latents)

    def stored_digest(self, count: int) -> str:
        """Returns the hash (`wfvae.runtime.chain`) of the first `count` latents of a Zarr store.

        Raises:
            LatentsError: they cannot be read.
        """
        raise LatentsError(f"'{self._path}' cannot be read before it is finished; only a .zarr store can")

    def truncate(self, count: int) -> None:
        """Keeps the first `count` latents only (Zarr stores)."""
        problem = f"'{self._path}' cannot be cut back to {count} latents"
        raise LatentsError(f"{problem}; only a .zarr store can be resumed")

    def finish(self, frames: int) -> None:
        """Completes the file of a video of `frames` frames.

        Raises:
            LatentsError: nothing was appended, or the number of latents does not fit.
            ResourceError: the disk is full.
        """
        self._require_open()
        if not self.latents_done:
            problem = f"no latents were written to '{self._path}'"
            raise LatentsError(f"{problem}; append at least one before finishing")
        info = replace(self._info, frames=frames)
        info.check_count(self.latents_done, str(self._path))
        with self._translated():
            self._finish(info)
        self._open = False

    def close(self) -> None:
        """Ends writing. Safe to call twice."""
        self._open = False
        self._destination.release()

    def _require_open(self) -> None:
        if not self._open:
            problem = f"'{self._path}' is closed"
            raise LatentsError(f"{problem}; open it again to write (a .zarr store with resume=True)")

    def _translated(self) -> AbstractContextManager[None]:
        return translated(f"writing '{self._path}'", LatentsError)

    @abstractmethod
    def _begin(self) -> None:
        """Creates the file, of latents of shape `_item` and type `_dtype`."""

    @abstractmethod
    def _append(self, latents: Latents) -> None: ...

    @abstractmethod
    def _finish(self, info: LatentsInfo) -> None: ...
