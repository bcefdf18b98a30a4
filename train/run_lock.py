"""One run, one writer: two processes that train in the same directory would take each other's
checkpoints away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wfvae.errors import TrainingError

_LOCK = ".lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds a run's directory for this process. The lock ends with the process, however that ends.

    On systems without `fcntl` (Windows) and file systems that know no locks nothing is held.

    Raises:
        TrainingError: another process holds it, or nothing can be written there.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    try:
        opened = (run / _LOCK).open("a")
    except OSError as error:
        raise TrainingError(
            f"cannot write the run directory {run}: {error.strerror}; choose another --out"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"another process trains in {run}; wait for it or stop it, or choose another --out"
            ) from error
        except OSError:
            pass
        yield
