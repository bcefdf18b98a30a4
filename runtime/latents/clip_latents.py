"""Latents of a clip in one file: `.safetensors`, or `.npy` with its metadata in `<name>.json`.

Both are written in constant memory: room for the header is reserved, data is appended behind it,
and the header is filled in when the count is known. The file appears under its name only then.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from msgspec.structs import replace
from numpy.lib import format as npy_format
from safetensors import SafetensorError, safe_open

from wfvae.errors import LatentsError
from wfvae.files import commit, discard, remove_leftovers, temporary_name, write_whole
from wfvae.runtime.latents.base import TENSOR, LatentsReader, LatentsWriter
from wfvae.runtime.media.failures import reason
from wfvae.spec.latents import Latents, LatentsInfo, info_from_text

METADATA_KEY = "wfvae"
SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
MAX_COUNT = 2**62


class ClipWriter(LatentsWriter):
    """Writes one clip. Leaving the `with` block without `finish` discards it."""

    def __init__(self, path: Path, info: LatentsInfo) -> None:
        super().__init__(path, info)
        self._partial = temporary_name(path)
        self._file: BinaryIO | None = None
        self._count = self._reserved = 0
        remove_leftovers(path)
        remove_leftovers(sidecar_of(path))

    @property
    def latents_done(self) -> int:
        return self._count

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.close()
            discard(self._partial)

    def _begin(self) -> None:
        self._reserved = len(self._header(replace(self._info, frames=MAX_COUNT), MAX_COUNT))
        self._file = self._partial.open("wb+")
        self._file.write(bytes(self._reserved))

    def _append(self, latents: Latents) -> None:
        assert self._file is not None
        self._file.write(np.ascontiguousarray(latents).data)
        self._count += len(latents)

    def _finish(self, info: LatentsInfo) -> None:
        assert self._file is not None
        header = self._header(info, self._count)
        assert len(header) == self._reserved
        self._file.seek(0)
        self._file.write(header)
        self._file.close()
        self._write_sidecar(info)
        commit(self._partial, self._path)
        self._file = None

    @property
    def _shape(self) -> tuple[int, ...]:
        assert self._item is not None
        return self._item

    @abstractmethod
    def _header(self, info: LatentsInfo, count: int) -> bytes:
        """Returns the header of `count` latents, at least as long as the reserved room."""

    def _write_sidecar(self, info: LatentsInfo) -> None:
        """Writes the file beside the clip, if the format has one."""


class SafetensorsWriter(ClipWriter):
    """`.safetensors`: 8 bytes of header length, a JSON header padded with spaces, the data."""

    def _header(self, info: LatentsInfo, count: int) -> bytes:
        size = count * int(np.prod(self._shape)) * self._dtype.itemsize
        names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
        tensor = {
            "dtype": names[self._dtype],
            "shape": [count, *self._shape],
            "data_offsets": [0, size],
        }
        metadata = {METADATA_KEY: json.dumps(info.to_json())}
        text = json.dumps({"__metadata__": metadata, TENSOR: tensor}).encode()
        padded = text.ljust(max(len(text) + -len(text) % 8, self._reserved - 8))
        return len(padded).to_bytes(8, "little") + padded


class NPYWriter(ClipWriter):
    """`.npy`, whose header numpy pads to one length for every count, and `<name>.json`."""

    def _header(self, info: LatentsInfo, count: int) -> bytes:
        buffer = BytesIO()
        descr = npy_format.dtype_to_descr(self._dtype)
        npy_format.write_array_header_1_0(
            buffer, {"descr": descr, "fortran_order": False, "shape": (count, *self._shape)}
        )
        return buffer.getvalue()

    def _write_sidecar(self, info: LatentsInfo) -> None:
        write_whole(sidecar_of(self._path), json.dumps(info.to_json() | {"count": self._count}, indent=1))


def sidecar_of(path: Path) -> Path:
    """Where the metadata of a `.npy` file are: `clip.npy` -> `clip.npy.json`."""
    return path.with_name(path.name + ".json")


class SafetensorsReader(LatentsReader):
    """Lazy access to a `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            opening: Any = safe_open  # its methods are not typed
            self._file: Any = opening(path, framework="numpy")
            metadata = self._file.metadata() or {}
            self._slice: Any = self._file.get_slice(TENSOR)
        except (SafetensorError, OSError) as error:
            raise LatentsError(
                f"cannot read '{path}' as latents: {reason(error)}; expected a whole .safetensors file with a"
                f" tensor '{TENSOR}'"
            ) from error
        if METADATA_KEY not in metadata:
            raise LatentsError(
                f"'{path}' carries no latents metadata ('{METADATA_KEY}' in its header); expected a file"
                " written by wfvae"
            )
        self.info = LatentsInfo.from_json(info_from_text(metadata[METADATA_KEY], str(path)), str(path))
        self.shape = tuple(self._slice.get_shape())
        name = self._slice.get_dtype()
        if name not in SAFETENSORS_DTYPES:
            raise LatentsError(f"'{path}' holds {name} latents; expected F32 or F16, convert them first")
        self.dtype = SAFETENSORS_DTYPES[name]

    def _read(self, start: int, stop: int) -> Latents:
        array: Latents = np.array(self._slice[start:stop])
        return array

    def close(self) -> None:
        self._slice = self._file = None


class NPYReader(LatentsReader):
    """Memory-mapped access to a `.npy` file with its metadata beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        sidecar = sidecar_of(path)
        try:
            self._array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise LatentsError(
                f"cannot read '{path}' as latents: {reason(error)}; expected a whole .npy file of floats"
            ) from error
        try:
            values = info_from_text(sidecar.read_text(encoding="utf-8"), str(sidecar))
        except (OSError, UnicodeDecodeError) as error:
            raise LatentsError(
                f"the metadata of '{path}' is missing: no readable '{sidecar}'; keep the two files together"
            ) from error
        self.info = LatentsInfo.from_json(values, str(sidecar))
        self.shape, self.dtype = self._array.shape, self._array.dtype
        if "count" in values and self.shape[:1] != (values["count"],):
            raise LatentsError(
                f"'{path}' has shape {self.shape}, but '{sidecar}' describes {values['count']} latents; the"
                " files do not belong together"
            )

    def _read(self, start: int, stop: int) -> Latents:
        array: Latents = np.array(self._array[start:stop])
        return array

    def close(self) -> None:
        self._array = None
