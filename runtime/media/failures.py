"""Failures of PyAV and of the operating system, as errors that a user can act on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import av

from wfvae.errors import MediaError, ResourceError, WFVAEError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

Failure = (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError)


def reason(error: BaseException) -> str:
    """Returns the reason of `error` on one line, without the numbers and paths that FFmpeg adds."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def translate(error: BaseException, doing: str, kind: type[WFVAEError] = MediaError) -> WFVAEError:
    """Returns the error to raise for `error`. doing: what failed, as in "writing 'out.mp4'"."""
    if isinstance(error, WFVAEError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"out of memory while {doing}; use smaller chunks or a smaller size")
    why, number = reason(error), getattr(error, "errno", None)
    if number in NO_SPACE:
        advice = "free some space or choose another destination"
        return ResourceError(f"no space left while {doing} ({why}); {advice}")
    if number in NO_PERMISSION:
        return kind(f"not permitted while {doing} ({why}); check the permissions or choose another path")
    if number == errno.ENOENT:
        return kind(f"no such file or directory while {doing}; check the path")
    if number == errno.EPIPE:
        advice = "keep the reading program running until the end"
        return kind(f"the other end of the pipe was closed while {doing}; {advice}")
    return kind(f"failed while {doing}: {why}; check that path, format and settings fit together")


@contextmanager
def translated(doing: str, kind: type[WFVAEError] = MediaError) -> Iterator[None]:
    """Raises failures inside the block as `kind` or `ResourceError`, on one line each."""
    try:
        yield
    except Failure as error:
        raise translate(error, doing, kind) from error
