"""The index of a folder of videos: kept as JSON beside the run, updated when files change."""

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from wfvae.errors import DataError, ResourceError
from wfvae.files import write_whole
from wfvae.spec.bounded import parse_json, read_bytes, to_fraction
from wfvae.train.data.clip_source import BadClip
from wfvae.train.data.video_file import VideoFacts, probe
from wfvae.video import VIDEO_SUFFIXES

_FORMAT, _VERSION = "wfvae video index", 1
_SAVED_EVERY = 30.0
"""Seconds between two savings: the whole index is written each time."""
_THREADS = 8
"""Most of probing is waiting for a disk or a network, and FFmpeg works without Python's lock."""
_MOST_BYTES = 1 << 30
_QUEUED = 1024
"""Files that wait for the threads at most: folders may hold millions."""


@dataclass(frozen=True)
class IndexedFile:
    """One file of the folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    bytes: int
    mtime_ns: int
    facts: VideoFacts | None
    """None if the file is bad."""
    reason: str = ""
    """Why the file is bad."""


def index_folder(
    root: Path,
    index_path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    retry_bad: bool = True,
) -> list[IndexedFile]:
    """Returns every video file below `root`, sorted by path; only new and changed files are opened.

    The index is rewritten when something changed, now and then meanwhile, and when a scan is
    interrupted, which then continues where it was. Several processes may do this at once.

    Args:
        root: the folder; hidden files and folders are left out, links are followed.
        index_path: the JSON file, outside of `root`.
        progress: is given (files probed, files in all).
        retry_bad: open files again that were bad: a permission or a disk may be better today.
            False for the processes that must find the same files as the one that has just done it.

    Raises:
        DataError: root is no readable folder, or index_path lies in it.
        ResourceError: index_path cannot be written.
    """
    _check_places(root, index_path)
    known = _load(index_path, root)
    paths = sorted(_video_paths(root))
    files: dict[str, IndexedFile] = {}
    unsaved = False
    saved_at = time.monotonic()
    try:
        with closing(_entries(root, paths, known, retry_bad)) as entries:
            for entry in entries:
                files[entry.path] = entry
                unsaved |= entry != known.get(entry.path)
                if unsaved and time.monotonic() - saved_at >= _SAVED_EVERY:
                    _save(index_path, root, known | files)
                    unsaved, saved_at = False, time.monotonic()
                progress(len(files), len(paths))
    except BaseException:
        if unsaved:
            with suppress(ResourceError):  # of the two errors the first one counts
                _save(index_path, root, known | files)
        raise
    if unsaved or list(known) != paths:
        _save(index_path, root, files)
    return list(files.values())


def _entries(
    root: Path, paths: Sequence[str], known: dict[str, IndexedFile], retry_bad: bool
) -> Generator[IndexedFile]:
    """Yields the entries of the files in order, while the next ones are probed."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for start in range(0, len(paths), _QUEUED):
            part = paths[start : start + _QUEUED]
            yield from pool.map(lambda path: _entry(root, path, known.get(path), retry_bad), part)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_places(root: Path, index_path: Path) -> None:
    if not root.exists():
        raise DataError(f"no such folder of videos: '{root}'; check the path")
    if not root.is_dir():
        raise DataError(f"'{root}' is not a folder; expected a folder of videos")
    if index_path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"the index '{index_path}' would lie in the data folder '{root}', where nothing is written;"
            " choose a place outside"
        )


def _video_paths(root: Path) -> Iterator[str]:
    """Yields paths relative to root. Each folder is entered once, so that cycles of links end."""

    def stop(error: OSError) -> None:
        raise DataError(
            f"cannot read the folder '{error.filename}': {error.strerror}; check the permissions"
        ) from error

    entered: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=stop):
        place = os.path.realpath(folder)
        if place in entered:
            below.clear()
            continue
        entered.add(place)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield (Path(folder) / name).relative_to(root).as_posix()


def _entry(root: Path, path: str, known: IndexedFile | None, retry_bad: bool) -> IndexedFile:
    """Returns the known entry if the file has not changed, or probes the file."""
    try:
        status = (root / path).stat()
    except OSError as error:
        return IndexedFile(path, -1, -1, None, str(error.strerror))
    unchanged = known is not None and (known.bytes, known.mtime_ns) == (status.st_size, status.st_mtime_ns)
    if known is not None and unchanged and (known.facts is not None or not retry_bad):
        return known
    try:
        return IndexedFile(path, status.st_size, status.st_mtime_ns, probe(root / path, path))
    except BadClip as error:
        return IndexedFile(path, status.st_size, status.st_mtime_ns, None, error.reason)


def _load(index_path: Path, root: Path) -> dict[str, IndexedFile]:
    """Returns the kept index by path; empty if there is none for this folder that can be read."""
    try:
        data = parse_json(read_bytes(index_path, DataError, _MOST_BYTES), DataError, any_text=True)
        if (data["format"], data["version"], data["root"]) != (_FORMAT, _VERSION, str(root.resolve())):
            return {}
        return {file["path"]: _from_json(file) for file in data["files"]}
    except (ValueError, KeyError, TypeError):  # also a `DataError`
        return {}


def _save(index_path: Path, root: Path, files: dict[str, IndexedFile]) -> None:
    listed = [_to_json(file) for file in files.values()]
    data = {"format": _FORMAT, "version": _VERSION, "root": str(root.resolve()), "files": listed}
    write_whole(index_path, json.dumps(data, indent=1) + "\n")


def _to_json(file: IndexedFile) -> dict[str, Any]:
    facts = {"bad": file.reason} if file.facts is None else msgspec.to_builtins(file.facts, enc_hook=str)
    return {"path": file.path, "bytes": file.bytes, "mtime_ns": file.mtime_ns, **facts}


def _from_json(entry: dict[str, Any]) -> IndexedFile:
    def fraction(kind: type, text: str) -> Fraction:
        return to_fraction(text)

    bad = entry.get("bad")
    facts = msgspec.convert(entry, VideoFacts, dec_hook=fraction) if bad is None else None
    return IndexedFile(entry["path"], entry["bytes"], entry["mtime_ns"], facts, bad or "")
