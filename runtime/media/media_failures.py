"""What PyAV and the operating system raise, as errors a user can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import av

from wfvae.errors import MediaError, ResourceError, WFVAEError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

Failure = (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError)


def reason(error: BaseException) -> str:
    """The one-line reason in `error`, without numbers and paths that FFmpeg adds."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def describe(error: BaseException, doing: str) -> WFVAEError:
    """The error to raise instead of `error`, which came up while `doing` (such as "writing
    'out.mp4'").
    """
    if isinstance(error, WFVAEError):
        return error
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        return ResourceError(f"out of memory while {doing}; use smaller chunks or a smaller size")
    if number in NO_SPACE:
        return ResourceError(
            f"no space left while {doing} ({reason(error)}); free some space or choose another destination"
        )
    if number in NO_PERMISSION:
        return MediaError(
            f"not permitted while {doing} ({reason(error)}); check the permissions or choose another path"
        )
    if number == errno.ENOENT:
        return MediaError(f"no such file or directory while {doing}; check the path")
    if number == errno.EPIPE:
        return MediaError(
            f"the other end of the pipe was closed while {doing}; keep the reading program running until"
            " the end"
        )
    return MediaError(
        f"failed while {doing}: {reason(error)}; check that path, format and settings fit together"
    )


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Raise failures of PyAV and the operating system inside the block as `MediaError` or
    `ResourceError`, one line each.
    """
    try:
        yield
    except Failure as error:
        raise describe(error, doing) from error
