"""Closing what another thread may be using."""

from __future__ import annotations

import threading
from collections.abc import Callable

CLOSE_SECONDS = 5.0
"""How long closing waits for the frame that another thread reads or writes."""


def close_when_free(lock: threading.Lock, close: Callable[[], None], seconds: float = CLOSE_SECONDS) -> None:
    """Calls `close` with `lock` held, unless the lock stays taken for `seconds`.

    A reader or writer holds its lock while it works on a frame, because FFmpeg crashes the process
    if it is closed meanwhile. If the lock stays taken, a thread waits for a silent or full pipe;
    what it uses is then left open until the process ends.
    """
    if lock.acquire(timeout=seconds):
        try:
            close()
        finally:
            lock.release()
