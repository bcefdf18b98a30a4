"""Latents of a clip in one file: `.safetensors`, or `.npy` with its metadata in `<name>.json`.

Both are written in constant memory: room for the header is reserved, data is appended behind it,
and the header is filled in when the count is known. The file appears under its name only then.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from msgspec.structs import replace
from numpy.lib import format as npy_format

from wfvae.errors import LatentsError
from wfvae.files import Destination, remove_leftovers, write_whole
from wfvae.runtime.latents.base import TENSOR, LatentsReader, LatentsWriter, unreadable
from wfvae.spec.bounded import JSON_BYTES, open_regular, read_bytes, read_exactly
from wfvae.spec.latents import FRAMES_AT_MOST, Latents, LatentsInfo, info_from_text
from wfvae.spec.npy_header import HEADER_BYTES, parse_header
from wfvae.spec.safetensors_header import read_header

METADATA_KEY = "wfvae"
SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
MAX_COUNT = 2**53


class ClipWriter(LatentsWriter):
    """Writes one clip. Leaving the `with` block without `finish` discards it."""

    def __init__(self, destination: Destination, info: LatentsInfo) -> None:
        super().__init__(destination, info)
        self._work = Path()
        self._file: Any = None
        self._count = self._reserved = 0

    @property
    def latents_done(self) -> int:
        return self._count

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _begin(self) -> None:
        self._reserved = len(self._header(replace(self._info, frames=FRAMES_AT_MOST), MAX_COUNT))
        self._work = self._destination.create_file()
        self._file = self._work.open("wb+")
        self._file.write(bytes(self._reserved))

    def _append(self, latents: Latents) -> None:
        self._file.write(np.ascontiguousarray(latents).data)
        self._count += len(latents)

    def _finish(self, info: LatentsInfo) -> None:
        header = self._header(info, self._count)
        assert len(header) == self._reserved
        self._file.seek(0)
        self._file.write(header)
        self._file.close()
        self._write_sidecar(info)
        self._destination.commit(self._work)
        self._file = None

    @abstractmethod
    def _header(self, info: LatentsInfo, count: int) -> bytes:
        """Returns the header of `count` latents, at least as long as the reserved room."""

    def _write_sidecar(self, info: LatentsInfo) -> None:
        """Writes the file beside the clip, if the format has one."""


class SafetensorsWriter(ClipWriter):
    """`.safetensors`: 8 bytes of header length, a JSON header padded with spaces, the data."""

    def _header(self, info: LatentsInfo, count: int) -> bytes:
        size = count * int(np.prod(self._item)) * self._dtype.itemsize
        name = next(name for name, dtype in SAFETENSORS_DTYPES.items() if dtype == self._dtype)
        tensor = {"dtype": name, "shape": [count, *self._item], "data_offsets": [0, size]}
        metadata = {METADATA_KEY: json.dumps(info.to_json())}
        text = json.dumps({"__metadata__": metadata, TENSOR: tensor}).encode()
        padded = text.ljust(max(len(text) + -len(text) % 8, self._reserved - 8))
        return len(padded).to_bytes(8, "little") + padded


class NPYWriter(ClipWriter):
    """`.npy`, whose header numpy pads to one length for every count, and `<name>.json`."""

    def _header(self, info: LatentsInfo, count: int) -> bytes:
        buffer = BytesIO()
        descr = npy_format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (count, *self._item)}
        npy_format.write_array_header_1_0(buffer, header)
        return buffer.getvalue()

    def _write_sidecar(self, info: LatentsInfo) -> None:
        sidecar = self._destination.part(".json")
        remove_leftovers(sidecar)
        write_whole(sidecar, json.dumps(info.to_json() | {"count": self._count}, indent=1))


def sidecar_of(path: Path) -> Path:
    """Where the metadata of a `.npy` file are: `clip.npy` -> `clip.npy.json`."""
    return path.with_name(path.name + ".json")


class _ClipData:
    """The data of a clip's file, read piece by piece and never mapped."""

    def __init__(self, path: Path, file: BinaryIO, start: int) -> None:
        self._path, self._file, self._start = path, file, start

    def fill(self, start: int, latents: Latents) -> None:
        buffer = latents.reshape(-1).view(np.uint8).data
        offset = self._start + start * latents[0].nbytes if len(latents) else 0
        if not read_exactly(self._file, buffer, offset):
            problem = f"'{self._path}' was cut short after it was opened"
            raise LatentsError(f"{problem}; do not change latents while they are read")

    def is_missing(self, latent: int) -> bool:
        return False

    def close(self) -> None:
        self._file.close()


def open_safetensors(path: Path) -> LatentsReader:
    """Opens a `.safetensors` file lazily."""
    fail = unreadable(path, f"a whole .safetensors file with a tensor '{TENSOR}'")
    file = open_regular(path, fail)
    with closing_on_error(file):
        header = read_header(file, fail)
        if TENSOR not in header.tensors:
            raise fail(f"it has no tensor '{TENSOR}'")
        if METADATA_KEY not in header.metadata:
            problem = f"'{path}' carries no latents metadata ('{METADATA_KEY}' in its header)"
            raise LatentsError(f"{problem}; expected a file written by wfvae")
        info = LatentsInfo.from_json(info_from_text(header.metadata[METADATA_KEY], str(path)), str(path))
        tensor = header.tensors[TENSOR]
        if tensor.dtype not in SAFETENSORS_DTYPES:
            raise LatentsError(
                f"'{path}' holds {tensor.dtype} latents; expected F32 or F16, convert them first"
            )
        data = _ClipData(path, file, header.data_start + tensor.data_offsets[0])
        return LatentsReader(path, data, info, tensor.shape, SAFETENSORS_DTYPES[tensor.dtype], True)


def open_npy(path: Path) -> LatentsReader:
    """Opens a `.npy` file lazily, with its metadata beside it."""
    sidecar, fail = sidecar_of(path), unreadable(path, "a whole .npy file of floats in C order")
    file = open_regular(path, fail)
    with closing_on_error(file):
        data = bytearray(min(HEADER_BYTES, size := os.fstat(file.fileno()).st_size))
        if not read_exactly(file, memoryview(data), 0):
            raise fail("it was cut short while it was read")
        shape, dtype, start = parse_header(bytes(data), size, fail)

        def missing(problem: str) -> LatentsError:
            text = f"the metadata of '{path}' is missing: no readable '{sidecar}' ({problem})"
            return LatentsError(f"{text}; keep the two files together")

        values = info_from_text(read_bytes(sidecar, missing, JSON_BYTES), str(sidecar))
        info = LatentsInfo.from_json(values, str(sidecar))
        if "count" in values and shape[:1] != (values["count"],):
            problem = f"'{path}' has shape {shape}, but '{sidecar}' describes {values['count']} latents"
            raise LatentsError(f"{problem}; the files do not belong together")
        return LatentsReader(path, _ClipData(path, file, start), info, shape, dtype, True)


@contextmanager
def closing_on_error(file: BinaryIO) -> Iterator[None]:
    """Closes a file if the block fails."""
    try:
        yield
    except BaseException:
        file.close()
        raise
