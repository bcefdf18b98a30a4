"""Sessions that bundles of equal files share."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any


class SessionCache:
    """At most `limit` sessions by the content of their files, the least recently used out first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[object, Any] = {}

    def get(self, files: Sequence[Path], settings: object, open_session: Callable[[], Any]) -> Any:
        """Returns the session of these files and settings; `open_session` makes a new one."""
        hashes = tuple(hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file())
        key = hashes, settings
        self._kept[key] = session = self._kept.pop(key, None) or open_session()
        if len(self._kept) > self._limit:
            del self._kept[next(iter(self._kept))]
        return session


_current: ContextVar[SessionCache | None] = ContextVar("session_cache", default=None)


@contextmanager
def shared_sessions(cache: SessionCache) -> Iterator[None]:
    """Makes bundles that are opened in the block take their CPU sessions from `cache`.

    For programs that open the same bundle many times: sessions hold no state of streams, and
    opening one takes longer than a short video.
    """
    token = _current.set(cache)
    try:
        yield
    finally:
        _current.reset(token)


def current_cache() -> SessionCache | None:
    """Returns the cache of the `shared_sessions` block that this code runs in, if any."""
    return _current.get()
