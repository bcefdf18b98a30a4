"""Snapshots: a stream's state, waiting input and counters as safetensors, bound to the bundle that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError

from wfvae.errors import StateError
from wfvae.runtime.backend import Array
from wfvae.streamspec import Direction

FORMAT = "wfvae-snapshot/1"
_STATE, _INPUT = "state.", "input."


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

    def to_bytes(self) -> bytes:
        """The snapshot as a safetensors file's content."""
        header = {
            "format": FORMAT,
            "bundle": self.bundle,
            "direction": self.direction,
            "size": f"{self.height}x{self.width}",
            "counters": json.dumps(dict(self.counters), sort_keys=True),
        }
        tensors = {_STATE + name: array for name, array in self.state.items()} | {_INPUT + name: array for name, array in self.waiting.items()}
        return safetensors.numpy.save(tensors, metadata=header)

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """Raises `StateError` if `data` is not a snapshot."""
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])["__metadata__"]
            tensors = safetensors.numpy.load(data)
            if header["format"] != FORMAT:
                raise StateError(f"the snapshot's format is {header['format']!r}; this version reads {FORMAT!r}")
            height, width = map(int, header["size"].split("x"))
            return cls(
                bundle=header["bundle"],
                direction=header["direction"],
                height=height,
                width=width,
                counters=json.loads(header["counters"]),
                state={name.removeprefix(_STATE): array for name, array in tensors.items() if name.startswith(_STATE)},
                waiting={name.removeprefix(_INPUT): array for name, array in tensors.items() if name.startswith(_INPUT)},
            )
        except StateError:
            raise
        except (SafetensorError, KeyError, ValueError, UnicodeDecodeError, AttributeError) as error:
            raise StateError(f"this is not a stream's snapshot, or it is damaged ({type(error).__name__}); start the stream anew") from error

    @classmethod
    def read(cls, path: str | Path) -> Snapshot:
        """Raises `StateError` if `path` can't be read or is not a snapshot."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise StateError(f"cannot read the snapshot {path}: {error.strerror}") from error

    def write(self, path: str | Path) -> None:
        """Writes to a temporary name, then renames it."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(self.to_bytes())
        temporary.replace(path)
