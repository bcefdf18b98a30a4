"""Snapshots: a stream's state, pending input and counters as safetensors, for one bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from wfvae.errors import StateError
from wfvae.files import write_whole
from wfvae.runtime.backends.base import Array
from wfvae.spec.stream import Direction

FORMAT = "wfvae-snapshot/1"
_DIGEST = "sha256"
_STATE, _INPUT, _ATTACHED = "state.", "input.", "attached."
_ALIGNMENT = 8
_KINDS = {"f": "F", "i": "I", "u": "U"}
"""Letters of safetensors' types by numpy's; the number of bits follows."""


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
        try:
            tensors = safetensors.numpy.load(data)
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])["__metadata__"]
            if header["format"] != FORMAT:
                raise StateError(
                    f"the snapshot's format is {header['format']!r}; this version reads {FORMAT!r}"
                )
            if header.pop(_DIGEST) != _digest(header, tensors):
                raise StateError("the snapshot is damaged (its SHA-256 differs); start the stream anew")
            height, width = map(int, header["size"].split("x"))
            return cls(
                bundle=header["bundle"],
                direction=header["direction"],
                height=height,
                width=width,
                counters=json.loads(header["counters"]),
                state=_group(tensors, _STATE),
                pending=_group(tensors, _INPUT),
                attached=_group(tensors, _ATTACHED),
                note=header["note"],
            )
        except StateError:
            raise
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise StateError(
                f"this is not a stream's snapshot, or it is damaged ({type(error).__name__}); start the"
                " stream anew"
            ) from error

    def require(
        self, bundle: str, direction: Direction, height: int, width: int, counters: Iterable[str]
    ) -> None:
        """Raises `StateError` unless this is a snapshot of such a stream."""
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
        whole = all(isinstance(value, int) for value in self.counters.values())
        if self.counters.keys() != expected or not whole:
            raise StateError(
                f"the snapshot has the counters {self.counters}; expected whole numbers for"
                f" {', '.join(sorted(expected))}"
            )

    @classmethod
    def read(cls, path: str | Path) -> Snapshot:
        """Raises `StateError` if `path` can't be read or is not a snapshot."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise StateError(f"cannot read the snapshot {path}: {error.strerror}") from error

    def write(self, path: str | Path) -> None:
        """Writes the snapshot atomically. Raises `ResourceError` if it cannot."""
        write_whole(Path(path), self._pieces())


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


def _group(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
