"""Finding the videos of a data set: a folder, a glob, a table, or WebDataset shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from wfvae.errors import DataError
from wfvae.runtime.dataset.tables import TABLES, json_columns, read_rows
from wfvae.spec.bounded import LARGEST_INTEGER
from wfvae.spec.locations import is_local, open_filesystem, open_located
from wfvae.spec.memory import MemoryMeter
from wfvae.spec.records import Record
from wfvae.spec.tar_members import read_member, read_members
from wfvae.video import VIDEO_SUFFIXES

PATH_COLUMN = "path"
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_INTEGER)]
_TEXT_COLUMNS = (".txt", ".cls", ".caption")
"""Members of a shard that are carried along as text, under their suffix."""
_COLUMN_BYTES = 1 << 20
_ENTRY_BYTES = 1 << 10
"""What a listed video takes, about."""
_SHOWN = 200
"""Characters of columns' names that an error shows."""


class Video(Record, frozen=True):
    """One video of the source."""

    name: str
    """Path or URL; of a shard's member, the shard's with the member's name behind it."""
    url: str
    """The file that holds it."""
    columns: dict[str, Any] = msgspec.field(default_factory=dict)
    """What the source says of it besides, such as a caption."""
    offset: Count = 0
    length: Count | None = None
    """Its bytes in `url`; None: all of them."""
    problem: str | None = None
    """Why it cannot be read, where its name says so."""


def find_videos(source: str, path_column: str = PATH_COLUMN) -> list[Video]:
    """Lists the videos of a source, in an order that does not depend on the machine.

    Args:
        source: a folder, a glob, a `.csv`, `.jsonl` or `.parquet` table with a column of paths, or
            `.tar` shards (also as a glob); a local path or a URL that fsspec knows. Relative paths
            in a table are relative to it.

    Raises:
        DataError: the source is missing, unreadable, or has no videos.
        ResourceError: its list does not fit the memory.
    """
    meter = MemoryMeter(f"the list of videos of '{source}'", "split it")
    filesystem, path = open_filesystem(source)
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if suffix in TABLES:
            videos = list(_table_videos(filesystem, path, suffix, path_column, meter))
        elif any(sign in path for sign in "*?["):
            videos = _listed(filesystem, sorted(filesystem.glob(path)), meter)
        elif filesystem.isdir(path):
            found = [p for p in sorted(filesystem.find(path)) if not _is_hidden(p[len(path) :])]
            videos = _listed(filesystem, found, meter)
        elif filesystem.exists(path):
            videos = _listed(filesystem, [path], meter)
        else:
            raise DataError(f"no such file or folder: '{source}'; check the path")
    except OSError as error:
        raise DataError(f"cannot read '{source}': {error}; check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the table '{source}' is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if not videos:
        endings = ", ".join(sorted(VIDEO_SUFFIXES))
        raise DataError(
            f"no videos in '{source}'; expected files ending in {endings}, or .tar shards of them"
        )
    return [_in_utf8(video) for video in videos]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _listed(filesystem: Any, paths: list[str], meter: MemoryMeter) -> list[Video]:
    videos: list[Video] = []
    for path in paths:
        suffix = PurePosixPath(path).suffix.lower()
        if suffix == ".tar":
            videos += _shard_videos(filesystem, path, meter)
        elif suffix in VIDEO_SUFFIXES:
            url = _url(filesystem, path)
            videos.append(Video(url, url))
    return videos


def _in_utf8(video: Video) -> Video:
    """Returns a video that plans and shards can name, which are UTF-8.

    A file with another name has a problem; a member of a shard can be read all the same.
    """
    name, url = escape_bytes(video.name), escape_bytes(video.url)
    if (name, url) == (video.name, video.url):
        return video
    problem = None if url == video.url else f"the name of '{name}' is not UTF-8; rename the file"
    return replace(video, name=name, url=url, problem=problem)


def escape_bytes(text: str) -> str:
    """Replaces what is not UTF-8 in the name of a file by backslashes and numbers."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _url(filesystem: Any, path: str) -> str:
    """Returns a path as the user would write it: plain for local files."""
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def _shard_videos(filesystem: Any, path: str, meter: MemoryMeter) -> Iterator[Video]:
    """Lists the videos of a WebDataset shard, without reading their bytes.

    A sample's other members become columns: `.json` objects key by key, text under its suffix.
    """

    def fail(problem: str) -> DataError:
        return DataError(f"cannot read '{path}': {problem}; check that it is a whole, uncompressed .tar file")

    url, columns = _url(filesystem, path), dict[str, dict[str, Any]]()
    members: list[tuple[str, str, int, int]] = []
    with open_located(filesystem, path, fail) as file:
        for member in read_members(file, fail):
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            key = f"{folder}/{stem}"
            suffix = f".{ending.rpartition('.')[2].lower()}"
            if suffix in VIDEO_SUFFIXES:
                meter.add(_ENTRY_BYTES + len(member.name))
                members.append((key, member.name, member.start, member.size))
            elif suffix == ".json" or suffix in _TEXT_COLUMNS:
                content = read_member(file, member, _COLUMN_BYTES, fail)
                meter.add(_ENTRY_BYTES + len(content))
                found = columns.setdefault(key, {})
                if suffix == ".json":
                    found.update(json_columns(content, f"{url}/{member.name}", meter))
                else:
                    found[suffix.lstrip(".")] = content.decode("utf-8", "replace")
    for key, name, offset, length in members:
        yield Video(f"{url}/{name}", url, columns.get(key, {}), offset, length)


def _table_videos(
    filesystem: Any, path: str, suffix: str, column: str, meter: MemoryMeter
) -> Iterator[Video]:
    base = PurePosixPath(path).parent
    for number, row in enumerate(read_rows(filesystem, path, suffix, meter), start=1):
        meter.add(_ENTRY_BYTES)
        value = row.pop(column, None)
        if not isinstance(value, str) or not value:
            known = ", ".join(row) or "none"
            problem = f"row {number} of '{path}' has no text in column {column!r}"
            raise DataError(
                f"{problem} (other columns: {known[:_SHOWN]}); name the column with --path-column"
            )
        if "://" not in value and not PurePosixPath(value).is_absolute():
            value = _url(filesystem, str(base / value))
        yield Video(value, value, row)
