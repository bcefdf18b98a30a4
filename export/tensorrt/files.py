"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from wfvae.errors import ResourceError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes to a temporary name beside `path`, then renames it. Raises `ResourceError` if it
    cannot; nothing is then left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}; check the disk's space and permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
