"""Latents without end in a Zarr (v3) store: a group with one array "latents", chunked along time.

The array's own metadata file holds its shape and, as the attribute "wfvae", the latents' metadata.
Data is written first, that file last and in one rename. A reader therefore sees a number of latents
all of which exist, at any moment and after a kill.
"""

import os
import shutil
import weakref
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
from wfvae.files import Destination, replacing, require_own
from wfvae.runtime.chain import Chain, chain_of
from wfvae.runtime.latents.base import TENSOR, LatentsWriter, is_of_store
from wfvae.runtime.latents.zarr_reading import ATTRIBUTE, DIGEST, METADATA_FILE, open_store
from wfvae.spec.latents import FORMAT, Latents, LatentsInfo

_PIECE = 16
"""Latents per read where a whole store is read."""


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
    """Appends to a store. Leaving the `with` block without `finish` keeps it for `resume`.

    A store is written in place, where other programs may change or remove it. So the folder is
    checked before each append, and all latents before the store is called complete.
    """

    def __init__(
        self, destination: Destination, info: LatentsInfo, *, resume: bool, chunk_latents: int
    ) -> None:
        super().__init__(destination, info)
        self._chunk = chunk_latents
        self._store = CommitLastStore(self._path)
        self._array: Any = None
        self._folder: _OpenFolder | None = None
        self._written = Chain()
        if resume and self._path.exists():
            self._resume()

    @property
    def latents_done(self) -> int:
        return 0 if self._array is None else int(self._array.shape[0])

    def stored_digest(self, count: int) -> str:
        with open_store(self._path) as reader:
            return chain_of(reader.chunks(_PIECE, stop=count))

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
        self._written = Chain(self.stored_digest(self.latents_done))  # from here on it is this job's

    def close(self) -> None:
        super().close()
        self._folder = None

    def _begin(self) -> None:
        """Creates the empty store, which replaces an older one in one step."""
        with replacing(self._destination) as temporary:
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
        self._require_folder()
        with self._transaction():
            self._array.resize((done + len(latents), *latents.shape[1:]))
            self._array[done:] = latents
        self._written.extend(latents)

    def _finish(self, info: LatentsInfo) -> None:
        self._require_folder()
        try:
            unchanged = self.stored_digest(self.latents_done) == self._written.hexdigest
        except LatentsError as error:
            raise self._changed(str(error)) from error
        if not unchanged:
            raise self._changed("it does not hold the latents that this job wrote")
        values = {"complete": True, DIGEST: self._written.hexdigest}
        with self._transaction():
            self._array.attrs.put({ATTRIBUTE: info.to_json() | values})

    def _require_folder(self) -> None:
        """Raises `LatentsError` if the store is not the folder that this object opened."""
        if self._folder is None or not self._folder.is_at(self._path):
            raise self._changed("the folder was removed or replaced")
        if not (self._path / METADATA_FILE).is_file():
            raise self._changed(f"its {METADATA_FILE} is missing")

    def _changed(self, problem: str) -> LatentsError:
        return LatentsError(
            f"another program changed '{self._path}' while it was written: {problem}; encode the video again"
        )

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
        if self._folder is None:
            self._folder = _OpenFolder(self._path)

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
        require_own(self._path, is_of_store)
        for unfinished in self._path.rglob("*.partial"):
            unfinished.unlink(missing_ok=True)  # chunks that a killed run was writing
        self._attach()
        self._written = Chain(self.stored_digest(self.latents_done))


class _OpenFolder:
    """A folder held open, so that no other one can get its number."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._descriptor)

    def is_at(self, path: Path) -> bool:
        """Whether it still has this name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False
