"""Latents without end in a Zarr (v3) store: a group with one array "latents", chunked along time.

The array's own metadata file holds its shape and, as the attribute "wfvae", the latents' metadata.
Data is written first, that file last and in one rename. So whoever reads, at any moment and after a
kill, sees a number of latents all of which are there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from msgspec.structs import replace
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, WrapperStore

from wfvae.errors import LatentsError
from wfvae.files import discard_tree, remove_leftovers, temporary_name
from wfvae.runtime.latents.clip_latents import TENSOR, file_error
from wfvae.runtime.media.media_failures import reason
from wfvae.spec.latents import DTYPES, FORMAT, Latents, LatentsInfo, checked_latents

ATTRIBUTE = "wfvae"
METADATA_FILE = "zarr.json"


class CommitLastStore(WrapperStore[LocalStore]):
    """A local store that, inside `transaction`, holds metadata files back until the block ends
    without an exception.

    Zarr grows an array by writing its new shape first and the data after, which for a moment, or
    after a kill for ever, shows readers data that is not there.
    """

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self._held: dict[str, Buffer] | None = None

    async def set(self, key: str, value: Buffer) -> None:
        """Write, or hold back, one key."""
        if self._held is not None and key.rpartition("/")[2] == METADATA_FILE:
            self._held[key] = value
        else:
            await super().set(key, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold metadata back until the end of the block; forget it if the block fails."""
        self._held = {}
        try:
            yield
            held, self._held = self._held, None
            for key, value in held.items():
                zarr.core.sync.sync(super().set(key, value))
        finally:
            self._held = None


