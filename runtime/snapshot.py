"""Snapshots: a stream's state, pending input and counters as safetensors, for one bundle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from wfvae.errors import StateError
from wfvae.files import Destination, write_whole
from wfvae.runtime.backends.base import Array
from wfvae.spec.bounded import open_regular, parse_object, read_bytes
from wfvae.spec.latents import FRAMES_AT_MOST
from wfvae.spec.memory import require_memory
from wfvae.spec.records import read_as
from wfvae.spec.safetensors_header import TensorEntry, parse_header
from wfvae.spec.stream import Direction

FORMAT = "wfvae-snapshot/1"
_DIGEST = "sha256"
_STATE, _INPUT, _ATTACHED = "state.", "input.", "attached."
_ALIGNMENT = 8
_KINDS = {"f": "F", "i": "I", "u": "U"}
"""Letters of safetensors' types by numpy's; the number of bits follows."""
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
_METADATA = {"format", "bundle", "direction", "size", "counters", "note", _DIGEST}
_SIZE = re.compile(r"([1-9]\d{0,6})x([1-9]\d{0,6})", re.ASCII)
_BFLOAT16_EXPONENT = np.uint16(0x7F80)


@dataclass(frozen=True)
class Snapshot:
    """All of a stream between two calls."""

    bundle: str
    """Identity of the bundle."""
    direction: Direction
    height: int
    width: int
    counters: Mapping[str, int]
    state: Mapping[str, Array]
    """State tensors by name, a batch of one; bfloat16 as bits in uint16."""
    pending: Mapping[str, Array]
    """Input that has not run yet, and results that were not returned yet."""
    attached: Mapping[str, Array] = field(default_factory=dict)
    """Arrays that the caller saves with it."""
    note: str = ""
    """Text that the caller saves with it."""

    def to_bytes(self) -> bytes:
        """Returns the content of a safetensors file."""
        return b"".join(self._pieces())

    def _pieces(self) -> list[bytes | memoryview]:
        """Returns the file's content without copies of tensors, which the library makes."""
        header = {
            "format": FORMAT,
            "bundle": self.bundle,
            "direction": self.direction,
            "size": f"{self.height}x{self.width}",
            "counters": json.dumps(dict(self.counters), sort_keys=True),
            "note": self.note,
        }
        tensors = {
            prefix + name: np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            for prefix, group in ((_STATE, self.state), (_INPUT, self.pending), (_ATTACHED, self.attached))
            for name, array in group.items()
        }
        tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))  # aligns each
        layout = _layout({**header, _DIGEST: _digest(header, tensors)}, tensors)
        return [layout, *(array.reshape(-1).view(np.uint8).data for array in tensors.values())]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Snapshot:
        """Raises `StateError` if `data` is not a snapshot."""
        data = bytes(data)
        header = parse_header(data, _foreign)
        metadata = dict(header.metadata)
        if metadata.get("format", FORMAT) != FORMAT:
            raise StateError(
                f"the snapshot's format is {metadata['format']!r}; this version reads {FORMAT!r}"
            )
        if metadata.keys() != _METADATA:
            raise _foreign(f"its header has the entries {', '.join(sorted(metadata)) or 'none'}")
        tensors = {
            name: _array(data, header.data_start, name, entry) for name, entry in header.tensors.items()
        }
        if metadata.pop(_DIGEST) != _digest(metadata, tensors):
            raise StateError("the snapshot is damaged (its SHA-256 differs); start the stream anew")
        size = _SIZE.fullmatch(metadata["size"])
        direction = metadata["direction"]
        if size is None or direction not in ("encoder", "decoder"):
            raise _foreign(f"it is of {direction[:20]!r}, {metadata['size'][:20]!r}")
        counters = parse_object(metadata["counters"], _foreign)
        return cls(
            bundle=metadata["bundle"],
            direction=cast(Direction, direction),
            height=int(size[1]),
            width=int(size[2]),
            counters=read_as(dict[str, int], counters, _foreign, name="counters"),
            state=_group(tensors, _STATE),
            pending=_group(tensors, _INPUT),
            attached=_group(tensors, _ATTACHED),
            note=metadata["note"],
        )

    def require(
        self, bundle: str, direction: Direction, height: int, width: int, counters: Iterable[str]
    ) -> None:
        """Raises `StateError` unless this is a snapshot of such a stream, all of it finite."""
        problems = []
        if self.bundle != bundle:
            problems.append(f"it was made by bundle {self.bundle[:12]}, and this one is {bundle[:12]}")
        if self.direction != direction:
            problems.append(f"it is of the {self.direction}, and this stream is of the {direction}")
        if (self.height, self.width) != (height, width):
            problems.append(f"it is of {self.height}x{self.width} video, and this stream is {height}x{width}")
        if problems:
            raise StateError(f"the snapshot does not fit: {'; '.join(problems)}")
        expected = set(counters)
        whole = all(type(n) is int and abs(n) <= FRAMES_AT_MOST for n in self.counters.values())
        if self.counters.keys() != expected or not whole:
            raise StateError(
                f"the snapshot has the counters {self.counters}; expected whole numbers for"
                f" {', '.join(sorted(expected))}"
            )
        for group in (self.state, self.pending):
            for name, array in group.items():
                if not _is_finite(array):
                    raise StateError(f"the snapshot holds NaN or infinity in {name}; start the stream anew")

    @classmethod
    def read(cls, path: str | Path) -> Snapshot:
        """Raises `StateError` if `path` can't be read or is not a snapshot."""

        def unreadable(problem: str) -> StateError:
            return StateError(f"cannot read the snapshot {path}: {problem}")

        path = Path(path)
        with open_regular(path, unreadable) as file:
            size = os.fstat(file.fileno()).st_size
        require_memory(2 * size, f"the file and the arrays of the snapshot {path}")
        return cls.from_bytes(read_bytes(path, unreadable, size))

    def write(self, path: str | Path | Destination) -> None:
        """Writes the snapshot atomically. Raises `ResourceError` if it cannot."""
        write_whole(path if isinstance(path, Destination) else Path(path), self._pieces())


def _layout(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> bytes:
    """Returns a safetensors header: its length, and types, shapes and offsets as padded JSON."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        kind = "BOOL" if array.dtype == bool else f"{_KINDS[array.dtype.kind]}{8 * array.itemsize}"
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False).encode()  # fails for text that is not UTF-8
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _digest(header: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """Returns the SHA-256 of everything in a snapshot."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype}:{tensors[name].shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _foreign(problem: str) -> StateError:
    return StateError(f"this is not a stream's snapshot, or it is damaged ({problem}); start the stream anew")


def _array(data: bytes, start: int, name: str, entry: TensorEntry) -> Array:
    """Returns a tensor of a file in the memory of `data`."""
    if entry.dtype not in _DTYPES:
        raise _foreign(f"the tensor {name[:100]} is of type {entry.dtype}")
    count, dtype = math.prod(entry.shape), np.dtype(_DTYPES[entry.dtype]).newbyteorder("<")
    return np.frombuffer(data, dtype, count, start + entry.data_offsets[0]).reshape(entry.shape)


def _is_finite(array: Array) -> bool:
    if array.dtype == np.uint16:  # the bits of bfloat16
        return not ((array & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any()
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _group(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
