"""Writing files: a destination holds the whole new content or the whole old one, whatever happens.

Everything is first written under a random hidden name beside its destination, forced to the disk,
and then renamed. A `Destination` is locked meanwhile: no other process writes there.
"""

import errno
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from wfvae.errors import BundleError, ResourceError, WFVAEError

Content = str | bytes | memoryview
WAIT_SECONDS = 60.0
"""How long a short write waits for another one of the same file."""
_TOKEN_BYTES = 8
LEFTOVER = rf"\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.(part|old|gone)"
"""Ending of the hidden names of unfinished work, after a dot and the destination's name."""


def followed(path: Path) -> Path:
    """Returns what `path` links to, or `path` itself if it is no link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


class Destination:
    """The place of a file or folder that this object alone may write, until it is released.

    Other processes and threads cannot open the same destination: a lock file beside it, which
    vanishes on release, is held. A link is followed, and stays. Work lies beside the destination
    under names that nobody can guess; what is not committed is removed on release. What killed
    processes left is removed first.

    Args:
        path: the file or folder; its parent must exist.
        wait: seconds to wait for another process.
        owner: a destination whose lock covers this one, too; then there is no lock of its own.

    Raises:
        ResourceError: another process writes there, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> with Destination(Path(tempfile.mkdtemp()) / "settings.json") as destination:
        ...     work = destination.create_file()
        ...     _ = work.write_text("{}")
        ...     destination.commit(work)
        >>> destination.path.read_text()
        '{}'
    """

    def __init__(self, path: Path, *, wait: float = 0.0, owner: Self | None = None) -> None:
        self.path = followed(path if path.name not in ("", "..") else path.resolve())
        self._owner = owner  # keeps the lock
        self._held: dict[Path, int | None] = {}
        """Unfinished work, with the descriptors of files."""
        lock = ExitStack()
        # An interrupt between here and the caller's `with` block must not leave anything behind.
        self._release = weakref.finalize(self, _let_go, self._held, lock, os.getpid())
        if owner is None:
            busy = f"another job is writing '{path}'; wait until it ends, or choose another name"
            lock_file = self.path.with_name(f".{self.path.name}.lock")
            holding = locked(lock_file, busy, wait, name=path, remove=True)
            if lock.enter_context(holding):
                self._restore()
                remove_leftovers(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Removes unfinished work and the lock. Safe to call twice."""
        self._release()

    def part(self, suffix: str = "") -> "Destination":
        """Returns `<name><suffix>` beside this destination, for work that a later process resumes.

        This destination's lock covers it. Without a suffix it is the same place again, for a writer
        that releases what it is given.

        Raises:
            ResourceError: it is a link, through which a foreign file would be changed.
        """
        path = self.path.with_name(self.path.name + suffix)
        if suffix and path.is_symlink():
            raise ResourceError(
                f"'{path}' is a link, and unfinished work of '{self.path}' belongs there; remove the link or"
                " choose another destination"
            )
        return type(self)(path, owner=self)

    def _restore(self) -> None:
        """Undoes the first step of a killed process' `commit` of a folder."""
        pattern = re.compile(rf"\.{re.escape(self.path.name)}{LEFTOVER}")
        with suppress(OSError):
            if not self.path.exists():
                for name in os.listdir(self.path.parent):
                    if name.endswith(".old") and pattern.fullmatch(name):
                        os.replace(self.path.with_name(name), self.path)

    def new_name(self, ending: str = "part") -> Path:
        """Returns a random hidden name beside the destination, for a file or a folder."""
        name = self.path.with_name(f".{self.path.name}.{secrets.token_hex(_TOKEN_BYTES)}.{ending}")
        self._held[name] = None
        return name

    def create_file(self) -> Path:
        """Makes an empty file of a new name. `commit` refuses another file in its place."""
        name = self.new_name()
        self._held[name] = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        return name

    def commit(self, work: Path, *, sync: bool = True) -> None:
        """Forces work to the disk, and gives it the destination's name in one step.

        A folder replaces another one in two steps, since no file system does it in one. The old one
        comes back if the second step fails, or when the destination is opened after a kill.

        Args:
            sync: False leaves it to the system when the disk is written.

        Raises:
            OSError: it cannot be renamed, or it is not what `create_file` made.
        """
        descriptor = self._held.get(work)
        if descriptor is not None and not os.path.samestat(os.fstat(descriptor), os.stat(work)):
            raise OSError(errno.ESTALE, "another program replaced the unfinished file", str(work))
        if sync:
            for entry in [*work.rglob("*"), work]:
                _sync(entry)
        former = self.new_name("old")
        if work.is_dir() and self.path.is_dir():
            os.replace(self.path, former)
        try:
            os.replace(work, self.path)
        except BaseException:
            if former.exists():
                os.replace(former, self.path)
            raise
        for name in (work, former):
            _drop(name, self._held.pop(name))
        if sync:
            _sync(self.path.parent)


def _let_go(held: dict[Path, int | None], lock: ExitStack, process: int) -> None:
    if os.getpid() != process:
        return  # a fork: the work is its parent's
    with lock:
        while held:
            with suppress(OSError):  # a read-only file system refuses even what does not exist
                _drop(*held.popitem())


