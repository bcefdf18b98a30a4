"""Writing files: a destination holds the whole new content or the whole old one, whatever happens.

Everything is first written under a temporary name beside its destination, forced to the disk, and
then renamed. `locked` keeps other processes away meanwhile.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wfvae.errors import BundleError, ResourceError, WFVAEError

Content = str | bytes | memoryview


def temporary_name(path: Path, ending: str = "part") -> Path:
    """Returns a hidden name beside `path`, so that renaming is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def partial_name(path: Path) -> Path:
    """Returns a hidden name beside `path` for work that a later process finds again."""
    return path.with_name(f".{path.name}.part")


def check_replaceable(folder: Path, kind: str, marker: str, overwrite: bool) -> None:
    """Raises `BundleError` unless `folder` is new, empty, or of this kind and may be replaced.

    A folder is of a kind if it has the file `marker`.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / marker).is_file():
        raise BundleError(f"{folder} exists and is not a {kind}; choose another name")
    if not overwrite:
        advice = "choose another name, or replace it with --overwrite"
        raise BundleError(f"the {kind} {folder} exists; {advice}")


def check_destination(
    path: Path, *, overwrite: bool, error: type[WFVAEError], is_folder: bool = False
) -> None:
    """Raises `error` or `ResourceError` if no file (or folder) can be created at `path`."""
    if path.exists() and not overwrite:
        raise error(f"'{path}' already exists; choose another name or allow overwriting")
    if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
        raise error(f"'{path}' exists and is not a {'folder' if is_folder else 'file'}; choose another name")
    if not path.parent.is_dir():
        raise error(f"the directory '{path.parent}' for '{path.name}' does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ResourceError(
            f"the directory '{path.parent}' is not writable; choose another destination or change its"
            " permissions"
        )


def write_whole(path: Path, content: Content | Iterable[Content]) -> None:
    """Writes a file atomically, and makes its folder. Text is UTF-8.

    Raises:
        ResourceError: the file cannot be written; what was there before is unchanged.
    """
    pieces = [content] if isinstance(content, (str, bytes, memoryview)) else content
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(piece.encode() if isinstance(piece, str) else piece for piece in pieces)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name for a new file or folder, which takes the place of `path` on success.

    On an exception the temporary file or folder is removed and `path` is unchanged.

    Raises:
        ResourceError: an `OSError` occurred inside, or in replacing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "settings.json"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> path.read_text()
        '{}'
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        yield temporary
        commit(temporary, path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with suppress(OSError):  # a read-only file system refuses even what does not exist
            discard(temporary)


def not_written(path: Path, error: OSError) -> ResourceError:
    """Returns the error for a file that cannot be written."""
    reason = error.strerror or error
    return ResourceError(f"cannot write {path}: {reason}; check the disk's space and permissions")


def commit(temporary: Path, path: Path) -> None:
    """Forces a file or a folder to the disk, and gives it the name `path` in one step.

    A folder replaces another one in two steps, since no file system does it in one. The old one
    comes back if the second step fails.
    """
    for entry in [*temporary.rglob("*"), temporary]:
        _sync(entry)
    former = temporary_name(path, "old")
    if temporary.is_dir() and path.is_dir():
        discard(former)
        os.replace(path, former)
    try:
        os.replace(temporary, path)
    except OSError:
        if former.exists():
            os.replace(former, path)
        raise
    discard(former)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # not every file system can sync a folder
            raise
    finally:
        os.close(descriptor)


def require_writable(path: Path) -> None:
    """Raises `ResourceError` if no file can be made beside `path`."""
    probe = temporary_name(path, "probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise not_written(path, error) from error


def prepare_folder(path: Path) -> None:
    """Makes a folder; raises `ResourceError` if it, or a file in it, cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error
    require_writable(path / "file")


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files of `path` whose processes were killed."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.(part|probe|old)")
    try:
        found = [(pattern.fullmatch(entry.name), entry) for entry in os.scandir(path.parent)]
    except OSError:
        return  # the folder does not exist or cannot be listed; whoever writes there reports it
    for match, entry in found:
        if match is not None and not _is_running(int(match.group(1))):
            discard(Path(entry.path))


def discard(path: Path) -> None:
    """Removes a file or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard_tree(path: Path) -> None:
    """Removes a folder, which vanishes from its name in one step even if a kill interrupts."""
    hidden = temporary_name(path, "old")
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


@contextmanager
def locked(path: Path, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path` for this process, until the process ends at the latest.

    Args:
        path: the lock file; it is made, and left there.
        busy: message of the error if another process or thread holds the lock.
        wait: seconds to wait for it.

    Raises:
        ResourceError: another process holds the lock, or the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait)
    with suppress(NotImplementedError):  # a file system without locks: nothing is held
        try:
            lock.acquire()
        except Timeout as error:
            raise ResourceError(busy) from error
        except OSError as error:
            raise not_written(path, error) from error
    try:
        yield
    finally:
        lock.release()
