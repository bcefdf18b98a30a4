"""What decides the content of shards, and whether a folder holds those of another job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from wfvae.errors import DataError, InputError
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import PartSize
from wfvae.runtime.dataset.shards import describe_latents
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.videos import Video
from wfvae.runtime.dataset.worker import WORK
from wfvae.spec.bounded import Fail, parse_object
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import Manifest
from wfvae.spec.records import Record, read_as

T = TypeVar("T")
SETTINGS = f"{WORK}/settings.json"
"""File of an unfinished data set. It is written when the plan is complete."""


class Settings(Record, frozen=True):
    """What decides the content of the shards. A run with others does not continue this one."""

    bundle: str
    """Its identity."""
    source: str
    videos: int
    source_sha256: str
    """Of the names and columns of all videos."""
    options: ClipOptions
    shard_size: str


def check_options(manifest: Manifest, options: ClipOptions) -> None:
    """Raises `InputError` if the bundle cannot make what is wanted."""
    if options.output == "moments" and manifest.latents != "moments":
        advice = "export another one with --output moments, or encode the mean"
        raise InputError(f"moments are wanted, but this bundle's encoder returns the mean; {advice}")
    fixed = manifest.size
    if fixed is not None and (options.size is None or padded_size(*options.size) != fixed):
        given = "the videos' sizes" if options.size is None else f"{options.size[0]}x{options.size[1]}"
        problem = f"this bundle was exported for {fixed[0]}x{fixed[1]} only, and {given} are to be encoded"
        raise InputError(f"{problem}; give --size {fixed[0]}x{fixed[1]}, or export another one")


def hash_videos(videos: Iterable[Video]) -> str:
    digest = hashlib.sha256()
    for video in videos:
        digest.update(msgspec.json.encode(video, enc_hook=str))
    return digest.hexdigest()


def _differences(stored: Settings, given: Settings) -> str:
    """Names what differs, with both values."""
    before, now = stored.to_dict(), given.to_dict()
    before |= before.pop("options")
    now |= now.pop("options")
    names = {"source_sha256": "list of videos", "shard_size": "shard size"}
    return ", ".join(
        names.get(key, key) + ("" if key == "source_sha256" else f" ({before[key]} before, now {now[key]})")
        for key in now
        if before[key] != now[key]
    )


def check_continuable(folder: ShardFolder, settings: Settings) -> None:
    """Raises `DataError` unless the folder is empty, or of an unfinished run of the same job."""
    if not folder.exists(SETTINGS):
        strangers = [name for name in folder.names() if not name.startswith(".")]
        if strangers:
            problem = f"'{folder.url}' holds '{strangers[0]}', which is not of a data set of latents"
            raise DataError(f"{problem}; choose another folder")
        return
    stored = read_record(folder, SETTINGS, Settings)
    check_same(folder, stored, settings)


def check_same(folder: ShardFolder, stored: Settings, settings: Settings) -> None:
    if different := _differences(stored, settings):
        problem = f"'{folder.url}' was begun with other settings: {different}"
        raise DataError(f"{problem}; use the same ones, or another folder")


def read_record(folder: ShardFolder, name: str, kind: type[T]) -> T:
    """Reads a JSON file. Raises `DataError` if it is damaged."""
    fail = _damaged(folder, name)
    return read_as(kind, parse_object(folder.read(name), fail), fail)


def read_records(folder: ShardFolder, name: str, kind: type[T]) -> list[T]:
    """Reads a file of JSON lines. Raises `DataError` if it is damaged."""
    fail = _damaged(folder, name)
    lines = folder.read(name).split(b"\n")
    return [read_as(kind, parse_object(line, fail), fail) for line in lines if line.strip()]


def _damaged(folder: ShardFolder, name: str) -> Fail:
    return lambda problem: DataError(
        f"'{name}' in '{folder.url}' is damaged: {problem}; choose another folder"
    )


def parse_shard_size(text: str) -> int:
    """Parses bytes with K, M or G for powers of 1024.

    >>> parse_shard_size("256M")
    268435456
    """
    units = {"K": 10, "M": 20, "G": 30}
    number, unit = text[:-1], text[-1:].upper()
    if unit in units and number.isdecimal() and int(number):
        return int(number) << units[unit]
    raise InputError(f"the shard size is {text!r}; expected a number of samples, or bytes such as 256M")


def part_size(manifest: Manifest, options: ClipOptions, shard_size: int | str | None) -> PartSize | None:
    """Returns the size of a part; None: by default."""
    if shard_size is None:
        return None
    if isinstance(shard_size, int):
        return PartSize(samples=shard_size)
    return PartSize(work=parse_shard_size(shard_size) // latent_bytes(manifest, options))


def latent_bytes(manifest: Manifest, options: ClipOptions) -> int:
    """Returns the bytes of one latent pixel."""
    latents = describe_latents(manifest, options)
    return int(latents["channels"]) * (2 if options.dtype == "fp16" else 4)
