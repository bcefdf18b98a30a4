"""Files behind paths and URLs, through fsspec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, cast

from wfvae.errors import DataError, MissingExtraError
from wfvae.spec.bounded import Fail, open_regular


def open_filesystem(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a path or URL, and the path in it.

    Raises:
        DataError: the protocol is unknown, or its package is not installed.
        MissingExtraError: fsspec is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError("reading and writing data sets", "fsspec", "datasets") from error
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot open '{url}': {error}") from error
    return filesystem, path


def is_local(filesystem: Any) -> bool:
    """Whether a file system is this machine's."""
    protocol = filesystem.protocol
    return "file" in ([protocol] if isinstance(protocol, str) else protocol)


def open_located(filesystem: Any, path: str, fail: Fail, **options: Any) -> BinaryIO:
    """Opens a file for reading. A local one must be a regular file: a pipe would wait for ever.

    `options` are for the files of other file systems. Raises what `fail` makes.
    """
    if is_local(filesystem):
        return open_regular(Path(path), fail, buffering=-1)
    try:
        return cast(BinaryIO, filesystem.open(path, "rb", **options))
    except OSError as error:
        raise fail(error.strerror or str(error) or type(error).__name__) from error


def read_located(filesystem: Any, path: str, fail: Fail, most: int) -> bytes:
    """Reads a file of at most `most` bytes, as `open_located` opens it."""
    with open_located(filesystem, path, fail) as file:
        try:
            size = file.seek(0, os.SEEK_END)
            if size > most:
                raise fail(f"it has {size} bytes; expected at most {most}")
            file.seek(0)
            return file.read(size)
        except (OSError, MemoryError) as error:
            raise fail(str(error) or type(error).__name__) from error
