"""Chunk lengths that `wfvae bench --tune` chose, kept beside the manifest.

Specified in `docs/bundle-format.md`, section Tuning. They change the speed of a stream, never its
results, and so are no part of the bundle's identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import force_setattr, replace

from wfvae.errors import BundleError, InputError, ResourceError
from wfvae.files import locked, require_writable, write_whole
from wfvae.machine import processor_count, processor_name
from wfvae.spec.bounded import read_json
from wfvae.spec.manifest import LOCK_NAME, json_sha256
from wfvae.spec.records import Record, read_unchanged
from wfvae.spec.stream import Direction, Size

FORMAT = "wfvae-tuning/1"
TUNING_NAME = "tuning.json"
_SPEED_FACTS = ("name", "provider", "device", "compute_capability", "precision_hint", "tf32", "threads")
"""What of a backend's description its speed depends on: a new version outdates no choice."""


class Setting(Record, frozen=True):
    """Where a measurement holds."""

    backend: Mapping[str, str]
    """The part of `Backend.describe()` that speed depends on."""
    cpu: str
    cores: Size
    """How many of its cores the program may use."""

    @classmethod
    def here(cls, described: Mapping[str, str]) -> Setting:
        """Returns the setting of a backend on this machine."""
        facts = {key: described[key] for key in _SPEED_FACTS if key in described}
        return cls(facts, processor_name(), processor_count())

    def require_named_device(self) -> None:
        """Raises `InputError` if the backend does not name its GPU: another one could match."""
        if self.backend.get("device", "").startswith("cuda:"):
            where = f"{self.backend['name']} on {self.backend['device']}, which does not name the GPU"
            advice = "measure without --tune and give --chunk"
            raise InputError(f"a chunk length cannot be stored for {where}; {advice}")


class TunedChunk(Record, frozen=True):
    """A choice, and the measurements it was made from."""

    direction: Direction
    height: Size
    """Padded video height."""
    width: Size
    setting: Setting
    chunk: Size
    seconds_per_frame: Mapping[int, Annotated[float, Meta(ge=0)]]
    """By the latents per step that were measured."""
    version: str = ""
    """The backend's, when it was measured."""

    @property
    def place(self) -> tuple[Any, ...]:
        """What the choice is found by."""
        return self.direction, self.height, self.width, self.setting


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except ResourceError as error:
        advice = "the chunk lengths were not stored; measure without --tune, and give --chunk"
        raise ResourceError(f"{error}; {advice}") from error


class Tuning(Record, frozen=True, kw_only=True):
    """All choices of a bundle: the content of `tuning.json`."""

    format: str = FORMAT
    bundle: str
    entries: tuple[TunedChunk, ...] = ()
    sha256: str = ""
    """Hash of the rest, computed here."""

    def __post_init__(self) -> None:
        content = self.to_dict()
        del content["sha256"]
        force_setattr(self, "sha256", json_sha256(content))

    def find(self, direction: Direction, height: int, width: int, setting: Setting) -> TunedChunk | None:
        """Returns the choice for exactly this padded size and setting, if there is one."""
        place = (direction, height, width, setting)
        return next((entry for entry in self.entries if entry.place == place), None)

    @classmethod
    def read(cls, folder: Path, bundle: str) -> Tuning:
        """Reads a folder's choices; none if they were made for another bundle."""
        path = folder / TUNING_NAME

        def damaged(problem: str) -> BundleError:
            advice = f"remove it, and measure again with: wfvae bench {folder} --tune"
            return BundleError(f"{path} is damaged ({problem}); {advice}")

        if not path.exists():
            return cls(bundle=bundle)
        data = read_json(path, damaged)
        if (data.get("format"), data.get("bundle")) != (FORMAT, bundle):
            return cls(bundle=bundle)
        return read_unchanged(cls, data, damaged)

    @classmethod
    @_storing()
    def store(cls, folder: Path, bundle: str, *entries: TunedChunk) -> Tuning:
        """Writes choices in place of earlier ones for the same, and returns all of the bundle."""
        places = [entry.place for entry in entries]
        with locked(folder / LOCK_NAME, f"another process is changing {folder}; try again", wait=60):
            try:
                stored = cls.read(folder, bundle)
            except BundleError:  # damaged: nothing in it can be kept
                stored = cls(bundle=bundle)
            others = [entry for entry in stored.entries if entry.place not in places]
            changed = replace(stored, entries=(*others, *entries))
            write_whole(folder / TUNING_NAME, json.dumps(changed.to_dict(), indent=1) + "\n")
        return changed

    @staticmethod
    @_storing()
    def require_writable(folder: Path) -> None:
        """Raises `ResourceError` if choices cannot be stored."""
        require_writable(folder / TUNING_NAME)
