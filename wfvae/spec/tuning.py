"""Chunk lengths that `wfvae bench --tune` chose, kept beside the manifest. Specified in
`docs/bundle-format.md`, Tuning.

They change how fast a stream runs, never what it gives, and so are no part of the bundle's
identity.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wfvae.errors import BundleError, InputError, ResourceError
from wfvae.files import remove_leftovers, temporary_name
from wfvae.machine import processor_count, processor_name
from wfvae.spec.stream import Direction

FORMAT = "wfvae-tuning/1"
TUNING_NAME = "tuning.json"
_SPEED_FACTS = ("name", "provider", "device", "compute_capability", "precision_hint", "tf32", "threads")
"""What of a backend's description its speed depends on. Versions are recorded, but a new one does
not outdate a choice.
"""


@dataclass(frozen=True)
class Setting:
    """Where a measurement holds."""

    backend: Mapping[str, str]
    """What of `Backend.describe()` speed depends on."""
    cpu: str
    """The processor's name."""
    cores: int
    """How many of its cores the program may use."""

    @classmethod
    def here(cls, described: Mapping[str, str]) -> Setting:
        """The setting of a backend on this machine."""
        return cls(
            {key: described[key] for key in _SPEED_FACTS if key in described},
            processor_name(),
            processor_count(),
        )

    def require_named_device(self) -> None:
        """Raises `InputError` where the backend does not tell its GPU by name: another GPU would
        take the choice for its own.
        """
        if self.backend.get("device", "").startswith("cuda:"):
            raise InputError(
                f"a chunk length cannot be stored for {self.backend['name']} on {self.backend['device']},"
                " which does not name the GPU; measure without --tune and give --chunk"
            )


@dataclass(frozen=True)
class TunedChunk:
    """A choice, and what it was made from."""

    direction: Direction
    height: int
    """Padded video height."""
    width: int
    """Padded video width."""
    setting: Setting
    chunk: int
    """Latents per step."""
    seconds_per_frame: Mapping[int, float]
    """By the latents per step that were measured."""
    version: str = ""
    """The backend's, when it was measured."""

    @property
    def place(self) -> tuple[Any, ...]:
        """What the choice is found by."""
        return self.direction, self.height, self.width, self.setting

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "seconds_per_frame": {str(chunk): seconds for chunk, seconds in self.seconds_per_frame.items()}
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TunedChunk:
        found = cls(
            direction=data["direction"],
            height=int(data["height"]),
            width=int(data["width"]),
            setting=Setting(
                dict(data["setting"]["backend"]), str(data["setting"]["cpu"]), int(data["setting"]["cores"])
            ),
            chunk=int(data["chunk"]),
            seconds_per_frame={
                int(chunk): float(seconds) for chunk, seconds in data["seconds_per_frame"].items()
            },
            version=str(data["version"]),
        )
        if found.chunk < 1:
            raise ValueError(f"chunk {found.chunk}")
        return found


@dataclass(frozen=True)
class Tuning:
    """All choices of a bundle."""

    bundle: str
    """The bundle's identity."""
    entries: tuple[TunedChunk, ...] = field(default=())

    def find(self, direction: Direction, height: int, width: int, setting: Setting) -> TunedChunk | None:
        """The choice for exactly this padded size and setting, if there is one."""
        return next(
            (entry for entry in self.entries if entry.place == (direction, height, width, setting)), None
        )

    def with_entries(self, *entries: TunedChunk) -> Tuning:
        """With these choices in place of earlier ones for the same."""
        places = [entry.place for entry in entries]
        return Tuning(
            self.bundle, (*(entry for entry in self.entries if entry.place not in places), *entries)
        )

    @classmethod
    def read(cls, folder: Path, bundle: str) -> Tuning:
        """The choices stored in a bundle's folder; none if they were made for another bundle.

        Raises `BundleError` if the file is damaged.
        """
        path = folder / TUNING_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(bundle)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        try:
            if data["format"] != FORMAT or data["bundle"] != bundle:
                return cls(bundle)
            if data["sha256"] != _sha256(data):
                raise ValueError("its SHA-256 differs")
            return cls(bundle, tuple(TunedChunk.from_dict(entry) for entry in data["entries"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error) from error

    @staticmethod
    def require_writable(folder: Path) -> None:
        """Raises `ResourceError` if choices cannot be stored in a bundle's folder, which is better
        known before measuring than after.
        """
        path = folder / TUNING_NAME
        probe = temporary_name(path, "probe")
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _not_written(path, error) from error

    def write(self, folder: Path) -> None:
        """Writes the file under a temporary name, then renames it. Raises `ResourceError` if the
        folder cannot be written.
        """
        path = folder / TUNING_NAME
        data: dict[str, Any] = {
            "format": FORMAT,
            "bundle": self.bundle,
            "entries": [entry.to_dict() for entry in self.entries],
        }
        temporary = temporary_name(path)
        try:
            remove_leftovers(path)
            temporary.write_text(
                json.dumps({**data, "sha256": _sha256(data)}, indent=1) + "\n", encoding="utf-8"
            )
            temporary.replace(path)
        except OSError as error:
            raise _not_written(path, error) from error
        finally:
            with contextlib.suppress(OSError):  # a read-only file system refuses even what is not there
                temporary.unlink(missing_ok=True)


def _sha256(data: Mapping[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _not_written(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write {path}: {error.strerror or error}; the chunk lengths were not stored; "
        "make the bundle's folder writable, or measure without --tune and give --chunk"
    )


def _damaged(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"{path} is damaged ({error}); remove it, and measure again with: wfvae bench {path.parent} --tune"
    )
