"""Temporary names beside a destination, and what killed runs left under them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


def partial_name(path: Path, ending: str = "part") -> Path:
    """The temporary name for `path`: beside it, so that renaming is atomic; hidden; of this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose process has ended: it was killed, else it would have removed them."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.(part|probe|old)")
    try:
        found = [(pattern.fullmatch(entry.name), entry) for entry in os.scandir(path.parent)]
    except OSError:
        return  # no such directory, or not to be listed: whoever writes there will say so
    for match, entry in found:
        if match is not None and not _is_running(int(match.group(1))):
            discard(Path(entry.path))


def discard(path: Path) -> None:
    """Remove a file or a directory tree, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard_tree(path: Path) -> None:
    """Remove the directory `path`, which vanishes from its name in one step, so that a kill leaves no half of it there."""
    hidden = partial_name(path, "old")
    discard(hidden)
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
