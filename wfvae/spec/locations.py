"""Files behind paths and URLs, through fsspec."""

from __future__ import annotations

from typing import Any

from wfvae.errors import DataError, MissingExtraError


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
