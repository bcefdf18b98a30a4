"""Reading and writing latents: `.safetensors` and `.npy` for a clip, `.zarr` for a stream without
end.

with open_latents_writer("clip.zarr", info) as writer:
    writer.append(latents)              # float32 or float16 (n, D, h, w), time first
    writer.finish(frames=17)
reader = open_latents("clip.zarr")
reader.read(0, 5)                       # (5, D, h, w)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from wfvae.errors import LatentsError, ResourceError
from wfvae.runtime.latents.clip_latents import NPYStore, NPYWriter, SafetensorsStore, SafetensorsWriter
from wfvae.spec.latents import FORMAT, Latents, LatentsInfo, check_finite

__all__ = [
    "FORMAT",
    "SUFFIXES",
    "Latents",
    "LatentsInfo",
    "LatentsReader",
    "LatentsWriter",
    "open_latents",
    "open_latents_writer",
]

SUFFIXES = (".safetensors", ".npy", ".zarr")
DEFAULT_CHUNK = 16
# Zarr is imported where a store is opened: that takes nearly as long as importing all the rest of
# the runtime.


class LatentsWriter(Protocol):
    """What all writers do. Use in a `with` block; only `finish` makes a complete file."""

    @property
    def latents_done(self) -> int: ...
    def append(self, latents: Latents) -> None: ...
    def truncate(self, count: int) -> None: ...
    def finish(self, frames: int) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> LatentsWriter: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LatentsStore(Protocol):
    """What all formats give to the reader."""

    info: LatentsInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    complete: bool

    def read(self, start: int, stop: int) -> Latents: ...
    def close(self) -> None: ...


class LatentsReader:
    """Latents opened for reading. Nothing is loaded until it is read."""

    def __init__(self, path: Path, store: LatentsStore) -> None:
        self._path, self._store = path, store

    @property
    def info(self) -> LatentsInfo:
        """The metadata; `info.frames` is None in a store that was not finished."""
        return self._store.info

    @property
    def count(self) -> int:
        """Latents that are there, T'."""
        return self._store.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(T', D, h, w)."""
        return self._store.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float16."""
        return self._store.dtype

    @property
    def complete(self) -> bool:
        """False for a store whose writer has not finished, or was interrupted."""
        return self._store.complete

    def __enter__(self) -> LatentsReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        self._store.close()

    def read(self, start: int = 0, stop: int | None = None) -> Latents:
        """Latents start..stop, (stop - start, D, h, w), as an array of its own.

        Raises `LatentsError` for a range outside 0..count, and for NaN or infinity, naming the
        first latent that holds one.
        """
        end = self.count if stop is None else stop
        if not 0 <= start <= end <= self.count:
            raise LatentsError(
                f"latents {start} to {end} of '{self._path}' were asked for; it holds {self.count}"
            )
        latents = self._store.read(start, end)
        check_finite(latents, start, str(self._path))
        return latents

    def chunks(self, latents: int, start: int = 0) -> Iterator[Latents]:
        """All latents from `start` on in pieces of (n, D, h, w), n = `latents` but for the last;
        memory holds one piece.
        """
        if latents < 1:
            raise LatentsError(f"pieces of {latents} latents cannot be read; give at least 1")
        for first in range(start, self.count, latents):
            yield self.read(first, min(first + latents, self.count))

    def __iter__(self) -> Iterator[Latents]:
        """All latents in pieces of 16 or fewer."""
        return self.chunks(DEFAULT_CHUNK)


def open_latents(path: str | Path) -> LatentsReader:
    """Open latents of any format for reading; the suffix tells which.

    Raises `LatentsError` for a missing, truncated or foreign file, missing metadata, and arrays
    that are not (T', D, h, w).
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.exists():
        raise LatentsError(f"no such latents: '{path}'; check the path")
    if path.is_dir() != (suffix == ".zarr"):
        raise LatentsError(
            f"'{path}' is a {'directory' if path.is_dir() else 'file'}; a .zarr store is a directory, the"
            " other formats are files"
        )
    store = _open_store(path, suffix)
    try:
        _check_store(path, store)
    except LatentsError:
        store.close()
        raise
    return LatentsReader(path, store)


def _open_store(path: Path, suffix: str) -> LatentsStore:
    if suffix == ".zarr":
        from wfvae.runtime.latents.zarr_latents import ZarrStore

        return ZarrStore(path)
    return SafetensorsStore(path) if suffix == ".safetensors" else NPYStore(path)


def open_latents_writer(
    path: str | Path,
    info: LatentsInfo,
    *,
    resume: bool = False,
    overwrite: bool = True,
    chunk_latents: int = DEFAULT_CHUNK,
) -> LatentsWriter:
    """Open latents for writing; the suffix tells the format.

    info: the metadata; `frames` is set by `finish`. resume: only `.zarr`: go on with latent number
    `latents_done` of an unfinished store; begins a new one if there is none. overwrite: replace
    what is there, when the first latents (zarr) or the last ones (clips) are written.
    chunk_latents: only `.zarr`: latents per chunk file. Appending multiples of it is cheapest.

    Raises `LatentsError`.
    """
    path = Path(path)
    suffix = _suffix(path)
    if chunk_latents < 1:
        raise LatentsError(f"chunk_latents is {chunk_latents}; give at least 1")
    if resume and suffix != ".zarr":
        raise LatentsError(f"'{path}' cannot be resumed; write to a name ending in .zarr for that")
    check_latents_destination(path, overwrite=overwrite or resume)
    if suffix == ".zarr":
        from wfvae.runtime.latents.zarr_latents import ZarrWriter

        return ZarrWriter(path, info, resume=resume, chunk_latents=chunk_latents)
    return SafetensorsWriter(path, info) if suffix == ".safetensors" else NPYWriter(path, info)


def check_latents_destination(path: Path, *, overwrite: bool) -> None:
    """Raises `LatentsError` or `ResourceError` if latents cannot be written to `path`, before
    anything is computed for it.
    """
    suffix = _suffix(path)
    if not path.parent.is_dir():
        raise LatentsError(f"the directory '{path.parent}' for '{path.name}' does not exist; create it first")
    if path.exists():
        _check_replaceable(path, suffix, overwrite=overwrite)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ResourceError(
            f"the directory '{path.parent}' is not writable; choose another destination or change its"
            " permissions"
        )


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise LatentsError(
            f"cannot tell the latents format of '{path}' from its ending '{path.suffix}'; use one of"
            f" {', '.join(SUFFIXES)}"
        )
    return suffix


def _check_replaceable(path: Path, suffix: str, *, overwrite: bool) -> None:
    if not overwrite:
        raise LatentsError(f"'{path}' already exists; choose another name or allow overwriting")
    is_store = path.is_dir() and (path / "zarr.json").exists()
    if (suffix == ".zarr" and not is_store) or (suffix != ".zarr" and not path.is_file()):
        raise LatentsError(f"'{path}' exists and is no {suffix} latents; move it away or choose another name")


def _check_store(path: Path, store: LatentsStore) -> None:
    if len(store.shape) != 4 or 0 in store.shape[1:]:
        raise LatentsError(f"'{path}' holds an array of shape {store.shape}; expected rank 4, (T', D, h, w)")
    if store.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise LatentsError(f"'{path}' holds {store.dtype}; expected float32 or float16")
    if store.complete:
        store.info.check_count(store.shape[0], str(path))
