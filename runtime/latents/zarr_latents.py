"""Latents without end in a Zarr (v3) store: a group with one array "latents", chunked along time.

The array's own metadata file holds its shape and, as the attribute "wfvae", the latents' metadata.
Data is written first, that file last and in one rename. A reader therefore sees a number of latents
all of which exist, at any moment and after a kill.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import LocalStore, WrapperStore

from wfvae.errors import LatentsError
from wfvae.files import replacing
from wfvae.runtime.latents.base import TENSOR, LatentsWriter
from wfvae.runtime.latents.zarr_reading import ATTRIBUTE, METADATA_FILE, open_store
from wfvae.spec.latents import FORMAT, Latents, LatentsInfo


class CommitLastStore(WrapperStore[LocalStore]):
    """A local store that holds metadata files back until a `transaction` ends without an exception.

    Zarr grows an array by writing its new shape first and the data after, so that readers would see
    data that does not exist for a moment, or after a kill for ever.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(LocalStore(path))
        self._held: dict[str, Buffer] | None = None

    async def set(self, key: str, value: Buffer) -> None:
        """Writes, or holds back, one key."""
        if self._held is not None and key.rpartition("/")[2] == METADATA_FILE:
            self._held[key] = value
        else:
            await super().set(key, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds metadata back until the end of the block, and drops it if the block fails."""
        self._held = {}
        try:
            yield
            held, self._held = self._held, None
            for key, value in held.items():
                sync(super().set(key, value))
        finally:
            self._held = None


class ZarrWriter(LatentsWriter):
    """Appends to a store. Leaving the `with` block without `finish` keeps it for `resume`."""

    def __init__(self, path: Path, info: LatentsInfo, *, resume: bool, chunk_latents: int) -> None:
        super().__init__(path, info)
        self._chunk = chunk_latents
        self._store = CommitLastStore(path)
        self._array: Any = None
        if resume and path.exists():
            self._resume()

    @property
    def latents_done(self) -> int:
        return 0 if self._array is None else int(self._array.shape[0])

    def truncate(self, count: int) -> None:
        self._require_open()
        before = self.latents_done
        if not 0 <= count <= before:
            raise LatentsError(f"'{self._path}' cannot be cut to {count} latents; it holds {before}")
        if count == before:
            return
        # Zarr's resize would delete chunks first. Here the shape is written first, in one step,
        # then the chunks that no reader uses any more are removed.
        with self._translated(), self._transaction():
            shape = (count, *self._array.shape[1:])
            sync(self._array.async_array.resize(shape, delete_outside_chunks=False))
        chunk = self._array.chunks[0]
        for index in range(-(-count // chunk), -(-before // chunk)):
            shutil.rmtree(self._path / TENSOR / "c" / str(index), ignore_errors=True)

    def _begin(self) -> None:
        """Creates the empty store, which replaces an older one in one step."""
        with replacing(self._path) as temporary:
            group = zarr.create_group(LocalStore(temporary), attributes={"format": FORMAT})
            group.create_array(
                TENSOR,
                shape=(0, *self._item),
                chunks=(self._chunk, *self._item),
                dtype=self._dtype,
                compressors=None,  # would gain a few per cent and cost time
                fill_value=np.nan,  # a lost chunk then reads as NaN, which is an error
                dimension_names=("time", "channel", "height", "width"),
                attributes={ATTRIBUTE: self._info.to_json() | {"complete": False}},
            )
        self._attach()

    def _append(self, latents: Latents) -> None:
        done = self.latents_done
        with self._transaction():
            self._array.resize((done + len(latents), *latents.shape[1:]))
            self._array[done:] = latents

    def _finish(self, info: LatentsInfo) -> None:
        with self._transaction():
            self._array.attrs.put({ATTRIBUTE: info.to_json() | {"complete": True}})

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._store.transaction():
                yield
        except BaseException:
            self._attach()  # the array object already has the new shape, the store does not
            raise

    def _attach(self) -> None:
        self._array = zarr.open_array(self._store, path=TENSOR, mode="r+", zarr_format=3)
        self._item, self._dtype = self._array.shape[1:], self._array.dtype

    def _resume(self) -> None:
        found = open_store(self._path)
        found.close()
        if found.complete:
            problem = f"'{self._path}' is complete ({found.count} latents)"
            raise LatentsError(f"{problem}; there is nothing to resume, choose another name to encode again")
        different = self._info.differences(found.info)
        if different:
            problem = f"'{self._path}' was begun with other settings ({', '.join(different)})"
            raise LatentsError(f"{problem}; give the same ones, or start over without resuming")
        for unfinished in self._path.rglob("*.partial"):
            unfinished.unlink(missing_ok=True)  # chunks that a killed run was writing
        self._attach()
