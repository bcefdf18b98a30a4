"""Snapshots: a stream's state, waiting input and counters as safetensors, bound to the bundle that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.numpy
from safetensors import SafetensorError

from wfvae.errors import StateError
from wfvae.runtime.backend import Array
from wfvae.streamspec import Direction

FORMAT = "wfvae-snapshot/1"
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
            prefix + name: array
            for prefix, group in ((_STATE, self.state), (_INPUT, self.waiting), (_ATTACHED, self.attached))
            for name, array in group.items()
        }
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
                state=_group(tensors, _STATE),
                waiting=_group(tensors, _INPUT),
                attached=_group(tensors, _ATTACHED),
                note=header["note"],
            )
        except StateError:
            raise
        except (SafetensorError, KeyError, ValueError, UnicodeDecodeError, AttributeError) as error:
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
        """Writes to a temporary name, then renames it."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(self.to_bytes())
        temporary.replace(path)


def _group(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
