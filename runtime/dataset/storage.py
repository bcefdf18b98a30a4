"""The folder of a data set's shards, local or behind a URL."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from wfvae.errors import DataError, ResourceError
from wfvae.files import locked, replacing
from wfvae.spec.locations import is_local, open_filesystem, read_located

_FILE_BYTES = 1 << 30
Write = Callable[[BinaryIO], None]


class HashedFile:
    """A file for writing in order, which counts and hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        """Writes all of `data`."""
        self._digest.update(data)
        self.count += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        """The hash of what was written."""
        return self._digest.hexdigest()


class ShardFolder:
    """A folder whose files appear whole or not at all.

    Local files are renamed into place. On other file systems a file is uploaded when it is
    complete, which object stores do in one step.
    """

    def __init__(self, url: str) -> None:
        """`url` is a path or what fsspec knows. Raises `DataError` if it is unknown."""
        self.url = url
        self._filesystem, self._root = open_filesystem(url)
        self.is_local = is_local(self._filesystem)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self._filesystem.isfile(self._path(name)))

    def size(self, name: str) -> int | None:
        """Returns a file's bytes, None if it does not exist."""
        try:
            return int(self._filesystem.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> list[str]:
        """Lists the names in a folder, sorted; empty if it does not exist."""
        try:
            # Another process may have added files since a listing was cached.
            self._filesystem.invalidate_cache()
            found = self._filesystem.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def read(self, name: str) -> bytes:
        """Reads a file of at most 1 GiB. Raises `DataError` if it cannot be read."""

        def fail(problem: str) -> DataError:
            return DataError(f"cannot read '{name}' in {self.url}: {problem}; choose another folder")

        return read_located(self._filesystem, self._path(name), fail, _FILE_BYTES)

    @contextmanager
    def writing(self, name: str) -> Iterator[HashedFile]:
        """Yields a file that takes its name when the block ends without an exception.

        Raises `ResourceError` if it cannot be written.
        """
        if self.is_local:
            with replacing(Path(self._path(name))) as temporary, temporary.open("wb") as file:
                yield HashedFile(file)
            return
        with tempfile.NamedTemporaryFile() as copy:
            yield HashedFile(cast(BinaryIO, copy))
            copy.flush()
            try:
                self._filesystem.put_file(copy.name, self._path(name))
            except OSError as error:
                raise ResourceError(f"cannot write '{name}' to {self.url}: {error}") from error

    def write(self, name: str, content: bytes) -> None:
        """Writes a file. Raises `ResourceError` if it cannot be written."""
        with self.writing(name) as file:
            file.write(content)

    def remove(self, folder: str) -> None:
        """Removes a folder and what is in it."""
        if self._filesystem.exists(self._path(folder)):
            self._filesystem.rm(self._path(folder), recursive=True)

    def prepare(self) -> None:
        """Makes the folder. Raises `ResourceError` if that fails."""
        try:
            self._filesystem.makedirs(self._root, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ResourceError(
                f"cannot make the folder '{self.url}': {reason}; choose another one"
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes of this machine from a local folder."""
        if not self.is_local:
            yield
            return
        busy = f"another process is writing to '{self.url}'; wait for it, or choose another folder"
        with locked(Path(self._root) / ".lock", busy):
            yield

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")


_SPOOLED_BYTES = 1 << 20


def spool() -> tempfile.SpooledTemporaryFile[bytes]:
    """Returns a temporary file that is on disk only if it is large."""
    return tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES)
