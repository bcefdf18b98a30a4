"""Snapshots: a stream's state, waiting input and counters as safetensors, bound to the bundle that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from wfvae.errors import ResourceError, StateError
from wfvae.runtime.backend import Array
from wfvae.streamspec import Direction

FORMAT = "wfvae-snapshot/1"
_DIGEST = "sha256"
_STATE, _INPUT, _ATTACHED = "state.", "input.", "attached."


@dataclass(frozen=True)
class Snapshot:
    """Everything that a stream is between two calls."""

    bundle: str
    """Identity of the bundle."""
    direction: Direction
    height: int
    width: int
    counters: Mapping[str, int]
    state: Mapping[str, Array]
    """State tensors by name, batch of one. bfloat16 as bits in uint16."""
    waiting: Mapping[str, Array]
    """Input that was pushed and has not run yet."""
    attached: Mapping[str, Array] = field(default_factory=dict)
    """Arrays that whoever saved the snapshot put beside it."""
    note: str = ""
    """Text that whoever saved the snapshot put beside it."""

    def to_bytes(self) -> bytes:
        """The snapshot as a safetensors file's content."""
        header = {
            "format": FORMAT,
            "bundle": self.bundle,
            "direction": self.direction,
            "size": f"{self.height}x{self.width}",
            "counters": json.dumps(dict(self.counters), sort_keys=True),
            "note": self.note,
        }
        tensors = {
            prefix + name: np.ascontiguousarray(array)  # safetensors would write a view's memory as it lies
            for prefix, group in ((_STATE, self.state), (_INPUT, self.waiting), (_ATTACHED, self.attached))
            for name, array in group.items()
        }
        return safetensors.numpy.save(tensors, metadata={**header, _DIGEST: _digest(header, tensors)})

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Snapshot:
        """Raises `StateError` if `data` is not a snapshot."""
        data = bytes(data)
        try:
            tensors = safetensors.numpy.load(data)
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])["__metadata__"]
            if header["format"] != FORMAT:
                raise StateError(f"the snapshot's format is {header['format']!r}; this version reads {FORMAT!r}")
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
                waiting=_group(tensors, _INPUT),
                attached=_group(tensors, _ATTACHED),
                note=header["note"],
            )
        except StateError:
            raise
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise StateError(
                f"this is not a stream's snapshot, or it is damaged ({type(error).__name__}); start the stream anew"
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> Snapshot:
        """Raises `StateError` if `path` can't be read or is not a snapshot."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise StateError(f"cannot read the snapshot {path}: {error.strerror}") from error

    def write(self, path: str | Path) -> None:
        """Writes to a temporary name, then renames it. Raises `ResourceError` if it cannot."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(self.to_bytes())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ResourceError(f"cannot write the snapshot {path}: {error.strerror}; check the disk's space and permissions") from error


def _digest(header: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """SHA-256 of all that a snapshot holds."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype}:{tensors[name].shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _group(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
