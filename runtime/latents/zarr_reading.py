"""Reads the Zarr stores that `zarr_latents` writes, and no others.

The library would decode a chunk with any codec that the store names, and allocate what comes out of
it. Here a chunk is a file of exactly the bytes that the array's shape and type ask for.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wfvae.errors import LatentsError
from wfvae.runtime.latents.base import TENSOR, LatentsReader, unreadable
from wfvae.spec.bounded import open_regular, read_exactly, read_json
from wfvae.spec.latents import FRAMES_AT_MOST, Latents, LatentsInfo
from wfvae.spec.records import read_as

ATTRIBUTE = "wfvae"
METADATA_FILE = "zarr.json"
DIGEST = "sha256"
"""Key of the hash of all latents (`wfvae.runtime.chain`), which a complete store may carry."""

Length = Annotated[int, Meta(ge=0, le=FRAMES_AT_MOST)]
Shape = tuple[Length, Length, Length, Length]


class _Endian(msgspec.Struct, frozen=True):
    endian: Literal["little"]


class _Codec(msgspec.Struct, frozen=True):
    name: Literal["bytes"]
    configuration: _Endian


class _Chunks(msgspec.Struct, frozen=True):
    chunk_shape: tuple[Annotated[int, Meta(ge=1, le=FRAMES_AT_MOST)], Length, Length, Length]


class _Grid(msgspec.Struct, frozen=True):
    name: Literal["regular"]
    configuration: _Chunks


class _Separator(msgspec.Struct, frozen=True):
    separator: Literal["/"] = "/"


class _KeyEncoding(msgspec.Struct, frozen=True):
    name: Literal["default"]
    configuration: _Separator = _Separator()


class _Array(msgspec.Struct, frozen=True):
    """What `latents/zarr.json` holds; keys that change nothing here are ignored."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: Shape
    data_type: Literal["float32", "float16"]
    chunk_grid: _Grid
    chunk_key_encoding: _KeyEncoding
    fill_value: Literal["NaN"]
    codecs: tuple[_Codec]
    storage_transformers: tuple[()] = ()


class _Chunked:
    """The chunks of a store."""

    def __init__(self, folder: Path, chunk: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._folder, self._length = folder, chunk[0]
        self._latent_bytes = int(np.prod(chunk[1:], dtype=object)) * dtype.itemsize

    def fill(self, start: int, latents: Latents) -> None:
        done = 0
        while done < len(latents):
            index, first = divmod(start + done, self._length)
            count = min(self._length - first, len(latents) - done)
            self._fill_from(index, first, latents[done : done + count])
            done += count

    def is_missing(self, latent: int) -> bool:
        path = self._path_of(latent // self._length)
        return not path.exists() and not path.is_symlink()

    def close(self) -> None:
        """Nothing is held open."""

    def _path_of(self, index: int) -> Path:
        return self._folder / str(index) / "0" / "0" / "0"

    def _fill_from(self, index: int, first: int, part: Latents) -> None:
        path = self._path_of(index)

        def fail(problem: str) -> LatentsError:
            return LatentsError(f"cannot read '{path}': {problem}; it is damaged, encode the video again")

        if self.is_missing(index * self._length):
            part.fill(np.nan)  # a lost chunk, which is an error for whoever reads it
            return
        with open_regular(path, fail, follow=False) as file:
            size, expected = path.stat().st_size, self._length * self._latent_bytes
            if size != expected:
                raise fail(f"the chunk has {size} bytes instead of {expected}")
            buffer = part.reshape(-1).view(np.uint8).data
            if not read_exactly(file, buffer, first * self._latent_bytes):
                raise fail("the chunk was cut short while it was read")


def open_store(path: Path) -> LatentsReader:
    """Opens a store lazily, finished or not, also while it is written."""
    fail = unreadable(path, f"a Zarr v3 store with an array '{TENSOR}', as wfvae writes it")
    content = read_json(path / TENSOR / METADATA_FILE, fail)
    attributes = content.get("attributes")
    values = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    info = LatentsInfo.from_json(values if isinstance(values, dict) else {}, str(path))
    complete = bool(isinstance(values, dict) and values.get("complete"))
    if complete and info.frames is None:
        raise fail("it is marked as complete, but its number of frames is not known")
    array = read_as(_Array, content, fail)
    chunk = array.chunk_grid.configuration.chunk_shape
    if chunk[1:] != array.shape[1:]:
        raise fail(f"its chunks of {list(chunk)} do not divide the array {list(array.shape)} along time only")
    dtype = np.dtype(array.data_type)
    stored = _Chunked(path / TENSOR / "c", chunk, dtype)
    reader = LatentsReader(path, stored, info, array.shape, dtype, complete)
    digest = values.get(DIGEST) if isinstance(values, dict) else None
    if complete and isinstance(digest, str):
        reader.digest = digest
    return reader