def _drop(work: Path, descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
    discard(work)


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
    path = followed(path)
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


def claim(path: Path, check: Callable[[], None]) -> Destination:
    """Locks a destination; `check` raises if it must not be written.

    It is called before, so that what is wrong is reported first, and again with the lock, since
    another job may have ended between.
    """
    check()
    destination = Destination(path)
    try:
        check()
    except BaseException:
        destination.release()
        raise
    return destination


def write_whole(path: Path | Destination, content: Content | Iterable[Content]) -> None:
    """Writes a file atomically, and makes its folder. Text is UTF-8. Links are followed.

    Raises:
        ResourceError: the file cannot be written; what was there before is unchanged.
    """
    pieces = [content] if isinstance(content, (str, bytes, memoryview)) else content
    with replacing(path, wait=WAIT_SECONDS) as temporary, temporary.open("wb") as file:
        file.writelines(piece.encode() if isinstance(piece, str) else piece for piece in pieces)


@contextmanager
def replacing(path: Path | Destination, *, wait: float = 0.0) -> Iterator[Path]:
    """Yields a temporary name for a new file or folder, which takes the place of `path` on success.

    On an exception the temporary file or folder is removed and `path` is unchanged.

    Args:
        path: locked meanwhile, unless the caller holds a `Destination` of it.
        wait: seconds to wait for another process that writes there.

    Raises:
        ResourceError: an `OSError` occurred inside, or in replacing, or another process writes
            there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "settings.json"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> path.read_text()
        '{}'
    """
    place = path.path if isinstance(path, Destination) else path
    try:
        if isinstance(path, Path):
            followed(path).parent.mkdir(parents=True, exist_ok=True)
        with path.part() if isinstance(path, Destination) else Destination(path, wait=wait) as destination:
            temporary = destination.new_name()
            yield temporary
            destination.commit(temporary)
    except OSError as error:
        raise not_written(place, error) from error


def not_written(path: Path, error: OSError) -> ResourceError:
    """Returns the error for a file that cannot be written."""
    reason = error.strerror or error
    return ResourceError(f"cannot write {path}: {reason}; check the disk's space and permissions")


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
    try:
        with Destination(path, wait=WAIT_SECONDS) as destination:
            destination.create_file()
    except OSError as error:
        raise not_written(path, error) from error


def prepare_folder(path: Path) -> None:
    """Makes a folder; raises `ResourceError` if it, or a file in it, cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error
    require_writable(path / "file")


def remove_leftovers(destination: Destination, names: str | None = None) -> None:
    """Removes what killed processes left unfinished.

    Args:
        destination: locked, or covered by a lock.
        names: a regular expression for names of other destinations in its folder, which its lock
            covers, too.
    """
    folder = destination.path.parent
    pattern = re.compile(rf"\.({names or re.escape(destination.path.name)}){LEFTOVER}")
    try:
        found = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return  # the folder does not exist or cannot be listed; whoever writes there reports it
    for name in found:
        if pattern.fullmatch(name):
            discard(folder / name)


def discard(path: Path) -> None:
    """Removes a file or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_own(destination: Destination, is_own: Callable[[str], bool]) -> None:
    """Removes a folder of files that this program made, in one step even if a kill interrupts.

    Does nothing if there is none.

    Args:
        is_own: whether a file's path inside the folder, with forward slashes, is one of them.

    Raises:
        ResourceError: it holds something else, or links; nothing is removed then.
    """
    require_own(destination.path, is_own)
    hidden = destination.new_name("gone")
    with suppress(FileNotFoundError):
        os.replace(destination.path, hidden)
        shutil.rmtree(hidden)


def require_own(folder: Path, is_own: Callable[[str], bool]) -> None:
    """Raises `ResourceError` if a folder is a link, or holds a link or a file that is not ours.

    `is_own` as in `remove_own`. A folder that does not exist is in order.
    """
    links = [folder] if folder.is_symlink() else []
    foreign = []
    for place, folders, files in [] if links else os.walk(folder):
        entries = [Path(place) / name for name in [*folders, *files]]
        links += [entry for entry in entries if entry.is_symlink()]
        paths = (Path(place, name).relative_to(folder).as_posix() for name in files)
        foreign += [path for path in paths if not is_own(path)]
    if links:
        raise ResourceError(f"'{links[0]}' is a link, not what this job made; remove the link")
    if foreign:
        raise ResourceError(
            f"'{folder}' holds files that this job did not make ('{sorted(foreign)[0]}'); move them away or"
            " choose another destination"
        )


@contextmanager
def locked(
    path: Path, busy: str, wait: float = 0.0, *, name: Path | None = None, remove: bool = False
) -> Iterator[bool]:
    """Holds the lock file `path` for this process, until the process ends at the latest.

    Yields whether it is held: a file system may have no locks.

    Args:
        path: the lock file; it is made.
        busy: message of the error if another process or thread holds the lock.
        wait: seconds to wait for it.
        name: what an error says cannot be written, if not `path`.
        remove: remove the file afterwards. (A process that opened it before does not get the lock:
            the library checks that the file still has its name.)

    Raises:
        ResourceError: another process holds the lock, or the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait, thread_local=False)  # another thread may release it
    held = False
    with suppress(NotImplementedError):  # a file system without locks: nothing is held
        try:
            lock.acquire()
            held = True
        except Timeout as error:
            raise ResourceError(busy) from error
        except OSError as error:
            raise not_written(name or path, error) from error
    process = os.getpid()
    try:
        yield held
    finally:
        if held and remove and os.getpid() == process:  # not in a fork, which does not hold it
            with suppress(OSError):
                path.unlink()
        lock.release()
