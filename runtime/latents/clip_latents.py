"""Latents of a clip in one file: `.safetensors` (metadata in the header) or `.npy` (metadata in
`<name>.json` beside it).

Both are written in constant memory: a header of fixed size is reserved, data is appended behind it,
and the header is filled in when the count is known. The file appears under its name only then.
"""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from msgspec.structs import replace
from numpy.lib import format as npy_format
from safetensors import SafetensorError, safe_open

from wfvae.errors import LatentsError, ResourceError
from wfvae.files import remove_leftovers, temporary_name
from wfvae.runtime.media.media_failures import NO_SPACE, reason
from wfvae.spec.latents import Latents, LatentsInfo, checked_latents, info_from_text

TENSOR = "latents"
METADATA_KEY = "wfvae"
SAFETENSORS_DTYPES: dict[np.dtype[Any], str] = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
MAX_COUNT = 2**62


class ClipWriter:
    """Writes one clip. Leaving the `with` block without `finish` discards it."""

    def __init__(self, path: Path, info: LatentsInfo) -> None:
        self._path, self._info = path, info
        self._partial = temporary_name(path)
        remove_leftovers(path)
        remove_leftovers(sidecar_of(path))
        self._file: BinaryIO | None = None
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._item: tuple[int, ...] = ()
        self._count = 0
        self._reserved = 0
        self._open = True

    @property
    def latents_done(self) -> int:
        """Latents appended so far."""
        return self._count

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, latents: Latents) -> None:
        """Append (n, D, h, w), float32 or float16, the same D, h, w and dtype in every call; raises
        `LatentsError`, `ResourceError`.
        """
        if not self._open:
            raise LatentsError(f"'{self._path}' is closed; open it again to write")
        checked_latents(latents, str(self._path))
        with _reported(self._path):
            if self._file is None:
                self._begin(latents)
            if latents.shape[1:] != self._item or latents.dtype != self._dtype:
                raise LatentsError(
                    f"latents for '{self._path}' are {latents.dtype} {latents.shape}, but those before are"
                    f" {self._dtype} (n, {', '.join(map(str, self._item))}); one file holds one size and type"
                )
            assert self._file is not None
            self._file.write(np.ascontiguousarray(latents).data)
            self._count += len(latents)

    def truncate(self, count: int) -> None:
        """Not possible for clips: raises `LatentsError`."""
        raise LatentsError(
            f"'{self._path}' cannot be cut back to {count} latents; only a .zarr store can be resumed"
        )

    def finish(self, frames: int) -> None:
        """Record the number of video frames and give the file its name; raises `LatentsError` if
        nothing was appended.
        """
        if self._file is None or not self._open:
            raise LatentsError(
                f"no latents were written to '{self._path}'; append at least one before finishing"
            )
        info = replace(self._info, frames=frames)
        info.check_count(self._count, str(self._path))
        with _reported(self._path):
            header = self._header(info)
            assert len(header) == self._reserved
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._commit_sidecar(info)
            os.replace(self._partial, self._path)
        self._open = False

    def close(self) -> None:
        """Discard the file unless `finish` was called. Safe to call twice."""
        if self._open:
            self._open = False
            if self._file is not None:
                self._file.close()
                self._partial.unlink(missing_ok=True)

    def _begin(self, latents: Latents) -> None:
        self._dtype, self._item = latents.dtype, latents.shape[1:]
        self._reserved = len(self._reserve())
        self._file = self._partial.open("wb+")
        self._file.write(
            b"\0" * self._reserved
        )  # a file without its header is unreadable, as it should be until it is whole

    def _reserve(self) -> bytes:
        raise NotImplementedError

    def _header(self, info: LatentsInfo) -> bytes:
        raise NotImplementedError

    def _commit_sidecar(self, info: LatentsInfo) -> None:
        """Write what goes beside the file, before the file appears."""


