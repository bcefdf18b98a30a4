"""Latents of a clip in one file: `.safetensors`, or `.npy` with its metadata in `<name>.json`.

Both are written in constant memory: room for the header is reserved, data is appended behind it,
and the header is filled in when the count is known. The file appears under its name only then.
"""

import json
from abc import abstractmethod
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.lib import format as npy_format
from safetensors import SafetensorError, safe_open

from wfvae.errors import LatentsError
from wfvae.files import commit, discard, remove_leftovers, temporary_name, write_whole
from wfvae.runtime.latents.base import TENSOR, LatentsReader, LatentsWriter, opening
from wfvae.spec.latents import Latents, LatentsInfo, info_from_text

METADATA_KEY = "wfvae"
SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
MAX_COUNT = 2**62


class ClipWriter(LatentsWriter):
    """Writes one clip. Leaving the `with` block without `finish` discards it."""

    def __init__(self, path: Path, info: LatentsInfo) -> None:
        super().__init__(path, info)
        self._partial = temporary_name(path)
        self._file: Any = None
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
        self._file.write(np.ascontiguousarray(latents).data)
        self._count += len(latents)

    def _finish(self, info: LatentsInfo) -> None:
        header = self._header(info, self._count)
        assert len(header) == self._reserved
        self._file.seek(0)
        self._file.write(header)
        self._file.close()
        self._write_sidecar(info)
        commit(self._partial, self._path)
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
        write_whole(sidecar_of(self._path), json.dumps(info.to_json() | {"count": self._count}, indent=1))


def sidecar_of(path: Path) -> Path:
    """Where the metadata of a `.npy` file are: `clip.npy` -> `clip.npy.json`."""
    return path.with_name(path.name + ".json")


def open_safetensors(path: Path) -> LatentsReader:
    """Opens a `.safetensors` file lazily."""
    with opening(path, f"a whole .safetensors file with a tensor '{TENSOR}'", SafetensorError, OSError):
        open_file: Any = safe_open  # its methods are not typed
        file: Any = open_file(path, framework="numpy")
        metadata, tensor = file.metadata() or {}, file.get_slice(TENSOR)
    if METADATA_KEY not in metadata:
        problem = f"'{path}' carries no latents metadata ('{METADATA_KEY}' in its header)"
        raise LatentsError(f"{problem}; expected a file written by wfvae")
    info = LatentsInfo.from_json(info_from_text(metadata[METADATA_KEY], str(path)), str(path))
    name = tensor.get_dtype()
    if name not in SAFETENSORS_DTYPES:
        raise LatentsError(f"'{path}' holds {name} latents; expected F32 or F16, convert them first")
    return LatentsReader(path, tensor, info, tuple(tensor.get_shape()), SAFETENSORS_DTYPES[name], True)


def open_npy(path: Path) -> LatentsReader:
    """Opens a `.npy` file, memory-mapped, with its metadata beside it."""
    sidecar = sidecar_of(path)
    with opening(path, "a whole .npy file of floats", OSError, ValueError, EOFError):
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    try:
        values = info_from_text(sidecar.read_text(encoding="utf-8"), str(sidecar))
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the metadata of '{path}' is missing: no readable '{sidecar}'"
        raise LatentsError(f"{problem}; keep the two files together") from error
    info = LatentsInfo.from_json(values, str(sidecar))
    if "count" in values and array.shape[:1] != (values["count"],):
        problem = f"'{path}' has shape {array.shape}, but '{sidecar}' describes {values['count']} latents"
        raise LatentsError(f"{problem}; the files do not belong together")
    return LatentsReader(path, array, info, array.shape, array.dtype, True)