class ZarrWriter:
    """Appends to a store. Leaving the `with` block without `finish` keeps what was appended, for
    `resume=True`.
    """

    def __init__(self, path: Path, info: LatentsInfo, *, resume: bool, chunk_latents: int) -> None:
        self._path, self._info, self._chunk = path, replace(info, frames=None), chunk_latents
        self._store: CommitLastStore | None = None
        self._array: Any = None
        self._open = True
        if resume and path.exists():
            self._resume()

    @property
    def latents_done(self) -> int:
        """Latents that are in the store for good."""
        return 0 if self._array is None else int(self._array.shape[0])

    def __enter__(self) -> ZarrWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, latents: Latents) -> None:
        """Append (n, D, h, w), float32 or float16, the same D, h, w and dtype in every call. When
        this returns they are committed; if it is interrupted, none of them is. Raises
        `LatentsError`, `ResourceError`."""
        self._check_open()
        checked_latents(latents, str(self._path))
        if self._array is None:
            self._create(latents)
        if latents.shape[1:] != self._array.shape[1:] or latents.dtype != self._array.dtype:
            raise LatentsError(
                f"latents for '{self._path}' are {latents.dtype} {latents.shape}, but those before are"
                f" {self._array.dtype} (n, {', '.join(map(str, self._array.shape[1:]))}); one store holds one"
                " size and type"
            )
        done = self.latents_done
        with self._transaction():
            self._array.resize((done + len(latents), *latents.shape[1:]))
            self._array[done:] = latents

    def truncate(self, count: int) -> None:
        """Cut back to the first `count` latents, to go on from there; raises `LatentsError` if
        there are fewer.
        """
        self._check_open()
        if not 0 <= count <= self.latents_done:
            raise LatentsError(
                f"'{self._path}' cannot be cut to {count} latents; it holds {self.latents_done}"
            )
        if self._array is None or count == self.latents_done:
            return
        before = self.latents_done
        # Shape first, as one write; then the chunks that no reader looks at any more. (Zarr's
        # resize would go the other way round.)
        with self._transaction():
            self._array = _reshaped(self._array, count)
        for index in range(-(-count // self._array.chunks[0]), -(-before // self._array.chunks[0])):
            shutil.rmtree(self._path / TENSOR / "c" / str(index), ignore_errors=True)

    def finish(self, frames: int) -> None:
        """Record the number of video frames and that the store is complete; raises `LatentsError`
        if that does not fit the count.
        """
        self._check_open()
        if self._array is None:
            raise LatentsError(
                f"no latents were written to '{self._path}'; append at least one before finishing"
            )
        info = replace(self._info, frames=frames)
        info.check_count(self.latents_done, str(self._path))
        with self._transaction():
            self._array.attrs.put({ATTRIBUTE: _attribute(info, complete=True)})
        self.close()

    def close(self) -> None:
        """End writing; what was appended stays. Safe to call twice."""
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise LatentsError(f"'{self._path}' is closed; open it again with resume=True to append")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        assert self._store is not None
        before = self._array
        shape = before.shape
        try:
            with self._store.transaction():
                yield
        except BaseException as error:
            # The array object already believes in the new shape; the store, which counts, does not.
            self._array = _open_array(self._store)
            assert self._array.shape == shape
            if isinstance(error, OSError):
                raise file_error(error, self._path) from error
            raise

    def _create(self, latents: Latents) -> None:
        """Make the empty store under a temporary name, then give it its name, replacing an older
        store.
        """
        remove_leftovers(self._path)
        partial = temporary_name(self._path)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            group = zarr.create_group(LocalStore(partial), attributes={"format": FORMAT})
            group.create_array(
                TENSOR,
                shape=(0, *latents.shape[1:]),
                chunks=(self._chunk, *latents.shape[1:]),
                dtype=latents.dtype,
                compressors=None,  # latents are noise to a compressor: it gains a few per cent and costs time
                # a chunk that was lost reads as NaN, which is an error, and not as zeros, which are
                # not
                fill_value=np.nan,
                dimension_names=("time", "channel", "height", "width"),
                attributes={ATTRIBUTE: _attribute(self._info, complete=False)},
            )
            if self._path.exists():
                discard_tree(self._path)
            os.replace(partial, self._path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise file_error(error, self._path) from error
        self._attach()

    def _attach(self) -> None:
        self._store = CommitLastStore(LocalStore(self._path))
        self._array = _open_array(self._store)

    def _resume(self) -> None:
        store = ZarrStore(self._path)
        if store.complete:
            raise LatentsError(
                f"'{self._path}' is complete ({store.shape[0]} latents); there is nothing to resume, choose"
                " another name to encode again"
            )
        different = self._info.differences(store.info)
        if different:
            raise LatentsError(
                f"'{self._path}' was begun with other settings ({', '.join(different)}); give the same ones,"
                " or start over without resuming"
            )
        for unfinished in self._path.rglob("*.partial"):
            unfinished.unlink(missing_ok=True)  # chunks that a killed run was writing
        self._attach()


def _reshaped(array: Any, count: int) -> Any:
    """Write the array's metadata with `count` latents, chunks untouched."""
    zarr.core.sync.sync(array.async_array.resize((count, *array.shape[1:]), delete_outside_chunks=False))
    return array


def _attribute(info: LatentsInfo, *, complete: bool) -> dict[str, Any]:
    return info.to_json() | {"complete": complete}


def _open_array(store: Any) -> Any:
    return zarr.open_array(store, path=TENSOR, mode="r+", zarr_format=3)


class ZarrStore:
    """Lazy access to a store, finished or not, also while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._array: Any = zarr.open_array(
                LocalStore(path, read_only=True), path=TENSOR, mode="r", zarr_format=3
            )
            attributes: Any = self._array.attrs
            values = dict(attributes.get(ATTRIBUTE) or {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LatentsError(
                f"cannot read '{path}' as latents: {reason(error)}; expected a Zarr v3 store with an array"
                f" '{TENSOR}'"
            ) from error
        self.complete = bool(values.get("complete"))
        self.info = LatentsInfo.from_json(values, str(path))
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype
        if self.dtype not in DTYPES:
            raise LatentsError(f"'{path}' holds {self.dtype} latents; expected float32 or float16")

    def read(self, start: int, stop: int) -> Latents:
        """Latents start..stop."""
        try:
            array: Latents = np.asarray(self._array[start:stop])
        except (OSError, ValueError, RuntimeError) as error:
            raise LatentsError(
                f"cannot read latents {start} to {stop} of '{self._path}': {reason(error)}; the store is"
                " damaged, encode the video again"
            ) from error
        return array

    def close(self) -> None:
        """Nothing is held open."""