class SafetensorsWriter(ClipWriter):
    """`.safetensors`: 8 bytes of header length, a JSON header padded with spaces, the data."""

    def _reserve(self) -> bytes:
        text = self._text(self._info.to_json() | {"frames": MAX_COUNT}, MAX_COUNT)
        return b"\0" * (8 + len(text) + -len(text) % 8)

    def _header(self, info: LatentsInfo) -> bytes:
        text = self._text(info.to_json(), self._count)
        length = self._reserved - 8
        return length.to_bytes(8, "little") + text.ljust(length)

    def _text(self, info: dict[str, Any], count: int) -> bytes:
        size = count * int(np.prod(self._item)) * self._dtype.itemsize
        tensor = {
            "dtype": SAFETENSORS_DTYPES[self._dtype],
            "shape": [count, *self._item],
            "data_offsets": [0, size],
        }
        return json.dumps({"__metadata__": {METADATA_KEY: json.dumps(info)}, TENSOR: tensor}).encode()


class NPYWriter(ClipWriter):
    """`.npy`, whose own header is padded to a fixed length, and `<name>.json`."""

    def _reserve(self) -> bytes:
        return self._npy_header(MAX_COUNT)

    def _header(self, info: LatentsInfo) -> bytes:
        header = self._npy_header(self._count)
        body = header[10:].rstrip(b"\n ")
        length = self._reserved - 10
        return header[:8] + length.to_bytes(2, "little") + body.ljust(length - 1) + b"\n"

    def _npy_header(self, count: int) -> bytes:
        buffer = BytesIO()
        description = {
            "descr": npy_format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (count, *self._item),
        }
        npy_format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()

    def _commit_sidecar(self, info: LatentsInfo) -> None:
        sidecar = sidecar_of(self._path)
        partial = temporary_name(sidecar)
        partial.write_text(json.dumps(info.to_json() | {"count": self._count}, indent=1), encoding="utf-8")
        os.replace(partial, sidecar)


def sidecar_of(path: Path) -> Path:
    """Where the metadata of a `.npy` file is kept: `clip.npy` -> `clip.npy.json`."""
    return path.with_name(path.name + ".json")


class SafetensorsStore:
    """Lazy access to a `.safetensors` file."""

    complete = True

    def __init__(self, path: Path) -> None:
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
        self.shape: tuple[int, ...] = tuple(self._slice.get_shape())
        names: dict[str, np.dtype[Any]] = {text: dtype for dtype, text in SAFETENSORS_DTYPES.items()}
        if self._slice.get_dtype() not in names:
            raise LatentsError(
                f"'{path}' holds {self._slice.get_dtype()} latents; expected F32 or F16, convert them first"
            )
        self.dtype: np.dtype[Any] = names[self._slice.get_dtype()]

    def read(self, start: int, stop: int) -> Latents:
        """Latents start..stop as an array of its own."""
        array: Latents = np.array(self._slice[start:stop])
        return array

    def close(self) -> None:
        """Let go of the mapping."""
        self._slice = self._file = None


class NPYStore:
    """Memory-mapped access to a `.npy` file with its metadata beside it."""

    complete = True

    def __init__(self, path: Path) -> None:
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
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype
        if "count" in values and self.shape[:1] != (values["count"],):
            raise LatentsError(
                f"'{path}' has shape {self.shape}, but '{sidecar}' speaks of {values['count']} latents; the"
                " files do not belong together"
            )

    def read(self, start: int, stop: int) -> Latents:
        """Latents start..stop as an array of its own."""
        array: Latents = np.array(self._array[start:stop])
        return array

    def close(self) -> None:
        """Let go of the mapping."""
        self._array = None


class _reported:
    """Raise failures of the operating system inside the block as `LatentsError` or `ResourceError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise file_error(error, self._path) from error


def file_error(error: OSError, path: Path) -> Exception:
    """The error to raise for `error` while writing `path`."""
    if error.errno in NO_SPACE:
        return ResourceError(
            f"no space left while writing '{path}'; free some space or choose another destination"
        )
    return LatentsError(
        f"cannot write '{path}': {reason(error)}; check that the directory exists and is writable"
    )
